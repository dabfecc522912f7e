"""Priors of text whose denoisers take several embeddings, which c holds one after the other: SDXL, SD 3, Sana."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.data.known import imagenet
from ld3m.errors import UserError
from ld3m.priors.base import LatentDiffusion
from ld3m.priors.diffusers_layout import read_index
from ld3m.priors.loading import Parts

AT_A_TIME = 16
"""Prompts that are encoded at a time."""
T5_TOKENS = 256
"""Of Stable Diffusion 3's third encoder, as diffusers' pipeline has them."""
GEMMA_TOKENS = 300
"""Of Sana's encoder, as diffusers' pipeline has them."""


class SeveralEncoders(LatentDiffusion, ABC):
    """A latent diffusion model whose c is [numbers]: several embeddings of a prompt, flattened one after the other.

    The encoders are in memory only while prompts are encoded, by the `encode_prompt` of diffusers' own pipeline.
    """

    kind: ClassVar[str]
    """The `_class_name` of its model_index.json, and the name of diffusers' pipeline."""
    part = "transformer"
    """The folder of the denoiser."""
    denoiser_kind: ClassVar[str]
    """Its class in diffusers."""
    needs: ClassVar[dict[str, str]]
    """The classes of transformers by the folders of the encoders."""

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any, parts: Parts) -> None:
        super().__init__(autoencoder, denoiser, scheduler)
        self.parts = parts
        self.shapes = self.embeddings(parts)
        self.conditioning_shape: tuple[int, ...] = (sum(math.prod(shape) for shape in self.shapes),)
        self.null_embedding: Tensor | None = torch.empty(1, *self.conditioning_shape, device="meta")
        if parts.device != "meta":
            self.null_embedding = self._encode([""])[1]

    @classmethod
    @abstractmethod
    def embeddings(cls, parts: Parts) -> list[tuple[int, ...]]:
        """The shapes of what c holds, by the configurations of a folder."""

    @abstractmethod
    def answer(self, z: Tensor, times: Tensor, *embeddings: Tensor) -> Tensor:
        """What the denoiser answers to latents and embeddings, each in its precision."""

    @abstractmethod
    def encoded(self, pipeline: Any, prompts: list[str]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The embeddings of prompts, and of what guidance contrasts them with, of a pipeline of diffusers."""

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        parts = c.to(self.dtype).split([math.prod(shape) for shape in self.shapes], 1)
        embeddings = (part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))
        return self.answer(z.to(self.dtype), self.times(z, t), *embeddings).to(z.dtype)

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        names = [imagenet.in_english(name).replace("_", " ") for name in classes]
        return self._encode([self.parts.recipe.prompt.format(name) for name in names])[0]

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """c of prompts [prompts, numbers] in float32, and as many of what guidance contrasts them with."""
        pipeline = self._pipeline()
        found: list[list[Tensor]] = [[], []]
        for start in range(0, len(prompts), AT_A_TIME):
            encoded = self.encoded(pipeline, prompts[start : start + AT_A_TIME])
            for rows, embeddings in zip(found, encoded, strict=True):
                rows.append(torch.cat([each.float().flatten(1) for each in embeddings], 1))
        given, null = (torch.cat(rows) for rows in found)
        if given.shape[1:] != self.conditioning_shape:
            raise UserError(
                f"prior.source: the text encoders of {self.parts.folder} give {given.shape[1]:,} numbers for a prompt, "
                f"its denoiser takes {self.conditioning_shape[0]:,}; take all from the same model"
            )
        return given, null

    def _pipeline(self) -> Any:
        """diffusers' pipeline with the encoders alone."""
        try:
            import transformers
            from transformers.utils import logging
        except ImportError:
            raise UserError(
                f"prior.source: a {self.kind} needs the package transformers: pip install 'ld3m[text]'"
            ) from None
        import diffusers

        logging.disable_progress_bar()
        models: dict[str, Any] = {"vae": None, self.part: None, "scheduler": None}
        for part, kind in self.needs.items():
            tokenizer = part.replace("text_encoder", "tokenizer")
            if part == "text_encoder_3" and not (self.parts.folder / part).is_dir():
                models |= {part: None, tokenizer: None}  # Stable Diffusion 3 goes without
                continue
            dtype = torch.float32 if kind.startswith("CLIP") else getattr(torch, self.parts.recipe.dtype)
            models[part] = self.parts.model(getattr(transformers, kind), part, dtype).eval()
            reader = transformers.CLIPTokenizer if kind.startswith("CLIP") else transformers.AutoTokenizer
            models[tokenizer] = self.parts.read(tokenizer, reader.from_pretrained)
        kind = self.parts.read(self.part, lambda _: getattr(diffusers, self.kind))  # whose import warns of torchvision
        return kind(**models, **self.options(self.parts))

    @classmethod
    def options(cls, parts: Parts) -> dict[str, Any]:
        """Further arguments of the pipeline."""
        return {}

    @classmethod
    def load(cls, parts: Parts) -> Any:
        """Reads a folder of diffusers' pipeline."""
        import diffusers

        denoiser = parts.denoiser(getattr(diffusers, cls.denoiser_kind), cls.part)
        return cls(parts.autoencoder(), denoiser, parts.scheduler(), parts)


class StableDiffusionXL(SeveralEncoders):
    """Stable Diffusion XL and its few-step kinds (Podell et al., ICLR 2024, arXiv 2307.01952).

    c holds the states of both encoders [tokens, width], side by side, and the pooled one of the second. The sizes that
    the UNet is also told are those of the images that are rendered, uncropped.
    """

    kind = "StableDiffusionXLPipeline"
    part = "unet"
    denoiser_kind = "UNet2DConditionModel"
    needs: ClassVar = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    takes = ("addition_embed_type",)

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any, parts: Parts) -> None:
        config = denoiser.config
        self.times_width = 6 * int(config.addition_time_embed_dim or 0)
        pooled = int(config.projection_class_embeddings_input_dim or 0) - self.times_width
        wanted = parts.json("text_encoder_2/config.json", dict[str, Any]).get("projection_dim", 512)
        if config.addition_embed_type != "text_time" or pooled != wanted:
            raise UserError(
                f"prior.source: the UNet of {parts.folder} has addition_embed_type: {config.addition_embed_type!r} and "
                f"takes {pooled} numbers beside six sizes, not text_time and the {wanted} of text_encoder_2; give a "
                "base model, not a refiner"
            )
        super().__init__(autoencoder, denoiser, scheduler, parts)

    @classmethod
    def embeddings(cls, parts: Parts) -> list[tuple[int, ...]]:
        tokens = parts.json("text_encoder/config.json", dict[str, Any]).get("max_position_embeddings", 77)
        pooled = parts.json("text_encoder_2/config.json", dict[str, Any]).get("projection_dim", 512)
        return [(tokens, parts.json("unet/config.json", dict[str, Any])["cross_attention_dim"]), (pooled,)]

    @classmethod
    def options(cls, parts: Parts) -> dict[str, Any]:
        zeros = read_index(parts.folder).force_zeros_for_empty_prompt
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}

    def encoded(self, pipeline: Any, prompts: list[str]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        states, no_states, pooled, no_pooled = pipeline.encode_prompt(prompts, device=self.parts.device)
        return (states, pooled), (no_states, no_pooled)

    def answer(self, z: Tensor, times: Tensor, *embeddings: Tensor) -> Tensor:
        states, pooled = embeddings
        size = self.image_size  # of the original, its crop's corner, and of the target
        sizes = torch.tensor([size, size, 0, 0, size, size], device=z.device).expand(len(z), 6)
        added = {"text_embeds": pooled, "time_ids": sizes.to(z.dtype)}
        return self.denoiser(z, times, states, added_cond_kwargs=added).sample


class StableDiffusion3(SeveralEncoders):
    """Stable Diffusion 3 and 3.5, a flow (Esser et al., ICML 2024, arXiv 2403.03206).

    c holds the states of both CLIP encoders, those of T5 behind them, which may be left out, and the pooled ones.
    """

    kind = "StableDiffusion3Pipeline"
    denoiser_kind = "SD3Transformer2DModel"
    needs: ClassVar = {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    }

    @classmethod
    def embeddings(cls, parts: Parts) -> list[tuple[int, ...]]:
        tokens = parts.json("text_encoder/config.json", dict[str, Any]).get("max_position_embeddings", 77)
        config = parts.json("transformer/config.json", dict[str, Any])
        return [(tokens + T5_TOKENS, config["joint_attention_dim"]), (config["pooled_projection_dim"],)]

    def _pipeline(self) -> Any:
        pipeline = super()._pipeline()
        pipeline.transformer = self.denoiser  # without T5 its width is asked
        return pipeline

    def encoded(self, pipeline: Any, prompts: list[str]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        options = {"device": self.parts.device, "max_sequence_length": T5_TOKENS}
        found = pipeline.encode_prompt(prompts, prompts, prompts, **options)
        states, no_states, pooled, no_pooled = found
        if pipeline.text_encoder_3 is None:  # for which older versions of diffusers have fewer zeros
            absent = (0, 0, 0, self.shapes[0][0] - states.shape[1])
            states, no_states = (functional.pad(each, absent) for each in (states, no_states))
        return (states, pooled), (no_states, no_pooled)

    def answer(self, z: Tensor, times: Tensor, *embeddings: Tensor) -> Tensor:
        states, pooled = embeddings
        return self.denoiser(z, states, pooled, times).sample


class Sana(SeveralEncoders):
    """Sana, a flow (Xie et al., ICLR 2025, arXiv 2410.10629): latents of an AutoencoderDC, text by Gemma.

    c holds the encoder's states, and which of the tokens are of the prompt: that mask has no gradient and stays.
    """

    kind = "SanaPipeline"
    denoiser_kind = "SanaTransformer2DModel"
    needs: ClassVar = {"text_encoder": "Gemma2Model"}

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any, parts: Parts) -> None:
        if denoiser.config.guidance_embeds:
            raise UserError(
                f"prior.source: the denoiser of {parts.folder} has guidance_embeds: True, so that it takes the "
                "guidance scale itself, as distilled models; a prior's takes latents, time and one conditioning"
            )
        super().__init__(autoencoder, denoiser, scheduler, parts)

    @classmethod
    def embeddings(cls, parts: Parts) -> list[tuple[int, ...]]:
        width = parts.json("transformer/config.json", dict[str, Any])["caption_channels"]
        return [(GEMMA_TOKENS, width), (GEMMA_TOKENS,)]

    def encoded(self, pipeline: Any, prompts: list[str]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        options = {"device": self.parts.device, "max_sequence_length": GEMMA_TOKENS}
        states, mask, no_states, no_mask = pipeline.encode_prompt(prompts, **options)
        return (states, mask), (no_states, no_mask)

    def answer(self, z: Tensor, times: Tensor, *embeddings: Tensor) -> Tensor:
        states, mask = embeddings
        scaled = times * getattr(self.denoiser.config, "timestep_scale", 1.0)
        return self.denoiser(z, states, scaled, encoder_attention_mask=mask.detach()).sample
