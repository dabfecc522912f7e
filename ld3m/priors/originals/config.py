"""The configuration of an original latent diffusion model: what is read of its YAML file, and those that are known."""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ld3m.errors import UserError

P = TypeVar("P", bound=BaseModel)
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Factors = Annotated[list[Count], Field(min_length=1, max_length=16)]


class Part(BaseModel, Generic[P]):
    """What the original's configuration has for each network; its class is known from its place."""

    params: P


class UNetParams(BaseModel, protected_namespaces=()):  # pydantic keeps model_* for itself before 2.10
    """`unet_config.params`; a value other than the one that diffusers can do is refused."""

    image_size: Count
    in_channels: Count
    out_channels: Count
    model_channels: Count
    num_res_blocks: Annotated[int, Field(ge=1, le=100)]
    attention_resolutions: list[int]
    channel_mult: Factors
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: Annotated[int, Field(ge=1, le=100)] = 1
    context_dim: Count | None = None
    use_new_attention_order: Literal[False] = False
    use_scale_shift_norm: Literal[False] = False
    resblock_updown: Literal[False] = False
    num_classes: None = None
    dims: Literal[2] = 2


class EncoderParams(BaseModel):
    """`first_stage_config.params.ddconfig`."""

    double_z: bool
    z_channels: Count
    resolution: Count
    in_channels: Count
    out_ch: Count
    ch: Count
    ch_mult: Factors
    num_res_blocks: Annotated[int, Field(ge=1, le=100)]
    tanh_out: Literal[False] = False


class FirstStageParams(BaseModel):
    """`first_stage_config.params`."""

    embed_dim: Count
    n_embed: Count | None = None
    ddconfig: EncoderParams


class ConditionerParams(BaseModel):
    """`cond_stage_config.params`."""

    ucg_rate: float = 0.0
    """The share of images that were trained with the last row of the class table, the null class."""


class Params(BaseModel):
    """`model.params`."""

    linear_start: Annotated[float, Field(gt=0, lt=1)]
    linear_end: Annotated[float, Field(gt=0, lt=1)]
    timesteps: Annotated[int, Field(ge=1, le=100_000)]
    scale_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    beta_schedule: Literal["linear"] = "linear"
    parameterization: Literal["eps"] = "eps"
    unet_config: Part[UNetParams]
    first_stage_config: Part[FirstStageParams]
    cond_stage_config: Part[ConditionerParams] | Any = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Params":
        """What the original's `model.params` say.

        Raises:
            UserError: naming the first key that is missing or has a value that diffusers cannot do.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "missing":
                raise UserError(f"--config: the configuration has no {key}; give the model's own YAML file") from None
            raise UserError(
                f"--config: {key}: {first['input']!r} cannot be converted ({first['msg']}); correct it if the "
                "model was trained with another value"
            ) from None


# --- those that are known ----------------------------------------------------------------------------------


def _original(unet: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model of 256-pixel images with the VQ autoencoder that halves them twice."""
    shared = {
        "image_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "num_res_blocks": 2,
        "attention_resolutions": [8, 4, 2],
    }
    encoder = {
        "double_z": False,
        "z_channels": 3,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
    }
    return {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "timesteps": 1000,
        "unet_config": {"params": shared | unet},
        "first_stage_config": {"params": {"embed_dim": 3, "n_embed": 8192, "ddconfig": encoder}},
    }


CLASSES = {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 5],
    "num_heads": 1,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 512,
}
FACES = {"model_channels": 224, "channel_mult": [1, 2, 3, 4], "num_head_channels": 32}
KINDS = {"cin256-v2": _original(CLASSES), "ffhq256": _original(FACES), "celebahq256": _original(FACES)}
"""The originals' configurations: the weights alone tell neither the number of heads nor the noise schedule."""
