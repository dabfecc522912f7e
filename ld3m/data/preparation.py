"""Making the prepared form of real images: class by class, by several threads and processes, resumed if interrupted.

Of each class there are the images of each split, `SPLIT/CLASS.safetensors`, and a note, `classes/CLASS.json`, which is
written last. A class counts as prepared if its note is whole and the images are those that it describes.
"""

import hashlib
import os
import shutil
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ld3m.data.decoding import bits, depth
from ld3m.data.decoding.decode import convert, convert_grey
from ld3m.data.examples import Example, Examples, GreyArrays, Source, UnreadableImageError
from ld3m.data.layouts.identity import CHEAP
from ld3m.data.layouts.listing import exists
from ld3m.data.sealed import Sealed, read_sealed
from ld3m.errors import UserError, one_line
from ld3m.files import ANOTHER_CACHE, writable, write_tensors
from ld3m.machine.lock import hold
from ld3m.randomness import generator
from ld3m.reading import TensorSpec, read_tensors
from ld3m.recipe import DataRecipe

MOST_WORKERS = 8
"""Threads by default: decoding and resizing run in parallel, but a fifth of an image's time is Python's, one by one."""
MOST_AT_ONCE = 64
"""Images that a thread is given at a time: handing over one costs as much as converting a small image does."""
TIMED = 64
"""Images that are read to estimate how long all take."""
RANGES = "range.json"
"""The file of `depth.FoundRanges`."""
AGAIN = "the class is prepared again"


class ClassNote(Sealed):
    """What was prepared of a class."""

    counts: dict[str, int]
    """Images by split."""
    corrupt: list[str]
    """Files that could not be read, each with the reason."""
    several: list[str]
    """Files of several frames or pages, of which the first was taken."""
    histogram: list[list[int]]
    """How often each channel has each value in the training images, [channels, 256]."""
    sha256: dict[str, str]
    """Of the pixels of each split."""


