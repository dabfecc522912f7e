"""The run folder: what is in it, how it is written so that nothing is lost, and how it is read back."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import yaml
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from ld3m.errors import UserError, user_error_if_damaged
from ld3m.files import append_line, writable, write_bytes, write_folder, write_json, write_tensors, write_text
from ld3m.images.grids import to_image
from ld3m.machine import lock
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, load, to_yaml
from ld3m.runs import checkpoints

RESULTS = (
    "latents.safetensors", "classes.json", "metrics.jsonl", "grid.png", "evolution.gif", "evaluation.json",
    "prior.json", "report.html",
)  # fmt: skip
"""Files of a run folder that a new run replaces."""
IMPORTED = Path("imported")
"""Where sets of others are put, in the layout of a run, in the working folder."""
EXACT_PIXELS = "pixels.safetensors"
"""Float images of a set that PNGs would round, in the order of the PNGs."""
NEW_IMAGES = ".images"
"""Where the processes of a run write its images, until all are there."""


@contextmanager
def claim(recipe: Recipe, resume: bool, start: Path | None = None) -> Iterator[None]:
    """Makes the recipe's folder this run's, and keeps other commands out of it until it is left; for one process.

    Args:
        recipe: of the run.
        resume: whether an unfinished run in the folder goes on, or is removed.
        start: a run's folder, or one of its checkpoints, to go on from, in that run's folder or in another.

    Raises:
        UserError: where the folder holds another recipe's run, or something that is not a run, or `start` does, or
            where another process is at work in it.
    """
    folder = recipe.folder
    checkpoint = _starting_point(start, recipe) if start else None
    writable(folder, "give another --output")
    foreign = any(path.name != lock.LOCK for path in folder.iterdir()) and not (folder / "recipe.yaml").is_file()
    if foreign:
        raise UserError(f"output: {folder} is not empty and not a run; give another folder with --output")
    with lock.hold(folder):
        _make_ready(recipe, resume, checkpoint)
        yield


def _make_ready(recipe: Recipe, resume: bool, checkpoint: Path | None) -> None:
    """Removes the run that is in the recipe's folder, or sees that it is of this recipe; takes a checkpoint over."""
    folder = recipe.folder
    if (folder / "recipe.yaml").is_file():
        if not resume:
            for name in ("checkpoints", "images", NEW_IMAGES, "evaluating", "evolution", "logs"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in RESULTS:
                (folder / name).unlink(missing_ok=True)
        else:
            check_goes_on(recipe)
    if checkpoint:
        _take_over(checkpoint, folder)
    write_text(folder / "recipe.yaml", to_yaml(recipe))


def check_goes_on(recipe: Recipe) -> None:
    """That a run of the recipe may begin in its folder, or go on with what is there.

    Raises:
        UserError: where the folder holds another recipe's run, or one of more iterations.
    """
    folder = recipe.folder
    if not (folder / "recipe.yaml").is_file():
        return
    if keys := _differences(folder / "recipe.yaml", recipe):
        raise UserError(
            f"output: {folder} holds a run of another recipe ({', '.join(keys)} differ); "
            "give another --output, or --no-resume to replace it"
        )
    if (done := checkpoints.saved(folder)) > recipe.distill.iterations:
        raise UserError(
            f"distill.iterations: {recipe.distill.iterations}, but {folder} already has {done}; "
            "give more to go on, or --no-resume to start anew"
        )


def _starting_point(start: Path, recipe: Recipe) -> Path:
    """The checkpoint that a path given to go on from means."""
    if (start / "manifest.json").is_file():
        checkpoint = start.resolve()
        if bad := checkpoints.damage(checkpoint):
            raise UserError(f"--resume: {bad} is damaged; give another checkpoint, or the run's folder")
    elif newest := checkpoints.newest(start.resolve(), print):
        checkpoint = newest
    else:
        raise UserError(f"--resume: {start} is no checkpoint and no run with one; give a run's folder")
    manifest, theirs = checkpoints.manifest(checkpoint), checkpoint.parent.parent / "recipe.yaml"
    if theirs.is_file():
        keys = _differences(theirs, recipe)
    else:  # copied without its run
        keys = [] if manifest["recipe"] == digest(recipe) else ["digests"]
    if keys:
        raise UserError(f"--resume: {start} is of another recipe ({', '.join(keys)} differ); give that run's recipe")
    if (done := manifest["iteration"]) > recipe.distill.iterations:
        raise UserError(f"distill.iterations: {recipe.distill.iterations}, but {start} already has {done}; give more")
    if not _is_in(recipe.folder, checkpoint) and (recipe.folder / "recipe.yaml").is_file():
        raise UserError(f"output: {recipe.folder} holds a run already; to go on from {start} give another --output")
    return checkpoint


def _is_in(folder: Path, checkpoint: Path) -> bool:
    """Whether a checkpoint is one of a run's own."""
    return checkpoint.parent == folder.resolve() / "checkpoints"


def _take_over(checkpoint: Path, folder: Path) -> None:
    """Makes a checkpoint the newest of a run's folder, which it is copied to where it is another run's."""
    origin = checkpoint.parent.parent
    if _is_in(folder, checkpoint):
        for later in (folder / "checkpoints").iterdir():
            if later.name > checkpoint.name:
                shutil.rmtree(later)
        (folder / "latents.safetensors").unlink(missing_ok=True)  # of a later iteration, or this one's, made again
        return
    for name in ("metrics.jsonl", "prior.json"):
        if (origin / name).is_file():
            write_bytes(folder / name, (origin / name).read_bytes())

    def copy(target: Path) -> None:
        for file in checkpoint.iterdir():
            shutil.copyfile(file, target / file.name)

    write_folder(checkpoints.place(folder, checkpoints.manifest(checkpoint)["iteration"]), copy)


def note_prior(recipe: Recipe, provenance: dict[str, Any]) -> None:
    """Keeps where the prior is from, as `prior.json`.

    Raises:
        UserError: where the run was begun with other weights.
    """
    path = recipe.folder / "prior.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["sha256"] != provenance["sha256"]:
        raise UserError(
            f"prior.source: {provenance['source']} has other weights than when the run in {recipe.folder} began; "
            "give another --output, or --no-resume to replace it"
        )
    write_json(path, provenance)


def _differences(path: Path, recipe: Recipe) -> list[str]:
    """Keys in which the folder's recipe differs from this one, if that changes the result."""
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        if digest(Recipe.model_validate(old)) == digest(recipe):
            return []
    except ValidationError:
        pass
    except (yaml.YAMLError, ValueError):
        old = {}
    before, after = _flat(old), _flat(recipe.model_dump(mode="json"))
    return [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in _flat(part, f"{prefix}.{name}".strip(".")).items()
    }


# --- metrics -----------------------------------------------------------------------------------------------


def cut_metrics(folder: Path, iteration: int) -> None:
    """Drops the lines of iterations that will be done again."""
    path = folder / "metrics.jsonl"
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["iteration"] < iteration]
        write_text(path, "".join(f"{line}\n" for line in kept))


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Adds one JSON line."""
    append_line(folder / "metrics.jsonl", json.dumps(row))


# --- results -----------------------------------------------------------------------------------------------


def begin_images(folder: Path) -> None:
    """Removes what a process that was killed has left of the images; call it on one process before `write_images`."""
    shutil.rmtree(folder / NEW_IMAGES, ignore_errors=True)


def write_images(folder: Path, name: str, pixels: Tensor) -> None:
    """Writes the images of one class, uint8 [n, channels, H, W], where `write_result` looks for them."""

    def fill(target: Path) -> None:
        for index, image in enumerate(pixels):
            to_image(image).save(target / f"{index}.png")

    write_folder(folder / NEW_IMAGES / name, fill)


def place_images(folder: Path) -> None:
    """Puts the images that all processes have written in the place of those before, whose accuracies go with them."""
    (folder / "evaluation.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)
    (folder / NEW_IMAGES).rename(folder / "images")


def write_result(
    recipe: Recipe,
    classes: Mapping[str, int],
    states: Sequence[dict[str, Tensor]],
    noise_iteration: int,
    learnt: dict[str, float],
) -> None:
    """Puts the images of all classes in their place, then the latents, whose presence says that the run is finished.

    Args:
        recipe: of the run.
        classes: the place of each, by name, among all classes of the source.
        states: of each class, as its checkpoint holds them.
        noise_iteration: keys the noise of the rendered images.
        learnt: numbers that the objective learnt beside the latents.
    """
    folder = recipe.folder
    (folder / "latents.safetensors").unlink(missing_ok=True)  # what goes with the images always agrees with them
    place_images(folder)
    metadata = {
        "format": checkpoints.FORMAT,
        "iteration": str(recipe.distill.iterations),
        "recipe": digest(recipe),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "class_ids": json.dumps(list(classes.values())),
        "noise": recipe.prior.noise,
        "noise_iteration": str(noise_iteration),
        "seed": str(recipe.seed),
        "learnt": json.dumps(learnt),
        "versions": json.dumps({name: version(name) for name in ("ld3m", "torch", "diffusers", "accelerate")}),
    }
    z, c = (torch.cat([state[name] for state in states]).float() for name in ("z", "c"))
    labels = torch.arange(len(classes)).repeat_interleave(recipe.distill.latents_per_class)
    write_tensors(folder / "latents.safetensors", {"z": z, "c": c, "labels": labels}, metadata)


def iterations_done(folder: Path) -> int | None:
    """How many iterations the finished run has, or None where none is finished."""
    return int(metadata(folder)["iteration"]) if (folder / "latents.safetensors").is_file() else None


def classes(folder: Path) -> list[str]:
    """Names of a run's classes in the order of their labels; none where the run has not begun."""
    path = folder / "classes.json"
    if path.is_file():
        return list(json.loads(path.read_text(encoding="utf-8")))
    return json.loads(metadata(folder)["classes"]) if (folder / "latents.safetensors").is_file() else []


