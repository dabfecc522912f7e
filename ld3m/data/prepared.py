"""Real images as uint8 tensors by class: prepared once from their source, cached, memory-mapped."""

import json
import os
import sys
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from ld3m.data.class_choice import choose
from ld3m.data.decode import convert, convert_grey
from ld3m.data.examples import Examples, GreyArrays, Source
from ld3m.data.sources import open_source
from ld3m.errors import UserError, one_line
from ld3m.files import ANOTHER_CACHE, cache_folder, cache_key, writable, write_json, write_tensors
from ld3m.machine.transfer import send
from ld3m.networks import Shape
from ld3m.randomness import generator
from ld3m.recipe import DataRecipe

LAYOUT = 2
"""Version of the cache's layout; part of its key."""
NOT_CONTENT = {"source", "root", "subset", "on_corrupt", "keep", "keep_order", "scorer"}
"""Keys of a data recipe that say where images are, how they are read, and which core-set is taken of them; the cache's
key has the chosen classes instead."""
MOST_WORKERS = 8
"""Threads by default: decoding and resizing run in parallel, but a fifth of an image's time is Python's, one by one."""
MOST_AT_ONCE = 64
"""Images that a thread is given at a time: handing over one costs as much as converting a small image does."""


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
    folder: Path
    resolution: int
    """Height and width of every image."""

    @property
    def shape(self) -> Shape:
        """What a network for these images and classes must fit."""
        return Shape(len(self.mean), self.resolution, len(self.classes))

    def images(self, split: str, label: int) -> Tensor:
        """The images of one class, uint8 [n, channels, H, W]; memory-mapped, so only what is used is read.

        Raises:
            UserError: if the file has vanished since it was prepared.
        """
        path = self.folder / split / f"{label}.safetensors"
        try:
            return safetensors.torch.load_file(path)["images"]
        except FileNotFoundError:
            raise UserError(f"data.source: {path} has vanished; the same command prepares it again") from None

    def everything(self, split: str) -> tuple[Tensor, Tensor]:
        """All images of a split in memory, uint8 [N, channels, H, W], and their labels, int64 [N]."""
        images = [self.images(split, label) for label in range(len(self.classes))]
        labels = torch.arange(len(self.classes)).repeat_interleave(torch.tensor(self.counts[split]))
        return torch.cat(images), labels

    def fingerprints(self) -> list[tuple[int, str]]:
        """For each class, how many training images were prepared, and 16 hexadecimal digits of their histogram.

        The digits change with how often the images have each value in each channel, and with nothing else.
        """
        notes = [self.folder / "classes" / f"{label}.json" for label in range(len(self.classes))]
        contents = [json.loads(note.read_text(encoding="utf-8")) for note in notes]
        return [(content["counts"]["train"], cache_key(content["histogram"])[:16]) for content in contents]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [N, channels, H, W] in [0, 1] to what every network sees, real images and synthetic alike."""
        shape = (1, -1, 1, 1)
        mean, std = (send(each, pixels.device).to(pixels.dtype).view(shape) for each in (self.mean, self.std))
        return (pixels - mean) / std


class Rows:
    """The images of a split in the order of their classes, read as they are asked for and never all at once."""

    def __init__(self, images: ImageSet, split: str) -> None:
        self.parts = [images.images(split, label) for label in range(len(images.classes))]
        sizes = torch.tensor([len(part) for part in self.parts])
        self.labels = torch.arange(len(sizes)).repeat_interleave(sizes)
        """int64 [N]."""
        self.positions = torch.cat([torch.arange(len(part)) for part in self.parts])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Images uint8 [n, channels, H, W] by their indices [n]."""
        chosen = zip(self.labels[indices].tolist(), self.positions[indices].tolist(), strict=True)
        return torch.stack([self.parts[label][position] for label, position in chosen])


