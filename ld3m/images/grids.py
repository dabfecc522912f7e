"""Pictures for people: grids of images, their change over iterations, curves."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ld3m.files import write_bytes, write_image

MOST_SHOWN = 100
"""Images in a run's grid.png and in each picture of its evolution."""
WIDTH = 400
"""An animation's width in pixels, roughly: smaller images are enlarged, those twice as wide are reduced."""
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


def columns(images_per_class: int) -> int:
    """Columns of a run's pictures: one class per row, or ten classes per row if they have one image each."""
    return images_per_class if images_per_class > 1 else 10


def write_grid(folder: Path, pixels: Tensor) -> None:
    """A run's `grid.png` of uint8 pixels [classes, images per class, channels, H, W], as many as `shown` says."""
    write_image(folder / "grid.png", grid(pixels.flatten(0, 1), columns(pixels.shape[1])))


def side_by_side(pixels: Tensor) -> Image.Image:
    """The images of `write_grid` side by side, not enlarged."""
    return grid(pixels.flatten(0, 1), columns(pixels.shape[1]), scale=1, gap=0)


def write_frame(folder: Path, iteration: int, pixels: Tensor) -> None:
    """`evolution/<iteration>.png` of a run: its images `side_by_side`."""
    write_image(folder / "evolution" / f"{iteration:06d}.png", side_by_side(pixels))


def frames(folder: Path) -> dict[int, Path]:
    """The pictures of a run's evolution by iteration, in order."""
    return {int(path.stem): path for path in sorted((folder / "evolution").glob("[0-9]*.png"))}


def write_animation(folder: Path) -> None:
    """A run's `evolution.gif` of its frames, each with its iteration below it."""
    pages = []
    for iteration, path in frames(folder).items():
        with Image.open(path) as sheet:
            scale = max(1, WIDTH // sheet.width) if sheet.width <= 2 * WIDTH else 2 * WIDTH / sheet.width
            size = round(sheet.width * scale), round(sheet.height * scale)
            page = Image.new("RGB", (size[0], size[1] + 16), "white")
            page.paste(sheet.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS))
        ImageDraw.Draw(page).text((4, page.height - 13), f"iteration {iteration}", fill="black")
        pages.append(page)
    seconds = [SECONDS_A_FRAME] * (len(pages) - 1) + [LAST_FRAME]
    buffer = io.BytesIO()
    first, *others = pages
    first.save(
        buffer, "GIF", save_all=True, append_images=others, duration=[round(1000 * each) for each in seconds], loop=0
    )
    write_bytes(folder / "evolution.gif", buffer.getvalue())


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
