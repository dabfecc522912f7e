"""Original latent-diffusion checkpoints (Rombach et al., CVPR 2022) to priors in diffusers' layout, with a report."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

from ld3m.errors import UserError, one_line
from ld3m.files import write_json
from ld3m.priors.original import EMA, KINDS, TABLE, TRAINING_ONLY, UNET, Weights, build, untrained

BUFFERS = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "lvlb_", "logvar", "scale_factor")
"""Tables that the original computes from its configuration and keeps with the weights."""


def convert(checkpoint: Path, output: Path, kind: str = "auto", config: Path | None = None) -> dict[str, Any]:
    """Writes a prior's folder from an original checkpoint, and returns the report that lies in it.

    Args:
        checkpoint: a `.ckpt`, whose code is not run, or `.safetensors` with the original's names.
        output: the folder, which must not exist or be empty.
        kind: a name of `KINDS`, or "auto": the first whose shapes are the checkpoint's.
        config: the original's own YAML configuration, for a model of another kind.

    Raises:
        UserError: if the checkpoint cannot be read safely, is of another kind, or has a tensor too many or too few.
    """
    _check_empty(output)
    if kind not in ("auto", *KINDS):
        raise UserError(f"--kind: {kind!r} is not known; known are auto, {', '.join(KINDS)}")
    weights, foreign = read_weights(checkpoint)
    if config is not None:
        kind, params = config.name, _read_config(config)
    else:
        kind = _recognise(weights, checkpoint) if kind == "auto" else kind
        params = KINDS[kind]
    prior, used = build(params, weights)
    averaged = any(name.startswith(EMA + "diffusion_model") for name in used)
    report = {
        "checkpoint": checkpoint.name,
        "sha256": _sha256(checkpoint),
        "kind": kind,
        "denoiser weights": "averaged (EMA)" if averaged else "as trained",
        "tensors used": len(used),
        "tensors left out": _left_out(weights.keys() - used, averaged),
        "objects left out": foreign,
    }
    prior.save(output)
    write_json(output / "provenance.json", report)
    return report


def write_configurations(kind: str, output: Path) -> None:
    """Writes all of a prior's folder but the weights, which is all that a plan of a run reads.

    Args:
        kind: a name of `KINDS`.
        output: the folder, which must not exist or be empty.

    Raises:
        UserError: if it exists and is not empty.
    """
    _check_empty(output)
    with torch.device("meta"):
        untrained(kind).save_configurations(output)


def _check_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists already; give another folder")


def _left_out(names: set[str], averaged: bool) -> dict[str, str]:
    """Why each tensor that was not used was not.

    Raises:
        UserError: naming the first without an explanation.
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
            raise UserError(f"{name}: the checkpoint has this tensor, which the prior does not need")
    return why


# --- reading -----------------------------------------------------------------------------------------------


class _Nothing:
    """Stands for whatever a pickle names: takes any arguments and state, and keeps none."""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Nothing":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(checkpoint: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint by name, and the types of other objects in it, none of which is created.

    Raises:
        UserError: if it cannot be read without running what is pickled in it, or holds no tensors.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: there is no such file")
    try:
        if checkpoint.suffix == ".safetensors":
            return safetensors.torch.load_file(checkpoint), []
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint))
        stand_ins: list[Any] = [(type("Nothing", (_Nothing,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # each reader raises its own
        raise UserError(
            f"{checkpoint}: cannot be read without running code that is in it ({one_line(error)}); if you trust it, "
            "load it and save its state_dict again, as .safetensors or by torch.save"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{checkpoint}: holds no tensors by name; a checkpoint of latent-diffusion has a state_dict")
    return weights, foreign


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
