"""Diffusion Transformers of Peebles and Xie (ICCV 2023), as diffusers' DiTPipeline has them."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.priors.base import LatentDiffusion, numbers_of
from ld3m.priors.diffusers_layout import read_index
from ld3m.priors.loading import Parts


class Classes(BaseModel):
    """What a transformer's configuration says of its classes."""

    num_embeds_ada_norm: int = Field(1000, ge=1, le=10**6)


class DiT(LatentDiffusion):
    """`transformer/` (DiTTransformer2DModel), `vae/` (AutoencoderKL), `scheduler/`, class names in model_index.json.

    Each block adds a row of the same table of class embeddings to its time embedding; conditioning c is that row, and
    is given to all blocks.
    """

    kind = "DiTPipeline"
    named_in = "model_index.json, as id2label"
    """The file that has the names of classes."""

    def __init__(
        self,
        autoencoder: Any,
        denoiser: Any,
        names: Sequence[Sequence[str]],
        scheduler: Any,
    ) -> None:
        super().__init__(autoencoder, denoiser, scheduler)
        self.names = names
        embedders = [block.norm1.emb for block in denoiser.transformer_blocks]
        self.table = embedders[0].class_embedder.embedding_table.weight.detach().float()
        if any(not torch.equal(each.class_embedder.embedding_table.weight.float(), self.table) for each in embedders):
            raise UserError(
                "prior.source: the blocks of the transformer have different class embeddings, so that c is not "
                "one row; those of facebook/DiT-XL-2-256 and -512 are the same"
            )
        self.table = self.table.to(next(autoencoder.parameters()).device)  # the denoiser may be elsewhere
        for each in embedders:
            each.class_embedder = nn.Identity()  # the denoiser is given c itself instead of class numbers
        self.conditioning_shape: tuple[int, ...] = tuple(self.table.shape[1:])
        self.null_embedding = self.table[-1:]

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        return self.table[numbers_of(classes, self.names, self.named_in)]

    @classmethod
    def class_names(cls, parts: Parts) -> list[list[str]]:
        """The names of each class of a folder."""
        return parts.class_labels("transformer", parts.json("transformer/config.json", Classes).num_embeds_ada_norm)

    @classmethod
    def load(cls, parts: Parts) -> "DiT":
        """Reads a folder of diffusers' DiTPipeline."""
        from diffusers import DiTTransformer2DModel

        names = cls.class_names(parts)
        autoencoder, denoiser = parts.autoencoder(), parts.denoiser(DiTTransformer2DModel, "transformer")
        if read_index(parts.folder).original_time_embedding:
            for block in denoiser.transformer_blocks:  # diffusers spreads frequencies over one step less
                block.norm1.emb.time_proj.downscale_freq_shift = 0
        return cls(autoencoder, denoiser, names, parts.scheduler())
