"""What a recipe of `ld3m train-prior` may say."""

from pathlib import Path

from pydantic import Field, PositiveInt, model_validator

from ld3m.recipe import DataRecipe
from ld3m.recipe.values import Section

NORM_GROUPS = 16
"""Normalisation groups of the networks of a prior; their channel counts are multiples of it."""


class AutoencoderRecipe(Section):
    """The VQ autoencoder of a prior and its training."""

    channels: list[PositiveInt] = Field([32, 64, 64], min_length=1)
    """Channels of each level; every level but the last halves the resolution."""
    latent_channels: int = Field(3, ge=1)
    codes: int = Field(512, ge=2)
    steps: int = Field(6000, ge=1)
    batch: int = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> "AutoencoderRecipe":
        if bad := [count for count in self.channels if count % NORM_GROUPS]:
            raise ValueError(f"channels: {bad[0]} is not a multiple of {NORM_GROUPS}, the normalisation groups")
        return self


class DenoiserRecipe(Section):
    """The class-conditional UNet of a prior and its training."""

    channels: list[PositiveInt] = Field([64, 96], min_length=1)
    """Channels of each level; the latents are halved between levels."""
    layers: int = Field(1, ge=1)
    attention: list[bool] = Field([False, True])
    """Whether a level has attention (to itself and to the class); at least one must."""
    heads: int = Field(4, ge=1)
    class_width: int = Field(64, ge=1)
    """Width of the class embedding."""
    null_share: float = Field(0.1, ge=0, lt=1)
    """How often training sees the null class, which guidance needs."""
    ema: float = Field(0.9995, ge=0, lt=1)
    steps: int = Field(30000, ge=1)
    batch: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _levels_agree(self) -> "DenoiserRecipe":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention: has {len(self.attention)} entries for {len(self.channels)} channels; give one a level"
            )
        if not any(self.attention):
            raise ValueError("attention: at least one level must attend, or the class would not be seen")
        if bad := [count for count in self.channels if count % NORM_GROUPS or count % self.heads]:
            raise ValueError(f"channels: {bad[0]} is not a multiple of {NORM_GROUPS} and of heads ({self.heads})")
        return self


class PriorEvaluateRecipe(Section):
    """How a trained prior judges itself."""

    samples: int = Field(1000, ge=1)
    steps: int = Field(20, ge=1, le=999)
    guidance: list[float] = Field([1.0, 3.0])
    classifier_epochs: int = Field(3, ge=1)
    classifier_width: int = Field(64, ge=1)


class PriorRecipe(Section):
    """Everything about training a small class-conditional latent diffusion model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    output: str | None = None
    """The folder of the prior; left out: priors/<name>."""
    data: DataRecipe
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    checkpoint_every: int = Field(1000, ge=1)
    evaluate: PriorEvaluateRecipe = PriorEvaluateRecipe()

    @model_validator(mode="after")
    def _latents_divide(self) -> "PriorRecipe":
        halvings = len(self.autoencoder.channels) + len(self.denoiser.channels) - 2
        if self.data.resolution % 2**halvings:
            raise ValueError(f"data.resolution: {self.data.resolution} cannot be halved {halvings} times")
        return self

    @property
    def folder(self) -> Path:
        """Where the prior lives."""
        return Path(self.output or f"priors/{self.name}")
