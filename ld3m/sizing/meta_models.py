"""Priors and images on the meta device: their shapes alone, to plan a run without weights or images at hand."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m import priors
from ld3m.data.class_choice import choose, choose_from
from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet
from ld3m.data.sources import open_source
from ld3m.errors import UserError
from ld3m.priors.base import LatentDiffusion, Prior
from ld3m.priors.diffusers_layout import is_whole
from ld3m.priors.kinds.autoencoder import Autoencoder
from ld3m.priors.kinds.consistency import ConsistencyModel
from ld3m.priors.kinds.ldm import read_class_table
from ld3m.priors.kinds.pixels import Pixels
from ld3m.priors.kinds.several_encoders import Sana, StableDiffusion3, StableDiffusionXL
from ld3m.priors.loading import Parts
from ld3m.priors.source import outline
from ld3m.recipe import DataRecipe, Recipe, SamplerRecipe

IMAGENET_CLASS = 1281
"""Training images of a class of ImageNet, the mean of 732 to 1,300."""


class MetaPrior(LatentDiffusion):
    """A prior on the meta device, made of the configurations in its folder; its answers have shapes and no values."""

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any, conditioning_shape: tuple[int, ...]) -> None:
        super().__init__(autoencoder, denoiser, scheduler)
        self.conditioning_shape = conditioning_shape
        self.null_embedding: Tensor | None = torch.empty(1, *conditioning_shape, device="meta")

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        if type(self.denoiser).__name__ == "UNet2DConditionModel":
            return super().denoise(z, t, c)
        times = self.times(z, t)  # of a Diffusion Transformer class numbers too: c replaces the row of a table
        classes = () if type(self.denoiser).__name__ == "UNet2DModel" else (times,)
        answer = self.denoiser(z.to(self.dtype), times, *classes).sample
        return answer[:, : self.latent_shape[0]].to(z.dtype)

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        return torch.empty(len(classes), *self.conditioning_shape, device="meta")

    @classmethod
    def of(cls, recipe: SamplerRecipe, size: int | None = None) -> Prior:
        """The prior of `prior.source`, of which only the configurations need to be on this machine.

        Args:
            size: height and width of what an autoencoder alone renders, if `prior.resolution` says none.

        Raises:
            UserError: if they are not, or the prior is of a kind whose shapes are not known here.
        """
        from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

        parts = Parts(outline(recipe.source), "meta", recipe, size=size)
        kind = parts.kind()
        loader = WITH_OUTLINES.get(kind) if is_whole(parts.folder) else Autoencoder.load
        if loader:
            with priors.whole(parts.folder, kind):
                outlined = loader(parts)
            priors.check_null_class(recipe, outlined.null_embedding is not None)
            priors.render_at(outlined, kind, recipe)
            return outlined
        denoisers = {
            "ClassConditionalLDM": (UNet2DConditionModel, "unet"),
            "LDMPipeline": (UNet2DModel, "unet"),
            "DiTPipeline": (DiTTransformer2DModel, "transformer"),
            "StableDiffusionPipeline": (UNet2DConditionModel, "unet"),
        }
        if kind not in denoisers:
            raise UserError(f"prior.source: {parts.folder} is a {kind}, whose shapes ld3m plan does not know")
        with priors.whole(parts.folder, kind):
            denoiser = parts.denoiser(*denoisers[kind])
            match kind:
                case "ClassConditionalLDM":
                    shape: tuple[int, ...] = (1, denoiser.config.cross_attention_dim)
                case "StableDiffusionPipeline":
                    encoder = parts.json("text_encoder/config.json", dict[str, Any])
                    shape = (int(encoder["max_position_embeddings"]), denoiser.config.cross_attention_dim)
                case "DiTPipeline":
                    shape = (denoiser.config.num_attention_heads * denoiser.config.attention_head_dim,)
                case _:
                    shape = (0,)
            prior = cls(parts.autoencoder(), denoiser, parts.scheduler(), shape)
            if kind == "ClassConditionalLDM":
                priors.check_null_class(recipe, read_class_table(parts).null_class)
        priors.render_at(prior, kind, recipe)
        return prior


WITH_OUTLINES: dict[str, Callable[[Parts], Prior]] = {
    each.kind: each.load for each in (ConsistencyModel, StableDiffusionXL, StableDiffusion3, Sana)
}
"""Kinds that are made of configurations alone by their own `load`."""


def meta_prior(recipe: Recipe) -> Prior:
    """The prior of a recipe on the meta device, as `MetaPrior.of` has it; for `prior.source=pixels` there is none."""
    if recipe.prior.source == "pixels":
        return Pixels(recipe.data.channels, recipe.rendered_size, "meta")
    return MetaPrior.of(recipe.prior, recipe.rendered_size)


@dataclass(frozen=True)
class MetaImages(ImageSet):
    """Images of the right number and size, all black and of no memory."""

    def images(self, split: str, label: int) -> Tensor:
        size = (self.counts[split][label], len(self.mean), self.resolution, self.resolution)
        return torch.zeros((), dtype=torch.uint8).expand(size)

    @classmethod
    def of(cls, recipe: DataRecipe) -> "MetaImages":
        """The recipe's classes; ImageNet itself need not be there, other sources are opened but not read.

        Raises:
            UserError: if `data.source` or `data.subset` is wrong.
        """
        if recipe.source == "imagenet":
            names = imagenet.names()
            chosen = choose(recipe.subset, names, imagenet.numbers(), imagenet.subsets())
            counts = [IMAGENET_CLASS] * len(chosen)
        else:
            source = open_source(recipe)
            names = list(source.classes)
            chosen = choose_from(source, recipe.subset)
            train = source.splits["train"]
            sizes = Counter(train[index].label for index in range(len(train)))
            counts = [sizes[label] for label in chosen]
        zeros, ones = torch.zeros(recipe.channels), torch.ones(recipe.channels)
        classes = [names[label] for label in chosen]
        folder = Path(json.dumps(recipe.source))
        return cls(classes, zeros, ones, {"train": counts}, chosen, [], folder, recipe.resolution)
