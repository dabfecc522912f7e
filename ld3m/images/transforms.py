"""The random transforms of published evaluation protocols, on whole batches, each image by its own random numbers.

A transform is drawn on the CPU, for a number of images, and then applied to a batch [N, channels, H, W] on any device,
which need not wait for the draw:

    crop = ResizedCrop.draw(draws, len(images), images.shape[-1], scale=(0.08, 1))
    images = crop(images)

`crop.of(indices)` is the same transform for some images of the batch, so that processes can share one. Nothing is
clipped. `CutMix` draws once for the whole batch and mixes labels as well. What `augment` has is differentiable and one
operation at a time; these are applied one after the other, in the protocol's order.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ld3m.machine.transfer import send

TRIES = 10
"""Boxes that `ResizedCrop` draws before it takes the largest at the centre, as torchvision does."""
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""
EIGENVALUES = (0.2175, 0.0188, 0.0045)
"""Of the principal components of ImageNet's colours in [0, 1], as vimar-gu/MinimaxDiffusion's data.py has them."""
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""A row per colour, a column per eigenvalue."""


class PerImage(ABC):
    """What has a random number for each image: dataclasses whose tensors are [n, …], on the CPU."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Images [n, channels, H, W] in [0, 1], each changed by its own random numbers."""

    def of(self, indices: Tensor) -> Self:
        """The same for some of the images, by their indices [m]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        some = {name: value[indices] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **some)  # type: ignore[type-var]


@dataclass(frozen=True)
class ResizedCrop(PerImage):
    """Boxes of images, resized to squares: torchvision's RandomResizedCrop, bilinear and antialiased.

    Antialiasing only matters if a box is larger than what it becomes. Then torch's own interpolation resizes one image
    after the other; otherwise all are resized at once, to the same within 1e-4 of the range of the images.
    """

    boxes: Tensor
    """int64 [n, 4]: top, left, height and width."""
    size: int
    """Height and width of the result."""

    @classmethod
    def draw(
        cls,
        draws: torch.Generator,
        count: int,
        resolution: int,
        scale: tuple[float, float],
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        size: int | None = None,
    ) -> Self:
        """Boxes by torchvision's algorithm: the first of ten that fits, or the largest at the centre.

        Args:
            draws: a CPU generator.
            resolution: their height and width.
            scale: range of the boxes' area, as a share of the image, uniform.
            ratio: range of width / height, uniform in its logarithm.
            size: height and width of the result; left out, those of the images.
        """
        share, shape, down, right = torch.rand(4, count, TRIES, generator=draws, dtype=torch.float64)
        area = resolution**2 * (scale[0] + (scale[1] - scale[0]) * share)
        narrowest, widest = (math.log(value) for value in ratio)
        aspect = torch.exp(narrowest + (widest - narrowest) * shape)
        widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (widths > 0) & (widths <= resolution) & (heights > 0) & (heights <= resolution)
        tops, lefts = (down * (resolution - heights + 1)).floor(), (right * (resolution - widths + 1)).floor()
        tried = torch.stack([tops, lefts, heights, widths], 2).long()
        boxes = tried[torch.arange(count), fits.int().argmax(1)]
        height = min(round(resolution / ratio[0]), resolution)
        width = min(round(resolution * ratio[1]), resolution)
        centre = torch.tensor([(resolution - height) // 2, (resolution - width) // 2, height, width])
        return cls(torch.where(fits.any(1, keepdim=True), boxes, centre), size or resolution)

    def __call__(self, images: Tensor) -> Tensor:
        """[n, channels, H, W] to [n, channels, size, size]."""
        if bool((self.boxes[:, 2:] > self.size).any()):
            boxes = zip(images, self.boxes.tolist(), strict=True)
            parts = [image[None, :, top : top + high, left : left + wide] for image, (top, left, high, wide) in boxes]
            return torch.cat(
                [functional.interpolate(part, self.size, mode="bilinear", antialias=True) for part in parts]
            )
        height, width = images.shape[2:]
        top, left, high, wide = send(self.boxes, images.device).to(images.dtype).unsqueeze(2).unbind(1)
        rows, columns = _between(top, high, self.size, height), _between(left, wide, self.size, width)
        across, down = columns.unsqueeze(1).expand(-1, self.size, -1), rows.unsqueeze(2).expand(-1, -1, self.size)
        return functional.grid_sample(images, torch.stack([across, down], 3), align_corners=True)


def _between(first: Tensor, length: Tensor, size: int, full: int) -> Tensor:
    """Where in a line of `full` pixels, from -1 to 1, lie the `size` pixels that a part of it becomes.

    Args:
        first, length: the part, [n, 1]; what lies nearest to its ends is not mixed with what is beyond them.

    Returns:
        [n, size]
    """
    centres = (torch.arange(size, device=first.device) + 0.5) * (length / size) - 0.5
    inside = torch.minimum(centres.clamp(min=0), length - 1)
    return (first + inside) * (2 / max(full - 1, 1)) - 1


@dataclass(frozen=True)
class Flip(PerImage):
    """Some images mirrored, left for right."""

    mirrored: Tensor
    """bool [n]."""

    @classmethod
    def draw(cls, draws: torch.Generator, count: int, share: float = 0.5) -> Self:
        """For each of `count` images whether it is mirrored, with probability `share`."""
        return cls(torch.rand(count, generator=draws) < share)

    def __call__(self, images: Tensor) -> Tensor:
        """[n, channels, H, W]"""
        return torch.where(send(self.mirrored, images.device).view(-1, 1, 1, 1), images.flip(3), images)


@dataclass(frozen=True)
class ColourJitter(PerImage):
    """Brightness, contrast and saturation of images in [0, 1], as the public codes of IDC and Minimax change them.

    Each is 1 − α times the image plus α times black, the mean of its grey, or its grey. These codes apply the three in
    random order. Since nothing is clipped and grey's shares add up to 1, the order makes no difference, and one formula
    has all three. torchvision's ColorJitter clips. An image of one channel is its own grey.
    """

    strengths: Tensor
    """1 − α, [n, 3]: of brightness, contrast and saturation."""

    @classmethod
    def draw(cls, draws: torch.Generator, count: int, brightness: float, contrast: float, saturation: float) -> Self:
        """With each α of `count` images uniform from minus to plus the number given."""
        spread = torch.tensor([brightness, contrast, saturation])
        return cls(1 - spread * (2 * torch.rand(count, 3, generator=draws) - 1))

    def __call__(self, images: Tensor) -> Tensor:
        """[n, channels, H, W]"""
        brightness, contrast, saturation = self.strengths.unbind(1)
        toned = brightness * contrast
        shares = torch.stack([toned * saturation, toned * (1 - saturation), brightness - toned], 1)
        of_image, of_grey, of_level = send(shares, images.device).view(-1, 3, 1, 1, 1).unbind(1)
        grey = _grey(images)
        level = grey.mean((2, 3), keepdim=True)
        return torch.addcmul(grey.mul_(of_grey).add_(level * of_level), images, of_image)


def _grey(images: Tensor) -> Tensor:
    """[N, 3, H, W] or [N, 1, H, W] to [N, 1, H, W], a copy."""
    if images.shape[1] == 1:
        return images.clone()
    red, green, blue = images.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


@dataclass(frozen=True)
class Lighting(PerImage):
    """A shift of each image's colour along the principal components of ImageNet's colours, for images in [0, 1].

    Krizhevsky et al., NeurIPS 2012. An image of one channel is shifted as its grey would be.
    """

    components: Tensor
    """How far along each, in units of its eigenvalue, [n, 3]."""

    @classmethod
    def draw(cls, draws: torch.Generator, count: int, deviation: float = 0.1) -> Self:
        """For `count` images, normally distributed around 0."""
        return cls(deviation * torch.randn(count, 3, generator=draws))

    def __call__(self, images: Tensor) -> Tensor:
        """[n, channels, H, W]"""
        shifts = self.components * torch.tensor(EIGENVALUES) @ torch.tensor(EIGENVECTORS).T
        if images.shape[1] == 1:
            shifts = shifts @ torch.tensor(LUMA).view(3, 1)
        return images + send(shifts, images.device).view(len(images), -1, 1, 1)


@dataclass(frozen=True)
class PatchShuffle(PerImage):
    """Images cut into columns and rows of patches, which change places: LINs-lab/RDED's validation/utils.py.

    Columns change places, then rows: patches that were side by side stay in one row. If the side cannot be divided
    evenly, the last patch has what is left over, which the public code drops.
    """

    columns: Tensor
    """The order of the columns, a permutation of the patches of a line for each image, int64 [n, factor]."""
    rows: Tensor
    """The order of the rows, int64 [n, factor]."""

    @classmethod
    def draw(cls, draws: torch.Generator, count: int, factor: int) -> Self:
        """For `count` images, `factor` × `factor` patches each; the images must have as many pixels a side."""
        columns, rows = torch.rand(2, count, factor, generator=draws).argsort(2)
        return cls(columns, rows)

    def __call__(self, images: Tensor) -> Tensor:
        """[n, channels, H, W]"""
        if self.rows.shape[1] == 1:
            return images
        count, channels, height, width = images.shape
        rows = send(_pixels(self.rows, height), images.device).unsqueeze(1)
        columns = send(_pixels(self.columns, width), images.device).unsqueeze(1)
        first_rows = height * torch.arange(count * channels, device=images.device).view(count, channels, 1)
        moved = images.reshape(-1, width)[(first_rows + rows).flatten()].view(count, -1, width)
        return moved.gather(2, columns.expand_as(moved)).view_as(images)


def _pixels(patches: Tensor, size: int) -> Tensor:
    """The order of a line's pixels, [n, size], if its patches change places, [n, factor]."""
    factor = patches.shape[1]
    patch = (torch.arange(size) // (size // factor)).clamp(max=factor - 1)
    return patches.argsort(1)[:, patch].argsort(dim=1, stable=True)


@dataclass(frozen=True)
class CutMix:
    """A rectangle of each image of a batch from another one, and labels mixed by area (Yun et al., ICCV 2019).

    As the public codes have it: one rectangle for the whole batch, clipped at the border, its area before that being
    1 − λ with λ from Beta(β, β). Another image of the batch may be the same.
    """

    partners: Tensor
    """Of each image the index of the other, a permutation, int64 [n], on the CPU."""
    box: tuple[int, int, int, int]
    """Top, bottom, left and right; bottom and right are not included."""
    resolution: int

    @classmethod
    def draw(cls, draws: torch.Generator, count: int, resolution: int, beta: float = 1.0) -> Self:
        """For a batch of `count` images."""
        partners = torch.randperm(count, generator=draws)
        numpy_draws = np.random.RandomState(int(torch.randint(2**32, (), generator=draws)))  # its streams never change
        side = int(resolution * math.sqrt(1 - numpy_draws.beta(beta, beta)))
        row, column = torch.randint(resolution, (2,), generator=draws).tolist()
        ends = [(max(0, centre - side // 2), min(resolution, centre + side // 2)) for centre in (row, column)]
        return cls(partners, (*ends[0], *ends[1]), resolution)

    @property
    def share(self) -> float:
        """The share of an image, and of its label, that stays its own."""
        top, bottom, left, right = self.box
        return 1 - (bottom - top) * (right - left) / self.resolution**2

    def __call__(self, images: Tensor) -> Tensor:
        """[n, channels, H, W], mixed; the images given stay as they are."""
        mixed = images.clone()
        mixed[self._inside] = images[self._inside][send(self.partners, images.device)]
        return mixed

    def paste(self, images: Tensor, others: Tensor) -> Tensor:
        """Images with the rectangle of others, one for each, if the batch is not in one place."""
        mixed = images.clone()
        mixed[self._inside] = others[self._inside]
        return mixed

    @property
    def _inside(self) -> tuple[slice, ...]:
        """The rectangle, of all images and channels."""
        top, bottom, left, right = self.box
        return slice(None), slice(None), slice(top, bottom), slice(left, right)

    def labels(self, labels: Tensor) -> Tensor:
        """Shares of classes [n, classes], mixed as the images; the cross-entropy with them is the codes' mixed loss."""
        return self.share * labels + (1 - self.share) * labels[send(self.partners, labels.device)]
