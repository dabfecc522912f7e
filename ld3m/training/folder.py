"""The folder of a training on real images: claimed by one command, for one recipe, of the same images to the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError
from ld3m.files import remove_temporary, write_json, write_text
from ld3m.machine import lock
from ld3m.reading import read_json

TRAINING = "training"
"""The folder below, of checkpoints, log, curve and recipe."""
NOTE = "digest.json"


class Note(BaseModel):
    """What a network is trained by."""

    digest: str
    """Of the recipe."""
    images: dict[str, tuple[int, str]] | None = None
    """How many training images each class has, and a fingerprint of them; None before they are read; older versions
    did not note them."""


@contextmanager
def claim(
    folder: Path, digest: str, recipe: str, kind: str, checkpoints: Sequence[str], resume: bool, key: str
) -> Iterator[None]:
    """Makes the folder ours, and keeps other commands out of it; for one process.

    Args:
        folder: of the result; the training is in a folder below.
        recipe: resolved, as YAML, to keep beside the checkpoints.
        kind: what is trained, for errors: "a prior of ld3m train-prior".
        checkpoints: names of the trainings (`Fit.name`), whose checkpoints are removed unless it resumes.

    Raises:
        UserError: if it holds another recipe's result, or something that this did not train, or another process is at
            work in it.
    """
    training = folder / TRAINING
    note = training / NOTE
    with lock.claim(folder, mark=f"{TRAINING}/{NOTE}", kind=kind, key=key, instead=f"give another {_option(key)}"):
        remove_temporary(folder)
        now = Note(digest=digest)
        if note.is_file() and resume:
            before = _read_note(training, key)
            if before.digest != now.digest:
                what = kind.partition(" of ")[0]
                raise UserError(f"{key}: {folder} holds {what} of another recipe; give another {key}, or --no-resume")
            now = before
        if not resume:
            for name in checkpoints:
                (training / f"{name}.safetensors").unlink(missing_ok=True)
        write_json(note, now.model_dump())
        write_text(training / "recipe.yaml", recipe)
        yield


def check_images(images: ImageSet, folder: Path, key: str) -> None:
    """Notes the training images, or compares them with those that the training began with.

    Raises:
        UserError: naming a class whose images are others now.
    """
    training = folder / TRAINING
    note = _read_note(training, key)
    now = dict(zip(images.classes, images.fingerprints, strict=True))
    if note.images is None:
        write_json(training / NOTE, note.model_copy(update={"images": now}).model_dump())
    elif changed := [name for name in note.images | now if note.images.get(name) != now.get(name)]:
        raise UserError(
            f"data.source: the images of class {changed[0]!r} have changed since {folder} was begun; give the "
            "ones of before, or --no-resume to begin again"
        )


def _read_note(training: Path, key: str) -> Note:
    path = training / NOTE
    return read_json(path, Note, f"give another {key}, or --no-resume", f"{key}: {path}")


def _option(key: str) -> str:
    return "--output" if key == "output" else key
