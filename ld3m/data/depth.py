"""Images of more than 8 bits per value: one range, the same for all images of a source, becomes 0 to 255.

16-bit files seldom use 16 bits: cameras give 12, CT scanners whole numbers below zero, simulations floats of any size.
Scaled by what the format could hold they would be nearly black, scaled one by one they could not be compared.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel
from tqdm import tqdm

from ld3m.data.decode import upright
from ld3m.data.examples import Example, GreyArrays, Source
from ld3m.data.formats import UnreadableImageError
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
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2
DEFAULTS = {PHOTOMETRIC: 1, SAMPLE_FORMAT: UNSIGNED}
"""Of TIFF's fields and values (TIFF 6.0, sections 8 and 19)."""
_NATIVE = "B" if sys.byteorder == "little" else "L"
_OTHER_ORDER = {"B": "L", "L": "B", "N": _NATIVE}
GREY_ALPHA = "LA;16B"
_OTHER_READING = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA") for a, b in _OTHER_ORDER.items()} | {
    GREY_ALPHA: "RGBA"
}
"""Pillow's names of 16-bit colours, big-endian, little-endian or native, with the other order of bytes of each; grey
with transparency can be read as four bytes."""


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


def kind(image: Image.Image) -> str | None:
    """Whether an image of more than 8 bits per value holds "integers" or "floats"; None if it has 8 bits, and no sign.

    Args:
        image: opened and not yet loaded, since Pillow keeps only the upper 8 of 16 bits of colours.
    """
    if image.mode == "F":
        return "floats"
    deep = image.mode == "I" or image.mode.startswith("I;16") or _colour_16_bit(image) or _is_signed_byte(image)
    return "integers" if deep else None


def to_8_bits(read: Callable[[], Image.Image], range_: Callable[[], Range]) -> Image.Image:
    """An image of more than 8 bits as one of 8, upright; what lies outside the range is clipped.

    Args:
        read: opens the image; it is called once or twice.
        range_: gives the values that become 0 and 255; asked once the image is known to be sound.
    """
    values = _values(read)
    black, white = range_()
    scaled = (_colours(values).astype(np.float64) - black) / (white - black) * 255
    image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if values.ndim == 3 and values.shape[2] in (2, 4):
        image.putalpha(Image.fromarray((values[..., -1] >> 8).astype(np.uint8)))
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
    """The ranges of a source's images of more than 8 bits, by `kind`.

    All classes and splits count, so that a subset looks as it does among all; images that cannot be read do not.

    Args:
        source: whose images are looked at.
        read: opens one of them.
        workers: threads that read.
        progress: whether a bar is shown.
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
        values = _colours(_values(read))
    except Exception:  # decoders raise nearly anything
        return None
    known = values[np.abs(values) < MISSING] if which == "floats" else values
    return (which, float(known.min()), float(known.max())) if known.size else None


def _add(found: dict[str, FoundRange], which: str, least: float, largest: float) -> None:
    if which not in found:
        found[which] = FoundRange(black=least, white=largest, least=least, largest=largest, images=0)
    each = found[which]
    each.least, each.largest, each.images = min(each.least, least), max(each.largest, largest), each.images + 1


def _values(read: Callable[[], Image.Image]) -> np.ndarray:
    """An image's own values, upright: [H, W], or [H, W, channels], the last of 2 or 4 being transparency.

    Pillow gives the upper 8 bits of colours of 16 bits; read as if their bytes were swapped, it gives the lower ones.
    """
    image = read()
    if raw := _colour_16_bit(image):
        lower: Any = read()
        lower.tile = [_decoded_as(tile, _OTHER_READING[raw]) for tile in lower.tile]
        if raw == GREY_ALPHA:
            four = np.asarray(upright(lower), np.uint16)
            return (four[..., ::2] << 8) | four[..., 1::2]
        return (np.asarray(upright(image), np.uint16) << 8) | np.asarray(upright(lower), np.uint16)
    signed_byte, unsigned = _is_signed_byte(image), _tiff_field(image, SAMPLE_FORMAT) == UNSIGNED
    white_is_zero = _tiff_field(image, PHOTOMETRIC) == WHITE_IS_ZERO
    values = np.asarray(upright(image))
    if not np.isfinite(values).all():
        raise UnreadableImageError("holds values that are not finite")
    if signed_byte:
        values = values.view(np.int8)
    if unsigned and values.dtype == np.int32:  # as Pillow has them, those above 2³¹ would be negative
        values = values.view(np.uint32)
    return 65535 - values if white_is_zero and image.mode.startswith("I;16") else values


def _tiff_field(image: Image.Image, tag: int) -> int | None:
    """A field of a TIFF that has one value, or one for all channels; None of other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, DEFAULTS[tag]) if image.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) else value


def _is_signed_byte(image: Image.Image) -> bool:
    return image.mode == "L" and _tiff_field(image, SAMPLE_FORMAT) == SIGNED


def _colours(values: np.ndarray) -> np.ndarray:
    """Without transparency."""
    if values.ndim == 2:
        return values
    return values[..., 0] if values.shape[2] == 2 else values[..., :3]


def _colour_16_bit(image: Image.Image) -> str | None:
    """How the 16-bit colours of an image that is not loaded are stored, as Pillow writes it: RGB;16B; None without."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return None
    arguments = tiles[0][3]
    raw = arguments if isinstance(arguments, str) else arguments[0] if arguments else None
    return raw if raw in _OTHER_READING else None


def _decoded_as(tile: Any, raw: str) -> Any:
    """A tile of an image whose bytes are taken for those of another kind of pixels."""
    codec, extents, offset, arguments = tile
    return codec, extents, offset, raw if isinstance(arguments, str) else (raw, *arguments[1:])
