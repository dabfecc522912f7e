"""TIFF of numbers that Pillow does not open, cuts to 8 bits or gets wrong, such as floats in colour, by tifffile."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ld3m.data.examples import UnreadableImageError
from ld3m.errors import one_line

BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANES, EXTRA, SAMPLE_FORMAT = (
    258, 259, 262, 274, 277, 284, 338, 339,
)  # fmt: skip
"""TIFF's fields (TIFF 6.0, part 1 and sections 18 and 19)."""
WHITE_IS_ZERO, BLACK_IS_ZERO, COLOURS = 0, 1, 2
"""Values of PHOTOMETRIC."""
UNSIGNED, SIGNED = 1, 2
"""Values of SAMPLE_FORMAT."""
PREMULTIPLIED, TRANSPARENCY = 1, 2
"""Values of EXTRA."""


class Values(NamedTuple):
    """The numbers of an image."""

    colours: np.ndarray
    """[H, W] or [H, W, 3]."""
    opacity: np.ndarray | None = None
    """uint8 [H, W]."""


class TiffImage(Image.Image):
    """An image that is known by its size, and whose pixels are not Pillow's but `values`."""

    format = "TIFF"

    def __init__(self, file: Path | BytesIO) -> None:
        """
        Raises:
            UnreadableImageError: if tifffile is not installed, or the file is not what it reads, or has other channels
                than grey or colours with transparency or without.
        """
        super().__init__()
        self._file = file
        with _opened(file) as tiff:
            page = tiff.pages[0]
            self._size, self.is_animated = (page.imagewidth, page.imagelength), len(tiff.pages) > 1
            self.numbers: np.dtype = np.dtype(page.dtype or "V")
            what = f"TIFF of {self.numbers} in {page.samplesperpixel} channels"
            if self.numbers.kind not in "uif" or page.axes not in ("YX", "YXS", "SYX"):
                raise UnreadableImageError(f"{what}, which is not read; save it as 16-bit PNG or TIFF")
            if page.photometric not in (BLACK_IS_ZERO, COLOURS):
                raise UnreadableImageError(f"{what} ({page.photometric.name}); save it as grey or RGB")
            self._extra = list(page.extrasamples) if page.samplesperpixel in (2, 4) else []
            grey_and_another = page.samplesperpixel == 2 and not {PREMULTIPLIED, TRANSPARENCY}.intersection(self._extra)
            if page.samplesperpixel > 4 or grey_and_another:
                raise UnreadableImageError(
                    f"{what}; save those that are to be used as grey or RGB, with transparency or without"
                )

    def load(self) -> Any:
        """Takes the pixels into Pillow's memory, if they are of 8 bits and no sign.

        Raises:
            UnreadableImageError: if they are of more, or cannot be decoded.
        """
        if self.numbers != np.uint8:
            raise UnreadableImageError(f"has {self.numbers} values, which must be scaled first")
        image = Image.fromarray(np.ascontiguousarray(self.values.colours))
        if (opacity := self.values.opacity) is not None:
            image.putalpha(Image.fromarray(opacity))
        self.im, self._mode = image.im, image.mode
        return super().load()

    @property
    def values(self) -> Values:
        """The numbers, upright.

        Raises:
            UnreadableImageError: if they cannot be decoded.
        """
        with _opened(self._file) as tiff:
            page = tiff.pages[0]
            pixels = page.asarray()
            pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
            field = page.tags.get(ORIENTATION)
        pixels = pixels.astype(np.float32) if pixels.dtype == np.float16 else pixels
        turn = field.value if field else 1
        pixels = pixels.swapaxes(0, 1) if turn > 4 else pixels
        pixels = pixels[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]
        if pixels.ndim == 2:
            return Values(pixels)
        colours = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3]
        kind = next((each for each in self._extra if each in (PREMULTIPLIED, TRANSPARENCY)), None)
        if kind is None:
            return Values(colours)
        full = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        opacity = (pixels[..., -1] / full).clip(0, 1)
        if kind == PREMULTIPLIED:
            colours = colours / np.maximum(opacity, 1 / full / 2)[(..., None)[: colours.ndim - 1]]
        return Values(colours, (opacity * 255).round().astype(np.uint8))


@contextmanager
def _opened(file: Path | BytesIO) -> Iterator[Any]:
    """tifffile's file.

    Raises:
        UnreadableImageError: if it or what is done with it fails, or tifffile is not installed.
    """
    try:
        from tifffile import TiffFile
    except ImportError:
        raise UnreadableImageError(
            "TIFF that is damaged or of numbers that Pillow does not read; for those: pip install 'ld3m[tiff]'"
        ) from None
    try:
        if isinstance(file, BytesIO):
            file.seek(0)
        with TiffFile(file) as tiff:
            yield tiff
    except (OSError, UnreadableImageError):
        raise
    except Exception as error:  # a broken file can raise nearly anything in a decoder
        more = "that needs another package: pip install imagecodecs" if "imagecodecs" in str(error) else "but damaged"
        raise UnreadableImageError(f"TIFF, {more} ({one_line(error)})") from None
