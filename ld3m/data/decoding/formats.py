"""Whether a file is an image, by its name or else by its first bytes; and what one that Pillow does not read is."""

import stat
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ld3m.data.decoding.bits import is_misread, keep_all
from ld3m.data.decoding.tiff import TiffImage
from ld3m.data.examples import UnreadableImageError
from ld3m.reading import HEAD, foreign_kind

with suppress(ImportError):  # HEIC images are named as unreadable then
    import_module("pillow_heif").register_heif_opener()

for _order, _raw in ((b"II", "F;64F"), (b"MM", "F;64BF")):  # Pillow decodes floats of 64 bits, but does not open them
    TiffImagePlugin.OPEN_INFO.setdefault((_order, 1, (3,), 1, (64,), ()), ("F", _raw))

STUBS = {"BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow names but, without a handler of the user's, does not decode."""
CAMERA_RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".mef", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2",
    ".srw",
)  # fmt: skip
"""Endings of sensor data, most of it in TIFF's frame, of which Pillow would take the small preview for the image."""
OTHER_IMAGES = (".heic", ".heif", ".hif", ".avif", ".jxl", ".dcm", ".exr", *CAMERA_RAW)
"""Endings of images that Pillow reads with another package's help or not at all: they are reported, not left out."""
SUFFIXES = (
    *(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in STUBS),
    *OTHER_IMAGES,
)
"""Endings of the names of image files, in lower case."""
_HEIC = "HEIC, which needs another package: pip install pillow-heif"
_AVIF = "AVIF, which this Pillow was built without: pip install -U pillow"
_JXL = "JPEG XL, which is not read; convert it to PNG"
_BRANDS = {b"avif": _AVIF, b"avis": _AVIF} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC
)
"""Of ISO media files (ISO 14496-12): the four bytes after "ftyp"; films have others."""
_IMAGES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS\0\x01": "Photoshop",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"\0\0\0\x0cJXL ": _JXL,
    b"\xff\x0a": _JXL,
    b"\x76\x2f\x31\x01": "OpenEXR, which is not read; convert it to 16-bit PNG or TIFF",
}
"""How image files begin. Formats that begin like a text (PPM, XBM) or like nothing (TGA) go by their names."""
_NO_IMAGES = {
    b"\x93NUMPY": "a NumPy array; save it as PNG or TIFF",
    b"\x89HDF": "an HDF5 file",
}


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its name or else by its first bytes; a broken one counts by its name.

    Never waits: of pipes and other irregular files nothing is read.
    """
    if path.name.lower().endswith(SUFFIXES):
        return True
    with suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                return _image_format(file.read(HEAD)) is not None
    return False


def open_image(file: Path | BytesIO) -> Image.Image:
    """`PIL.Image.open`, whose errors say what the file is instead.

    Raises:
        UnreadableImageError: if it is not an image that Pillow reads.
        OSError: if it cannot be opened.
    """
    if isinstance(file, Path) and file.name.lower().endswith(CAMERA_RAW):
        raise UnreadableImageError(f"a camera's raw data ({file.suffix}); develop it to TIFF or JPEG")
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        head = _head(file)
        kind = _image_format(head)
        if kind == "TIFF":
            return TiffImage(file)
        if kind and "," not in kind:  # one that Pillow reads as a rule
            kind += ", but damaged or of a kind that Pillow does not read"
        raise UnreadableImageError(kind or _other_format(head) or "no image that Pillow reads") from None
    if is_misread(image):
        return TiffImage(file)
    keep_all(image, file.getvalue if isinstance(file, BytesIO) else file.read_bytes)
    return image


def _head(file: Path | BytesIO) -> bytes:
    if isinstance(file, BytesIO):
        return file.getvalue()[:HEAD]
    with file.open("rb") as opened:
        return opened.read(HEAD)


def _image_format(head: bytes) -> str | None:
    """The format of an image by its first bytes, with what it needs; None if it is none that is known."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    if head[128:132] == b"DICM":
        return "DICOM, which is not read; convert it to 16-bit PNG or TIFF"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    return next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), None)


def _other_format(head: bytes) -> str | None:
    """What a file is that is no image."""
    if not head:
        return "empty"
    if b"<svg" in head.lower():
        return "SVG, which is not read; draw it as PNG"
    return foreign_kind(head) or next((kind for magic, kind in _NO_IMAGES.items() if head.startswith(magic)), None)
