"""What a run is made from: notes on the content of its prior and its data, prior.json and data.json.

Folders of data and priors are moved, and runs are copied to other machines, so that whether a run may be resumed is
decided by content and not by paths. This module does not import torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ld3m.errors import UserError, shortened
from ld3m.files import write_json
from ld3m.reading import read_json
from ld3m.recipe import DistilledDataRecipe, Recipe

if TYPE_CHECKING:
    from ld3m.data.prepared import ImageSet

Note = Mapping[str, Any]


class PriorNote(BaseModel):
    """What prior.json must hold."""

    source: str
    kind: str
    revision: str | None = None
    sha256: str
    licence: str | None = None


class ClassNote(BaseModel):
    """What data.json must hold for each class."""

    images: int
    sha256: str | None = None
    """Of its training images in their order; older versions noted a histogram as `pixels`, which tells less."""


class DataNote(BaseModel):
    """What data.json must hold."""

    source: str
    classes: dict[str, ClassNote]
    scorer: str | None = None


@dataclass(frozen=True)
class Sources:
    """What the notes of a run say of its prior and of its data."""

    prior: Note
    """As `priors.provenance` gives it; its `sha256` is that of the prior's files."""
    data: Note
    """As `describe_data` gives it."""


def describe_data(images: "ImageSet", recipe: DistilledDataRecipe) -> dict[str, Any]:
    """The content of data.json: classes in their order, with the number and a fingerprint of their training images.

    The fingerprint is a hash of a class's prepared training images in their order. It changes if an image is added,
    removed or replaced, or if two change places. Test images, paths and dates play no part, file names only by the
    order that they give.

    Args:
        images: prepared, all or a core-set of them.
    """
    scorer = Path(recipe.scorer.source) if recipe.scorer.source else None
    return {
        "source": recipe.source,
        "classes": {
            name: {"images": count, "sha256": digest}
            for name, (count, digest) in zip(images.classes, images.fingerprints, strict=True)
        },
        "scorer": hashlib.sha256(scorer.read_bytes()).hexdigest() if scorer and scorer.is_file() else None,
    }


def read(folder: Path) -> tuple[Note | None, Note | None]:
    """The notes on prior and data in a run's folder; None for one that an older version did not write.

    Raises:
        UserError: if one is damaged.
    """
    return read_prior(folder), read_data(folder)


def read_prior(folder: Path) -> Note | None:
    """The note on the prior in a run's folder, or None.

    Raises:
        UserError: if it is damaged.
    """
    return _read(folder / "prior.json", PriorNote)


def read_data(folder: Path) -> Note | None:
    """The note on the data in a run's folder, or None.

    Raises:
        UserError: if it is damaged.
    """
    return _read(folder / "data.json", DataNote)


def _read(path: Path, shape: type[BaseModel]) -> Note | None:
    return read_json(path, shape, "move it away to continue without it").model_dump() if path.exists() else None


def write(folder: Path, sources: Sources) -> None:
    """Writes both notes into a run's folder."""
    write_prior(folder, sources.prior)
    write_json(folder / "data.json", dict(sources.data))


def write_prior(folder: Path, prior: Note) -> None:
    """Writes the note on the prior into a folder."""
    write_json(folder / "prior.json", dict(prior))


def digests(prior: Note | None, data: Note | None) -> dict[str, str | None]:
    """What a checkpoint keeps of both notes, so that it can be resumed without its run's folder."""
    return {"prior": prior["sha256"] if prior else None, "data": data_digest(data) if data else None}


def data_digest(data: Note) -> str:
    """16 hexadecimal digits of what `describe_data` gives, wherever the data is."""
    classes = [[name, about["images"], about["sha256"]] for name, about in data["classes"].items()]
    content = json.dumps([classes, data["scorer"]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def data_difference(before: Note, now: Note) -> str | None:
    """The first difference between two notes on data, as part of an error; None if their content is the same."""
    old, new = before["classes"], now["classes"]
    if list(old) != list(new):
        return f"its classes are {shortened(list(new))}, not {shortened(list(old))}"
    for name, was in old.items():
        count = new[name]["images"]
        if count != was["images"]:
            return f"class {name!r} has {count} training images, not {was['images']}"
        if was["sha256"] not in (None, new[name]["sha256"]):
            return f"class {name!r} has other training images"
    return "data.scorer.source holds other weights" if before["scorer"] != now["scorer"] else None


def check(recipe: Recipe, sources: Sources, prior: Note | None, data: Note | None, run: Path, instead: str) -> None:
    """Compares a recipe's prior and data, by content, with the notes of a run that is to be resumed.

    Args:
        prior: the run's note, if it has one.
        data: the run's note, if it has one.
        instead: what to give instead; errors end with it.

    Raises:
        UserError: naming what differs.
    """
    if prior and prior["sha256"] != sources.prior["sha256"]:
        raise UserError(
            f"prior.source: {recipe.prior.source} has other weights than when the run in {run} began; {instead}"
        )
    if data and (difference := data_difference(data, sources.data)):
        raise UserError(
            f"data.source: {recipe.data.source} is not the data with which the run in {run} began: {difference}; "
            f"{instead}"
        )
    if not data or any(about["sha256"] is None for about in data["classes"].values()):
        print(f"{run}: an older version began it, and noted too little of its images to check that they are the same")
