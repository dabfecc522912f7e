"""What a prior is, and what priors of diffusers share."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

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
    "addition_embed_type": "further embeddings, as a StableDiffusionXLPipeline",
    "encoder_hid_dim_type": "embeddings of images or of several encoders",
    "time_cond_proj_dim": "an embedding of the guidance scale, as distilled models",
}
"""What a diffusers network takes besides latents, time and one conditioning, if its configuration has such a key."""


class Prior(Protocol):
    """What the sampler and the loop need of a latent diffusion model.

    Images are [N, channels, H, W] in [-1, 1]; latents are [N, *latent_shape], scaled to about unit variance;
    conditioning is [N, *conditioning_shape]. All methods take gradients; none of the weights does.

    A prior may also say `halves_agree = True`: that `denoise` takes N latents with the conditioning of 2 N, as guidance
    has them, and answers as if it were given the latents twice.
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

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        """The denoiser's output at z and training time step t, in z's dtype; `noise_schedule` says what it predicts."""

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        """[len(classes), *conditioning_shape], by name."""


def weights_of(prior: Prior) -> list[Tensor]:
    """Everything that a process loads and keeps of a prior, but for a table of class embeddings."""
    models = [each for each in vars(prior).values() if isinstance(each, nn.Module)]
    return [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]


class Coder:
    """An autoencoder of images, as diffusers has it: what priors with one share.

    Inside, images may lie channels last; outside they never do, or sums over them would depend on where they are from.
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = freeze(autoencoder)
        self.scale = float(getattr(autoencoder.config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
        self.quantises = hasattr(autoencoder, "quantize")

    def encode(self, images: Tensor) -> Tensor:
        return ((latents_of(self.autoencoder.encode(images)) - self.shift) * self.scale).contiguous()

    def quantise(self, z: Tensor) -> Tensor:
        if not self.quantises:
            return z
        return (self.autoencoder.quantize(z / self.scale + self.shift)[0] - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        images: Tensor = self.autoencoder.decode(z / self.scale + self.shift).sample
        return images.contiguous()


class WithoutDenoiser:
    """What priors have in common of which an image is D(Z), so that `prior.steps` is 0; nothing conditions them."""

    def __init__(self, device: torch.device | str) -> None:
        self.conditioning_shape: tuple[int, ...] = (0,)
        self.noise_schedule = NoiseSchedule(torch.ones(1, dtype=torch.float64), offset=0)
        self.denoiser: nn.Module | None = None
        self.null_embedding = torch.empty(1, 0, device=device)

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        """Never called: there are no steps."""
        raise NotImplementedError(f"{type(self).__name__} has no denoiser; prior.steps is 0")

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        """[len(classes), 0]."""
        return self.null_embedding.expand(len(classes), 0)


def latents_of(encoded: Any) -> Tensor:
    """The latents of what an autoencoder of diffusers answers: the likeliest ones, if they are distributed."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


