"""Original latent-diffusion checkpoints (Rombach et al., CVPR 2022) to priors in diffusers' layout.

Modules and their names are those of github.com/CompVis/latent-diffusion; most are renamed by diffusers' own functions.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from ld3m.data.known import imagenet
from ld3m.errors import UserError, one_line
from ld3m.files import write_json
from ld3m.priors import ClassConditionalLDM, UnconditionalLDM

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
TABLE = "cond_stage_model.embedding.weight"
EMA = "model_ema."
Weights = Mapping[str, Tensor]
BUFFERS = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "lvlb_", "logvar", "scale_factor")
"""Tables that the original computes from its configuration and keeps with the weights."""
TRAINING_ONLY = (f"{FIRST_STAGE}loss.", f"{FIRST_STAGE}model_ema.", f"{EMA}decay", f"{EMA}num_updates")


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
"""The originals' configurations: weights alone do not tell the number of heads and the noise schedule."""


def convert(checkpoint: Path, output: Path, kind: str = "auto", config: Path | None = None) -> dict[str, Any]:
    """Writes a prior's folder from an original checkpoint, and returns the report that lies in it.

    Args:
        checkpoint: a `.ckpt`, of which no code is run, or `.safetensors` with the original's names.
        output: the folder, which must not be there or be empty.
        kind: a name of `KINDS`, or "auto": the first whose shapes are the checkpoint's.
        config: the original's own YAML configuration, for a model of another kind.

    Raises:
        UserError: where the checkpoint cannot be read safely, is of another kind, or has a tensor too many or too few.
    """
    _check_empty(output)
    if kind not in ("auto", *KINDS):
        raise UserError(f"--kind: {kind!r} is not known; known are auto, {', '.join(KINDS)}")
    weights, others = read_weights(checkpoint)
    if config is not None:
        kind, params = config.name, _read_config(config)
    else:
        kind = _recognise(weights, checkpoint) if kind == "auto" else kind
        params = KINDS[kind]
    prior, used = _build(params, weights)
    averaged = any(name.startswith(EMA + "diffusion_model") for name in used)
    report = {
        "checkpoint": checkpoint.name,
        "sha256": _sha256(checkpoint),
        "kind": kind,
        "denoiser weights": "averaged (EMA)" if averaged else "as trained",
        "tensors used": len(used),
        "tensors left out": _left_out(weights.keys() - used, averaged),
        "objects left out": others,
    }
    prior.save(output)
    write_json(output / "provenance.json", report)
    return report


def write_configurations(kind: str, output: Path) -> None:
    """Writes what a prior's folder holds beside the weights, which is all that a plan of a run reads.

    Args:
        kind: a name of `KINDS`.
        output: the folder, which must not be there or be empty.

    Raises:
        UserError: where it is there and not empty.
    """
    _check_empty(output)
    with torch.device("meta"):
        untrained(kind).save_configurations(output)


def untrained(kind: str) -> ClassConditionalLDM | UnconditionalLDM:
    """A prior of one of the `KINDS` with random weights, on the default device; of ImageNet's classes if of any."""
    params = KINDS[kind]
    unet = params["unet_config"]["params"]
    denoiser = _denoiser(unet)
    autoencoder = _autoencoder(params["first_stage_config"]["params"], params, {})
    if "context_dim" not in unet:
        return UnconditionalLDM(autoencoder, denoiser, _scheduler(params))
    classes = [each.name for each in imagenet.classes()]
    table = torch.randn(len(classes) + 1, unet["context_dim"])
    return ClassConditionalLDM(autoencoder, denoiser, table, classes, _scheduler(params))


def _check_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already; give another folder")


# --- reading -----------------------------------------------------------------------------------------------


class _Nothing:
    """Stands for whatever a pickle names: takes any arguments and state, and keeps none."""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Nothing":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(checkpoint: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint by name, and the kinds of other objects in it, of which none was made.

    Raises:
        UserError: where it cannot be read without running what is pickled in it, or holds no tensors.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: there is no such file")
    try:
        if checkpoint.suffix == ".safetensors":
            return safetensors.torch.load_file(checkpoint), []
        others = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint))
        stands_in: list[Any] = [(type("Nothing", (_Nothing,), {}), name) for name in others]
        with torch.serialization.safe_globals(stands_in):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's and safetensors' readers raise their own
        raise UserError(
            f"{checkpoint}: cannot be read without running code that is in it ({one_line(error)}); where you trust it, "
            "load it and save its state_dict anew, as .safetensors or by torch.save"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{checkpoint}: holds no tensors by name; a checkpoint of latent-diffusion has a state_dict")
    return weights, others


def _read_config(path: Path) -> dict[str, Any]:
    """`model.params` of the original's configuration file."""
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: is not a configuration of latent-diffusion, with model.params.unet_config and "
            f"first_stage_config ({one_line(error)})"
        ) from None
    return dict(params)


