"""Real images as uint8 tensors by class: prepared once from their source, cached, memory-mapped."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.data import preparation
from ld3m.data.class_choice import choose_from
from ld3m.data.decoding.depth import FoundRange, found_ranges
from ld3m.data.first_images import FirstImagesRecipe, first_of
from ld3m.data.preparation import ClassNote, Preparation
from ld3m.data.sources import open_source
from ld3m.errors import UserError, some, visible
from ld3m.files import cache_folder, cache_key, write_json
from ld3m.images.resample import resize
from ld3m.machine.transfer import send
from ld3m.networks import Shape
from ld3m.reading import read_json
from ld3m.recipe import DataRecipe, DistilledDataRecipe

LAYOUT = 4
"""Version of the cache's layout; part of its key."""
NOT_CONTENT = {"source", "root", "subset", "on_corrupt", "keep", "keep_order", "scorer", "cache", "read_test"}
"""Keys of a data recipe that say where images are, how they are read, and which core-set is taken of them; the cache's
key has the chosen classes instead."""
SAID: ContextVar[set[str] | None] = ContextVar("SAID", default=None)
"""Notes that have been printed inside `notes_once`."""
FEW_LEVELS = 25
"""Of 255: if nearly all pixels lie within as many, images are hardly to be told apart."""


@dataclass(frozen=True)
class ImageSet:
    """Prepared images: uint8 [n, channels, resolution, resolution] of each class and split, on disk until used."""

    classes: list[str]
    mean: Tensor
    """[channels], of training pixels in [0, 1]."""
    std: Tensor
    """[channels], of training pixels in [0, 1]."""
    counts: dict[str, list[int]]
    """Images of each class, by split."""
    ids: list[int]
    """The number of each class in the source, by which a prior may know it: for ImageNet 0 to 999."""
    fingerprints: list[tuple[int, str]]
    """For each class, how many training images were prepared, and 16 hexadecimal digits that change if any pixel or
    their order does."""
    folder: Path
    resolution: int
    """Height and width of every image."""
    caveat: str = field(default="", kw_only=True)
    """Why figures measured on its test split are not what readers may take them for, if so."""
    shown: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    """What networks see of pixels in [0, 1], if not what mean and std make of them."""

    @property
    def shape(self) -> Shape:
        """What a network for these images and classes must fit."""
        return Shape(len(self.mean), self.resolution, len(self.classes))

    @property
    def judging(self) -> str:
        """The split that networks are judged by: "test", or "validation" if the test images are not read.

        Raises:
            UserError: if there is neither.
        """
        if found := [split for split in ("test", "validation") if split in self.counts]:
            return found[0]
        raise UserError("data.read_test: false leaves nothing to measure on; give data.validation_share=0.1 beside it")

    def images(self, split: str, label: int) -> Tensor:
        """The images of one class, uint8 [n, channels, H, W]; memory-mapped, so only what is used is read.

        Raises:
            UserError: if the file has vanished or was damaged since it was prepared.
        """
        shape = (len(self.mean), self.resolution, self.resolution)
        path = self.folder / split / f"{label}.safetensors"
        return preparation.read_images(path, "the same command prepares it again", (-1, *shape))

    def everything(self, split: str) -> tuple[Tensor, Tensor]:
        """All images of a split in memory, uint8 [N, channels, H, W], and their labels, int64 [N]."""
        images = [self.images(split, label) for label in range(len(self.classes))]
        labels = torch.arange(len(self.classes)).repeat_interleave(torch.tensor(self.counts[split]))
        return torch.cat(images), labels

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [N, channels, H, W] in [0, 1] to what every network sees, real images and synthetic alike."""
        if self.shown:
            return self.shown(pixels)
        mean, std = self._levels(pixels)
        return (pixels - mean) / std

    def denormalise(self, inputs: Tensor) -> Tensor:
        """What `normalise` gave, [N, channels, H, W], back to pixels."""
        mean, std = self._levels(inputs)
        return inputs * std + mean

    def seen_by(self, inputs: Tensor, mean: Tensor, std: Tensor, resolution: int, mode: str = "bilinear") -> Tensor:
        """What `normalise` gave, as a network sees it that was trained on others, [N, channels of `mean`, …].

        Args:
            inputs: [N, channels, H, W]; a grey image has the same in each channel.
            mean: [channels], what the network subtracts from pixels in [0, 1].
            std: [channels], what it divides by then.
            resolution: height and width of what it sees.
            mode: of resizing, as for `images.resample.resize`.
        """
        pixels = self.denormalise(inputs)
        if pixels.shape[-1] != resolution:
            pixels = resize(pixels, resolution, mode)
        pixels = pixels.expand(-1, len(mean), -1, -1)
        mean, std = (send(each, pixels.device).view(1, -1, 1, 1) for each in (mean, std))
        return (pixels - mean) / std

    def _levels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, [1, channels, 1, 1] each, on the device of images and of their type."""
        mean, std = (send(each, like.device).to(like.dtype).view(1, -1, 1, 1) for each in (self.mean, self.std))
        return mean, std


