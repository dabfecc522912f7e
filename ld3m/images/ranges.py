"""Images as bytes (uint8, 0 to 255), unit pixels (float, 0 to 1) and signed pixels (float, -1 to 1), and the ways
between them. Files hold bytes, networks see normalised unit pixels, autoencoders signed ones.
"""

import torch
from torch import Tensor


def bytes_to_unit(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; float images are taken to be so already and returned as they are."""
    return images if images.is_floating_point() else images.float() / 255


def bytes_to_signed(images: Tensor) -> Tensor:
    """uint8 images, or float images in [0, 1], to float32 in [-1, 1], the range of every autoencoder."""
    return bytes_to_unit(images) * 2 - 1


def signed_to_unit(images: Tensor) -> Tensor:
    """Images in [-1, 1], as decoders give them, to [0, 1]; what exceeds the range is clamped. Differentiable.

    The gradient is 1/2 within the range and at its ends, and 0 beyond. Of `clamp` itself, that at the ends is 1 before
    PyTorch 2.14 and 0 since, which would keep pixel space's images there for good.
    """
    pixels = (images + 1) / 2
    return torch.where((pixels < 0) | (pixels > 1), pixels.detach().clamp(0, 1), pixels)


def unit_to_bytes(pixels: Tensor) -> Tensor:
    """Images in [0, 1] rounded to uint8, on the CPU."""
    return (pixels.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
