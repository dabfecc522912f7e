"""Expert trajectories on disk: which networks they are of, and their weights epoch by epoch.

A folder holds `index.json`, and for each expert a safetensors file with `weights` [epochs + 1, parameters], row 0
before training. Reading a snapshot reads its row alone.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError, shortened, user_error_if_damaged
from ld3m.files import tensors_digest, write_json, write_tensors
from ld3m.machine import lock
from ld3m.reading import TensorSpec, open_tensors, parse_json, read_json, read_tensors
from ld3m.recipe import ExpertsRecipe, NetworkRecipe, Recipe

FORMAT = "ld3m-experts-1"
DIGESTS = "sha256"
"""Key of the metadata that has the digest of each snapshot, so that one is checked as it is read; one key, since
several come out in random order."""


class Training(TypedDict):
    """How experts were trained, by the recipe's keys."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    epochs: int


class Index(TypedDict):
    """What index.json has."""

    format: str
    about: dict[str, Any]
    """As `describe` gives it."""
    training: Training


@dataclass(frozen=True)
class Experts:
    """Which experts are meant: where they are, and of which kind of network and training."""

    folder: Path
    settings: ExpertsRecipe
    network: NetworkRecipe
    seed: int
    """Of the run that trained them."""


def experts_of(recipe: Recipe) -> Experts:
    """Those that a recipe takes, or trains by `ld3m experts`."""
    return Experts(recipe.experts_folder, recipe.experts, recipe.network, recipe.seed)


def check_there(folder: Path, count: int) -> None:
    """Checks that a folder has the first `count` experts; none is opened.

    Raises:
        UserError: saying which command makes what is missing.
    """
    there = sum(_path(folder, expert).is_file() for expert in range(count))
    if there < count:
        raise UserError(
            f"experts.folder: {folder} has {there} of experts.count = {count} experts; "
            "make them with ld3m experts and the same recipe"
        )


def _path(folder: Path, expert: int) -> Path:
    return folder / f"expert-{expert:04d}.safetensors"


def describe(network: NetworkRecipe, images: ImageSet, parameters: int) -> dict[str, Any]:
    """What experts and whoever uses them must agree on, by the recipe's keys if it has them."""
    return {
        **{f"network.{key}": value for key, value in network.model_dump(exclude={"dtype"}).items()},
        "data.channels": images.shape.channels,
        "data.resolution": images.shape.resolution,
        "classes": images.classes,
        "network parameters": parameters,
        "mean of the training images": [round(value, 5) for value in images.mean.tolist()],
        "std of the training images": [round(value, 5) for value in images.std.tolist()],
    }


