"""Pictures for people: grids of images, their change over iterations, curves."""

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ld3m.files import write_bytes, write_image

MOST_SHOWN = 100
"""Images in a run's grid.png and in each picture of its evolution."""
SMALLEST_TILE = 96
"""Edge in pixels that an image has at least in grid.png; smaller ones are enlarged."""
LETTERS, GAP, LONGEST_NAME = 13, 3, 160
"""Pixels: height of letters, between images, and of the longest name beside a row of images."""
FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "Arial.ttf", "arial.ttf")
"""Fonts of many letters on Linux, macOS and Windows, which Pillow looks for among the system's."""
NO_LETTER = "\U0010fffd"
NUMBERED = "class N: the class at position N, counted from 0"
"""Below a picture with names that no font here can write."""
WIDTH, WIDEST, LARGEST_TILE = 640, 800, 160
"""Pixels of an animation without names: small images are enlarged up to the first or the last, wide ones reduced."""
MOST_BYTES, FEWEST_FRAMES = 16_000_000, 10
"""What an animation takes at most, at a byte for each pixel of each frame, and the frames that it keeps anyway."""
SECONDS_A_FRAME = 0.25
LAST_FRAME = 2.0
"""Seconds that the last frame of an animation stays."""


def to_image(pixels: Tensor) -> Image.Image:
    """One image of uint8 pixels [channels, H, W]."""
    values = pixels.numpy()
    return Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))


