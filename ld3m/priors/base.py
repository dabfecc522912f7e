"""What a prior is, and what priors of diffusers share."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ld3m.data.known import imagenet
from ld3m.errors import UserError, some
from ld3m.priors.lean_layers import freeze
from ld3m.priors.noise_schedule import NoiseSchedule
from ld3m.recipe.class_lists import wordnet_id

INPUTS = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "addition_embed_type": "further embeddings, as Stable Diffusion XL",
    "encoder_hid_dim_type": "embeddings of images or of several encoders",
    "time_cond_proj_dim": "an embedding of the guidance scale, as distilled models",
}
"""What a diffusers network takes besides latents, time and one conditioning, if its configuration has such a key."""


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

    @property
    def null_embedding(self) -> Tensor | None:
        """[1, *conditioning_shape], what guidance contrasts with; None if there is nothing: `prior.guidance` is 1."""

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
    """An autoencoder, VQModel or AutoencoderKL, and the latents of a denoiser, as diffusers has them.

    Raises:
        UserError: if they do not fit each other, or the denoiser takes more than latents, time and one conditioning.
    """

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any) -> None:
        size = _check_fit(autoencoder.config, denoiser.config)
        self.autoencoder = freeze(autoencoder)
        self.denoiser = freeze(denoiser)
        self.scheduler = scheduler
        self.noise_schedule = NoiseSchedule.of(scheduler)
        self.scale = float(getattr(autoencoder.config, "scaling_factor", 1.0))
        self.shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
        self.quantises = hasattr(autoencoder, "quantize")
        self.image_channels = int(autoencoder.config.out_channels)
        levels = len(autoencoder.config.block_out_channels)
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


def _check_fit(autoencoder: Any, denoiser: Any) -> int:
    """The height and width of latents, after a look at the configurations of both networks."""
    for key, what in INPUTS.items():
        if getattr(denoiser, key, None) is not None:
            raise UserError(
                f"prior.source: the denoiser has {key}: {getattr(denoiser, key)!r}, so that it takes {what}; a prior's "
                "takes latents, time and one conditioning"
            )
    if getattr(denoiser, "time_embedding_type", "positional") != "positional":
        raise UserError(
            f"prior.source: the denoiser has time_embedding_type: {denoiser.time_embedding_type!r}, so that it takes "
            "noise levels in the place of time steps; a prior's takes time steps (positional)"
        )
    if isinstance(width := getattr(denoiser, "cross_attention_dim", None), list | tuple):
        raise UserError(f"prior.source: the denoiser has cross_attention_dim: {width!r}; a prior's has one number")
    takes, gives = denoiser.in_channels, denoiser.out_channels or denoiser.in_channels
    learns_variance = hasattr(denoiser, "patch_size") and gives == 2 * takes
    if gives != takes and not learns_variance:
        raise UserError(
            f"prior.source: the denoiser takes {takes} channels and gives {gives}; one that is conditioned on images, "
            "for inpainting, editing or super-resolution, cannot be a prior"
        )
    width = getattr(autoencoder, "vq_embed_dim", None) or autoencoder.latent_channels
    if width != takes:
        raise UserError(
            f"prior.source: the autoencoder's latents have {width} channels, but the denoiser takes {takes}; "
            "take both from the same model"
        )
    if autoencoder.in_channels != autoencoder.out_channels:
        raise UserError(
            f"prior.source: the autoencoder takes {autoencoder.in_channels} channels and gives "
            f"{autoencoder.out_channels}; a prior's takes and gives images"
        )
    factor = getattr(autoencoder, "scaling_factor", 1.0)
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise UserError(f"prior.scaling_factor: {factor!r} in the autoencoder's configuration; set a number above 0")
    sizes = denoiser.sample_size if isinstance(denoiser.sample_size, list | tuple) else [denoiser.sample_size]
    size = sizes[0] if len(set(sizes)) == 1 else None
    if not isinstance(size, int) or size < 1:
        raise UserError(
            f"prior.source: the denoiser's sample_size is {denoiser.sample_size!r}; write the height and width of its "
            "latents, one number, into its config.json"
        )
    return size


def numbers_of(classes: Sequence[str], names: Sequence[Sequence[str]], file: str) -> list[int]:
    """The numbers that classes have in a prior.

    Case, blanks, hyphens and underscores do not matter if no two of the prior's names differ in nothing else.

    Args:
        classes: names; of a prior of all of ImageNet also WordNet ids, alone or in longer names, and those that
            `data.source: imagenet` gives.
        names: all names of each of the prior's classes, the null class left out; none, if it knows its number alone.
        file: which of the prior's files has the names, for the error.

    Raises:
        UserError: naming a class that the prior does not know, or knows more than one of.
    """
    exact, spelt = defaultdict[str, set[int]](set), defaultdict[str, set[int]](set)
    for number, each in enumerate(names):
        for name in each or [str(number)]:
            exact[name].add(number)
            spelt[_spelling(name)].add(number)
    if len(names) == len(imagenet.classes()):
        own = {name: {number} for number, each in enumerate(imagenet.classes()) for name in each}
        exact |= own  # a label that two classes have may be the name of one
        spelt |= {_spelling(name): number for name, number in own.items()}
    found = [
        exact.get(name) or spelt.get(_spelling(name)) or exact.get(wordnet_id(name) or name, set()) for name in classes
    ]
    for name, numbers in zip(classes, found, strict=True):
        if len(numbers) > 1:
            both = " and ".join(f"{number} ({', '.join(names[number])})" for number in sorted(numbers))
            raise UserError(
                f"prior.source: the prior has several classes {name!r}, {both}; call yours by a name that one of them "
                f"has alone, or change them in {file}"
            )
        if not numbers:
            first = [", ".join(each[:1]) or str(number) for number, each in enumerate(names)]
            instead = "train one on your classes with ld3m train-prior"
            if not any(names):
                instead = f"write their names into {file}, or {instead}"
            raise UserError(
                f"prior.source: the prior does not know the class {name!r}, only {some(first, 20)}; {instead}"
            )
    return [number for numbers in found for number in numbers]


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