def note_classes(folder: Path, classes: Mapping[str, int]) -> None:
    """Keeps the names of a run's classes, and the place of each among all of the source, as `classes.json`."""
    write_json(folder / "classes.json", dict(classes))


def learnt(folder: Path) -> dict[str, float]:
    """Numbers that a finished run's objective learnt beside the latents, such as the step size of "mtt"."""
    return json.loads(metadata(folder).get("learnt", "{}")) if (folder / "latents.safetensors").is_file() else {}


def metadata(folder: Path) -> dict[str, str]:
    """What the latents of a finished run say about themselves.

    Raises:
        UserError: where they are damaged.
    """
    path = folder / "latents.safetensors"
    with (
        user_error_if_damaged(path, "remove it, and ld3m distill makes it again"),
        safetensors.safe_open(path, "pt") as file,
    ):
        return file.metadata()


def read_latents(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a finished run, `z`, `c` and `labels`, and what they say about themselves."""
    return safetensors.torch.load_file(folder / "latents.safetensors"), metadata(folder)


def newest() -> Path:
    """The newest finished run below runs/.

    Raises:
        UserError: where there is none.
    """
    finished = sorted(Path("runs").glob("*/latents.safetensors"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise UserError("RUN: there is no finished run below runs/; make one with ld3m distill quickstart")
    return finished[-1].parent


def load_recipe(folder: Path, overrides: list[str]) -> Recipe:
    """The recipe a run was made with, with overrides."""
    return load(Recipe, str(folder / "recipe.yaml"), overrides)


def factor(folder: Path) -> int:
    """How many images are side by side in each of a run's; its recipe may name folders that only its maker has."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return int(recipe.get("distill", {}).get("factor", 1))


def image_paths(folder: Path, name: str) -> list[Path]:
    """The images of a run's class, in their order; files of other names than a number are not of the run."""
    found = (path for path in (folder / "images" / name).glob("*.png") if path.stem.isdecimal())
    return sorted(found, key=lambda path: int(path.stem))


def load_images(folder: Path, classes: Sequence[str], channels: int, resolution: int) -> tuple[Tensor, Tensor]:
    """The images of a run and their labels, int64 [N].

    They are uint8 [N, channels, H, W], or, of a set that has more than 8 bits, float32 in units of [0, 1].

    Raises:
        UserError: where a class has none, or one cannot be read or is of another size.
    """
    if unknown := sorted({path.name for path in (folder / "images").iterdir()} - set(classes)):
        raise UserError(f"RUN: {folder / 'images' / unknown[0]} is none of the recipe's classes: {', '.join(classes)}")
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = image_paths(folder, name)
        if not paths:
            raise UserError(f"RUN: {folder / 'images' / name} has no images")
        for path in paths:
            try:
                pixels = np.array(Image.open(path).convert("L" if channels == 1 else "RGB"))
            except OSError as error:
                raise UserError(f"RUN: cannot read {path} ({error}); distil again with --no-resume") from None
            if pixels.shape[:2] != (resolution, resolution):
                raise UserError(
                    f"RUN: {path} has {pixels.shape[0]} rows and {pixels.shape[1]} columns, not {resolution} as "
                    f"data.resolution says"
                )
            images.append(torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)))
            labels.append(label)
    stacked = torch.stack(images)
    if (exact := folder / EXACT_PIXELS).is_file():
        stacked = safetensors.torch.load_file(exact)["images"]
    return stacked, torch.tensor(labels)
