"""What a run folder holds, read back without torch: recipe, classes, how far the run is, its results' metadata.

`metrics` reads metrics.jsonl, `result` reads and writes images and latents, `checkpoints` the states in between, and
`resume` says which run may be resumed in a folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors

from ld3m.errors import UserError, user_error_if_damaged
from ld3m.files import write_json
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs.metrics import Metrics

IMPORTED = Path("imported")
"""Folder, below the working folder, of sets that were not made here, in the layout of a run."""
EXACT_PIXELS = "pixels.safetensors"
"""Float images of a set that PNGs would round, in the order of the PNGs."""


# --- which run ---------------------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (folder / "recipe.yaml").is_file()


def find_run(names: Sequence[str]) -> Path:
    """The folder of the run that a command line names, finished or not; without a name, the newest below runs/.

    Raises:
        UserError: if there is none, or several are named.
    """
    if len(names) > 1:
        raise UserError(f"RUN: give one run, not {len(names)}: {', '.join(names)}")
    if not names:
        return newest()
    if not is_run(Path(names[0])):
        raise UserError(f"RUN: {names[0]} is not a run (it has no recipe.yaml)")
    return Path(names[0])


def newest(finished: bool = False) -> Path:
    """The run below runs/ that was written to last.

    Args:
        finished: whether only finished runs count.

    Raises:
        UserError: if there is none.
    """
    runs = [path.parent for path in Path("runs").glob("*/recipe.yaml")]
    if candidates := [run for run in runs if has_result(run) or not finished]:
        return max(candidates, key=_last_written)
    kind = "finished run" if finished else "run"
    raise UserError(f"RUN: there is no {kind} below runs/; make one with ld3m distill quickstart")


def _last_written(folder: Path) -> float:
    """When a run wrote to its folder last, in seconds since the epoch."""
    paths = [folder / name for name in ("recipe.yaml", "metrics.jsonl", "latents.safetensors")]
    return max(path.stat().st_mtime for path in paths if path.is_file())


# --- what is in it -----------------------------------------------------------------------------------------


def load_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run was made by, with overrides.

    Raises:
        UserError: if the folder is not a run, or for each mistake in its recipe or in the overrides.
    """
    if not is_run(folder):
        raise UserError(f"RUN: {folder} is not a run (it has no recipe.yaml)")
    return load(Recipe, str(folder / "recipe.yaml"), list(overrides))


def classes(folder: Path) -> list[str]:
    """Names of a run's classes in the order of their labels; none if the run has not begun."""
    path = folder / "classes.json"
    if path.is_file():
        with user_error_if_damaged(path, "ld3m distill writes it again"):
            return list(json.loads(path.read_text(encoding="utf-8")))
    return list(json.loads(metadata(folder)["classes"])) if has_result(folder) else []


def note_classes(folder: Path, classes: Mapping[str, int]) -> None:
    """Writes classes.json: the names of a run's classes, and the number of each among all classes of the source."""
    write_json(folder / "classes.json", dict(classes))


def document(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file that may be in a run's folder, such as evaluation.json or prior.json; {} if it is not there.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / name
    if not path.is_file():
        return {}
    with user_error_if_damaged(path, "move it away to continue without it"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def image_paths(folder: Path, name: str) -> list[Path]:
    """The images of a run's class, in their order; files whose name is not a number are not the run's."""
    paths = (path for path in (folder / "images" / name).glob("*.png") if path.stem.isdecimal())
    return sorted(paths, key=lambda path: int(path.stem))


# --- how far it is -----------------------------------------------------------------------------------------


def has_result(folder: Path) -> bool:
    """Whether a folder has latents, which a run writes last."""
    return (folder / "latents.safetensors").is_file()


def iterations_done(folder: Path) -> int | None:
    """Iterations of the result, or None if there is none."""
    return int(metadata(folder)["iteration"]) if has_result(folder) else None


def iterations_saved(folder: Path) -> int | None:
    """The iteration from which the newest checkpoint resumes, or None if there is no checkpoint."""
    return max((int(path.parent.name) for path in folder.glob("checkpoints/*/manifest.json")), default=None)


def progress(folder: Path, logged: Metrics) -> int:
    """Iterations done, as far as they are logged, saved in a checkpoint, or in the result."""
    return max(logged.iterations, iterations_saved(folder) or 0, iterations_done(folder) or 0)


def metadata(folder: Path) -> dict[str, str]:
    """The metadata of a finished run's latents: iteration, classes, noise, seed, versions, …

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / "latents.safetensors"
    with (
        user_error_if_damaged(path, "remove it, and ld3m distill makes it again"),
        safetensors.safe_open(path, "np") as file,
    ):
        return dict(file.metadata())


def learnt(folder: Path) -> dict[str, float]:
    """Numbers that a finished run's objective learnt beside the latents, such as the step size of `mtt`."""
    return json.loads(metadata(folder).get("learnt", "{}")) if has_result(folder) else {}
