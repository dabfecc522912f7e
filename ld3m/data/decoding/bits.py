"""The numbers of images of more than 8 bits per value, all of their bits, where Pillow keeps the upper 8 or errs."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ld3m.data.decoding.decode import upright
from ld3m.data.decoding.tiff import (
    BITS,
    BLACK_IS_ZERO,
    COMPRESSION,
    PHOTOMETRIC,
    PLANES,
    SAMPLE_FORMAT,
    SAMPLES,
    SIGNED,
    UNSIGNED,
    WHITE_IS_ZERO,
    TiffImage,
    Values,
)
from ld3m.data.examples import UnreadableImageError

_NATIVE = "B" if sys.byteorder == "little" else "L"
_OTHER_ORDER = {"B": "L", "L": "B", "N": _NATIVE}
GREY_ALPHA = "LA;16B"
_OTHER_READING = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA") for a, b in _OTHER_ORDER.items()} | {
    GREY_ALPHA: "RGBA"
}
"""Pillow's names of 16-bit colours, big-endian, little-endian or native, with the other order of bytes of each; grey
with transparency can be read as four bytes."""
_DEFAULTS = {PHOTOMETRIC: BLACK_IS_ZERO, SAMPLE_FORMAT: UNSIGNED}
"""Of TIFF's fields."""
_SIZES = b"\xff\x4f\xff\x51"
"""How the code of JPEG 2000 begins; 38 bytes after it is the depth of its first channel (ISO 15444-1, A.5.1)."""


def kind(image: Image.Image) -> str | None:
    """Whether an image of more than 8 bits per value holds "integers" or "floats"; None if it has 8 bits, and no sign.

    Args:
        image: opened and not yet loaded, since Pillow keeps only the upper 8 of 16 bits of colours.
    """
    if isinstance(image, TiffImage):
        return "floats" if image.numbers.kind == "f" else None if image.numbers == np.uint8 else "integers"
    if image.mode == "F":
        return "floats"
    deep = image.mode == "I" or image.mode.startswith("I;16") or _colour_16_bit(image) or _is_signed_byte(image)
    return "integers" if deep else None


def values(read: Callable[[], Image.Image]) -> Values:
    """An image's own numbers, upright.

    Pillow gives the upper 8 bits of colours of 16 bits; read as if their bytes were swapped, it gives the lower ones.

    Args:
        read: opens the image; it is called once or twice.

    Raises:
        UnreadableImageError: if they cannot be read, or one is not finite.
    """
    image = read()
    if isinstance(image, TiffImage):
        found = image.values
        _check_finite(found.colours)
        return found
    if raw := _colour_16_bit(image):
        lower: Any = read()
        lower.tile = [_decoded_as(tile, _OTHER_READING[raw]) for tile in lower.tile]
        if raw == GREY_ALPHA:
            four = np.asarray(upright(lower), np.uint16)
            return Values((four[..., 0] << 8) | four[..., 1], four[..., 2].astype(np.uint8))
        upper = np.asarray(upright(image))
        colours = ((upper.astype(np.uint16) << 8) | np.asarray(upright(lower), np.uint16))[..., :3]
        return Values(colours, upper[..., 3] if upper.shape[2] == 4 else None)
    signed_byte, unsigned = _is_signed_byte(image), _tiff_field(image, SAMPLE_FORMAT) == UNSIGNED
    white_is_zero = _tiff_field(image, PHOTOMETRIC) == WHITE_IS_ZERO
    numbers = np.asarray(upright(image))
    _check_finite(numbers)
    if signed_byte:
        numbers = numbers.view(np.int8)
    if unsigned and numbers.dtype == np.int32:  # as Pillow has them, those above 2³¹ would be negative
        numbers = numbers.view(np.uint32)
    return Values(65535 - numbers if white_is_zero and image.mode.startswith("I;16") else numbers)


def _check_finite(numbers: np.ndarray) -> None:
    if not np.isfinite(numbers).all():
        raise UnreadableImageError("holds values that are not finite")


# --- what Pillow makes of them -----------------------------------------------------------------------------


def is_misread(image: Image.Image) -> bool:
    """Whether Pillow opens a TIFF and then cuts its numbers to 8 bits, swaps their bytes or leaves channels out."""
    if image.format != "TIFF":
        return False
    fields: Any = getattr(image, "tag_v2", {})
    samples, bits = fields.get(SAMPLES, 1), max(fields.get(BITS, (1,)))
    if fields.get(PLANES) == 2 and samples > 1:
        return bits > 8 or samples not in (3, 4)
    if image.mode == "F" and fields.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        return True
    if image.mode in ("I", "F"):
        return fields.get(COMPRESSION, 1) != 1 and fields.prefix == b"MM"
    return bits > 8 and samples > 1 and not _colour_16_bit(image)


def keep_all(image: Any, content: Callable[[], bytes]) -> None:
    """Has Pillow read all bits of an image that it opened.

    Args:
        image: as Pillow opened it, not yet loaded.
        content: gives the bytes of its file.

    Raises:
        UnreadableImageError: if Pillow would keep the upper 8 and no more.
    """
    cut = False
    for tile in getattr(image, "tile", ()):
        codec, extents, offset, arguments = tile
        if codec == "ppm" and image.mode == "RGB" and arguments[1] > 255:
            image.tile = [("raw", extents, offset, ("RGB;16B", 0, 1))]
        cut |= codec == "SGI16" or (codec == "sgi_rle" and arguments[2] == 2)
        cut |= codec == "ppm_plain" and image.mode == "RGB" and arguments[1] > 255
    if image.format == "JPEG2000" and not image.mode.startswith("I"):
        _, found, code = content().partition(_SIZES)
        cut |= bool(found) and code[38] & 0x7F > 7
    if cut:
        raise UnreadableImageError(f"{image.format} of more than 8 bits, of which Pillow keeps 8; save it as PNG")


def _tiff_field(image: Image.Image, tag: int) -> int | None:
    """A field of a TIFF that has one value, or one for all channels; None of other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, _DEFAULTS[tag]) if image.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) else value


def _is_signed_byte(image: Image.Image) -> bool:
    return image.mode == "L" and _tiff_field(image, SAMPLE_FORMAT) == SIGNED


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
