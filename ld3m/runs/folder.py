"""What a run folder holds, read back without torch: recipe, classes, how far the run is, its results' metadata.

`metrics` reads metrics.jsonl, `result` reads and writes images and latents, `checkpoints` the states in between, and
`resume` says which run may be resumed in a folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.reading import parse_json, read_json, read_metadata, unless_unreadable
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs.metrics import Metrics

IMPORTED = Path("imported")
"""Folder, below the working folder, of sets that were not made here, in the layout of a run."""
CLASS_ORDER = "class_order.txt"
"""A class per line, beside sets that number their classes, in the order of these numbers."""
EXACT_PIXELS = "pixels.safetensors"
"""Float images of a set that PNGs would round, in the order of the PNGs."""
REAL = "real.png"
"""A few real images of each class, as they were prepared, in the layout of the pictures in evolution/."""
SAMPLING = "sampling.json"
"""What sampling took, if the run's latents were sampled: images drawn, seconds of all processes, peak memory."""
SAMPLING_PARTS = "sampling"
"""Folder of images that are sampled, until a checkpoint has them all."""
STATISTICS = "statistics"
"""Folder of what `sample.method=d3hr` found in its inverted latents."""
METADATA_KEY = "ld3m"
"""The one key of the latents' metadata, a JSON value: files with several keys come out in random order."""
LATENTS_ADVICE = "remove it, and ld3m distill makes it again"


class Metadata(BaseModel, frozen=True):
    """What a finished run notes beside its latents."""

    format: str = ""
    iteration: int = Field(ge=0)
    """Iterations done."""
    recipe: str = ""
    """Digest of the recipe."""
    classes: list[str] = Field(min_length=1)
    """Their names, in the order of the labels."""
    class_ids: list[int] | None = None
    """The number of each class among all of the source; older versions did not write it."""
    noise: str
    """`prior.noise` of the run."""
    noise_iteration: int = Field(ge=0)
    """Keys the noise of the rendered images."""
    seed: int = Field(ge=0)
    learnt: dict[str, float] = {}
    """Numbers that the objective learnt beside the latents, such as the step size of `mtt`."""
    versions: dict[str, str] = {}
    """Of the packages that made it."""
    sha256: str | None = None
    """Of the tensors, in the order of their names; older versions did not write it."""

    @model_validator(mode="after")
    def _ids_belong_to_classes(self) -> "Metadata":
        if len(set(self.classes)) < len(self.classes) or len(self.class_ids or self.classes) != len(self.classes):
            raise ValueError("classes must be different, with one of class_ids each")
        return self

    @property
    def ids(self) -> dict[str, int]:
        """The number of each class among all of the source, by name; its label if that was not noted."""
        return dict(zip(self.classes, self.class_ids or range(len(self.classes)), strict=True))


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
    if path.exists():
        return list(read_json(path, dict[str, int] | list[str], "remove it, and ld3m distill writes it again"))  # type: ignore[arg-type]
    return metadata(folder).classes if has_result(folder) else []


def note_classes(folder: Path, classes: Mapping[str, int]) -> None:
    """Writes classes.json: the names of a run's classes, and the number of each among all classes of the source."""
    write_json(folder / "classes.json", dict(classes))


def document(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file that may be in a run's folder, such as evaluation.json or prior.json; {} if it is not there.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / name
    return read_json(path, dict[str, Any], "move it away to continue without it") if path.exists() else {}


def image_paths(folder: Path, name: str) -> list[Path]:
    """The images of a run's class, in their order; files whose name is not a number are not the run's.

    Raises:
        UserError: if their folder is there and cannot be read.
    """
    parent = folder / "images" / name
    try:
        found = list(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {parent} ({error.strerror}); give yourself permission to read it") from None
    images = (path for path in found if path.suffix == ".png" and is_number(path.stem))
    return sorted(images, key=lambda path: int(path.stem))


def check_folder_names(classes: Sequence[str], where: str) -> None:
    """Checks that names of classes can be folders of images, and lead nowhere else; a set may be somebody else's.

    Raises:
        UserError: naming the first that cannot, and `where` it is from.
    """
    if bad := [name for name in classes if not name.strip(".") or set(name) & set("/\\\0")]:
        raise UserError(f"{where}: the class {bad[0]!r} cannot name a folder; give a set whose class names can")


# --- how far it is -----------------------------------------------------------------------------------------


def has_result(folder: Path) -> bool:
    """Whether a folder has latents, which a run writes last."""
    return (folder / "latents.safetensors").is_file()


def iterations_done(folder: Path) -> int | None:
    """Iterations of the result, or None if there is none."""
    return metadata(folder).iteration if has_result(folder) else None


def checkpoint_folders(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest last: those with a manifest, which is written last; odd names are not the run's.

    Raises:
        UserError: if the folder of checkpoints cannot be read.
    """
    parent = folder / "checkpoints"
    try:
        names = [path.name for path in parent.iterdir() if is_number(path.name)] if parent.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot read {parent} ({error.strerror}); give yourself permission to read it") from None
    found = [parent / name for name in sorted(names, key=int)]
    return [path for path in found if (path / "manifest.json").exists()]


def is_number(name: str) -> bool:
    """Whether a file's name is a number that a run gave it."""
    return name.isascii() and name.isdecimal()


def iterations_saved(folder: Path) -> int | None:
    """The iteration from which the newest checkpoint resumes, or None if there is no checkpoint."""
    found = checkpoint_folders(folder)
    return int(found[-1].name) if found else None


def progress(folder: Path, logged: Metrics, unread: list[str]) -> int:
    """Iterations done, as far as they are logged, saved in a checkpoint, or in the result.

    Args:
        unread: is added a line for each of these that cannot be read.
    """
    found = [unless_unreadable(unread, None, read, folder) for read in (iterations_saved, iterations_done)]
    return max(logged.iterations, *(iterations or 0 for iterations in found))


def metadata(folder: Path) -> Metadata:
    """What a finished run notes beside its latents.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / "latents.safetensors"
    return parse_metadata(path, read_metadata(path, LATENTS_ADVICE))


def parse_metadata(path: Path | str, raw: Mapping[str, str], advice: str = LATENTS_ADVICE) -> Metadata:
    """The metadata of a file of latents; older versions wrote a key for each part.

    Args:
        path: of the file, or what an error calls it.
        advice: what to do if it is damaged; the error ends with it.

    Raises:
        UserError: if a part is missing or of another type.
    """
    try:
        if METADATA_KEY in raw:
            return parse_json(raw[METADATA_KEY], Metadata)
        texts = {name for name, field in Metadata.model_fields.items() if field.annotation is str}
        parts = {name: text if name in texts else parse_json(text, Any) for name, text in raw.items()}
        return parse_json(json.dumps(parts), Metadata)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {advice}") from None


def learnt(folder: Path) -> dict[str, float]:
    """Numbers that a finished run's objective learnt beside the latents, such as the step size of `mtt`."""
    return metadata(folder).learnt if has_result(folder) else {}
