"""What a prior is, and what priors of diffusers share."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ld3m.data.known import imagenet
from ld3m.errors import UserError
from ld3m.priors.lean_layers import freeze
from ld3m.priors.noise_schedule import NoiseSchedule


class Prior(Protocol):
    """What the sampler and the loop need of a latent diffusion model.

    Images are [N, channels, H, W] in [-1, 1]; latents are [N, *latent_shape], scaled to about unit variance;
    conditioning is [N, *conditioning_shape]. All methods take gradients; none of the weights does.
    """

    image_channels: int
    image_size: int
    """Height and width of what `decode` gives."""
    latent_shape: tuple[int, int, int]
    conditioning_shape: tuple[int, ...]
    """(0,), no elements, if the prior is unconditional."""
    noise_schedule: NoiseSchedule
    denoiser: nn.Module | None
    """What `denoise` calls, to be compiled, sharded or given random weights; None if there is no such module."""
    null_embedding: Tensor
    """[1, *conditioning_shape], what guidance contrasts with."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images, before quantisation."""

    def quantise(self, z: Tensor) -> Tensor:
        """Q(z): the nearest codes with a straight-through gradient; the identity if the prior has no codes."""

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents; quantises first if the prior has codes."""

    def denoise(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        """The denoiser's output at z and training time step t, in z's dtype; `noise_schedule` says what it predicts."""

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        """[len(classes), *conditioning_shape], by name."""


class LatentDiffusion:
    """An autoencoder, VQModel or AutoencoderKL, and the latents of a denoiser, as diffusers has them."""

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any) -> None:
        self.autoencoder = freeze(autoencoder)
        self.denoiser = freeze(denoiser)
        self.scheduler = scheduler
        self.noise_schedule = NoiseSchedule.of(scheduler)
        self.scale = float(getattr(autoencoder.config, "scaling_factor", 1.0))
        self.shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
        self.quantises = hasattr(autoencoder, "quantize")
        self.image_channels = int(autoencoder.config.out_channels)
        levels = len(autoencoder.config.block_out_channels)
        size = int(denoiser.config.sample_size)
        self.image_size = size * 2 ** (levels - 1)
        self.latent_shape: tuple[int, int, int] = (int(denoiser.config.in_channels), size, size)

    def render_at(self, resolution: int) -> None:
        """Takes latents of another size than the denoiser was trained on, for images of `resolution` pixels.

        Convolutional networks do; the ImageNet LDM, trained on 64 × 64 latents, is taken at 32 × 32 for 128 pixels.

        Raises:
            UserError: for a transformer, which knows the positions of one size only, or a size that does not divide.
        """
        factor = self.image_size // self.latent_shape[1]
        levels = getattr(self.denoiser.config, "block_out_channels", None)
        if levels is None:
            if resolution != self.image_size:
                raise UserError(
                    f"prior.resolution: {resolution}, but a {type(self).__name__} renders at {self.image_size} alone"
                )
            return
        least = factor * 2 ** (len(levels) - 1)
        if resolution % least:
            raise UserError(f"prior.resolution: {resolution} is not a multiple of {least}, as this prior's must be")
        self.image_size = resolution
        self.latent_shape = (self.latent_shape[0], resolution // factor, resolution // factor)

    def encode(self, images: Tensor) -> Tensor:
        encoded = self.autoencoder.encode(images)
        latents = encoded.latents if self.quantises else encoded.latent_dist.mode()
        return (latents - self.shift) * self.scale

    def quantise(self, z: Tensor) -> Tensor:
        if not self.quantises:
            return z
        return (self.autoencoder.quantize(z / self.scale + self.shift)[0] - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(z / self.scale + self.shift).sample

    def times(self, z: Tensor, t: int) -> Tensor:
        """The time step for each of a batch, [N]."""
        return torch.full((len(z),), t, device=z.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the denoiser."""
        return next(self.denoiser.parameters()).dtype


def numbers_of(classes: Sequence[str], known: Mapping[str, int], count: int) -> list[int]:
    """The numbers that a prior's classes have in it.

    Args:
        classes: names; for a prior of all of ImageNet also those that `data.source: imagenet` gives.
        known: names to numbers.
        count: classes of the prior, without a null class.

    Raises:
        UserError: naming a class that the prior does not know.
    """
    by_name = dict(known)
    if count == len(imagenet.classes()):
        by_name |= {each.name: number for number, each in enumerate(imagenet.classes())}
    if unknown := [name for name in classes if name not in by_name]:
        names = list(known)
        some = ", ".join(names[:20] + ["…"] * (len(names) > 20))
        raise UserError(
            f"prior.source: the prior does not know the class {unknown[0]!r}, only {some}; "
            "train one on your classes with ld3m train-prior"
        )
    return [by_name[name] for name in classes]
