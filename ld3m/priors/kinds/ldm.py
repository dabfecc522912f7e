"""Latent diffusion models of Rombach et al. (CVPR 2022): class-conditional, and unconditional ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.files import write_json, write_tensors
from ld3m.priors.base import LatentDiffusion, numbers_of
from ld3m.priors.diffusers_layout import GET_AGAIN
from ld3m.priors.loading import Parts
from ld3m.priors.shared_prefix import share_prefix


class _LDM(LatentDiffusion):
    """An autoencoder in `vqvae/` (VQModel) or `vae/` (AutoencoderKL), and a denoiser in `unet/`."""

    kind: ClassVar[str]
    """The `_class_name` of its model_index.json."""

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes the prior as diffusers folders, weights in `dtype`."""
        for name, model in self._models().items():
            nn.Module.to(model, dtype).save_pretrained(folder / name)  # diffusers' own `to` warns of an empty list
            nn.Module.to(model, torch.float32)
        self.save_configurations(folder)

    def save_configurations(self, folder: Path) -> None:
        """Writes what `save` does, but the weights; `MetaPrior` reads no more."""
        parts = self._models() | {"scheduler": self.scheduler}
        for name, part in parts.items():
            part.save_config(folder / name)
        index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
        write_json(folder / "model_index.json", {"_class_name": self.kind, **index})

    def _models(self) -> dict[str, Any]:
        """The models by the names of their folders."""
        return {"vqvae" if self.quantises else "vae": self.autoencoder, "unet": self.denoiser}


class ClassConditionalLDM(_LDM):
    """An autoencoder, a UNet and a table of class embeddings.

    Layout: `model_index.json`, `vqvae/` (VQModel) or `vae/` (AutoencoderKL), `unet/` (UNet2DConditionModel),
    `scheduler/` (any diffusers scheduler configuration), `class_embedder/` (config.json with the class names,
    model.safetensors with a [classes + 1, width] table whose last row is the null class; without it if config.json
    has null_class: false).
    """

    kind = "ClassConditionalLDM"
    named_in = "class_embedder/config.json"
    """The file that has the names of classes."""

    def __init__(
        self,
        autoencoder: Any,
        denoiser: Any,
        table: Tensor,
        classes: Sequence[str],
        scheduler: Any,
    ) -> None:
        super().__init__(autoencoder, denoiser, scheduler)
        self.table = table.detach()
        self.classes = list(classes)
        self.conditioning_shape: tuple[int, ...] = (1, denoiser.config.cross_attention_dim)
        has_null = len(self.table) > len(self.classes)
        self.null_embedding = self.table[-1].view(1, *self.conditioning_shape) if has_null else None
        attend_to_one_token(self.denoiser)
        self.halves_agree = share_prefix(self.denoiser)

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        rows = numbers_of(classes, _names(self.classes), self.named_in)
        return self.table[rows].view(len(rows), *self.conditioning_shape)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes the prior as diffusers folders, with the table of classes and the names of its rows."""
        write_tensors(folder / "class_embedder" / "model.safetensors", {"weight": self.table.to(dtype)})
        super().save(folder, dtype)

    def save_configurations(self, folder: Path) -> None:
        """Writes what `save` does, but the weights and the table."""
        classes = {"classes": self.classes, "null_class": self.null_embedding is not None}
        write_json(folder / "class_embedder" / "config.json", classes)
        super().save_configurations(folder)

    @classmethod
    def class_names(cls, parts: Parts) -> list[list[str]]:
        """The names of each class of a folder."""
        return _names(read_class_table(parts).classes)

    @classmethod
    def load(cls, parts: Parts) -> "ClassConditionalLDM":
        """Reads what `save` wrote; the autoencoder and the class table stay in float32.

        Raises:
            UserError: naming the part of the folder that is missing or unreadable.
        """
        from diffusers import UNet2DConditionModel

        autoencoder, denoiser = parts.autoencoder(), parts.denoiser(UNet2DConditionModel)
        scheduler, table = parts.scheduler(), read_class_table(parts)
        rows, width = len(table.classes) + table.null_class, denoiser.config.cross_attention_dim
        tensors = parts.tensors("class_embedder/model.safetensors")
        weight = tensors.get("weight", torch.empty(0))
        if len(tensors) != 1 or weight.shape != (rows, width) or not weight.is_floating_point():
            found = ", ".join(f"{name} {list(value.shape)} of {value.dtype}" for name, value in tensors.items())
            count = f"{len(table.classes)} classes{' and the null class' * table.null_class}"
            raise UserError(
                f"prior.source: {parts.folder / 'class_embedder' / 'model.safetensors'} holds {found or 'nothing'}, "
                f"not weight [{rows}, {width}] of floats for {count}; {GET_AGAIN}"
            )
        return cls(autoencoder, denoiser, weight.float().to(parts.device), table.classes, scheduler)


class ClassTable(BaseModel):
    """The content of class_embedder/config.json."""

    classes: list[str] = Field(min_length=1)
    null_class: bool = True
    """Whether the table has one row more, the null class."""


def read_class_table(parts: Parts) -> ClassTable:
    """What the class_embedder/ of a prior's folder says of its classes."""
    return parts.json("class_embedder/config.json", ClassTable)


