"""Soft labels that are stored with a set: `labels/` of a run. A teacher's, so that others train with them and without
the teacher, or those that were learnt with the images, as in DATM and FRePo.

`labels.json` says whose they are and of what; then there is a file per view. One label for each image is one view, of
the images as they are. Labels of epochs have a view each, of the images as a network sees them in that epoch: all that
changes them is drawn by keys, so that the same views can be made again.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ld3m.errors import UserError, counted
from ld3m.files import tensors_digest, write_json, write_tensors
from ld3m.reading import TensorSpec, read_json, read_tensors

FOLDER, NOTE = "labels", "labels.json"
FORMAT = "ld3m-labels-1"
ADVICE = "ld3m label with --again makes the labels again"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
LEARNT = "learnt with the images"
"""In the place of a teacher's name, of labels that somebody else's set has."""
SMALL = 100_000
"""Bytes below which a size is given in bytes."""
LARGEST = 60_000.0
"""Of a logit; float16 ends at 65,504."""


class Note(BaseModel):
    """What labels.json has."""

    format: str = FORMAT
    teacher: str
    """What people call it, or `LEARNT`."""
    accuracy: float | None = Field(None, ge=0, le=100)
    """Of the teacher, percent of the real test images; None for labels that were learnt."""
    weights: str
    """The beginning of the digest of its weights, or of the labels that were learnt."""
    classes: list[str]
    """Of the columns."""
    content: str
    """A digest of the images that are labelled."""
    images: int = Field(ge=1)
    """How many, as networks see them."""
    epochs: int = Field(ge=0)
    """Views; 0: one label for each image as it is."""
    views: dict[str, Any] | None = None
    """What the views of epochs depend on, by the keys of `evaluate`, and the recipe's seed."""
    dtype: Literal["float32", "float16"]
    top: int | None = Field(None, ge=1)
    """Classes whose logits are kept; the others have what is left, in equal parts. None: all are kept."""
    temperature: float = Field(gt=0)
    """At which what is left of others is measured."""

    @property
    def files(self) -> list[str]:
        """Names of the files of views."""
        return [f"{view}.safetensors" for view in range(self.epochs or 1)]

    @property
    def size(self) -> int:
        """Bytes of all labels, without the files' headers."""
        kept = self.top or len(self.classes)
        each = DTYPES[self.dtype].itemsize
        row = kept * each if self.top is None else kept * (each + 2) + each
        return len(self.files) * self.images * row

    @property
    def about(self) -> dict[str, Any]:
        """What rows and the card say of them."""
        kept = {"top": self.top} if self.top else {}
        whose: dict[str, Any] = {"teacher": self.teacher, "weights": self.weights}
        whose |= {} if self.accuracy is None else {"accuracy": self.accuracy}
        per = {"per": "epoch", "epochs": self.epochs} if self.epochs else {"per": "image"}
        return whose | {"stored": True} | per | kept | {"dtype": self.dtype, "bytes": self.size}


def has_labels(run: Path) -> bool:
    """Whether a run's folder has stored labels, complete or not."""
    return (run / FOLDER / NOTE).is_file()


def read_note(run: Path) -> Note:
    """What is stored with a run.

    Raises:
        UserError: if labels.json is missing, damaged or of another version.
    """
    path = run / FOLDER / NOTE
    note = read_json(path, Note, ADVICE)
    if note.format != FORMAT:
        raise UserError(f"{path} is of format {note.format!r}, not {FORMAT!r}; {ADVICE}")
    return note


def write_note(run: Path, note: Note) -> None:
    """Begins the labels of a run; files of others that are there must be removed before."""
    write_json(run / FOLDER / NOTE, note.model_dump())


def paths(run: Path) -> list[Path]:
    """The files of a run's labels; none if it has none.

    Raises:
        UserError: if some are missing, or labels.json is damaged.
    """
    if not has_labels(run):
        return []
    note = read_note(run)
    check_complete(run, note)
    return [run / FOLDER / name for name in (NOTE, *note.files)]


def check_complete(run: Path, note: Note) -> None:
    """Checks that the labels of all views are there.

    Raises:
        UserError: saying how many are.
    """
    if left := len(missing(run, note)):
        raise UserError(
            f"{run / FOLDER} has labels of {len(note.files) - left} of {len(note.files)} views; the command that began "
            "it, ld3m label, makes the others"
        )


def missing(run: Path, note: Note) -> list[int]:
    """The views whose labels are not there yet."""
    return [view for view, name in enumerate(note.files) if not (run / FOLDER / name).is_file()]


def write_view(run: Path, note: Note, view: int, logits: Tensor) -> None:
    """Writes the labels of a view, float32 [images, classes]."""
    tensors = packed(logits.clamp(-LARGEST, LARGEST), note)
    metadata = {"sha256": tensors_digest(tensors)}
    write_tensors(run / FOLDER / note.files[view], tensors, metadata)


def read_view(run: Path, note: Note, view: int) -> Tensor:
    """The labels of a view as logits, float32 [images, classes].

    Raises:
        UserError: if the file is missing or damaged.
    """
    path, dtype = run / FOLDER / note.files[view], DTYPES[note.dtype]
    expected = {"logits": TensorSpec(dtype, (note.images, note.top or len(note.classes)))}
    if note.top:
        expected["classes"] = TensorSpec(torch.int16, (note.images, note.top))
        expected["others"] = TensorSpec(dtype, (note.images,))
    tensors, metadata = read_tensors(path, ADVICE, expected)
    if metadata.get("sha256") != tensors_digest(tensors):
        raise UserError(f"{path} is damaged (it has another digest than it says); {ADVICE}")
    return unpacked(tensors, note)


def packed(logits: Tensor, note: Note) -> dict[str, Tensor]:
    """Labels as they are stored.

    Of `note.top` classes the logits are kept. All others get one that leaves them together what they had at the note's
    temperature: marginal smoothing (Shen and Xing, ECCV 2022).

    Args:
        logits: float32 [images, classes].
    """
    dtype = DTYPES[note.dtype]
    if note.top is None:
        return {"logits": logits.to(dtype)}
    kept, classes = logits.topk(note.top, 1)
    rest = logits.scatter(1, classes, -torch.inf) / note.temperature
    others = note.temperature * (rest.logsumexp(1) - torch.tensor(float(logits.shape[1] - note.top)).log())
    return {"logits": kept.to(dtype), "classes": classes.to(torch.int16), "others": others.to(dtype)}


def unpacked(tensors: dict[str, Tensor], note: Note) -> Tensor:
    """Labels as logits, float32 [images, classes], of what `packed` gives."""
    logits = tensors["logits"].float()
    if note.top is None:
        return logits
    whole = tensors["others"].float()[:, None].repeat(1, len(note.classes))
    return whole.scatter(1, tensors["classes"].long(), logits)


def text(note: Note) -> str:
    """Stored labels in a few words, for people."""
    kept = f"the top {note.top} of {len(note.classes)} classes" if note.top else f"{len(note.classes)} classes"
    each = counted(note.epochs, "epoch") if note.epochs else "one for each image"
    whose = note.teacher if note.accuracy is None else f"of {note.teacher} ({note.accuracy:.1f} %)"
    return f"{each}, {kept}, {note.dtype}, {size_text(note)}, {whose}"


def size_text(note: Note) -> str:
    """What stored labels take, for people."""
    return f"{note.size:,} bytes" if note.size < SMALL else f"{note.size / 1e6:,.2f} MB"
