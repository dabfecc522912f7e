"""Consistency models of Song et al. (ICML 2023, arXiv 2303.01469), as diffusers' ConsistencyModelPipeline has them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.priors.base import check_inputs, numbers_of, sample_size
from ld3m.priors.kinds.pixels import PixelSpace
from ld3m.priors.lean_layers import freeze
from ld3m.priors.loading import Parts
from ld3m.priors.noise_schedule import ConsistencySchedule, NoiseSchedule


class Classes(BaseModel):
    """What a UNet's configuration says of its classes."""

    num_class_embeds: int | None = Field(None, ge=1, le=10**6)


class ConsistencyModel(PixelSpace):
    """`unet/` (UNet2DModel) in pixel space and `scheduler/` (CMStochasticIterativeScheduler); one step is enough.

    Z is the images themselves. The model takes x + σ ε, which is scaled to unit variance everywhere else, and answers
    with the clean image; conditioning c is the row of a class in its table, which is added to its time embedding.
    Further steps take the noise that the last answer leaves, where the paper's Algorithm 1 draws it again.

    Raises:
        UserError: if the UNet takes more than images, time and a class.
    """

    kind = "ConsistencyModelPipeline"
    named_in = "model_index.json, as id2label"
    """The file that has the names of classes."""

    def __init__(
        self, denoiser: Any, names: Sequence[Sequence[str]], scheduler: Any, device: torch.device | str = "cpu"
    ) -> None:
        config = denoiser.config
        check_inputs(config, ("num_class_embeds",))
        if config.in_channels != config.out_channels:
            raise UserError(
                f"prior.source: the UNet takes {config.in_channels} channels and gives {config.out_channels}; a "
                "consistency model's takes and gives images"
            )
        self.image_size, self.image_channels = sample_size(config), int(config.in_channels)
        self.latent_shape = (self.image_channels, self.image_size, self.image_size)
        self.levels = ConsistencySchedule.of(scheduler)
        self.noise_schedule: NoiseSchedule = self.levels
        self.sigma_min = self.levels.sigmas[0]
        self.names = names
        self.denoiser: nn.Module | None = freeze(denoiser)
        self.table = torch.empty(0, 0, device=device)
        if denoiser.class_embedding is not None:
            self.table = denoiser.class_embedding.weight.detach().float().to(device)  # the UNet may be elsewhere
            denoiser.class_embedding = nn.Identity()  # the UNet is given c itself instead of class numbers
        self.conditioning_shape: tuple[int, ...] = tuple(self.table.shape[1:])
        self.null_embedding: Tensor | None = None if len(self.table) else self.table.new_empty(1, 0)

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        """The clean image at level t: c_skip x + c_out F(c_in x), by the scalings of the paper's Appendix C."""
        sigma, data = self.levels.sigmas[int(t)], self.levels.sigma_data
        assert self.denoiser is not None
        noisy, dtype = z * (1 + sigma**2) ** 0.5, next(self.denoiser.parameters()).dtype
        skip = data**2 / ((sigma - self.sigma_min) ** 2 + data**2)
        out = data * (sigma - self.sigma_min) / (sigma**2 + data**2) ** 0.5
        times = torch.full((len(z),), 250 * math.log(sigma + 1e-44), device=z.device)
        labels = c.to(dtype) if self.conditioning_shape[0] else None
        answer = self.denoiser((noisy / (sigma**2 + data**2) ** 0.5).to(dtype), times, labels).sample
        return skip * noisy + out * answer.to(z.dtype)

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        if not len(self.table):
            return self.table.new_empty(len(classes), 0)
        return self.table[numbers_of(classes, self.names, self.named_in)]

    @classmethod
    def class_names(cls, parts: Parts) -> list[list[str]]:
        """The names of each class of a folder."""
        return parts.class_labels("UNet", parts.json("unet/config.json", Classes).num_class_embeds or 0)

    @classmethod
    def load(cls, parts: Parts) -> "ConsistencyModel":
        """Reads a folder of diffusers' ConsistencyModelPipeline."""
        from diffusers import UNet2DModel

        if parts.recipe.scaling_factor is not None:
            raise UserError(
                f"prior.scaling_factor: {parts.recipe.scaling_factor:g}, but {parts.folder} is in pixel space and "
                "encodes nothing; leave the key out"
            )
        names = cls.class_names(parts)
        return cls(parts.denoiser(UNet2DModel), names, parts.scheduler(), parts.device)
