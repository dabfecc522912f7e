"""Pictures of a run: whole pixels, names of classes, no empty columns, and a size that can be looked at and sent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.images import grids
from ld3m.images.grids import GAP, LETTERS, LONGEST_NAME


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()


def drawn(folder: Path, pixels: torch.Tensor, names: list[str]) -> np.ndarray:
    grids.write_grid(folder, pixels, names)
    return np.asarray(Image.open(folder / "grid.png"))


def frames(path: Path) -> tuple[int, int]:
    """The number of frames of an animation, and its width."""
    with Image.open(path / "evolution.gif") as animation:
        return getattr(animation, "n_frames", 1), animation.width


@pytest.mark.parametrize(
    ("classes", "each"), [(1, 1), (2, 1), (3, 1), (7, 1), (10, 1), (37, 1), (100, 1), (3, 2), (1, 4)]
)
def test_no_column_is_empty(classes: int, each: int) -> None:
    sheet = np.asarray(grids.side_by_side(torch.zeros(classes, each, 1, 4, 4, dtype=torch.uint8)))
    assert not sheet[:4].any(), "images are black, what is empty is white, and the first row is full"
    assert sheet.shape[0] * sheet.shape[1] < 16 * (classes * each + sheet.shape[1] // 4)


@pytest.mark.parametrize(
    ("each", "channels", "size", "scale"), [(1, 1, 8, 12), (1, 3, 16, 6), (2, 1, 16, 6), (2, 3, 128, 1)]
)
def test_images_are_enlarged_by_whole_pixels_and_names_stand_outside(
    tmp_path: Path, each: int, channels: int, size: int, scale: int
) -> None:
    pixels, edge = noise(2, each, channels, size, size), size * scale
    picture = drawn(tmp_path, pixels, ["dog", "cat"])
    last = pixels[1, -1].permute(1, 2, 0).numpy().squeeze().repeat(scale, 0).repeat(scale, 1)
    right, below = picture.shape[1] - GAP, picture.shape[0] - (LETTERS + 3 * GAP if each == 1 else GAP)
    assert np.array_equal(picture[below - edge : below, right - edge : right], last)
    beside = picture[below:] if each == 1 else picture[:, : right - each * (edge + GAP)]
    assert (beside < 100).sum() > 30, "letters are black"


def test_names_that_the_font_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letters lose their accents; a name of other letters becomes the number of the class, with a line that says so."""
    monkeypatch.setattr(grids, "FONTS", ("no such font.ttf",))
    pixels = noise(1, 2, 1, 8, 8)
    assert np.array_equal(drawn(tmp_path, pixels, ["Äpfel"]), drawn(tmp_path, pixels, ["Apfel"]))
    numbered = drawn(tmp_path, pixels, ["class 0"])
    for name in ("猫", "", "a\nb", "caf\udce9"):
        picture = drawn(tmp_path, pixels, [name])
        assert np.array_equal(picture[: len(numbered)], numbered), name
        assert (picture[len(numbered) :] < 100).any(), "a line below"
    assert drawn(tmp_path, pixels, ["x" * 300]).shape[1] <= LONGEST_NAME + 2 * (96 + GAP) + 3 * GAP


def test_a_font_of_the_system_has_more_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib's, which has Latin, Greek and Cyrillic; names in ASCII look the same with and without it."""
    import matplotlib

    pixels = noise(1, 2, 1, 8, 8)
    plain = drawn(tmp_path, pixels, ["Apfel"])
    monkeypatch.setattr(grids, "FONTS", (f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf",))
    assert np.array_equal(drawn(tmp_path, pixels, ["Apfel"]), plain)
    pictures = [drawn(tmp_path, pixels, [name]) for name in ("Apfel", "Äpfel", "Łódź", "Груша", "猫")]
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert [len(picture) == len(plain) for picture in pictures] == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("classes", "each", "size", "width"),
    [(10, 1, 32, 658), (3, 1, 8, 492), (2, 10, 160, 853), (1, 1, 512, 518), (10, 10, 40, 453)],
)
def test_an_animation_can_be_looked_at(tmp_path: Path, classes: int, each: int, size: int, width: int) -> None:
    """Each image as large as whole pixels, 160 of them and a screen allow: 5 × 128, 3 × 160, 10 × 80, 512, 10 × 40."""
    sheet = grids.side_by_side(torch.zeros(classes, each, 1, size, size, dtype=torch.uint8))
    (tmp_path / "evolution").mkdir()
    for iteration in range(4):
        sheet.save(tmp_path / "evolution" / f"{iteration:06d}.png", compress_level=1)
    grids.write_animation(tmp_path, ["name" for _ in range(classes)], each)
    assert frames(tmp_path) == (4, pytest.approx(width, abs=25)), "with names of some pixels, and gaps"


def test_a_long_animation_of_many_images_has_every_second_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in range(26):
        grids.write_frame(tmp_path, iteration, noise(10, 10, 1, 8, 8))
    monkeypatch.setattr(grids, "MOST_BYTES", 18 * 700 * 700)
    grids.write_animation(tmp_path, [str(label) for label in range(10)], 10)
    assert frames(tmp_path)[0] == 14, "0, 2, …, 24 and the last"


def test_what_is_no_frame_is_left_out(tmp_path: Path) -> None:
    """Files with odd names, and frames that were drawn in another layout."""
    for iteration in (0, 5, 10):
        grids.write_frame(tmp_path, iteration, noise(3, 1, 1, 8, 8))
    for name in ("000004.bak", "12a.png", "x.png", ".000007.png.abc.tmp"):
        (tmp_path / "evolution" / name).write_bytes(b"")
    assert list(grids.frames(tmp_path)) == [0, 5, 10]
    Image.new("L", (80, 8)).save(tmp_path / "evolution" / "000005.png")
    grids.write_animation(tmp_path, ["a", "b", "c"], 1)
    assert frames(tmp_path)[0] == 2
