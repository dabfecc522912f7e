"""No prior: distillation in pixel space, as the objectives were published with, the baseline of all others."""

import torch
from torch import Tensor

from ld3m.priors.base import WithoutDenoiser


class PixelSpace:
    """What priors have in common whose Z is the images themselves."""

    def encode(self, images: Tensor) -> Tensor:
        """The images."""
        return images

    def quantise(self, z: Tensor) -> Tensor:
        """Z: there are no codes."""
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Z clamped to [-1, 1]; its gradient passes straight through, or a pixel outside would never return."""
        return z.detach().clamp(-1, 1) + (z - z.detach())


class Pixels(PixelSpace, WithoutDenoiser):
    """Z is the images themselves, in [-1, 1]."""

    def __init__(self, channels: int, size: int, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self.image_channels, self.image_size = channels, size
        self.latent_shape = (channels, size, size)
