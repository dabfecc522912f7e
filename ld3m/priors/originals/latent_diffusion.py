"""The networks of the original latent diffusion code (Rombach et al., CVPR 2022) as diffusers builds and names them.

Modules and their names are those of github.com/CompVis/latent-diffusion; most are renamed by diffusers' own functions.
Reading checkpoints is `convert`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ld3m.data.known import imagenet
from ld3m.errors import UserError, one_line
from ld3m.priors import ClassConditionalLDM, UnconditionalLDM
from ld3m.priors.checkpoints import check_values
from ld3m.priors.originals.config import KINDS, Params, Part, UNetParams

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
TABLE = "cond_stage_model.embedding.weight"
EMA = "model_ema."
Weights = Mapping[str, Tensor]
TRAINING_ONLY = (f"{FIRST_STAGE}loss.", f"{FIRST_STAGE}model_ema.", f"{EMA}decay", f"{EMA}num_updates")


class Converted(NamedTuple):
    """What comes of a checkpoint."""

    save: Callable[[Path], None]
    """Writes a prior's folder."""
    used: set[str]
    """The names of the tensors that it took."""
    facts: dict[str, Any]
    """What the report says of it: kind, number of classes (0 without conditioning, None for a text), null class."""
    note: str = ""
    """What the weights do not tell."""


def untrained(kind: str) -> ClassConditionalLDM | UnconditionalLDM:
    """A prior of one of the `KINDS` with random weights, on the default device; of ImageNet's classes if of any."""
    params = Params.of(KINDS[kind])
    unet = params.unet_config.params
    denoiser = _denoiser(unet)
    autoencoder = _autoencoder(params, {})
    if unet.context_dim is None:
        return UnconditionalLDM(autoencoder, denoiser, _scheduler(params))
    classes = imagenet.names()
    table = torch.randn(len(classes) + 1, unet.context_dim)
    return ClassConditionalLDM(autoencoder, denoiser, table, classes, _scheduler(params))


# --- building ----------------------------------------------------------------------------------------------


def build(content: Mapping[str, Any], weights: Weights, classes: list[str] | None = None, kind: str = "") -> Converted:
    """The prior of an original's `model.params` and weights.

    Args:
        content: `model.params`.
        classes: names of the rows of the class table but for the null class; None if they are to be guessed.
        kind: what the report calls it.

    Raises:
        UserError: if the configuration lacks a key or asks for what diffusers has not, the weights do not fit it, or
            the class table may or may not have a null class.
    """
    params = Params.of(content)
    try:
        with torch.device("meta"):  # shapes alone: the checkpoint's tensors become the weights
            denoiser = _denoiser(params.unet_config.params)
            autoencoder = _autoencoder(params, weights)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # of diffusers' constructors
        raise UserError(f"--config: diffusers cannot build these networks ({one_line(error)}); correct it") from None
    scheduler = _scheduler(params)
    names = unet_names(weights)
    sources = {name: weights[stored] for name, stored in names.items()}
    used = {
        names[name] for name in load_weights(denoiser, lambda given: rename_unet(given, denoiser), sources, "the UNet")
    }
    first_stage_weights = {name: value for name, value in weights.items() if name.startswith(FIRST_STAGE)}
    used |= load_weights(
        autoencoder,
        lambda given: rename_first_stage(given, autoencoder),
        first_stage_weights,
        "the autoencoder",
    )
    width = params.unet_config.params.context_dim
    if (table := weights.get(TABLE)) is None and width is None:
        if classes:
            raise UserError("--classes: the model is unconditional and has no classes; leave the option out")
        facts = {"kind": kind, "classes": 0, "null class": False}
        return Converted(UnconditionalLDM(autoencoder, denoiser, scheduler).save, used, facts)
    if table is None or table.shape[1:] != (width,) or len(table) < 2:
        found = "nothing" if table is None else list(table.shape)
        raise UserError(
            f"{TABLE}: {found} in the checkpoint, but the UNet takes rows of {width}; it is of another kind"
        )
    check_values({TABLE: table})
    rows = len(table)
    chosen = classes or _guess_classes(rows, params)
    if rows - len(chosen) not in (0, 1):
        raise UserError(
            f"--classes: {len(chosen)} classes, but the checkpoint's class table has {rows} rows; "
            f"give {rows}, or {rows - 1} if the last row is the null class"
        )
    prior = ClassConditionalLDM(autoencoder, denoiser, table.float(), chosen, scheduler)
    facts = {"kind": kind, "classes": len(chosen), "null class": prior.null_embedding is not None}
    return Converted(prior.save, used | {TABLE}, facts)


