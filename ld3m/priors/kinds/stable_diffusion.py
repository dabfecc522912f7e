"""Stable Diffusion 1.x and 2.x, as diffusers' StableDiffusionPipeline has them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ld3m.data.known import imagenet
from ld3m.errors import UserError
from ld3m.priors.base import LatentDiffusion
from ld3m.priors.loading import Parts
from ld3m.priors.shared_prefix import share_prefix


class StableDiffusion(LatentDiffusion):
    """`unet/` (UNet2DConditionModel), `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`.

    Conditioning starts as the text encoder's states of a prompt made of the class's name, [tokens, width]. The text
    encoder is in memory only while prompts are encoded.
    """

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any, parts: Parts) -> None:
        super().__init__(autoencoder, denoiser, scheduler)
        self.halves_agree = share_prefix(self.denoiser)
        self.parts = parts
        self.null_embedding = self._encode([""])
        self.conditioning_shape: tuple[int, ...] = tuple(self.null_embedding.shape[1:])
        if self.conditioning_shape[-1] != (wanted := denoiser.config.cross_attention_dim):
            raise UserError(
                f"prior.source: the text encoder of {parts.folder} gives {self.conditioning_shape[-1]} "
                f"numbers per token, its UNet takes {wanted}"
            )

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        names = [imagenet.in_english(name).replace("_", " ") for name in classes]
        return self._encode([self.parts.recipe.prompt.format(name) for name in names])

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Tensor:
        """The text encoder's last states [prompts, tokens, width] in float32."""
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
            from transformers.utils import logging
        except ImportError:
            raise UserError(
                "prior.source: Stable Diffusion needs the package transformers: pip install 'ld3m[text]'"
            ) from None
        logging.disable_progress_bar()
        tokenizer = self.parts.read("tokenizer", CLIPTokenizer.from_pretrained)
        encoder = self.parts.model(CLIPTextModel, "text_encoder").eval()
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        states = [encoder(ids.to(self.parts.device))[0] for ids in tokens.input_ids.split(64)]
        return torch.cat(states).float()

    @classmethod
    def load(cls, parts: Parts) -> "StableDiffusion":
        """Reads a folder of diffusers' StableDiffusionPipeline."""
        from diffusers import UNet2DConditionModel

        autoencoder, denoiser = parts.autoencoder(), parts.denoiser(UNet2DConditionModel)
        return cls(autoencoder, denoiser, parts.scheduler(), parts)
