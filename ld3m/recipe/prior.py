"""The recipe of `ld3m train-prior`: every key with its type, range, default and meaning."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from ld3m.recipe import DataRecipe
from ld3m.recipe.values import Section

NORM_GROUPS = 16
"""Normalisation groups in the networks of a prior; their channel counts are multiples of it."""
Channels = Annotated[int, Field(gt=0, le=10**4)]
"""Of a level of a network."""


class AutoencoderRecipe(Section):
    """The VQ autoencoder of the prior, and its training."""

    channels: list[Channels] = Field([32, 64, 64], min_length=1, max_length=10)
    """Channels of each level, multiples of 16; every level but the last halves the resolution."""
    latent_channels: int = Field(3, ge=1, le=1024)
    """Channels of a latent."""
    codes: int = Field(512, ge=2, le=10**6)
    """Vectors in the codebook that latents are quantised to."""
    steps: int = Field(6000, ge=1, le=10**8)
    """Training steps; in the first tenth nothing is quantised."""
    batch: int = Field(64, ge=1, le=10**6)
    """Images of a training step."""
    lr: float = Field(1e-3, gt=0, le=10**9)
    """Peak learning rate of AdamW."""

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> "AutoencoderRecipe":
        if bad := [count for count in self.channels if count % NORM_GROUPS]:
            raise ValueError(f"channels: {bad[0]} is not a multiple of {NORM_GROUPS}, the normalisation groups")
        return self


class DenoiserRecipe(Section):
    """The class-conditional UNet of the prior, and its training."""

    channels: list[Channels] = Field([64, 96], min_length=1, max_length=10)
    """Channels of each level, multiples of 16 and of `denoiser.heads`; latents are halved between levels."""
    layers: int = Field(1, ge=1, le=100)
    """Residual blocks of each level."""
    attention: list[bool] = Field([False, True], max_length=10)
    """Whether each level has attention (to itself and to the class); at least one must."""
    heads: int = Field(4, ge=1, le=1000)
    """Attention heads of each level that has attention."""
    class_width: int = Field(64, ge=1, le=10**4)
    """Width of the class embedding."""
    flow: bool = False
    """Whether the denoiser learns the velocity of a flow from noise to latents, as Stable Diffusion 3's, rather than
    the noise of a diffusion."""
    null_share: float = Field(0.1, ge=0, lt=1)
    """The share of training images that are given the null class, which guidance needs; 0: the prior has none, and
    `prior.guidance` must be 1."""
    ema: float = Field(0.9995, ge=0, lt=1)
    """Decay of the running average of the weights, which is what is saved."""
    steps: int = Field(30000, ge=1, le=10**8)
    """Training steps."""
    batch: int = Field(128, ge=1, le=10**6)
    """Latents of a training step."""
    lr: float = Field(1e-3, gt=0, le=10**9)
    """Peak learning rate of AdamW."""

    @model_validator(mode="after")
    def _levels_agree(self) -> "DenoiserRecipe":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention: has {len(self.attention)} entries for {len(self.channels)} channels; give one per level"
            )
        if not any(self.attention):
            raise ValueError("attention: at least one level must attend, or the class would not be seen")
        if bad := [count for count in self.channels if count % NORM_GROUPS or count % self.heads]:
            raise ValueError(f"channels: {bad[0]} is not a multiple of {NORM_GROUPS} and of heads ({self.heads})")
        return self


class PriorEvaluateRecipe(Section):
    """How a trained prior is judged: by the reconstructions of test images, and by a classifier of its samples."""

    removed_keys: ClassVar[dict[str, tuple[Any, str]]] = {
        "classifier_width": (64, "the classifier's blocks have 64 channels, which nobody changed; leave it out")
    }

    samples: int = Field(1000, ge=1, le=10**6)
    """Images to sample with each guidance scale."""
    steps: int = Field(20, ge=1, le=999)
    """DDIM steps of a sample."""
    guidance: list[Annotated[float, Field(ge=-1000, le=1000)]] = Field([1.0, 3.0], max_length=100)
    """Guidance scales to sample with."""
    classifier_epochs: int = Field(3, ge=1, le=10**4)
    """Passes over the real images when the classifier, a ConvNet, is trained."""


class PriorRecipe(Section):
    """Everything about training a small class-conditional latent diffusion model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """The name of the prior: letters, digits, and after the first also `.`, `_` and `-`; 100 characters at most."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of every random draw; the same recipe with the same seed gives the same prior."""
    output: str | None = None
    """The folder of the prior; left out: `priors/<name>`."""
    data: DataRecipe
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    checkpoint_every: int = Field(1000, ge=1, le=10**9)
    """Training steps between checkpoints, from which a killed training resumes; there is one every five minutes at
    least."""
    evaluate: PriorEvaluateRecipe = PriorEvaluateRecipe()

    @model_validator(mode="after")
    def _latents_divide(self) -> "PriorRecipe":
        halvings = len(self.autoencoder.channels) + len(self.denoiser.channels) - 2
        if self.data.resolution % 2**halvings:
            raise ValueError(f"data.resolution: {self.data.resolution} cannot be halved {halvings} times")
        return self

    @model_validator(mode="after")
    def _guidance_has_a_null_class(self) -> "PriorRecipe":
        if not self.denoiser.null_share and any(scale != 1 for scale in self.evaluate.guidance):
            raise ValueError(
                "evaluate.guidance: guidance needs the null class, which denoiser.null_share=0 leaves untrained; set "
                "evaluate.guidance=[1], or a share such as 0.1"
            )
        return self

    @property
    def folder(self) -> Path:
        """The folder of the prior."""
        return Path(self.output or f"priors/{self.name}")