def _guess_classes(rows: int, params: Params) -> list[str]:
    """The names of the rows of a class table, without the null class.

    The original's own table has no null class unless its user adds a row, which the weights do not tell.

    Raises:
        UserError: if it can be either.
    """
    known = imagenet.names()
    if rows - len(known) in (0, 1):
        return known
    conditioner = params.cond_stage_config
    if isinstance(conditioner, Part) and conditioner.params.ucg_rate > 0:
        return [str(number) for number in range(rows - 1)]
    raise UserError(
        f"--classes: the checkpoint's class table has {rows} rows: give --classes {rows - 1} if the last is the null "
        f"class, --classes {rows} if there is none, or a file with the name of each class on a line"
    )


def _denoiser(config: UNetParams) -> Any:
    """The UNet of a configuration, as diffusers has it."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    if config.in_channels != config.out_channels:
        raise UserError(
            f"unet_config.in_channels: {config.in_channels}, but out_channels is {config.out_channels}; a model "
            "that is conditioned on images, for super-resolution or inpainting, cannot be a prior"
        )
    conditional = config.use_spatial_transformer
    if conditional != (config.context_dim is not None):
        raise UserError(
            f"unet_config.context_dim: {config.context_dim}, with use_spatial_transformer: {conditional}; give both, "
            "or neither for an unconditional model"
        )
    widths = _widths(config.model_channels, config.channel_mult, "unet_config.channel_mult")
    attended = [2**level in config.attention_resolutions for level in range(len(widths))]
    kind = "CrossAttn" if conditional else "Attn"
    shared = {
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "layers_per_block": config.num_res_blocks,
        "block_out_channels": widths,
        "down_block_types": [f"{kind if here else ''}DownBlock2D" for here in attended],
        "up_block_types": [f"{kind if here else ''}UpBlock2D" for here in reversed(attended)],
    }
    heads, width = config.num_heads, config.num_head_channels
    if conditional:
        return UNet2DConditionModel(
            **shared,
            cross_attention_dim=config.context_dim,
            transformer_layers_per_block=config.transformer_depth,
            # diffusers takes the number of heads by this name
            attention_head_dim=[channels // width for channels in widths] if width != -1 else heads,
        )
    if width == -1 and heads != 1:
        raise UserError(
            f"unet_config.num_heads: {heads}, but diffusers' unconditional UNet takes num_head_channels, or one head"
        )
    return UNet2DModel(**shared, attention_head_dim=None if width == -1 else width)


def _autoencoder(params: Params, weights: Weights) -> Any:
    """The first stage of a configuration, as diffusers has it: VQ if it has codes, KL if it has moments."""
    from diffusers import AutoencoderKL, VQModel

    config = params.first_stage_config.params
    encoder = config.ddconfig
    levels = range(len(encoder.ch_mult))
    attended = [f"{FIRST_STAGE}encoder.down.{level}.attn.0.q.weight" in weights for level in levels]
    shared = {
        "in_channels": encoder.in_channels,
        "out_channels": encoder.out_ch,
        "down_block_types": [f"{'Attn' if here else ''}DownEncoderBlock2D" for here in attended],
        "up_block_types": [f"{'Attn' if here else ''}UpDecoderBlock2D" for here in reversed(attended)],
        "block_out_channels": _widths(encoder.ch, encoder.ch_mult, "first_stage_config.ddconfig.ch_mult"),
        "layers_per_block": encoder.num_res_blocks,
        "latent_channels": encoder.z_channels,
        "sample_size": encoder.resolution,
        "scaling_factor": _scaling_factor(params, weights),
    }
    if config.embed_dim != params.unet_config.params.in_channels:
        raise UserError(
            f"first_stage_config.embed_dim: {config.embed_dim}, but unet_config.in_channels is "
            f"{params.unet_config.params.in_channels}; the latents of a prior are all that its UNet takes"
        )
    if encoder.double_z:
        if config.embed_dim != encoder.z_channels:
            raise UserError(
                f"first_stage_config.embed_dim: {config.embed_dim}, but diffusers' KL autoencoder has z_channels, "
                f"{encoder.z_channels}"
            )
        return AutoencoderKL(**shared)
    if config.n_embed is None:
        raise UserError("--config: the configuration has no first_stage_config.params.n_embed, the number of codes")
    return VQModel(**shared, num_vq_embeddings=config.n_embed, vq_embed_dim=config.embed_dim)


def _scaling_factor(params: Params, weights: Weights) -> float:
    """An original that scales by the deviation of its first batch keeps the factor with the weights."""
    if "scale_factor" not in weights:
        return params.scale_factor
    factor = weights["scale_factor"]
    if factor.numel() != 1 or not 0 < float(factor) < math.inf:
        raise UserError(f"scale_factor: {factor.tolist()} in the checkpoint is not one number above 0")
    return float(factor)


def _widths(width: int, factors: list[int], key: str) -> list[int]:
    """Channels of each resolution."""
    if factors[0] != 1:
        raise UserError(f"{key}: begins with {factors[0]}, but diffusers' networks begin with a factor of 1")
    return [width * factor for factor in factors]


def _scheduler(params: Params) -> Any:
    """The noise schedule, with the steps of the original's DDIM sampler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=params.timesteps,
        beta_start=params.linear_start,
        beta_end=params.linear_end,
        beta_schedule="scaled_linear",  # the original's "linear" is linear in the square roots
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# --- names -------------------------------------------------------------------------------------------------