def _recognise(weights: Weights, checkpoint: Path) -> str:
    """The kind whose UNet begins and is conditioned as this one."""
    first = weights.get(UNET + "input_blocks.0.0.weight")
    for kind, params in KINDS.items():
        unet = params["unet_config"]["params"]
        if first is not None and len(first) == unet["model_channels"] and (TABLE in weights) == ("context_dim" in unet):
            return kind
    raise UserError(f"{checkpoint}: is none of {', '.join(KINDS)}; give the original's YAML file by --config")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- building ----------------------------------------------------------------------------------------------


def _build(params: dict[str, Any], weights: Weights) -> tuple[ClassConditionalLDM | UnconditionalLDM, set[str]]:
    """The prior, and the names of the tensors that it took."""
    try:
        unet, first_stage = params["unet_config"]["params"], params["first_stage_config"]["params"]
        with torch.device("meta"):  # shapes alone: the checkpoint's tensors take their places
            denoiser = _denoiser(unet)
            autoencoder = _autoencoder(first_stage, params, weights)
        scheduler = _scheduler(params)
    except KeyError as error:
        raise UserError(f"the configuration has no {error}") from None
    plain = {name: name for name in weights if name.startswith(UNET)}
    # The average has the names of the trained weights, without their dots.
    averages = {name: EMA + name.removeprefix("model.").replace(".", "") for name in plain}
    names = averages if all(name in weights for name in averages.values()) else plain
    sources = {name: weights[there] for name, there in names.items()}
    used = {names[name] for name in _load(denoiser, lambda given: _rename_unet(given, denoiser), sources, "the UNet")}
    own = {name: value for name, value in weights.items() if name.startswith(FIRST_STAGE)}
    used |= _load(autoencoder, lambda given: _rename_first_stage(given, autoencoder), own, "the autoencoder")
    if TABLE not in weights:
        return UnconditionalLDM(autoencoder, denoiser, scheduler), used
    table = weights[TABLE].float()
    known = imagenet.classes()
    count = len(table) - 1
    classes = [each.name for each in known] if count == len(known) else [str(number) for number in range(count)]
    return ClassConditionalLDM(autoencoder, denoiser, table, classes, scheduler), used | {TABLE}


