"""Images of more than 8 bits: one range for the whole source, found once, printed, or given."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ld3m.data.decoding import bits, depth
from ld3m.data.decoding.decode import upright
from ld3m.data.decoding.formats import open_image
from ld3m.data.examples import UnreadableImageError
from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError
from ld3m.recipe import DataRecipe

RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 1, 64).reshape(8, 8)
"""From 0 to 1, both included."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def source(root: Path, kind: str, **images: np.ndarray) -> Path:
    """A folder with one training image in each class, and the same image for testing."""
    for name, pixels in images.items():
        for split in ("train", "test"):
            save(root / split / name / f"1.{kind}", pixels)
    return root


def prepared(root: Path, **settings: Any) -> ImageSet:
    return prepare(DataRecipe.model_validate({"source": str(root), "resolution": 8, "channels": 1, **settings}))


def pixels_of(images: ImageSet, label: int) -> np.ndarray:
    return images.images("train", label)[0, 0].numpy()


def scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return np.round((values - black) / (white - black) * 255)


def test_12_bits_in_a_16_bit_png_are_scaled_by_4095(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Together: an image of little light stays darker than one of much."""
    dim, bright = (RAMP * 800).astype(np.uint16), (RAMP * 4000).astype(np.uint16)
    images = prepared(source(tmp_path / "set", "png", dim=dim, bright=bright))
    assert images.classes == ["bright", "dim"]
    assert np.array_equal(pixels_of(images, 0), scaled(bright, 0, 4095))
    assert np.array_equal(pixels_of(images, 1), scaled(dim, 0, 4095))
    said = (
        "data.range: 4 images of more than 8 bits (integers) have values from 0 to 4000; 0 becomes black, 4095 white, "
    )
    assert said in capsys.readouterr().err


def test_16_bits_are_scaled_by_65535_as_before(tmp_path: Path) -> None:
    levels = (RAMP * 65535).astype(np.uint16)
    images = prepared(source(tmp_path / "set", "png", a=levels))
    assert np.array_equal(pixels_of(images, 0), scaled(levels, 0, 65535))


def test_whole_numbers_below_zero_and_floats_are_scaled_between_their_extremes(tmp_path: Path) -> None:
    """As of CT, from -1024; each image keeps its place in the range of both."""
    air, bone = np.full((8, 8), -1024, np.int32), (RAMP * 3071).astype(np.int32)
    images = prepared(source(tmp_path / "ct", "tif", air=air, bone=bone))
    assert np.array_equal(pixels_of(images, 0), np.zeros((8, 8)))
    assert np.array_equal(pixels_of(images, 1), scaled(bone, -1024, 3071))
    dark, light = (RAMP * 0.01).astype(np.float32), (RAMP * 0.02).astype(np.float32)
    images = prepared(source(tmp_path / "floats", "tif", dark=dark, light=light))
    assert np.array_equal(pixels_of(images, 1), scaled(light.astype(float), 0, light.max()))
    assert np.array_equal(pixels_of(images, 0), scaled(dark.astype(float), 0, light.max()))


def test_values_that_stand_for_none_have_no_part_in_the_range(tmp_path: Path) -> None:
    """GDAL's of float32; they become black."""
    known = (RAMP * 0.9).astype(np.float32)
    holed = np.where(RAMP > 0.8, np.finfo(np.float32).min, known)
    images = prepared(source(tmp_path / "set", "tif", a=holed, b=known))
    assert np.array_equal(pixels_of(images, 1), scaled(known.astype(float), 0, 1))
    assert np.array_equal(pixels_of(images, 0) == 0, (RAMP > 0.8) | (RAMP == 0))


def test_the_range_of_a_subset_is_that_of_all(tmp_path: Path) -> None:
    dim, bright = (RAMP * 800).astype(np.uint16), (RAMP * 4000).astype(np.uint16)
    root = source(tmp_path / "set", "png", dim=dim, bright=bright)
    assert np.array_equal(pixels_of(prepared(root, subset=["dim"]), 0), scaled(dim, 0, 4095))


def test_the_users_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A window of CT: what is outside is clipped; nothing was guessed, nothing is printed."""
    values = (RAMP * 4000 - 1000).astype(np.int32)
    images = prepared(source(tmp_path / "set", "tif", a=values), range=[-160, 240])
    assert np.array_equal(pixels_of(images, 0), scaled(values, -160, 240).clip(0, 255))
    assert "data.range" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"\[5.0, 5.0\] is invalid: give \[black, white\]"):
        prepared(tmp_path / "set", range=[5, 5])


def test_images_of_8_bits_beside_them_stay_as_they_are(tmp_path: Path) -> None:
    grey = (RAMP * 200).astype(np.uint8)
    images = prepared(source(tmp_path / "set", "png", grey=grey, deep=(RAMP * 4000).astype(np.uint16)))
    assert np.array_equal(pixels_of(images, 1), grey)


@pytest.mark.parametrize(
    ("extremes", "expected"),
    [
        ((0, 4000), (0, 4095)),
        ((2, 60000), (0, 65535)),
        ((0, 200), (0, 255)),
        ((0.0, 0.9), (0, 1)),
        ((0, 1200), (0, 1200)),  # of 4095, less than half
        ((31744, 36000), (31744, 36000)),  # CT stored with an offset
        ((-1024, 3071), (-1024, 3071)),
        ((0, 2.0**31), (0, 2.0**31)),
    ],
)
def test_which_range_values_are_meant_to_have(extremes: tuple[float, float], expected: tuple[float, float]) -> None:
    assert depth.natural(*extremes) == expected


def test_images_of_one_value_have_a_range(tmp_path: Path) -> None:
    images = prepared(source(tmp_path / "set", "tif", a=np.full((8, 8), -5, np.int32)))
    assert pixels_of(images, 0).max() == 0


# --- colours -----------------------------------------------------------------------------------------------


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit colours, or grey and transparency, which Pillow does not write (PNG, third edition, 11.2.1)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(pixels: np.ndarray, sample_format: int = 1, photometric: int | None = None) -> bytes:
    """A little-endian TIFF in one strip, not compressed, of any numbers (TIFF 6.0, sections 2 to 6 and 19)."""
    height, width, *channels = pixels.shape
    bits, count = pixels.itemsize * 8, channels[0] if channels else 1
    photometric = (2 if channels else 1) if photometric is None else photometric
    entries = 10
    after = 8 + 2 + 12 * entries + 4
    strip = after + 6
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, count, after if count > 2 else bits), (259, 3, 1, 1)]
    fields += [(262, 3, 1, photometric), (273, 4, 1, strip), (277, 3, 1, count), (278, 4, 1, height)]
    fields += [(279, 4, 1, pixels.nbytes), (339, 3, 1, sample_format)]
    directory = b"".join(struct.pack("<HHII", *each) for each in fields)
    head = b"II*\0" + struct.pack("<IH", 8, entries) + directory + struct.pack("<I", 0)
    return head + struct.pack("<HHH", bits, bits, bits) + pixels.tobytes()


def prepared_from(tmp_path: Path, content: bytes, kind: str, channels: int) -> np.ndarray:
    """The pixels of a file that is the only image of its class."""
    for split in ("train", "test"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        (tmp_path / "set" / split / "a" / f"1.{kind}").write_bytes(content)
    return prepared(tmp_path / "set", channels=channels).images("train", 0)[0].numpy()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(RAMP * 5, sample_format=3), scaled(RAMP, 0, 1)),  # floats of 64 bits
        (tiff((RAMP * 4e9).astype(np.uint32)), scaled((RAMP * 4e9).astype(np.uint32), 0, 4e9)),
        (tiff((RAMP * 100 - 50).astype(np.int8), 2), scaled((RAMP * 100 - 50).astype(np.int8), -50, 50)),
        (tiff((RAMP * 4000 - 1000).astype(np.int16), 2), scaled((RAMP * 4000 - 1000).astype(np.int16), -1000, 3000)),
        (tiff((RAMP * 65535).astype(np.uint16), photometric=0), 255 - scaled((RAMP * 65535).astype(int), 0, 65535)),
    ],
    ids=["float64", "uint32", "int8", "int16", "white is zero"],
)
def test_numbers_that_tiff_knows(content: bytes, expected: np.ndarray, tmp_path: Path) -> None:
    """Pillow opens no float64, and takes uint32 for int32, int8 for uint8, and 0 for black."""
    assert np.array_equal(prepared_from(tmp_path, content, "tif", 1)[0], expected)


@pytest.mark.parametrize(("encode", "kind"), [(png16, "png"), (tiff, "tif")])
def test_16_bit_colours_have_all_their_bits(encode: Callable[[np.ndarray], bytes], kind: str, tmp_path: Path) -> None:
    """Pillow keeps the upper 8: of 12 bits, 16 levels."""
    colours = RNG.integers(0, 4096, (8, 8, 3)).astype(np.uint16)
    pixels = prepared_from(tmp_path, encode(colours), kind, 3)
    assert np.array_equal(pixels, scaled(colours, 0, 4095).transpose(2, 0, 1))


def test_16_bit_colours_with_transparency_are_laid_on_white() -> None:
    colours = np.dstack([RNG.integers(0, 65536, (8, 8, 3)), RNG.choice([0, 65535], (8, 8))]).astype(np.uint16)
    image = depth.to_8_bits(lambda: Image.open(io.BytesIO(png16(colours))), lambda: (0, 65535))
    assert image.mode == "RGBA"
    assert np.array_equal(np.asarray(image)[..., :3], scaled(colours[..., :3], 0, 65535))
    assert np.array_equal(np.asarray(image)[..., 3], colours[..., 3] >> 8)


def test_16_bit_grey_with_transparency_has_all_its_bits(tmp_path: Path) -> None:
    grey = RNG.integers(0, 4096, (8, 8))
    content = png16(np.dstack([grey, np.full((8, 8), 65535)]).astype(np.uint16))
    assert np.array_equal(prepared_from(tmp_path, content, "png", 1)[0], scaled(grey, 0, 4095))


def test_a_16_bit_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    values = (RAMP * 65535).astype(np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    for split in ("train", "test"):
        save(tmp_path / "set" / split / "a" / "1.png", values, exif=exif)
    assert np.array_equal(pixels_of(prepared(tmp_path / "set"), 0), scaled(np.rot90(values, -1), 0, 65535))


@pytest.mark.parametrize(
    ("values", "sample_format"),
    [
        (RNG.random((8, 8, 3)).astype(np.float32), 3),
        (RNG.random((8, 8, 3)).astype(np.float16), 3),
        (RNG.random((8, 8)).astype(np.float16), 3),
        (RNG.integers(-1000, 3000, (8, 8, 3)).astype(np.int16), 2),
        (RNG.integers(0, 2**32, (8, 8, 3)).astype(np.uint32), 1),
    ],
    ids=["float32 colours", "float16 colours", "float16", "int16 colours", "uint32 colours"],
)
def test_numbers_that_pillow_does_not_open(values: np.ndarray, sample_format: int, tmp_path: Path) -> None:
    pixels = prepared_from(tmp_path, tiff(values, sample_format), "tif", 3 if values.ndim == 3 else 1)
    black, white = depth.natural(values.min(), values.max())
    expected = scaled(values.astype(float), black, white)
    assert np.array_equal(pixels.transpose(1, 2, 0), expected.reshape(8, 8, -1))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (RNG.integers(0, 4096, (3, 8, 8)).astype(np.uint16), {"photometric": "rgb", "planarconfig": "separate"}),
        (RNG.integers(0, 4096, (3, 8, 8)).astype(np.uint16), {"photometric": "rgb", "compression": "zlib"}),
        (RNG.random((1, 8, 8)).astype(np.float32), {"byteorder": ">", "compression": "zlib"}),
        (RNG.integers(0, 4096, (1, 8, 8)).astype(np.int32), {"byteorder": ">", "compression": "zlib"}),
    ],
    ids=["planes", "compressed planes", "big-endian compressed floats", "big-endian compressed integers"],
)
def test_numbers_that_pillow_gets_wrong(values: np.ndarray, options: dict[str, Any], tmp_path: Path) -> None:
    """Planes are cut to 8 bits or mixed up; bytes that libtiff has put into order are swapped again."""
    content = io.BytesIO()
    if "photometric" in options:
        options = {"planarconfig": "separate", **options}
    tifffile.imwrite(content, values if len(values) == 3 else values[0], **options)
    assert np.array_equal(bits.values(lambda: open_image(content)).colours, np.squeeze(values.transpose(1, 2, 0)))


@pytest.mark.parametrize("turn", range(1, 9))
def test_what_tifffile_reads_is_turned_as_its_orientation_says(turn: int) -> None:
    """Pillow turns those that it reads."""
    grey = RNG.integers(0, 256, (3, 5, 3)).astype(np.uint8)
    ours, pillows = io.BytesIO(), io.BytesIO()
    for file, values in ((ours, grey.astype(np.float32)), (pillows, grey)):
        tifffile.imwrite(file, values, photometric="rgb", extratags=[(274, 3, 1, turn, True)])
    expected = np.asarray(upright(Image.open(pillows)))
    assert np.array_equal(bits.values(lambda: open_image(ours)).colours, expected)


def test_transparency_of_floats_and_premultiplied_colours() -> None:
    colours, opacity = RNG.random((4, 4, 3)), np.full((4, 4, 1), 0.5)
    for kind, stored in (("unassalpha", colours), ("assocalpha", colours * opacity)):
        file = io.BytesIO()
        values = np.concatenate([stored, opacity], 2).astype(np.float32)
        tifffile.imwrite(file, values, photometric="rgb", extrasamples=[kind])
        found = bits.values(lambda file=file: open_image(file))
        assert np.allclose(found.colours, colours, atol=1e-6)
        assert (found.opacity == 128).all()


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (np.zeros((8, 8, 13), np.uint16), {"photometric": "minisblack"}, "TIFF of uint16 in 13 channels; save those "),
        (np.zeros((8, 8, 4), np.uint16), {"photometric": "separated"}, r"uint16 in 4 channels \(SEPARATED\); save it"),
        (np.zeros((8, 8), np.complex64), {}, "TIFF of complex64 in 1 channels, which is not read"),
    ],
    ids=["bands", "CMYK", "complex"],
)
def test_tiff_that_is_no_picture(values: np.ndarray, options: dict[str, Any], said: str) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, values, planarconfig="contig" if values.ndim == 3 else None, **options)
    with pytest.raises(UnreadableImageError, match=said):
        open_image(file)


def test_without_tifffile_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnreadableImageError, match=r"does not read; for those: pip install 'ld3m\[tiff\]'"):
        open_image(io.BytesIO(tiff(RNG.random((8, 8, 3)).astype(np.float32), 3)))


def test_16_bits_of_other_formats_are_kept_or_refused(tmp_path: Path) -> None:
    """Of PPM, SGI and JPEG 2000 in colour Pillow keeps the upper 8."""
    colours = RNG.integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    ppm = b"P6 8 8 65535\n" + colours.astype(">u2").tobytes()
    assert np.array_equal(bits.values(lambda: open_image(io.BytesIO(ppm))).colours, colours)
    sgi = tmp_path / "1.sgi"
    Image.fromarray((colours >> 8).astype(np.uint8)).save(sgi, bpc=2)
    plain = io.BytesIO(b"P3 8 8 65535\n" + " ".join(map(str, colours.ravel())).encode())
    jpeg2000 = io.BytesIO()
    Image.fromarray((colours >> 8).astype(np.uint8)).save(jpeg2000, "JPEG2000")
    start = jpeg2000.getvalue().index(b"\xff\x4f\xff\x51")
    deep = bytearray(jpeg2000.getvalue())
    assert deep[start + 42] == 7  # the bits of the first channel, less one
    deep[start + 42] = 11
    for file, name in ((sgi, "SGI"), (plain, "PPM"), (io.BytesIO(bytes(deep)), "JPEG2000")):
        with pytest.raises(UnreadableImageError, match=f"{name} of more than 8 bits, of which Pillow keeps 8; save "):
            open_image(file)
    assert bits.kind(open_image(jpeg2000)) is None


# --- what looks wrong --------------------------------------------------------------------------------------


def test_pixels_of_few_levels_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(source(tmp_path / "dark", "png", a=(RAMP * 15).astype(np.uint8)))
    assert "nearly all prepared pixels lie between 0 and 15 of 255; if that is too few, " in capsys.readouterr().err
    prepared(source(tmp_path / "usual", "png", a=(RAMP * 40).astype(np.uint8)))
    assert "nearly all" not in capsys.readouterr().err


def test_values_that_are_not_finite_are_an_error_that_names_the_image(tmp_path: Path) -> None:
    root = source(tmp_path / "set", "tif", a=np.full((8, 8), np.nan, np.float32))
    with pytest.raises(UserError, match=r"cannot read .*/1\.tif \(holds values that are not finite\); "):
        prepared(root)


def test_the_first_of_several_pages_is_taken_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [Image.fromarray((RAMP * level).astype(np.uint8)) for level in (255, 100)]
    for split in ("train", "test"):
        (tmp_path / "set" / split / "a").mkdir(parents=True)
        pages[0].save(tmp_path / "set" / split / "a" / "1.tif", save_all=True, append_images=pages[1:])
    images = prepared(tmp_path / "set")
    assert torch.equal(images.images("train", 0)[0, 0], torch.from_numpy(np.array(pages[0])))
    assert "took the first frame or page of 2 images that have more: " in capsys.readouterr().err


def test_an_image_above_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by the key that raises it; Pillow's own limit, of the whole process, neither warns nor stays lifted."""
    root = source(tmp_path / "set", "png", a=np.zeros((10, 30), np.uint8))
    with pytest.raises(UserError, match=r"1\.png \(30 × 10 pixels, more than data\.max_pixels=299\); "):
        prepared(root, max_pixels=299)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert prepared(root, max_pixels=300).counts == {"train": [1], "test": [1]}
    assert Image.MAX_IMAGE_PIXELS == 100