def unet_names(weights: Weights) -> dict[str, str]:
    """For the name of each weight of the UNet that of the tensor to take: its average, if all have one."""
    plain = {name: name for name in weights if name.startswith(UNET)}
    # The average has the names of the trained weights, without their dots.
    averages = {name: EMA + name.removeprefix("model.").replace(".", "") for name in plain}
    return averages if all(name in weights for name in averages.values()) else plain


def rename_unet(weights: Weights, denoiser: Any) -> dict[str, Tensor]:
    """The UNet's weights by diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    renamed = convert_ldm_unet_checkpoint(dict(weights), dict(denoiser.config))
    if "encoder_hid_dim" in denoiser.config:  # of UNet2DConditionModel alone, whose attention keeps its names
        return renamed
    result = {}
    for name, value in renamed.items():
        block, attention, rest = name.rpartition(".attentions.")
        number, _, weight = rest.partition(".")
        layer = f"{block}.attentions.{number}"
        if attention and weight.startswith("qkv."):
            width = denoiser.config.attention_head_dim or value.shape[0] // 3
            # The original keeps query, key and value of a head together, diffusers those of all heads.
            parts = value.reshape(-1, 3, width, *value.shape[1:2]).unbind(1)
            for part, each in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                result[f"{layer}.{part}.{weight.removeprefix('qkv.')}"] = each.flatten(0, 1)
        elif attention:
            weight = weight.replace("proj_out.", "to_out.0.").replace("norm.", "group_norm.")
            result[f"{layer}.{weight}"] = value[..., 0] if value.dim() == 3 else value
        else:
            result[name] = value
    return result


def rename_first_stage(weights: Weights, autoencoder: Any) -> dict[str, Tensor]:
    """The autoencoder's weights by diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    weights = {name: value for name, value in weights.items() if not name.startswith(TRAINING_ONLY)}
    attentions = {name: value for name, value in weights.items() if ".attn." in name}
    rest = {name: value for name, value in weights.items() if name not in attentions}
    renamed = convert_ldm_vae_checkpoint(rest, dict(autoencoder.config))
    if (codes := f"{FIRST_STAGE}quantize.embedding.weight") in weights:
        renamed["quantize.embedding.weight"] = weights[codes]
    last = len(autoencoder.config.block_out_channels) - 1
    for name, value in attentions.items():  # first_stage_model.encoder.down.2.attn.0.q.weight
        _, part, way, level, _, number, layer, kind = name.split(".")
        block = f"down_blocks.{level}" if way == "down" else f"up_blocks.{last - int(level)}"
        layer = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}[layer]
        renamed[f"{part}.{block}.attentions.{number}.{layer}.{kind}"] = value.flatten(1) if value.dim() == 4 else value
    return renamed


def load_weights(
    module: nn.Module, rename: Callable[[Weights], dict[str, Tensor]], weights: Weights, what: str
) -> set[str]:
    """Loads all of a module's weights, and returns the names of the given tensors that it took.

    Raises:
        UserError: if one is missing, has another shape, or is one too many.
    """
    names = list(weights)
    try:
        renamed = rename(weights)
        # Renamed once more, each tensor filled with its number, which tells where it went.
        numbered = {name: torch.tensor(i).expand(weights[name].shape) for i, name in enumerate(names)}
        used = {names[int(value.flatten()[0])] for value in rename(numbered).values()}
    except (KeyError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"{what}: the weights are not those of its configuration ({one_line(error)})") from None
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in renamed.items()}
    another = "the checkpoint is of another kind"
    for name, shape in expected.items():
        if name not in shapes:
            raise UserError(f"{what}: the checkpoint has nothing for {name}; {another}")
        if shapes[name] != shape:
            raise UserError(f"{what}: {name} is {shapes[name]} in the checkpoint, not {shape}; {another}")
    if surplus := [name for name in shapes if name not in expected]:
        raise UserError(f"{what}: the checkpoint has {surplus[0]}, which the network has not; {another}")
    check_values({name: weights[name] for name in names if name in used})
    module.load_state_dict({name: value.contiguous() for name, value in renamed.items()}, assign=True)
    return used