def _denoiser(config: dict[str, Any]) -> Any:
    """The UNet of a configuration, as diffusers has it."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    widths = _widths(config["model_channels"], config["channel_mult"], "unet_config.channel_mult")
    attended = [2**level in config["attention_resolutions"] for level in range(len(widths))]
    conditional = config.get("use_spatial_transformer", False)
    kind = "CrossAttn" if conditional else "Attn"
    shared = {
        "sample_size": config["image_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "layers_per_block": config["num_res_blocks"],
        "block_out_channels": widths,
        "down_block_types": [f"{kind if here else ''}DownBlock2D" for here in attended],
        "up_block_types": [f"{kind if here else ''}UpBlock2D" for here in reversed(attended)],
    }
    heads, width = config.get("num_heads", -1), config.get("num_head_channels", -1)
    if conditional:
        return UNet2DConditionModel(
            **shared,
            cross_attention_dim=config["context_dim"],
            transformer_layers_per_block=config.get("transformer_depth", 1),
            # diffusers takes the number of heads by this name
            attention_head_dim=[channels // width for channels in widths] if width != -1 else heads,
        )
    if width == -1 and heads != 1:
        raise UserError(
            f"unet_config.num_heads: {heads}, but diffusers' unconditional UNet takes num_head_channels, or one head"
        )
    return UNet2DModel(**shared, attention_head_dim=None if width == -1 else width)


def _autoencoder(config: dict[str, Any], params: dict[str, Any], weights: Weights) -> Any:
    """The first stage of a configuration, as diffusers has it: VQ where it has codes, KL where it has moments."""
    from diffusers import AutoencoderKL, VQModel

    encoder = config["ddconfig"]
    levels = range(len(encoder["ch_mult"]))
    attended = [f"{FIRST_STAGE}encoder.down.{level}.attn.0.q.weight" in weights for level in levels]
    shared = {
        "in_channels": encoder["in_channels"],
        "out_channels": encoder["out_ch"],
        "down_block_types": [f"{'Attn' if here else ''}DownEncoderBlock2D" for here in attended],
        "up_block_types": [f"{'Attn' if here else ''}UpDecoderBlock2D" for here in reversed(attended)],
        "block_out_channels": _widths(encoder["ch"], encoder["ch_mult"], "first_stage_config.ddconfig.ch_mult"),
        "layers_per_block": encoder["num_res_blocks"],
        "latent_channels": encoder["z_channels"],
        "sample_size": encoder["resolution"],
        # Where the original scaled by the deviation of its first batch, it kept the factor with the weights.
        "scaling_factor": float(weights.get("scale_factor", params.get("scale_factor", 1.0))),
    }
    if encoder["double_z"]:
        if config["embed_dim"] != encoder["z_channels"]:
            raise UserError(
                f"first_stage_config.embed_dim: {config['embed_dim']}, but diffusers' KL autoencoder has z_channels, "
                f"{encoder['z_channels']}"
            )
        return AutoencoderKL(**shared)
    return VQModel(**shared, num_vq_embeddings=config["n_embed"], vq_embed_dim=config["embed_dim"])


def _widths(width: int, factors: list[int], key: str) -> list[int]:
    """Channels of each resolution."""
    if factors[0] != 1:
        raise UserError(
            f"{key}: begins with {factors[0]}, but diffusers' networks begin with as many channels as come in"
        )
    return [width * factor for factor in factors]


def _scheduler(params: dict[str, Any]) -> Any:
    """The noise schedule, with the steps of the original's DDIM sampler."""
    from diffusers import DDIMScheduler

    schedule = params.get("beta_schedule", "linear")
    if schedule != "linear" or params.get("parameterization", "eps") != "eps":
        raise UserError(f"beta_schedule: {schedule!r}, {params.get('parameterization')!r}; known are linear and eps")
    return DDIMScheduler(
        num_train_timesteps=params["timesteps"],
        beta_start=params["linear_start"],
        beta_end=params["linear_end"],
        beta_schedule="scaled_linear",  # the original's "linear" is linear in the square roots
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# --- names -------------------------------------------------------------------------------------------------


def _rename_unet(weights: Weights, denoiser: Any) -> dict[str, Tensor]:
    """The UNet's weights by diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    renamed = convert_ldm_unet_checkpoint(dict(weights), dict(denoiser.config))
    if "encoder_hid_dim" in denoiser.config:  # of UNet2DConditionModel alone, whose attention keeps its names
        return renamed
    result = {}
    for name, value in renamed.items():
        block, found, last = name.rpartition(".attentions.")
        number, _, weight = last.partition(".")
        place = f"{block}.attentions.{number}"
        if found and weight.startswith("qkv."):
            width = denoiser.config.attention_head_dim or value.shape[0] // 3
            # The original keeps query, key and value of a head together, diffusers those of all heads.
            parts = value.reshape(-1, 3, width, *value.shape[1:2]).unbind(1)
            for part, each in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                result[f"{place}.{part}.{weight.removeprefix('qkv.')}"] = each.flatten(0, 1)
        elif found:
            weight = weight.replace("proj_out.", "to_out.0.").replace("norm.", "group_norm.")
            result[f"{place}.{weight}"] = value[..., 0] if value.dim() == 3 else value
        else:
            result[name] = value
    return result


def _rename_first_stage(weights: Weights, autoencoder: Any) -> dict[str, Tensor]:
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


def _load(module: nn.Module, rename: Callable[[Weights], dict[str, Tensor]], weights: Weights, what: str) -> set[str]:
    """Loads all of a module's weights, and tells which of the given ones they were.

    Raises:
        UserError: where one is missing, is of another shape or has no place.
    """
    try:
        renamed = rename(weights)
        # Renamed once more with each tensor's number in its place, which tells where it went.
        numbers = {name: torch.tensor(place).expand(value.shape) for place, (name, value) in enumerate(weights.items())}
        names = list(weights)
        used = {names[int(value.flatten()[0])] for value in rename(numbers).values()}
    except (KeyError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"{what}: the weights are not those of its configuration ({one_line(error)})") from None
    expected = {name: value.shape for name, value in module.state_dict().items()}
    for name, shape in expected.items():
        if name not in renamed:
            raise UserError(f"{what}: the checkpoint has nothing for {name}; it is of another kind")
        if (found := renamed[name].shape) != shape:
            raise UserError(
                f"{what}: {name} is {tuple(found)} in the checkpoint, not {tuple(shape)}; it is of another kind"
            )
    if surplus := [name for name in renamed if name not in expected]:
        raise UserError(f"{what}: the checkpoint has {surplus[0]}, for which there is no place; it is of another kind")
    module.load_state_dict({name: value.contiguous() for name, value in renamed.items()}, assign=True)
    return used


def _left_out(names: set[str], averaged: bool) -> dict[str, str]:
    """Why each tensor that was not used was not.

    Raises:
        UserError: naming one that nobody has an explanation for.
    """
    why = {}
    for name in sorted(names):
        if name.startswith(BUFFERS):
            why[name] = "computed from the configuration"
        elif name.startswith(TRAINING_ONLY):
            why[name] = "for training only"
        elif averaged and name.startswith(UNET):
            why[name] = "its average is used"
        else:
            raise UserError(f"{name}: the checkpoint has this tensor, and there is no place for it")
    return why
