"""The folder of a teacher that was trained here: what it is, how good, of which images; and its weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import nn

from ld3m import networks
from ld3m.errors import UserError
from ld3m.files import tensors_digest, write_json, write_tensors
from ld3m.networks import Shape
from ld3m.randomness import generator
from ld3m.reading import read_json, read_tensors
from ld3m.recipe import NetworkRecipe
from ld3m.teachers.teacher import Classifier

FORMAT = "ld3m-teacher-1"
NOTE, WEIGHTS = "teacher.json", "weights.safetensors"
ADVICE = "train it again: ld3m train-teacher with --no-resume"


class Note(BaseModel):
    """What teacher.json has; written last, so that it says that the weights are final."""

    format: str
    arch: str
    norm: str
    width: int = Field(ge=1)
    depth: int | None
    classes: list[str] = Field(min_length=1)
    """In the order of its outputs."""
    channels: int = Field(ge=1, le=3)
    resolution: int = Field(ge=1)
    mean: list[float]
    """Of the training images' channels, by which it normalises."""
    std: list[float]
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float
    augment: bool
    seed: int
    images: dict[str, tuple[int, str]]
    """How many training images each class had, and a fingerprint of them."""
    accuracy: float = Field(ge=0, le=100)
    """Percent of the test images."""
    tested_on: int
    """Images of the test split."""
    seconds: float
    processes: int
    sha256: str
    """Of the weights."""

    @property
    def network(self) -> NetworkRecipe:
        """The keys that its architecture depends on."""
        return NetworkRecipe(norm=self.norm, width=self.width, depth=self.depth)


def is_teacher(folder: Path) -> bool:
    """Whether a folder has a teacher whose training has ended."""
    return (folder / NOTE).is_file()


def read_note(folder: Path) -> Note:
    """What a teacher is.

    Raises:
        UserError: if teacher.json cannot be read, or is of another version.
    """
    path = folder / NOTE
    note = read_json(path, Note, ADVICE, f"teacher.source: {path}")
    if note.format != FORMAT:
        raise UserError(f"teacher.source: {path} is of format {note.format!r}, not {FORMAT!r}; {ADVICE}")
    return note


def write(folder: Path, note: Note, network: nn.Module) -> None:
    """Writes a teacher's weights, and then what it is."""
    write_tensors(folder / WEIGHTS, network.state_dict(), {"classes": json.dumps(note.classes)})
    write_json(folder / NOTE, note.model_dump())


def read_classifier(folder: Path) -> Classifier:
    """A teacher that was trained here.

    Raises:
        UserError: if a file is damaged, or the weights are not those that teacher.json describes.
    """
    note, path = read_note(folder), folder / WEIGHTS
    name = f"teacher.source: {path}"
    weights, _ = read_tensors(path, ADVICE, name=name)
    if tensors_digest(weights) != note.sha256:
        raise UserError(f"{name} is damaged (it has another digest than {NOTE} says); {ADVICE}")
    network = untrained(note.arch, note.network, Shape(note.channels, note.resolution, len(note.classes)), note.seed)
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{name} has other weights than those of a {note.arch}; {ADVICE}") from None
    return Classifier(
        name=f"{folder.resolve().name} ({note.arch})",
        network=network.eval(),
        classes=note.classes,
        mean=torch.tensor(note.mean),
        std=torch.tensor(note.std),
        resolution=note.resolution,
        digest=note.sha256,
    )


def untrained(arch: str, settings: NetworkRecipe, shape: Shape, seed: int) -> nn.Module:
    """The network that a teacher's training begins with."""
    network: nn.Module = networks.build(arch, shape, settings, generator(seed, "teacher"), "teacher.arch")
    return network


def fingerprints(classes: Sequence[str], prints: Sequence[tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """`Note.images` of a set of images."""
    return dict(zip(classes, prints, strict=True))
