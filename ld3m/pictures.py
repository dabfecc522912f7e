"""Pictures for people: grids of images and curves."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ld3m.files import write_bytes


def to_image(pixels: Tensor) -> Image.Image:
    """One image of pixels [channels, H, W] in [0, 1], rounded to 8 bits."""
    values = (pixels.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))


def grid(pixels: Tensor, columns: int, scale: int = 2, gap: int = 2) -> Image.Image:
    """Images [N, channels, H, W] in [0, 1], row by row on white, enlarged `scale` times without smoothing."""
    rows = math.ceil(len(pixels) / columns)
    _, channels, height, width = pixels.shape
    canvas = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image.detach().cpu()
    picture = to_image(canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def curves(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> None:
    """Draws named lines of (x, y) points with a logarithmic y axis to a PNG; needs the `report` extra."""
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