def _names(classes: Sequence[str]) -> list[list[str]]:
    """The names of each class: none, if it has its number for a name, since it was converted without them."""
    return [[] if name == str(number) else [name] for number, name in enumerate(classes)]


def attend_to_one_token(denoiser: Any) -> None:
    """Lets the blocks of a transformer that attend to the conditioning take the shortcut for a single token.

    Softmax over one key is 1 whatever the query, so that the result is the token's value at every position, and neither
    query nor key takes part in it or in its gradient. Diffusers computes both.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.attention_processor import AttnProcessor2_0

    for block in denoiser.modules():
        if isinstance(block, BasicTransformerBlock) and block.attn2 is not None:
            attention = block.attn2
            plain = attention.rescale_output_factor == 1 and not attention.residual_connection
            if type(attention.processor) is AttnProcessor2_0 and plain and attention.spatial_norm is None:
                attention.set_processor(_OneToken())


class _OneToken:
    """diffusers' AttnProcessor2_0 for one token that no mask leaves out; for others it is that processor itself."""

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """[N, 1, width], which is added to the tokens [N, n, width] of each image."""
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] != 1 or attention_mask is not None:
            from diffusers.models.attention_processor import AttnProcessor2_0

            whole: Tensor = AttnProcessor2_0()(
                attention, hidden_states, encoder_hidden_states, attention_mask=attention_mask, temb=temb
            )
            return whole
        if attention.norm_cross:
            encoder_hidden_states = attention.norm_encoder_hidden_states(encoder_hidden_states)
        linear, dropout = attention.to_out
        return dropout(linear(attention.to_v(encoder_hidden_states)))


class UnconditionalLDM(_LDM):
    """diffusers' LDMPipeline, such as CompVis' of CelebA-HQ and FFHQ: `vqvae/`, `unet/` (UNet2DModel), `scheduler/`.

    It has no conditioning to learn and nothing for guidance to contrast.
    """

    kind = "LDMPipeline"

    conditioning_shape: tuple[int, ...] = (0,)

    def __init__(self, autoencoder: Any, denoiser: Any, scheduler: Any) -> None:
        super().__init__(autoencoder, denoiser, scheduler)
        self.null_embedding = torch.zeros(1, 0, device=next(autoencoder.parameters()).device)

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        return self.denoiser(z.to(self.dtype), self.times(z, t)).sample.to(z.dtype)

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        return self.null_embedding.expand(len(classes), 0)

    @classmethod
    def load(cls, parts: Parts) -> "UnconditionalLDM":
        """Reads a folder of diffusers' LDMPipeline."""
        from diffusers import UNet2DModel

        autoencoder, denoiser = parts.autoencoder(), parts.denoiser(UNet2DModel)
        return cls(autoencoder, denoiser, parts.scheduler())