def prepare(recipe: DataRecipe, progress: bool = True, workers: int | None = None) -> ImageSet:
    """The recipe's images, from the cache or prepared into it.

    Splits are "train", "test" and, if `validation_share` asks for one, "validation". Interrupt it at any time; the next
    call resumes with the class it was at. Processes that call it at the same time share the classes.

    Args:
        recipe: which images, and how they are prepared.
        progress: whether a bar and a note on unreadable files are shown.
        workers: threads that read images; None: one for each core that this process may use, 8 at most.

    Raises:
        UserError: naming the source, class or file that is wrong.
    """
    source = open_source(recipe)
    chosen = choose(recipe.subset, source.classes, source.aliases, source.subsets)
    settings = recipe.model_dump(exclude=NOT_CONTENT)
    key = cache_key([LAYOUT, source.identity, list(source.classes), chosen, settings])
    folder = cache_folder() / "data" / key
    prepared = (folder / "index.json").is_file() and all(_is_prepared(folder, index) for index in range(len(chosen)))
    if not prepared:
        _prepare_into(folder, source, chosen, recipe, progress, workers or min(MOST_WORKERS, _cores()))
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    _refuse_corrupt(index["corrupt"], recipe)
    if index["corrupt"] and progress:
        names = [*index["corrupt"][:5], *["…"] * (len(index["corrupt"]) > 5)]
        print(f"skipped {len(index['corrupt'])} unreadable images: {', '.join(names)}", file=sys.stderr)
    return ImageSet(
        classes=index["classes"],
        mean=torch.tensor(index["mean"]),
        std=torch.tensor(index["std"]),
        counts=index["counts"],
        ids=index["ids"],
        folder=folder,
        resolution=recipe.resolution,
    )


def _prepare_into(
    folder: Path, source: Source, chosen: list[int], recipe: DataRecipe, progress: bool, workers: int
) -> None:
    """Prepares class by class, then writes the index, which makes the folder count.

    A class counts once its note is there; it is prepared under a lock, so that other processes take other classes.
    """
    members = _members(source, chosen)
    sizes = [sum(map(len, by_split.values())) for by_split in members]
    for label, by_split in zip(chosen, members, strict=True):  # an empty class is reported before hours of reading
        _sizes({split: len(indices) for split, indices in by_split.items()}, source.classes[label], recipe)
    notes = [folder / "classes" / f"{class_index}.json" for class_index in range(len(chosen))]
    writable(notes[0].parent, ANOTHER_CACHE)
    todo = list(range(len(chosen)))
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="preparing images", total=sum(sizes), leave=False, disable=None if progress else True) as bar,
    ):
        for wait in (False, True):  # classes that another process is at come last
            for index in list(todo):
                with suppress(Timeout), FileLock(notes[index].with_suffix(".lock")).acquire(blocking=wait):
                    if _is_prepared(folder, index):
                        bar.update(sizes[index])
                    else:
                        _prepare_class(folder, index, source, chosen[index], members[index], recipe, pool, bar)
                    todo.remove(index)
    _write_index(folder, source, chosen, [json.loads(note.read_text(encoding="utf-8")) for note in notes])


def _cores() -> int:
    """Processor cores that this process may use: what taskset, Slurm or a container leaves of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_prepared(folder: Path, class_index: int) -> bool:
    """Whether a class's note is there, and the files of images that it lists."""
    note = folder / "classes" / f"{class_index}.json"
    if not note.is_file():
        return False
    counts = json.loads(note.read_text(encoding="utf-8"))["counts"]
    return all((folder / split / f"{class_index}.safetensors").is_file() for split in counts)


def _members(source: Source, chosen: list[int]) -> Sequence[Mapping[str, Sequence[int]]]:
    """For each chosen class, the indices of its examples in each split."""
    members = [{split: array("l") for split in source.splits} for _ in chosen]  # 1.3 million, in a few megabytes
    index_of = {label: class_index for class_index, label in enumerate(chosen)}
    for split, examples in source.splits.items():
        for index in range(len(examples)):
            class_index = index_of.get(examples[index].label)
            if class_index is not None:
                members[class_index][split].append(index)
    return members