def grid(pixels: Tensor, columns: int, scale: int = 2, gap: int = 2) -> Image.Image:
    """Images uint8 [N, channels, H, W], row by row on white, enlarged `scale` times without smoothing."""
    rows = math.ceil(len(pixels) / columns)
    _, channels, height, width = pixels.shape
    canvas = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    picture = to_image(canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


# --- a run's images, no more of them than people look at ---------------------------------------------------


def shown(classes: int, images_per_class: int) -> tuple[int, int]:
    """How many classes, and how many images of each, pictures of a run show: always the first ones."""
    each = max(1, min(images_per_class, 10, MOST_SHOWN // classes))
    return min(classes, MOST_SHOWN // each), each


def columns(classes: int, images_per_class: int) -> int:
    """Columns of a run's pictures: one class per row, or several per row if they have one image each."""
    return images_per_class if images_per_class > 1 else min(classes, 5 if classes <= 20 else 10)


def side_by_side(pixels: Tensor) -> Image.Image:
    """A run's images, uint8 [classes, images per class, channels, H, W], without gaps and not enlarged."""
    return grid(pixels.flatten(0, 1), columns(*pixels.shape[:2]), scale=1, gap=0)


def write_grid(folder: Path, pixels: Tensor, names: Sequence[str]) -> None:
    """A run's `grid.png`, with the names of its classes.

    Args:
        pixels: uint8 [classes, images per class, channels, H, W], as many as `shown` says.
        names: of all classes, in their order.
    """
    edge = pixels.shape[-1] * -(-SMALLEST_TILE // pixels.shape[-1])
    write_image(folder / "grid.png", _captioned(side_by_side(pixels), names[: len(pixels)], pixels.shape[1], edge))


def write_frame(folder: Path, iteration: int, pixels: Tensor) -> None:
    """`evolution/<iteration>.png` of a run: its images `side_by_side`."""
    write_image(folder / "evolution" / f"{iteration:06d}.png", side_by_side(pixels))


def frames(folder: Path) -> dict[int, Path]:
    """The pictures of a run's evolution by iteration, in order; files whose name is no number are none of them."""
    paths = (path for path in (folder / "evolution").glob("*.png") if path.stem.isdecimal())
    return {int(path.stem): path for path in sorted(paths, key=lambda path: int(path.stem))}


def write_animation(folder: Path, names: Sequence[str], images_per_class: int, unit: str = "iteration") -> None:
    """A run's `evolution.gif` of its frames, each with the names of the classes and its iteration.

    Frames that an older version drew with another layout are left out, and every second one while the file would be
    larger than anybody sends.

    Args:
        names: of all classes, in their order.
        unit: what frames are numbered by.
    """
    classes, each = shown(len(names), images_per_class)
    across = columns(classes, each)
    paths = frames(folder)
    with Image.open(paths[max(paths)]) as last:
        size, own = last.size, last.width // across
    edge = min(own * max(1, min(WIDTH // size[0], LARGEST_TILE // own)), max(1, WIDEST // across))
    pages = []
    for iteration, path in paths.items():
        with Image.open(path) as sheet:
            if sheet.size == size:
                pages.append(_captioned(sheet, names[:classes], each, edge, f"{unit} {iteration:,}"))
    while len(pages) > FEWEST_FRAMES and len(pages) * pages[0].width * pages[0].height > MOST_BYTES:
        pages = [*pages[:-1:2], pages[-1]]
    seconds = [SECONDS_A_FRAME] * (len(pages) - 1) + [LAST_FRAME]
    buffer = io.BytesIO()
    first, *others = pages
    first.save(
        buffer, "GIF", save_all=True, append_images=others, duration=[round(1000 * each) for each in seconds], loop=0
    )
    write_bytes(folder / "evolution.gif", buffer.getvalue())


def _captioned(
    sheet: Image.Image, names: Sequence[str], images_per_class: int, edge: int, footer: str = ""
) -> Image.Image:
    """A picture of images `side_by_side` in which each class has its name, before its row or below its one image.

    Args:
        sheet: the images, `images_per_class` of each name.
        images_per_class: images of each class.
        edge: pixels of an image in the picture: not smoothed if it is larger there, smoothed if it is smaller.
        footer: a line below all.
    """
    across, own = columns(len(names), images_per_class), sheet.width // columns(len(names), images_per_class)
    font, single = _font(names), images_per_class == 1
    room = edge if single else LONGEST_NAME
    written = [_written(name, font) for name in names]
    if written.count(None) and not footer:
        footer = NUMBERED
    texts = [_shortened(text or f"class {label}", room, font) for label, text in enumerate(written)]
    left = GAP if single else round(max(map(font.getlength, texts))) + 3 * GAP
    high = edge + (LETTERS + 3 * GAP if single else GAP)
    rows = -(-len(names) * images_per_class // across)
    height = GAP + rows * high + (LETTERS + 2 * GAP) * bool(footer)
    canvas = Image.new("L" if sheet.mode == "L" else "RGB", (left + across * (edge + GAP), height), "white")
    draw = ImageDraw.Draw(canvas)
    smooth = Image.Resampling.NEAREST if edge >= own else Image.Resampling.LANCZOS
    for index in range(len(names) * images_per_class):
        row, column = divmod(index, across)
        tile = sheet.crop((column * own, row * own, (column + 1) * own, (row + 1) * own))
        corner = left + column * (edge + GAP), GAP + row * high
        canvas.paste(tile.resize((edge, edge), smooth), corner)
        if single:
            draw.text((corner[0] + edge // 2, corner[1] + edge + GAP), texts[index], "black", font, anchor="ma")
        elif not column:
            draw.text((GAP, corner[1] + edge // 2), texts[row], "black", font, anchor="lm")
    draw.text((GAP, height - GAP), _shortened(footer, canvas.width - 2 * GAP, font), "black", font, anchor="ls")
    return canvas


def _font(names: Sequence[str]) -> Any:
    """Pillow's own font, which has ASCII alone; for other names one of the system's with more letters, if there is one.

    So that names in ASCII look the same on all machines.
    """
    own = ImageFont.load_default(LETTERS)
    if "".join(names).isascii():
        return own
    fonts = [own]
    for name in FONTS:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, LETTERS))
    return max(fonts, key=lambda font: sum(_has_letters(font, name) for name in names))  # the first of equals


def _has_letters(font: Any, text: str) -> bool:
    """Whether a font has all letters of a text, and draws none of them as it draws what is no letter."""
    missing = bytes(font.getmask(NO_LETTER))
    return text.isprintable() and all(bytes(font.getmask(letter)) != missing for letter in set(text) - {" "})


def _written(name: str, font: Any) -> str | None:
    """A name in the letters that a font has, if need be without accents; None if it cannot be written."""
    composed = unicodedata.normalize("NFC", name)
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return next((text for text in (composed, plain) if text.strip() and _has_letters(font, text)), None)


def _shortened(text: str, room: int, font: Any) -> str:
    """As much of a text as `room` pixels hold."""
    if font.getlength(text) <= room:
        return text
    return next((f"{text[:end]}…" for end in range(len(text), 0, -1) if font.getlength(f"{text[:end]}…") <= room), "")


def curves(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> None:
    """Draws named lines of (x, y) points, y logarithmic, to a PNG; does nothing without the `report` extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), label=name) if points else None
    axes.set(xlabel=x, ylabel=y, yscale="log")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