class Trajectories:
    """The experts of a folder, all of one kind of network, data and training."""

    def __init__(self, experts: Experts, images: ImageSet, parameters: int) -> None:
        self.folder = experts.folder
        self.about = describe(experts.network, images, parameters)
        self.training = experts.settings.model_dump(include={"epochs", "batch", "lr", "augment", "dtype"})
        self.training["seed"] = experts.seed
        self.dtype = getattr(torch, experts.settings.dtype)
        self.parameters = parameters
        self.epochs = experts.settings.epochs

    def path(self, expert: int) -> Path:
        """The file of a whole trajectory."""
        return _path(self.folder, expert)

    def partial(self, expert: int) -> Path:
        """The file of one that is still in training, in float32."""
        return self.folder / f"expert-{expert:04d}.partial.safetensors"

    def check_training(self) -> None:
        """Checks that the experts that are there, if any, were trained as these would be.

        Raises:
            UserError: naming what differs.
        """
        index = self._index()
        self._check(index)
        if index and index["training"] != self.training:
            keys = [f"experts.{key}" for key, value in self.training.items() if index["training"].get(key) != value]
            raise UserError(
                f"experts.folder: {self.folder} holds experts of another training ({', '.join(keys)} differ); "
                "give another folder, or --no-resume to replace them"
            )

    @contextmanager
    def claim(self, resume: bool) -> Iterator[None]:
        """Claims the folder for these experts, and removes those it holds unless training resumes.

        Raises:
            UserError: if the folder holds something else, or another process is at work in it.
        """
        with lock.claim(self.folder, "index.json", "a folder of experts", "experts.folder", "give another folder"):
            for path in [] if resume else self._held():
                path.unlink()
            write_json(self.folder / "index.json", {"format": FORMAT, "about": self.about, "training": self.training})
            yield

    def require(self, count: int, epochs: int, needed_by: str) -> None:
        """Checks that the first `count` experts are there, of this network and data and so many epochs.

        Args:
            epochs: of each, at least.
            needed_by: the keys that ask for these epochs.

        Raises:
            UserError: saying which command makes what is missing.
        """
        index = self._index()
        self._check(index)
        check_there(self.folder, count)
        had = int(index["training"]["epochs"]) if index else 0
        if had < epochs:
            raise UserError(
                f"experts.folder: the experts of {self.folder} have {had} epochs, but {needed_by} is {epochs}"
            )
        for expert in range(count):
            with self._opened(expert, epochs):
                pass

    def weights(self, expert: int, epoch: int) -> Tensor:
        """A snapshot [parameters] in float32, of the network after so many epochs.

        Raises:
            UserError: if the file is damaged; a flipped bit is noticed unless an older version wrote the file.
        """
        with self._opened(expert, epoch) as (snapshots, digests):
            stored: Tensor = snapshots[epoch]
            if digests and _digest(stored) != digests[epoch]:
                raise ValueError(f"weights after epoch {epoch} have another digest than it says")
            weights = stored.float()
            if not weights.isfinite().all():
                raise ValueError(f"weights after epoch {epoch} are not finite")
            return weights

    @contextmanager
    def _opened(self, expert: int, epoch: int) -> Iterator[tuple[Any, list[str]]]:
        """The snapshots of an expert, at least up to an epoch, and their digests, none if an older version wrote it."""
        path, advice = self.path(expert), "remove it, and ld3m experts makes it again"
        with open_tensors(path, advice, f"experts.folder: {path}") as file:
            snapshots = file.get_slice("weights")
            shape, dtype = snapshots.get_shape(), snapshots.get_dtype()
            if len(shape) != 2 or shape[0] <= epoch or shape[1] != self.parameters:
                raise ValueError(f"weights of shape {shape}, not [epochs + 1, {self.parameters}]")
            if dtype not in ("F32", "F16"):
                raise ValueError(f"weights of type {dtype}, not F32 or F16")
            yield snapshots, _digests(file.metadata() or {}, shape[0])

    def progress(self, expert: int) -> Tensor | None:
        """The snapshots there are of an unfinished expert [epochs + 1, parameters], or None; None if it is damaged."""
        path, spec = self.partial(expert), TensorSpec(torch.float32, (-1, self.parameters))
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(path, "it is trained again", {"weights": spec})
            snapshots = tensors["weights"]
            with user_error_if_damaged(path, "it is trained again"):
                digests = _digests(metadata, len(snapshots))
                if digests and digests != [_digest(each) for each in snapshots]:
                    raise ValueError("its weights have other digests than it says")
        except UserError as error:
            print(error, file=sys.stderr)
            return None
        return snapshots if 0 < len(snapshots) <= self.epochs else None

    def save(self, expert: int, snapshots: Tensor) -> None:
        """Writes snapshots [epochs done + 1, parameters]; the last epoch's make the trajectory whole."""
        is_whole = len(snapshots) > self.epochs
        stored = snapshots.to(self.dtype) if is_whole else snapshots
        metadata = {DIGESTS: json.dumps([_digest(each) for each in stored])}
        write_tensors(self.path(expert) if is_whole else self.partial(expert), {"weights": stored}, metadata)
        if is_whole:
            self.partial(expert).unlink(missing_ok=True)

    def bytes_needed(self, count: int, resume: bool) -> int:
        """Bytes on disk of `count` experts, or of those that are not there yet where training resumes."""
        missing = sum(not (resume and self.path(expert).is_file()) for expert in range(count))
        return missing * (self.epochs + 1) * self.parameters * self.dtype.itemsize

    def bytes_free(self, resume: bool) -> int:
        """Free bytes on the folder's disk, with those of its experts unless training resumes."""
        folder = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        return shutil.disk_usage(folder).free + sum(path.stat().st_size for path in ([] if resume else self._held()))

    def _held(self) -> list[Path]:
        """The files of experts that are there, finished or not."""
        return list(self.folder.glob("expert-*.safetensors"))

    def _index(self) -> "Index | None":
        path = self.folder / "index.json"
        if not path.exists():
            return None
        advice = "ld3m experts with --no-resume trains the experts again"
        return read_json(path, Index, advice, f"experts.folder: {path}")

    def _check(self, index: "Index | None") -> None:
        """That the experts there are fit this recipe."""
        if index is None:
            return
        if index.get("format") != FORMAT:
            raise UserError(f"experts.folder: {self.folder} is of format {index.get('format')!r}, not {FORMAT!r}")
        for key, value in self.about.items():
            had = index["about"].get(key)
            if had != value:
                raise UserError(
                    f"experts.folder: the experts of {self.folder} have {key} {shortened(had)}, "
                    f"this recipe {shortened(value)}; give another folder, or make these experts with ld3m experts"
                )


def _digests(metadata: Mapping[str, str], snapshots: int) -> list[str]:
    """The digests of so many snapshots; none if an older version wrote the file.

    Raises:
        ValueError: if they are others.
    """
    digests = parse_json(metadata.get(DIGESTS, "[]"), list[str])
    if digests and len(digests) != snapshots:
        raise ValueError(f"it has digests of {len(digests)} snapshots, not {snapshots}")
    return digests


def _digest(snapshot: Tensor) -> str:
    return tensors_digest({"weights": snapshot})
