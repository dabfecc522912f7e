"""Bilinear sampling and resizing whose gradients a GPU repeats bit for bit, unlike PyTorch's own."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.machine.transfer import send


def sample_bilinear(images: Tensor, points: Tensor) -> Tensor:
    """`functional.grid_sample` with corners aligned and zeros outside, whose gradient PyTorch adds up repeatably.

    Args:
        images: [N, channels, H, W].
        points: [N, h, w, 2], column and row of each value of the result, from -1 to 1.

    Returns:
        [N, channels, h, w]
    """
    height, width = images.shape[2:]
    across, down = ((points + 1) / 2).unbind(-1)
    columns, rows = _beside(across * (width - 1), width), _beside(down * (height - 1), height)
    flat, shape = images.flatten(2), points.shape[1:3]
    corners = []
    for row, high in rows:
        for column, wide in columns:
            chosen = (row * width + column).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
            corners.append(flat.gather(2, chosen).unflatten(2, shape) * (high * wide).unsqueeze(1))
    return corners[0] + corners[1] + corners[2] + corners[3]


def _beside(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two whole numbers around each position, clamped to [0, size), and their weights, 0 if they were outside."""
    first = position.floor()
    beyond = position - first
    return [
        (whole.clamp(0, size - 1).long(), weight * ((whole >= 0) & (whole < size)))
        for whole, weight in ((first, 1 - beyond), (first + 1, beyond))
    ]


def resize(images: Tensor, resolution: int, mode: str = "bilinear") -> Tensor:
    """Antialiased when it shrinks, as `functional.interpolate` does it, but with a repeatable gradient.

    Args:
        images: [N, channels, H, W].
        resolution: height and width of the result.
        mode: bilinear or bicubic.

    Returns:
        [N, channels, resolution, resolution]
    """
    rows, columns = (send(_resizing(size, resolution, images.dtype, mode), images.device) for size in images.shape[2:])
    return rows @ images @ columns.T


@cache
def _resizing(size: int, resolution: int, dtype: torch.dtype, mode: str) -> Tensor:
    """The matrix [resolution, size] that resizes a line, on the CPU."""
    lines = torch.eye(size, dtype=torch.float64, device="cpu").view(1, 1, size, size)
    matrix = functional.interpolate(lines, size=(resolution, size), mode=mode, antialias=True)[0, 0]
    return matrix.to(dtype)


def centre(images: Tensor, size: int) -> Tensor:
    """Images [n, channels, H, H] resized to a side of `size`, bilinear and antialiased, and their centre of H × H.

    Of images that were cut to squares before, that shows as much as resizing the originals' shorter side to `size` and
    cutting H × H out of it does: test images of 256 pixels cut to 224, in the words of most protocols.
    """
    side = images.shape[-1]
    if size == side:
        return images
    larger = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    first = round((size - side) / 2)
    return larger[:, :, first : first + side, first : first + side]
