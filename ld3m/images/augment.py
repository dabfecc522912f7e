"""Differentiable Siamese augmentation (Zhao and Bilen, ICML 2021): one of six operations per call.

A draw is separate from its application, so that real and synthetic images can share one and tests can choose it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.images import resample
from ld3m.machine.transfer import send

CROP_SHARE = 0.125
"""Largest shift of a crop, as a share of the side."""
CUTOUT_SHARE = 0.5
"""Side of the cut-out square, as a share of the side."""
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0


@dataclass(frozen=True)
class Augmentation:
    """An operation and its random numbers, each [n] on the CPU for n images, or [1] for all alike (Siamese)."""

    operation: str
    draws: tuple[Tensor, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Applies it to normalised images [N, channels, H, W]; differentiable."""
        if self.operation == "crop" and len(self.draws[0]) == 1:
            return _shift(images, *(int(values) for values in self.draws))
        return OPERATIONS[self.operation](images, *(send(values, images.device) for values in self.draws))

    def of(self, indices: Tensor) -> "Augmentation":
        """The same for some of the images, by their indices [n]."""
        return Augmentation(self.operation, tuple(values[indices] for values in self.draws))


@dataclass(frozen=True)
class Augmentations:
    """Several, one after the other."""

    parts: tuple[Augmentation, ...]

    def __call__(self, images: Tensor) -> Tensor:
        for part in self.parts:
            images = part(images)
        return images

    def of(self, indices: Tensor) -> "Augmentations":
        """The same for some of the images, by their indices [n]."""
        return Augmentations(tuple(part.of(indices) for part in self.parts))


def draw(generator: torch.Generator, resolution: int, count: int = 1) -> Augmentation:
    """A random operation with random numbers for `count` images of one resolution."""
    return _draw_one(list(OPERATIONS), generator, resolution, count)


def draw_colour_and_place(generator: torch.Generator, resolution: int, count: int = 1) -> Augmentations:
    """Random colours, and then a random crop, scaling or rotation, as IDC's code trains on small images."""
    return Augmentations(
        tuple(_draw_one(names, generator, resolution, count) for names in (["color"], ["crop", "scale", "rotate"]))
    )


def _draw_one(names: list[str], generator: torch.Generator, resolution: int, count: int) -> Augmentation:
    """One of the operations of these names."""
    operation = names[int(torch.randint(len(names), (), generator=generator))]
    shift, square = round_half_up(CROP_SHARE * resolution), round_half_up(CUTOUT_SHARE * resolution)
    low, high = {"crop": (-shift, shift), "cutout": (0, resolution - square % 2)}.get(operation, (0, 0))
    numbers = {"color": 3, "flip": 1, "rotate": 1}.get(operation, 2)
    if operation in ("crop", "cutout"):
        draws = [torch.randint(low, high + 1, (count,), generator=generator) for _ in range(numbers)]
    else:
        draws = [torch.rand(count, generator=generator) for _ in range(numbers)]
    return Augmentation(operation, tuple(draws))


def round_half_up(value: float) -> int:
    """How the reference code rounds sizes."""
    return int(value + 0.5)


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    u, v, w = (values.view(-1, 1, 1, 1) for values in (brightness, saturation, contrast))
    x = x + (u - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * v) + grey
    level = x.mean((1, 2, 3), keepdim=True)
    return (x - level) * (w + 0.5) + level


def _crop(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shifts each image by another number of rows and columns, zero outside."""
    height, width = x.shape[2:]
    padded, pad = _padded(x)
    image = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    row = (torch.arange(height, device=x.device) + rows.view(-1, 1) + pad).view(-1, height, 1)
    column = (torch.arange(width, device=x.device) + columns.view(-1, 1) + pad).view(-1, 1, width)
    return padded.permute(0, 2, 3, 1)[image, row, column].permute(0, 3, 1, 2)


def _shift(x: Tensor, rows: int, columns: int) -> Tensor:
    """Shifts all images alike, zero outside; the numbers are on the CPU, which need not wait for a GPU."""
    height, width = x.shape[2:]
    padded, pad = _padded(x)
    return padded[:, :, rows + pad : rows + pad + height, columns + pad : columns + pad + width]


def _padded(x: Tensor) -> tuple[Tensor, int]:
    """With zeros all around, as far as a crop can reach."""
    pad = round_half_up(CROP_SHARE * x.shape[2])
    return functional.pad(x, (pad, pad, pad, pad)), pad


def _cutout(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sets a square to zero; its corner is at the draw less half its side."""
    square = round_half_up(CUTOUT_SHARE * x.shape[2])

    def inside(centre: Tensor, size: int) -> Tensor:
        offset = torch.arange(size, device=x.device) - (centre.view(-1, 1) - square // 2)
        return (offset >= 0) & (offset < square)

    cut = inside(rows, x.shape[2]).unsqueeze(2) & inside(columns, x.shape[3]).unsqueeze(1)
    return x * ~cut.unsqueeze(1)


def _flip(x: Tensor, side: Tensor) -> Tensor:
    return torch.where(side.view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def _scale(x: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    low = 1 / SCALE_RATIO
    sx, sy = (values * (SCALE_RATIO - low) + low for values in (horizontal, vertical))
    zero = torch.zeros_like(sx)
    return _warp(x, torch.stack([torch.stack([sx, zero, zero], 1), torch.stack([zero, sy, zero], 1)], 1))


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    angle = (turn - 0.5) * 2 * ROTATE_DEGREES * math.pi / 180
    zero, sin, cos = torch.zeros_like(angle), angle.sin(), angle.cos()
    return _warp(x, torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1))


def _warp(x: Tensor, matrices: Tensor) -> Tensor:
    matrices = matrices.to(x).expand(len(x), 2, 3)
    grid = functional.affine_grid(matrices, list(x.shape), align_corners=True)
    if x.is_cuda and x.requires_grad:
        return resample.sample_bilinear(x, grid)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
"""In the order of the reference's "color_crop_cutout_flip_scale_rotate"."""