class Rows:
    """The images of a split in the order of their classes, read as they are asked for and never all at once.

    It has of a tensor uint8 [N, channels, H, W] on the CPU what training needs.
    """

    device = torch.device("cpu")

    def __init__(self, images: ImageSet, split: str) -> None:
        self.parts = [images.images(split, label) for label in range(len(images.classes))]
        sizes = torch.tensor([len(part) for part in self.parts])
        self.labels = torch.arange(len(sizes)).repeat_interleave(sizes)
        """int64 [N]."""
        self.positions = torch.cat([torch.arange(len(part)) for part in self.parts])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        """Images uint8 [n, channels, H, W] by their indices [n]."""
        chosen = zip(self.labels[indices].tolist(), self.positions[indices].tolist(), strict=True)
        return torch.stack([self.parts[label][position] for label, position in chosen])

    @property
    def shape(self) -> torch.Size:
        """As of a tensor of them all."""
        return torch.Size((len(self), *self.parts[0].shape[1:]))

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(part.nbytes for part in self.parts)

    def to(self, device: torch.device) -> "Rows":
        """Itself: what is asked for goes to the device, and all of it to none."""
        return self


def buffers(pixels: "Tensor | Rows") -> list[memoryview]:
    """The bytes of images in their order, not copied, and read when they are looked at."""
    parts = pixels.parts if isinstance(pixels, Rows) else [pixels]
    return [part.contiguous().numpy().data for part in parts]


def prepare(recipe: DataRecipe, progress: bool = True, workers: int | None = None) -> ImageSet:
    """The recipe's images, from the cache or prepared into it.

    Splits are "train", "test" (unless `read_test` is false) and, if `validation_share` asks for one, "validation".
    Interrupt it at any time; the next call resumes with the class it was at. Processes that call it at the same time
    share the classes.

    Args:
        progress: whether a bar and notes on guesses and unreadable files are shown.
        workers: threads that read images; None: one for each core that this process may use, 8 at most.

    Raises:
        UserError: naming the source, class or file that is wrong.
    """
    located = preparation_of(recipe, progress, workers)
    folder, source, chosen = located.folder, located.source, located.chosen
    if source.note and progress:
        _note(f"data.source: {source.note}")
    notes = located.notes()
    histogram = torch.tensor([note.histogram for note in notes]).sum(0)
    mean, std = _statistics(histogram)
    index: dict[str, Any] = {
        "classes": [source.classes[label] for label in chosen],
        "ids": chosen,
        "counts": {split: [note.counts[split] for note in notes] for split in notes[0].counts},
        "mean": mean,
        "std": std,
        "corrupt": [name for note in notes for name in note.corrupt],
    }
    _write_if_it_differs(folder / "index.json", index)
    preparation.refuse_corrupt(index["corrupt"], recipe)
    if progress:
        _say(notes, histogram, found_ranges(folder / preparation.RANGES), recipe)
    return ImageSet(
        classes=index["classes"],
        mean=torch.tensor(mean),
        std=torch.tensor(std),
        counts=index["counts"],
        ids=chosen,
        fingerprints=[(note.counts["train"], note.sha256["train"][:16]) for note in notes],
        folder=folder,
        resolution=recipe.resolution,
        caveat=source.caveat,
    )


