"""Whether a run may be resumed in a folder, or from a checkpoint: same recipe, same data, same prior, by content."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ld3m.errors import UserError
from ld3m.files import remove_temporary, write_bytes, write_folder, write_text
from ld3m.machine import lock
from ld3m.recipe import Recipe
from ld3m.recipe.files import deciding, digest, digest_with_paths, to_yaml
from ld3m.runs import checkpoints, folder, manifests, sources
from ld3m.runs.result import NEW_IMAGES
from ld3m.runs.sources import Sources

RESULTS = (
    "latents.safetensors", "classes.json", "metrics.jsonl", "grid.png", "real.png", "evolution.gif", "evaluation.json",
    "prior.json", "data.json", "report.html", folder.SAMPLING,
)  # fmt: skip
"""Files of a run folder that a new run replaces."""
FOLDERS = (
    "checkpoints",
    "images",
    NEW_IMAGES,
    "evaluating",
    "evolution",
    "logs",
    folder.SAMPLING_PARTS,
    folder.STATISTICS,
)
"""Folders that it replaces."""
REPLACE = "give another --output, or --no-resume to replace it"


@contextmanager
def claim(recipe: Recipe, made_from: Sources, resume: bool = True, start: Path | None = None) -> Iterator[None]:
    """Claims the recipe's folder for its run, and keeps other commands out until the context ends; on one process.

    Args:
        made_from: notes on its prior and data, which the folder keeps.
        resume: whether an unfinished run in the folder resumes, or is removed.
        start: a run's folder, or one of its checkpoints, to resume from, in that run's folder or in another.

    Raises:
        UserError: if the folder, or `start`, holds a run of another recipe, of other data or of another prior, or
            something that is not a run, or if another process is at work in the folder.
    """
    run = recipe.folder
    beginning = _starting_point(start, recipe, made_from) if start else None
    with lock.claim(run, mark="recipe.yaml", kind="a run"):
        remove_temporary(run)
        if not resume and folder.is_run(run):
            _remove(run)
        elif _has_begun(run):
            check_resumable(recipe)
            sources.check(recipe, made_from, *sources.read(run), run, REPLACE)
        if beginning:
            _take_over(*beginning, run)
        write_text(run / "recipe.yaml", to_yaml(recipe))
        sources.write(run, made_from)
        yield


def check_resumable(recipe: Recipe) -> None:
    """Checks that the recipe's folder is empty, or a run that the recipe resumes; data and prior are not looked at.

    Raises:
        UserError: if it holds another recipe's run, one of more iterations, or something else.
    """
    run = recipe.folder
    if not _has_begun(run):
        lock.check_kind(run, "recipe.yaml", "a run")
        return
    try:
        keys = differences(run, recipe)
    except UserError as error:
        raise UserError(f"output: the run in {run} cannot be resumed ({error.lines[0]}); {REPLACE}") from None
    if keys:
        raise UserError(f"output: {run} holds a run of another recipe ({', '.join(keys)} differ); {REPLACE}")
    if (done := folder.iterations_saved(run) or 0) > recipe.distill.iterations:
        raise UserError(
            f"distill.iterations: {recipe.distill.iterations}, but {run} already has {done}; "
            "give more to resume it, or --no-resume to replace it"
        )


def _has_begun(run: Path) -> bool:
    """Whether a folder has anything of a run that could be lost; one that failed at its start has not."""
    made = (run / name for name in ("latents.safetensors", "images", "metrics.jsonl", folder.SAMPLING_PARTS))
    return folder.is_run(run) and (any(path.exists() for path in made) or bool(folder.checkpoint_folders(run)))


def nothing_left(recipe: Recipe) -> str | None:
    """What to say if the recipe's folder holds its finished run, so that nothing is written; None if work is left.

    Raises:
        UserError: if the folder holds a run that the recipe does not resume.
    """
    run = recipe.folder
    check_resumable(recipe)
    if not folder.is_run(run) or not folder.has_result(run):
        return None
    done = folder.metadata(run)
    each = recipe.distill.images_per_class
    missing = [name for name in done.classes if len(folder.image_paths(run, name)) < each]
    if done.iteration == recipe.distill.iterations and not missing:
        before, now = (flat(each.model_dump(mode="json")) for each in (folder.load_recipe(run), recipe))
        keys = [key for key in now if now[key] != before.get(key) and key not in ("output", "prior.compile")]
        ignored = f" (ignored, as nothing is written: {', '.join(keys)})" if keys else ""
        return f"{run} is finished{ignored}; raise distill.iterations to resume, or give --no-resume to replace it"
    if missing:
        print(f"{run / 'images' / missing[0]}: images are missing; all are rendered again")
    if not folder.checkpoint_folders(run):
        raise UserError(f"output: {run} has no checkpoints any more, from which it could be resumed; {REPLACE}")
    return None


def differences(run: Path, recipe: Recipe) -> list[str]:
    """Keys in which a run's recipe differs from this one, if they decide the result.

    Where data and prior are does not matter if the run has notes on their content. An older run has none on its data:
    then `data.source` must be the same.

    Raises:
        UserError: if the run's recipe.yaml cannot be read.
    """
    theirs = folder.load_recipe(run)
    before, now = flat(deciding(theirs)), flat(deciding(recipe))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    prior, data = sources.read(run)
    if data is None and theirs.data.source != recipe.data.source:
        keys.append("data.source")
    if data is None and theirs.data.scorer.source != recipe.data.scorer.source:
        keys.append("data.scorer.source")
    if prior is None and theirs.prior.source != recipe.prior.source:
        keys.append("prior.source")
    return keys


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dictionary by dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in flat(part, f"{prefix}.{name}".strip(".")).items()
    }


def _remove(run: Path) -> None:
    """Removes what a run left in its folder; files that it did not write stay."""
    for name in FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    for name in RESULTS:
        (run / name).unlink(missing_ok=True)


# --- another checkpoint ------------------------------------------------------------------------------------


def _starting_point(start: Path, recipe: Recipe, made_from: Sources) -> tuple[Path, int]:
    """The checkpoint that `--resume PATH` means, known to be whole and of the same run, and its iteration."""
    if (start / "manifest.json").is_file():
        checkpoint = start.resolve()
    elif newest := manifests.newest(start.resolve(), print):
        checkpoint = newest
    else:
        raise UserError(f"--resume: {start} is no checkpoint and no run with one; give a run's folder")
    manifest = manifests.check(checkpoint, "give --resume another checkpoint, or the run's folder")
    origin = checkpoint.parent.parent
    if folder.is_run(origin):
        keys = differences(origin, recipe)
        prior, data = sources.read(origin)
    else:  # copied without its run
        keys = [] if manifest.recipe in (digest(recipe), digest_with_paths(recipe)) else ["digests"]
        prior, data = None, None
    instead = "give what that run was made from"
    if keys:
        raise UserError(f"--resume: {start} is of another recipe ({', '.join(keys)} differ); give that run's recipe")
    sources.check(recipe, made_from, prior, data, origin, instead)
    _check_digests(start, manifest, made_from)
    if (done := manifest.iteration) > recipe.distill.iterations:
        raise UserError(f"distill.iterations: {recipe.distill.iterations}, but {start} already has {done}; give more")
    if not _is_in(recipe.folder, checkpoint) and _has_begun(recipe.folder):
        raise UserError(f"output: {recipe.folder} holds a run already; to resume {start} give another --output")
    return checkpoint, done


def _check_digests(start: Path, manifest: manifests.Manifest, made_from: Sources) -> None:
    """Compares data and prior with what a checkpoint notes of them; older ones note nothing."""
    now = sources.digests(made_from.prior, made_from.data)
    for name, source in (("prior", made_from.prior["source"]), ("data", made_from.data["source"])):
        before = getattr(manifest, name)
        if name == "data" and manifest.sha256 is None:
            continue  # of an older version, which noted less of the data
        if before and before != now[name]:
            raise UserError(f"{name}.source: {source} is not what {start} was made from; give the run's own {name}")


def _is_in(run: Path, checkpoint: Path) -> bool:
    """Whether a checkpoint is one of a run's own."""
    return checkpoint.parent == run.resolve() / "checkpoints" and folder.is_number(checkpoint.name)


def _take_over(checkpoint: Path, iteration: int, run: Path) -> None:
    """Makes a checkpoint the newest of a run's folder, and copies it there if it is another run's."""
    origin = checkpoint.parent.parent
    if _is_in(run, checkpoint):
        for later in (run / "checkpoints").iterdir():  # incomplete ones too
            if folder.is_number(later.name) and int(later.name) > int(checkpoint.name):
                shutil.rmtree(later)
        (run / "latents.safetensors").unlink(missing_ok=True)  # of a later iteration, or of this one, made again
        return
    if (origin / "metrics.jsonl").is_file():
        write_bytes(run / "metrics.jsonl", (origin / "metrics.jsonl").read_bytes())

    def copy(target: Path) -> None:
        for file in checkpoint.iterdir():
            shutil.copyfile(file, target / file.name)

    write_folder(checkpoints.path_of(run, iteration), copy)
