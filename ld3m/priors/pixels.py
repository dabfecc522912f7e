"""No prior: distillation in pixel space, as the objectives were published with, the baseline of all others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ld3m.priors.noise_schedule import NoiseSchedule


class PixelSpace:
    """What priors have in common whose Z is the images themselves."""

    halves_agree = False

    def encode(self, images: Tensor) -> Tensor:
        """The images."""
        return images

    def quantise(self, z: Tensor) -> Tensor:
        """Z: there are no codes."""
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Z clamped to [-1, 1]; its gradient passes straight through, or a pixel outside would never return."""
        return z.detach().clamp(-1, 1) + (z - z.detach())


class Pixels(PixelSpace):
    """Z is the images themselves, in [-1, 1]; there is no denoiser, so that `prior.steps` is 0."""

    def __init__(self, channels: int, size: int, device: torch.device | str = "cpu") -> None:
        self.image_channels = channels
        self.image_size = size
        self.latent_shape = (channels, size, size)
        self.conditioning_shape: tuple[int, ...] = (0,)
        self.noise_schedule = NoiseSchedule(torch.ones(1, dtype=torch.float64), offset=0)
        self.denoiser: nn.Module | None = None
        self.null_embedding = torch.empty(1, 0, device=device)

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        """Never called: with no steps, an image is D(Z)."""
        raise NotImplementedError("pixels have no denoiser; prior.steps is 0")

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        """[len(classes), 0]: nothing conditions pixels."""
        return self.null_embedding.expand(len(classes), 0)