def preparation_of(recipe: DataRecipe, progress: bool = True, workers: int | None = None) -> Preparation:
    """How a recipe's images are prepared, and where; the arguments are those of `prepare`, and nothing is prepared.

    Raises:
        UserError: if the source is not there, or does not have the classes.
    """
    source, cache = open_source(recipe), cache_folder() / "data"
    chosen = choose_from(source, recipe.subset)
    holds_out_test = "test" not in source.splits
    unread = isinstance(recipe, DistilledDataRecipe) and not recipe.read_test
    if unread:
        source = replace(source, splits={name: each for name, each in source.splits.items() if name != "test"})
    if isinstance(recipe, FirstImagesRecipe):
        source, cache = first_of(source, chosen, recipe.first), recipe.cache
    settings = recipe.model_dump(exclude=NOT_CONTENT)
    without = ["without test images"] if unread and not holds_out_test else []
    key = cache_key([LAYOUT, source.identity, list(source.classes), chosen, settings, *without])
    threads = workers or min(preparation.MOST_WORKERS, preparation.cores())
    return Preparation(cache / key, source, chosen, recipe, progress, threads, holds_out_test)


def _write_if_it_differs(path: Path, index: dict[str, Any]) -> None:
    """Writes what the folder holds, for people and other programs: this one goes by the notes of the classes."""
    try:
        if read_json(path, dict[str, Any], "") == index:
            return
    except UserError:  # not there yet, or damaged
        pass
    write_json(path, index)


def _say(notes: Sequence[ClassNote], histogram: Tensor, ranges: Mapping[str, FoundRange], recipe: DataRecipe) -> None:
    """Prints what was left out, what was guessed (the ranges), and what looks wrong."""
    corrupt = [name for note in notes for name in note.corrupt]
    several = [name for note in notes for name in note.several]
    lines = [
        f"data.range: {found.images:,} images of more than 8 bits ({kind}) have values from {found.least:g} to "
        f"{found.largest:g}; {found.black:g} becomes black, {found.white:g} white, unless data.range says otherwise"
        for kind, found in ranges.items()
    ]
    if corrupt:
        lines.append(f"skipped {len(corrupt):,} unreadable image{'s' * (len(corrupt) != 1)}: {some(corrupt)}")
    if several:
        lines.append(f"took the first frame or page of {len(several)} images that have more: {some(several)}")
    if narrow := _narrow(histogram):
        remedy = "give data.range=[BLACK,WHITE]" if ranges or recipe.range else "stretch the images"
        lines.append(
            f"nearly all prepared pixels lie between {narrow[0]} and {narrow[1]} of 255; if that is too few, {remedy}"
        )
    for line in lines:
        _note(line)


@contextmanager
def notes_once() -> Iterator[None]:
    """Prints each note on images once inside it, for commands that prepare the same ones for several runs."""
    token = SAID.set(set())
    try:
        yield
    finally:
        SAID.reset(token)


def _note(line: str) -> None:
    """Prints a note on images, unless it has been said inside `notes_once`."""
    said = SAID.get()
    if said is None or line not in said:
        print(visible(line), file=sys.stderr)
    if said is not None:
        said.add(line)


def _narrow(histogram: Tensor) -> tuple[int, int] | None:
    """The few values between which nearly all pixels lie; None if they are not few. Takes counts [channels, 256]."""
    shares = histogram.sum(0).double().cumsum(0) / histogram.sum()
    low, high = int((shares < 0.001).sum()), int((shares < 0.999).sum())
    return (low, high) if high - low <= FEW_LEVELS else None


def _statistics(histogram: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in units of [0, 1], of counts [channels, 256] of pixel values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = histogram / histogram.sum(1, keepdim=True, dtype=torch.float64)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp(min=1e-8).sqrt()
    return mean.tolist(), std.tolist()
