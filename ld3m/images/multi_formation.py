"""Several smaller images side by side in one, enlarged where networks see them.

Multi-formation of IDC (Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization, ICML 2022): for
the same stored pixels a network sees factor² times as many images, each of 1/factor of the detail.
"""

from torch import Tensor
from torch.nn import functional

from ld3m.images.ranges import unit_to_bytes


def pack(images: Tensor, factor: int) -> Tensor:
    """Images [n · factor², channels, h, w] to [n, channels, factor · h, factor · w], row by row side by side."""
    count, channels, height, width = images.shape
    tiles = images.view(count // factor**2, factor, factor, channels, height, width)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, factor * height, factor * width)


def unpack(images: Tensor, factor: int) -> Tensor:
    """The opposite of `pack`: [n, channels, H, W] to [n · factor², channels, H / factor, W / factor]."""
    count, channels, height, width = images.shape
    tiles = images.view(count, channels, factor, height // factor, factor, width // factor)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // factor, width // factor)


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Float images [n, channels, h, w] to [n, channels, factor · h, factor · w], bilinearly, as IDC does."""
    if factor == 1:
        return images
    return functional.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)


def shown(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """What networks see of stored images and their labels: [n · factor², channels, H, W], each with its image's label.

    Args:
        images: float [n, channels, H, W].
        labels: [n].
        factor: images on a side of each.
    """
    return enlarge(unpack(images, factor), factor), labels.repeat_interleave(factor**2)


def stored(pixels: Tensor, factor: int) -> Tensor:
    """Rendered images as they are stored, factor² of them side by side in one.

    Args:
        pixels: [classes, n · factor², channels, h, w] in [0, 1].
        factor: images on a side of each.

    Returns:
        uint8 [classes, n, channels, factor · h, factor · w], on the CPU.
    """
    classes, count = pixels.shape[:2]
    return pack(unit_to_bytes(pixels.flatten(0, 1)), factor).unflatten(0, (classes, count // factor**2))
