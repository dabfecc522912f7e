"""Compresses sheets, pictures of many images side by side, so that a web page can contain them."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ld3m.errors import UserError, one_line

SMALL = 64
"""Edge in pixels up to which an image is shown pixel by pixel, so that nothing may blur it."""
MOST = 40
"""Sheets in a page, if their images are small."""
FEWEST = 8
"""Sheets that are kept before quality is reduced to save bytes."""
ON_SCREEN = 128
"""Edge in pixels of an image in the page's overview; sheets between the first and the last need no more."""
ENDS = 0.6
"""Share of the bytes for the first and the last sheet, which are looked at closely."""
QUALITY = 82
LONGEST = 16_000
"""Edge in pixels of a sheet; WebP ends at 16,383."""


def fit(sheets: Mapping[int, Path | Image.Image], columns: int, room: int) -> dict[int, bytes]:
    """Sheets as WebP, as many as `room` bytes can hold; the first and the last are always among them.

    Small images are kept lossless if at least `FEWEST` sheets of them fit. Larger ones are compressed, those between
    the first and the last more, and scaled down if that is not enough.

    Args:
        sheets: by iteration, in order, each of square images in rows of `columns` without gaps.
        room: bytes for all sheets.

    Raises:
        UserError: if a sheet cannot be read.
    """
    iterations = list(sheets)
    if not iterations:
        return {}
    edge = opened(sheets[iterations[0]]).width // columns
    if edge <= SMALL:
        whole = {iteration: _webp(opened(sheets[iteration]), lossless=True) for iteration in evenly(iterations, MOST)}
        for count in range(len(whole), min(FEWEST, len(whole)) - 1, -1):
            chosen = evenly(list(whole), count)
            if sum(len(whole[iteration]) for iteration in chosen) <= room:
                return {iteration: whole[iteration] for iteration in chosen}
    middle, small = opened(sheets[iterations[len(iterations) // 2]]), min(edge, ON_SCREEN)
    usual = len(_webp(_scaled(middle, columns, edge, small)))
    between = (1 - ENDS) * room
    chosen = evenly(iterations, max(FEWEST, min(MOST // 2, 2 + int(between / usual))))
    shares = {iteration: between / max(1, len(chosen) - 2) for iteration in chosen}
    shares |= dict.fromkeys((chosen[0], chosen[-1]), ENDS * room / 2)
    largest = {share: math.ceil(1.3 * small * math.sqrt(share / usual)) for share in set(shares.values())}
    return {
        iteration: _within(opened(sheets[iteration]), columns, share, largest[share])
        for iteration, share in shares.items()
    }


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` (2 or more) of the values, evenly spaced, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(step * (len(values) - 1) / (count - 1))] for step in range(count)]


def opened(source: Path | Image.Image) -> Image.Image:
    """A picture in colour.

    Raises:
        UserError: if it cannot be read.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    try:
        with Image.open(source) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, by format
        raise UserError(f"RUN: cannot read {source} ({one_line(error)}); remove it to leave it out") from None


def _within(picture: Image.Image, columns: int, size: float, largest: int) -> bytes:
    """A sheet as large as `size` bytes allow, its images with edges of at most `largest` pixels."""
    edge = picture.width // columns
    target = min(edge, largest, LONGEST // max(columns, picture.height // edge))
    while True:
        content = _webp(_scaled(picture, columns, edge, target))
        if len(content) <= size or target <= 8:
            return content
        target = max(8, int(target * min(0.95, math.sqrt(size / len(content)))))


def _scaled(picture: Image.Image, columns: int, edge: int, target: int) -> Image.Image:
    """A sheet whose images have edges of `target` pixels instead of `edge`."""
    if target == edge:
        return picture
    return picture.resize((columns * target, picture.height // edge * target), Image.Resampling.LANCZOS)


def _webp(picture: Image.Image, lossless: bool = False) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=60 if lossless else QUALITY, method=4 if lossless else 2)
    return buffer.getvalue()
