"""The folder of a training on real images: claimed by one command, for one recipe, of the same images to the end."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel

from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError
from ld3m.files import remove_temporary, write_json, write_text
from ld3m.machine import lock, signals
from ld3m.machine.determinism import repeatable
from ld3m.machine.processes import Processes
from ld3m.reading import read_json
from ld3m.recipe import DataRecipe

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
def claimed(
    processes: Processes,
    folder: Path,
    data: DataRecipe,
    *,
    digest: str,
    recipe: str,
    kind: str,
    made: Sequence[str],
    resume: bool,
    key: str,
    tf32: bool = False,
) -> Iterator[ImageSet]:
    """The training images of a folder that is ours until the context ends, in repeatable arithmetic.

    A signal ends it with a line that says that the training is unfinished.

    Args:
        folder: of the result; the training is in a folder below.
        digest: of what decides the result.
        recipe: resolved, as YAML, to keep beside the checkpoints.
        kind: what is trained, for errors: "a prior of ld3m train-prior".
        made: files below the folder that are removed unless it resumes.
        key: that names the folder, for errors.

    Raises:
        UserError: if it holds another recipe's result, or something that this did not train, another process is at
            work in it, or the images have changed.
    """
    main = processes.is_main_process
    try:
        with repeatable(processes.device, tf32), signals.exiting(), ExitStack() as entered:
            with processes.main_process_first():
                if main:
                    entered.enter_context(_claim(folder, digest, recipe, kind, made, resume, key))
            images = prepare(data, progress=main)
            if main:
                _check_images(images, folder, key)
            yield images
    except SystemExit:
        if main:
            print(f"{folder} is unfinished; the same command resumes from what was saved", file=sys.stderr)
        raise


@contextmanager
def _claim(
    folder: Path, digest: str, recipe: str, kind: str, made: Sequence[str], resume: bool, key: str
) -> Iterator[None]:
    """Makes the folder ours, and keeps other commands out of it; for one process."""
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
            for name in made:
                (folder / name).unlink(missing_ok=True)
        write_json(note, now.model_dump())
        write_text(training / "recipe.yaml", recipe)
        yield


def _check_images(images: ImageSet, folder: Path, key: str) -> None:
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
