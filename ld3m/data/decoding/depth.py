"""Images of more than 8 bits per value: one range, the same for all images of a source, becomes 0 to 255.

16-bit files seldom use 16 bits: cameras give 12, CT scanners whole numbers below zero, simulations floats of any size.
Scaled by what the format could hold they would be nearly black, scaled one by one they could not be compared.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image
from pydantic import BaseModel
from tqdm import tqdm

from ld3m.data.decoding.bits import kind, values
from ld3m.data.examples import Example, GreyArrays, Source
from ld3m.data.sealed import Sealed, read_sealed
from ld3m.errors import UserError
from ld3m.machine.lock import hold

Range = tuple[float, float]
"""The values that become black and white."""
USUAL = (1, 255, 1023, 4095, 16383, 65535)
"""The largest values of shares and of 8, 10, 12, 14 and 16 bits."""
MISSING = 1e30
"""Floats as large stand for values that are not known: maps hold -3.4e38 there."""
AT_ONCE = 4096
"""Images whose extremes are looked for at a time."""


class FoundRange(BaseModel):
    """The range of the whole numbers, or of the floats, of a source."""

    black: float
    white: float
    least: float
    largest: float
    images: int
    """How many were looked at."""


class FoundRanges(Sealed):
    """What is kept of them beside the prepared images."""

    by_kind: dict[str, FoundRange]


class Ranges:
    """The range of a source's images, found when it is first asked for and kept for other processes."""

    def __init__(self, given: Sequence[float] | None, path: Path, find: Callable[[], dict[str, FoundRange]]) -> None:
        """
        Args:
            given: black and white for all images, if the user gave them.
            path: where what is found is kept.
            find: looks through all images of the source.
        """
        self._given, self._path, self._find = given, path, find
        self._found: dict[str, FoundRange] = {}
        self._lock = Lock()

    def of(self, kind: str) -> Range:
        """Black and white of the images of a kind; waits if another thread or process is finding them."""
        if self._given:
            black, white = self._given
            return black, white
        with self._lock:
            if kind not in self._found:
                with hold(self._path.with_suffix(".lock")):
                    self._found = found_ranges(self._path)
                    if kind not in self._found:
                        self._found = self._find()
                        FoundRanges(by_kind=self._found).write(self._path)
        return self._found[kind].black, self._found[kind].white


def found_ranges(path: Path) -> dict[str, FoundRange]:
    """What was found for a source, by kind; empty if nothing was, or the file is damaged."""
    try:
        return read_sealed(path, FoundRanges, "they are found again").by_kind
    except UserError:
        return {}


def to_8_bits(read: Callable[[], Image.Image], range_: Callable[[], Range]) -> Image.Image:
    """An image of more than 8 bits as one of 8, upright; what lies outside the range is clipped.

    Args:
        read: opens the image; it is called once or twice.
        range_: gives the values that become 0 and 255; asked once the image is known to be sound.
    """
    colours, opacity = values(read)
    black, white = range_()
    scaled = (colours.astype(np.float64) - black) / (white - black) * 255
    image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if opacity is not None:
        image.putalpha(Image.fromarray(opacity))
    return image


def natural(least: float, largest: float) -> Range:
    """The range that values between two extremes are meant to have.

    From 0 to the largest value of 8, 10, … 16 bits, or to 1, if at least half of that is used; else the extremes.
    """
    white = next((each for each in USUAL if largest <= each), None)
    if white and least >= 0 and largest - least >= white / 2:
        return 0, white
    return least, max(largest, least + 1e-6 * max(1, abs(least)))


def find(source: Source, read: Callable[[Example], Image.Image], workers: int, progress: bool) -> dict[str, FoundRange]:
    """The ranges of a source's images of more than 8 bits, by `bits.kind`.

    All classes and splits count, so that a subset looks as it does among all; images that cannot be read do not.
    """
    found: dict[str, FoundRange] = {}
    splits = [split for split in source.splits.values() if not isinstance(split, GreyArrays)]  # those have 8 bits
    examples = (split[index] for split in splits for index in range(len(split)))
    hidden = None if progress else True
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="finding data.range", total=sum(map(len, splits)), leave=False, disable=hidden) as bar,
    ):
        while batch := list(islice(examples, AT_ONCE)):
            for extremes in pool.map(lambda example: _extremes(partial(read, example)), batch):
                bar.update()
                if extremes:
                    _add(found, *extremes)
    for each in found.values():
        each.black, each.white = natural(each.least, each.largest)
    return found


def _extremes(read: Callable[[], Image.Image]) -> tuple[str, float, float] | None:
    """Kind, least and largest value of an image; None if it has 8 bits or cannot be read, which is reported later."""
    try:
        which = kind(read())
        if which is None:
            return None
        numbers = values(read).colours
    except Exception:  # decoders raise nearly anything
        return None
    known = numbers[np.abs(numbers) < MISSING] if which == "floats" else numbers
    return (which, float(known.min()), float(known.max())) if known.size else None


def _add(found: dict[str, FoundRange], which: str, least: float, largest: float) -> None:
    if which not in found:
        found[which] = FoundRange(black=least, white=largest, least=least, largest=largest, images=0)
    each = found[which]
    each.least, each.largest, each.images = min(each.least, least), max(each.largest, largest), each.images + 1