def _prepare_class(
    folder: Path,
    class_index: int,
    source: Source,
    label: int,
    members: Mapping[str, Sequence[int]],
    recipe: DataRecipe,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> None:
    """Reads, splits and writes the images of one class, then its note: counts, corrupt files, histogram of pixels."""
    for left in folder.glob(f"*/.{class_index}.*.tmp"):  # by a process that was killed
        left.unlink()
    corrupt: list[str] = []
    stacked = {
        split: _read(source.splits[split], indices, recipe, corrupt, pool, bar) for split, indices in members.items()
    }
    read = {split: len(images) for split, images in stacked.items()}
    for split, size in _sizes(read, source.classes[label], recipe).items():
        if split not in read:
            stacked["train"], stacked[split] = _hold_out(stacked["train"], split, label, size)
    for split, images in stacked.items():
        write_tensors(folder / split / f"{class_index}.safetensors", {"images": images})
    histogram = sum(pool.map(_histogram, stacked["train"].split(16)), torch.tensor(0))
    counts = {split: len(images) for split, images in stacked.items()}
    note = {"counts": counts, "corrupt": corrupt, "histogram": histogram.tolist()}
    write_json(folder / "classes" / f"{class_index}.json", note)


def _write_index(folder: Path, source: Source, chosen: list[int], notes: list[dict[str, Any]]) -> None:
    mean, std = _statistics(torch.tensor([note["histogram"] for note in notes]).sum(0))
    index = {
        "classes": [source.classes[label] for label in chosen],
        "ids": chosen,
        "counts": {split: [note["counts"][split] for note in notes] for split in notes[0]["counts"]},
        "mean": mean,
        "std": std,
        "corrupt": [name for note in notes for name in note["corrupt"]],
    }
    write_json(folder / "index.json", index)


def _sizes(read: dict[str, int], name: str, recipe: DataRecipe) -> dict[str, int]:
    """How many images of a class each split gets, splits that the source lacks being held out of "train".

    Raises:
        UserError: if a split would have none.
    """
    sizes = dict(read)
    for split, share in (("test", recipe.test_share), ("validation", recipe.validation_share)):
        if share and split not in sizes:
            sizes[split] = max(1, round(share * sizes["train"]))
            sizes["train"] -= sizes[split]
    if min(sizes.values()) < 1:
        counts = ", ".join(f"{count} {split}" for split, count in read.items())
        raise UserError(
            f"data.source: class {name!r} has too few images in {recipe.source} ({counts}); "
            f"it needs at least one for each of {', '.join(sizes)}"
        )
    return sizes


def _read(
    examples: Examples,
    indices: Sequence[int],
    recipe: DataRecipe,
    corrupt: list[str],
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> Tensor:
    """Images uint8 [n, channels, H, W]; the unreadable go to `corrupt`, or the first of them is an error."""
    images = np.empty((len(indices), recipe.channels, recipe.resolution, recipe.resolution), np.uint8)
    at_once = max(1, min(MOST_AT_ONCE, len(indices) // (4 * MOST_WORKERS)))  # few images keep all threads busy

    def read_one(position: int) -> str | None:
        example = examples[indices[position]]
        try:
            images[position] = convert(example.read(), recipe.resolution, recipe.channels)
        except Exception as error:  # a broken file can raise nearly anything in a decoder
            return f"{example.name} ({one_line(error)})"
        return None

    def read(start: int) -> list[str | None]:
        """What is wrong with each of the images from `start` on; None if nothing is."""
        positions = range(start, min(start + at_once, len(indices)))
        if isinstance(examples, GreyArrays):
            chosen = [indices[position] for position in positions]
            images[positions.start : positions.stop] = convert_grey(examples.pixels[chosen], recipe.resolution)
            return [None] * len(positions)
        return [read_one(position) for position in positions]

    readable: list[int] = []
    done = 0
    for mistakes in pool.map(read, range(0, len(indices), at_once)):
        for position, mistake in enumerate(mistakes, done):
            if mistake is None:
                readable.append(position)
            else:
                corrupt.append(mistake)
                _refuse_corrupt(corrupt, recipe)
        done += len(mistakes)
        bar.update(len(mistakes))
    return torch.from_numpy(images if len(readable) == len(images) else images[readable])


def _refuse_corrupt(corrupt: list[str], recipe: DataRecipe) -> None:
    if corrupt and recipe.on_corrupt == "error":
        raise UserError(f"data.source: cannot read {corrupt[0]}; repair or remove it, or set data.on_corrupt=skip")


def _hold_out(images: Tensor, split: str, label: int, count: int) -> tuple[Tensor, Tensor]:
    """The images without `count` of them, and those; `label` is the source's, so that a subset holds out the same."""
    order = torch.randperm(len(images), generator=generator(0, split, label))
    return images[order[count:].sort().values], images[order[:count].sort().values]


def _histogram(images: Tensor) -> Tensor:
    """How often each channel has each value, [channels, 256]; counting takes eight times the images' memory."""
    return torch.stack([pixels.flatten().bincount(minlength=256) for pixels in images.unbind(1)])


def _statistics(histogram: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in units of [0, 1], of counts [channels, 256] of pixel values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = histogram / histogram.sum(1, keepdim=True, dtype=torch.float64)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp(min=1e-8).sqrt()
    return mean.tolist(), std.tolist()