class LatentDiffusion(Coder):
    """An autoencoder and the latents of a denoiser, as diffusers has them.

    Raises:
        UserError: if they do not fit each other, or the denoiser takes more than latents, time and one conditioning.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    """Which of `INPUTS` a kind gives its denoiser."""

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any) -> None:
        size = _check_fit(autoencoder.config, denoiser.config, self.takes)
        super().__init__(autoencoder)
        self.denoiser = freeze(denoiser)
        self.scheduler = scheduler
        self.noise_schedule = NoiseSchedule.of(scheduler)
        self.image_channels = int(autoencoder.config.in_channels)
        self.image_size = size * shrinks_by(autoencoder.config)
        self.latent_shape: tuple[int, int, int] = (int(denoiser.config.in_channels), size, size)

    def render_at(self, resolution: int) -> None:
        """Takes latents of another size than the denoiser was trained on, for images of `resolution` pixels.

        Convolutional networks do; the ImageNet LDM, trained on 64 × 64 latents, is taken at 32 × 32 for 128 pixels. So
        do transformers that cut positions out of a larger table (Stable Diffusion 3) or have none (Sana).

        Raises:
            UserError: for a transformer that knows the positions of one size only, or a size that does not divide.
        """
        factor, config = self.image_size // self.latent_shape[1], self.denoiser.config
        halvings = len(getattr(config, "block_out_channels", [0])) - 1
        least = factor * 2**halvings * getattr(config, "patch_size", 1)
        most = factor * largest(config)
        if resolution != self.image_size and (resolution > most or most == factor * config.sample_size):
            sizes = f"{most:g} alone" if most == factor * config.sample_size else f"{most:g} at most"
            raise UserError(f"prior.resolution: {resolution}, but a {type(self).__name__} renders at {sizes}")
        if resolution % least:
            raise UserError(f"prior.resolution: {resolution} is not a multiple of {least}, as this prior's must be")
        self.image_size = resolution
        self.latent_shape = (self.latent_shape[0], resolution // factor, resolution // factor)

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        """What the denoiser says of latents; the half that is a learnt variance is dropped: DDIM at η = 0 has none."""
        answer = self.denoiser(z.to(self.dtype), self.times(z, t), c.to(self.dtype)).sample
        return answer[:, : self.latent_shape[0]].to(z.dtype)

    def times(self, z: Tensor, t: float) -> Tensor:
        """The time step for each of a batch, [N]."""
        return torch.full((len(z),), t, device=z.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the denoiser."""
        return next(self.denoiser.parameters()).dtype


def largest(denoiser: Any) -> float:
    """The height and width of the largest latents that a denoiser takes, by its configuration."""
    if hasattr(denoiser, "block_out_channels") or hasattr(denoiser, "caption_channels"):  # convolutions alone, or Sana
        return float(denoiser.sample_size) if getattr(denoiser, "interpolation_scale", None) else math.inf
    table = getattr(denoiser, "pos_embed_max_size", None)
    return float(denoiser.patch_size * table if table else denoiser.sample_size)


def shrinks_by(autoencoder: Any) -> int:
    """How many pixels of height or width a latent has, by the levels of an autoencoder's configuration."""
    levels = getattr(autoencoder, "encoder_block_out_channels", None) or autoencoder.block_out_channels
    factor: int = 2 ** (len(levels) - 1)
    return factor


def check_inputs(denoiser: Any, takes: Sequence[str] = ()) -> None:
    """That a denoiser's configuration asks for nothing that its kind does not give it."""
    for key, what in INPUTS.items():
        if getattr(denoiser, key, None) is not None and key not in takes:
            raise UserError(
                f"prior.source: the denoiser has {key}: {getattr(denoiser, key)!r}, so that it takes {what}; a prior's "
                "takes latents, time and one conditioning"
            )
    if getattr(denoiser, "time_embedding_type", "positional") != "positional":
        raise UserError(
            f"prior.source: the denoiser has time_embedding_type: {denoiser.time_embedding_type!r}, so that it takes "
            "noise levels in the place of time steps; a prior's takes time steps (positional)"
        )


def _check_fit(autoencoder: Any, denoiser: Any, given: Sequence[str]) -> int:
    """The height and width of latents, after a look at the configurations of both networks."""
    check_inputs(denoiser, given)
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
    if any(getattr(autoencoder, key, None) is not None for key in ("latents_mean", "latents_std")):
        raise UserError(
            "prior.source: the autoencoder's configuration has latents_mean or latents_std for each channel; a "
            "prior's has one scaling_factor"
        )
    if (channels := getattr(autoencoder, "out_channels", autoencoder.in_channels)) != autoencoder.in_channels:
        raise UserError(
            f"prior.source: the autoencoder takes {autoencoder.in_channels} channels and gives {channels}; a prior's "
            "takes and gives images"
        )
    factor = getattr(autoencoder, "scaling_factor", 1.0)
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise UserError(f"prior.scaling_factor: {factor!r} in the autoencoder's configuration; set a number above 0")
    return sample_size(denoiser)


def sample_size(denoiser: Any) -> int:
    """The height and width of what a denoiser takes.

    Raises:
        UserError: if they are not one number.
    """
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