@dataclass
class Preparation:
    """Where images come from, where they go, and how."""

    folder: Path
    source: Source
    chosen: list[int]
    """The classes, by their numbers in the source."""
    recipe: DataRecipe
    progress: bool
    """Whether bars and notes are shown."""
    workers: int
    """Threads that read."""
    holds_out_test: bool
    """Whether the source has no test split, and test images are held out of the training images."""

    def __post_init__(self) -> None:
        find = partial(depth.find, self.source, self._open, self.workers, self.progress)
        self.ranges = depth.Ranges(self.recipe.range, self.folder / RANGES, find)

    def notes(self) -> list[ClassNote]:
        """The notes of all classes; those that are not prepared, or damaged, are prepared first.

        Raises:
            UserError: naming the class or file that is wrong.
        """
        notes = {index: self._note_if_whole(index, self.progress) for index in range(len(self.chosen))}
        if todo := [index for index, note in notes.items() if note is None]:
            with _our_own_limit_of_pixels():
                self._prepare(todo)
            notes |= {index: self._note(index) for index in todo}
        return [note for note in notes.values() if note]

    def outlook(self) -> "Outlook":
        """What is left to prepare, after the checks that need no image; some images are read to time them.

        Raises:
            UserError: for a class without images, too little room, or one of these images that cannot be read.
        """
        todo = [index for index in range(len(self.chosen)) if self._note_if_whole(index, say=False) is None]
        members = self._checked_members(todo)
        counts = Counter[str]()
        for label, by_split in zip(self.chosen, members, strict=True):
            counts.update(self._sizes({split: len(indices) for split, indices in by_split.items()}, label))
        split, examples = next(iter(self.source.splits.items()))
        few = [number for index in todo for number in members[index][split][:TIMED]]
        timed = few[:: -(-len(few) // TIMED)] if few else []
        with _our_own_limit_of_pixels(), ThreadPoolExecutor(self.workers) as pool, tqdm(disable=True) as bar:
            self._read(examples, timed[:1], [], [], pool, bar)  # what the first takes longer
            began = time.perf_counter()
            self._read(examples, timed, [], [], pool, bar)
            each = (time.perf_counter() - began) / max(1, len(timed))
        left = sum(len(indices) for index in todo for indices in members[index].values())
        return Outlook(dict(counts), left, left * self.recipe.channels * self.recipe.resolution**2, each * left)

    def _note_path(self, class_index: int) -> Path:
        return self.folder / "classes" / f"{class_index}.json"

    def _note_if_whole(self, class_index: int, say: bool) -> ClassNote | None:
        """A class's note; None if it is not prepared, or what there is of it is damaged, which can be said."""
        try:
            return self._note(class_index) if exists(str(self._note_path(class_index))) else None
        except UserError as error:
            if say:
                print(error, file=sys.stderr)
            return None

    def _note(self, class_index: int) -> ClassNote:
        """A class's note, checked against its images: their size, and if all images are few, each of their bits.

        Raises:
            UserError: if the note or the images are damaged or missing.
        """
        note = read_sealed(self._note_path(class_index), ClassNote, AGAIN)
        shape = (self.recipe.channels, self.recipe.resolution, self.recipe.resolution)
        for split, count in note.counts.items():
            path = self.folder / split / f"{class_index}.safetensors"
            images = read_images(path, AGAIN, (count, *shape))
            cheap = images.numel() * len(self.chosen) <= CHEAP
            if cheap and _sha256(images) != note.sha256[split]:
                raise UserError(f"{path} is damaged (its digest differs); {AGAIN}")
        return note

    def _prepare(self, todo: list[int]) -> None:
        """Prepares some of the classes, each under a lock, so that other processes take other classes."""
        members = self._checked_members(todo)
        sizes = [sum(map(len, by_split.values())) for by_split in members]
        total, hidden = sum(sizes[index] for index in todo), None if self.progress else True
        with (
            ThreadPoolExecutor(self.workers) as pool,
            tqdm(desc="preparing images", total=total, leave=False, disable=hidden) as bar,
        ):
            left = list(todo)
            for wait in (False, True):  # classes that another process is at come last
                for index in list(left):
                    with hold(self._note_path(index).with_suffix(".lock"), wait) as held:
                        if not held:
                            continue
                        if self._note_if_whole(index, say=False):
                            bar.update(sizes[index])
                        else:
                            self._prepare_class(index, members[index], pool, bar)
                    left.remove(index)

    def _checked_members(self, todo: list[int]) -> Sequence[Mapping[str, Sequence[int]]]:
        """The indices of each class's examples in each split; there are enough, and room for what is to be prepared."""
        members = _members(self.source, self.chosen)
        for label, by_split in zip(self.chosen, members, strict=True):  # empty classes are reported before any reading
            self._sizes({split: len(indices) for split, indices in by_split.items()}, label)
        sizes = [sum(map(len, by_split.values())) for by_split in members]
        writable(self.folder / "classes", ANOTHER_CACHE)
        self._check_room(sum(sizes[index] for index in todo), max(sizes))
        return members

    def _check_room(self, images: int, most: int) -> None:
        """Raises a UserError if so many images do not fit on the disk, or as many of one class not into memory."""
        gib = self.recipe.channels * self.recipe.resolution**2 / 2**30
        free, memory = shutil.disk_usage(self.folder).free / 2**30, psutil.virtual_memory().total / 2**30
        if images * gib > free:
            raise UserError(
                f"data.resolution: {images:,} prepared images take {images * gib:,.1f} GiB, and {free:,.1f} are free "
                f"in {self.folder.parent}; set LD3M_CACHE to a larger disk, or give fewer or smaller images"
            )
        if most * gib > memory:
            raise UserError(
                f"data.resolution: a class of {most:,} images takes {most * gib:,.1f} GiB of memory while it is "
                f"prepared, and this machine has {memory:,.1f}; give fewer or smaller images"
            )

    def _prepare_class(
        self, class_index: int, members: Mapping[str, Sequence[int]], pool: ThreadPoolExecutor, bar: tqdm
    ) -> None:
        """Reads, splits and writes the images of one class, then its note."""
        for left in self.folder.glob(f"*/.{class_index}.*.tmp"):  # by a process that was killed
            left.unlink()
        for folder in self.folder.glob(f"*/{class_index}.*/"):  # nothing of ours
            shutil.rmtree(folder)
        label = self.chosen[class_index]
        corrupt: list[str] = []
        several: list[str] = []
        stacked = {}
        for split, indices in members.items():
            stacked[split] = self._read(self.source.splits[split], indices, corrupt, several, pool, bar)
        read = {split: len(images) for split, images in stacked.items()}
        for split, size in self._sizes(read, label).items():
            if split not in read:
                stacked["train"], stacked[split] = _hold_out(stacked["train"], split, label, size)
        for split, images in stacked.items():
            write_tensors(self.folder / split / f"{class_index}.safetensors", {"images": images})
        histogram = sum(pool.map(_histogram, stacked["train"].split(16)), torch.tensor(0))
        ClassNote(
            counts={split: len(images) for split, images in stacked.items()},
            corrupt=corrupt,
            several=several,
            histogram=histogram.tolist(),
            sha256={split: _sha256(images) for split, images in stacked.items()},
        ).write(self._note_path(class_index))

    def _sizes(self, read: dict[str, int], label: int) -> dict[str, int]:
        """How many images of a class each split gets, splits that the source lacks being held out of "train".

        Raises:
            UserError: if a split would have none.
        """
        sizes = dict(read)
        test_share = self.recipe.test_share if self.holds_out_test else 0
        for split, share in (("test", test_share), ("validation", self.recipe.validation_share)):
            if share and split not in sizes:
                sizes[split] = max(1, round(share * sizes["train"]))
                sizes["train"] -= sizes[split]
        if min(sizes.values()) < 1:
            counts = ", ".join(f"{count} {split}" for split, count in read.items())
            raise UserError(
                f"data.source: class {self.source.classes[label]!r} has too few images in {self.recipe.source} "
                f"({counts}); it needs at least one for each of {', '.join(sizes)}"
            )
        return sizes

    def _read(
        self,
        examples: Examples,
        indices: Sequence[int],
        corrupt: list[str],
        several: list[str],
        pool: ThreadPoolExecutor,
        bar: tqdm,
    ) -> Tensor:
        """Images uint8 [n, channels, H, W]; the unreadable go to `corrupt`, or the first of them is an error."""
        resolution, channels = self.recipe.resolution, self.recipe.channels
        images = np.empty((len(indices), channels, resolution, resolution), np.uint8)
        at_once = max(1, min(MOST_AT_ONCE, len(indices) // (4 * MOST_WORKERS)))  # few images keep all threads busy

        def read(start: int) -> list[_Outcome]:
            """Of the images from `start` on."""
            positions = range(start, min(start + at_once, len(indices)))
            if isinstance(examples, GreyArrays):
                chosen = [indices[position] for position in positions]
                images[positions.start : positions.stop] = convert_grey(examples.pixels[chosen], resolution)
                return [_Outcome()] * len(positions)
            return [self._convert_into(images[position], examples[indices[position]]) for position in positions]

        readable: list[int] = []
        done = 0
        for outcomes in pool.map(read, range(0, len(indices), at_once)):
            for position, outcome in enumerate(outcomes, done):
                several += [outcome.several] if outcome.several else []
                if outcome.mistake is None:
                    readable.append(position)
                else:
                    corrupt.append(outcome.mistake)
                    refuse_corrupt(corrupt, self.recipe)
            done += len(outcomes)
            bar.update(len(outcomes))
        return torch.from_numpy(images if len(readable) == len(images) else images[readable])

    def _convert_into(self, target: np.ndarray, example: Example) -> "_Outcome":
        """Reads an image into [channels, H, W] of uint8."""
        try:
            image = self._open(example)
            several = example.name if image.format != "MPO" and getattr(image, "is_animated", False) else None
            if kind := bits.kind(image):
                image = depth.to_8_bits(partial(self._open, example), partial(self.ranges.of, kind))
            target[:] = convert(image, self.recipe.resolution, self.recipe.channels)
        except UserError:  # not the image's fault
            raise
        except UnreadableImageError as error:
            return _Outcome(f"{example.name} ({error})")
        except Exception as error:  # a broken file can raise nearly anything in a decoder
            return _Outcome(f"{example.name} ({one_line(error)})")
        return _Outcome(several=several)

    def _open(self, example: Example) -> Image.Image:
        """An image that is not loaded yet, if it is not too large."""
        image = example.read()
        if image.width * image.height > self.recipe.max_pixels:
            size = f"{image.width:,} × {image.height:,} pixels"
            raise UnreadableImageError(f"{size}, more than data.max_pixels={self.recipe.max_pixels}")
        return image


class Outlook(NamedTuple):
    """What preparing images still takes."""

    counts: dict[str, int]
    """Images of each split in all."""
    images: int
    """To be prepared; 0 if the cache has all."""
    bytes: int
    """Of the cache's disk."""
    seconds: float
    """Estimated from a few images."""


class _Outcome(NamedTuple):
    """What came of an image."""

    mistake: str | None = None
    """Its name, and why it cannot be read."""
    several: str | None = None
    """Its name, if it has several frames or pages; those of an MPO are previews and depths of the first."""


def cores() -> int:
    """Processor cores that this process may use: what taskset, Slurm or a container leaves of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_images(path: Path, advice: str, shape: tuple[int, int, int, int]) -> Tensor:
    """The images of a class, uint8 of a shape; memory-mapped, so only what is used is read.

    Raises:
        UserError: if the file is missing or holds something else.
    """
    return read_tensors(path, advice, {"images": TensorSpec(torch.uint8, shape)}).tensors["images"]


def refuse_corrupt(corrupt: list[str], recipe: DataRecipe) -> None:
    """Raises a UserError for the first unreadable image, unless the recipe skips them."""
    if corrupt and recipe.on_corrupt == "error":
        raise UserError(f"data.source: cannot read {corrupt[0]}; repair or remove it, or set data.on_corrupt=skip")


@contextmanager
def _our_own_limit_of_pixels() -> Iterator[None]:
    """Lifts Pillow's, which is the process's; `data.max_pixels` takes its place."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


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


def _hold_out(images: Tensor, split: str, label: int, count: int) -> tuple[Tensor, Tensor]:
    """The images without `count` of them, and those; `label` is the source's, so that a subset holds out the same."""
    order = torch.randperm(len(images), generator=generator(0, split, label))
    return images[order[count:].sort().values], images[order[:count].sort().values]


def _histogram(images: Tensor) -> Tensor:
    """How often each channel has each value, [channels, 256]; counting takes eight times the images' memory."""
    return torch.stack([pixels.flatten().bincount(minlength=256) for pixels in images.unbind(1)])


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()
