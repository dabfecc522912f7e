"""What an image file is: by name, by content, and what other files are called."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from ld3m.data.decoding.formats import is_image, open_image
from ld3m.data.examples import UnreadableImageError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
FILM = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"


def encoded(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, format=format_)
    return buffer.getvalue()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("name", ["photo", "photo.jpg.1", "photo.jpg?w=300", "photo.JPG_large", "photo.txt"])
def test_an_image_is_one_whatever_its_name(format_: str, name: str, tmp_path: Path) -> None:
    if format_ == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    path = tmp_path / name
    path.write_bytes(encoded(format_))
    assert is_image(path)
    assert open_image(path).size == (8, 8)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        ("labels.csv", b"BM,1,2,3,4,5,6,7,8"),
        ("notes", b"P5 is the format of ..."),
        ("film.mp4", FILM),
        ("empty", b""),
        ("data.npy", b"\x93NUMPY\x01\0"),
        ("log.txt", b"GIFs are below"),
    ],
)
def test_what_is_no_image(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert not is_image(tmp_path / name)


def test_folders_pipes_and_dangling_links_are_no_images_and_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [is_image(tmp_path / name) for name in ("folder", "link", "pipe")] == [False] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("IMG_1.HEIC", HEIC, "HEIC, which needs another package: pip install pillow-heif"),
        ("IMG_1", HEIC, "HEIC, which needs another package: pip install pillow-heif"),
        ("a.jxl", b"\xff\x0a\0\0", "JPEG XL, which is not read; convert it to PNG"),
        ("ct.dcm", bytes(128) + b"DICM", "DICOM, which is not read; convert it to 16-bit PNG or TIFF"),
        ("a.NEF", encoded("TIFF"), r"a camera's raw data \(.NEF\); develop it to TIFF or JPEG"),
        ("a.jpg", b"<!DOCTYPE html><html>", "a web page, such as of a login or an error; download it again"),
        (
            "a.png",
            b"version https://git-lfs.github.com/spec/v1",
            "a Git LFS pointer, not the file itself; git lfs pull fetches it",
        ),
        ("a.png", b"", "empty"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "PNG, but damaged or of a kind that Pillow does not read"),
        ("a.png", b"PK\x03\x04", "a zip archive; unpack it first"),
        ("a.png", b"no image at all", "no image that Pillow reads"),
    ],
)
def test_what_is_not_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """All of them have the name or the content of an image, hence are reported and not left out."""
    (tmp_path / name).write_bytes(content)
    assert is_image(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=f"^{message}$"):
        open_image(tmp_path / name)
