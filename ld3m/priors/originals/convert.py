"""Checkpoints of original code to priors in diffusers' layout, with a report."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ld3m.errors import UserError, one_line
from ld3m.files import write_folder, write_json
from ld3m.priors.checkpoints import another_model, read_checkpoint
from ld3m.priors.originals import dit, stable_diffusion
from ld3m.priors.originals.config import KINDS
from ld3m.priors.originals.latent_diffusion import EMA, TABLE, TRAINING_ONLY, UNET, Weights, build, untrained
from ld3m.priors.stored import digest
from ld3m.reading import read_text

BUFFERS = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "lvlb_", "logvar", "scale_factor")
"""Tables that the original computes from its configuration and keeps with the weights."""


MOST_CLASSES = 1_000_000


def convert(
    checkpoint: Path,
    output: Path,
    kind: str = "auto",
    config: str | Path | None = None,
    classes: str | None = None,
    vae: str | None = None,
) -> dict[str, Any]:
    """Writes a prior's folder from an original checkpoint, and returns the report that lies in it.

    Args:
        checkpoint: written by PyTorch, whose pickled code is not run, or safetensors with the original's names; by
            content, whatever its name. Of latent-diffusion, DiT, or Stable Diffusion 1 or 2.
        output: the folder, which must not exist or be empty.
        kind: a name of `KINDS`, or "auto": the first whose shapes are the checkpoint's.
        config: the original's own YAML configuration, for a latent-diffusion model of another kind; for Stable
            Diffusion a folder or `hub:<id>` in diffusers' layout.
        classes: how many classes the model has, or a file with the name of each on a line, without the null class.
        vae: for a DiT, the autoencoder: a folder or `hub:<id>`.

    Raises:
        UserError: if the checkpoint cannot be read safely, is of another kind, has a tensor too many or too few, lacks
            what an option gives, or does not tell whether the last row of its class table is the null class.
    """
    _check_empty(output)
    if kind not in ("auto", *KINDS):
        raise UserError(f"--kind: {kind!r} is not known; known are auto, {', '.join(KINDS)}")
    names = None if classes is None else read_classes(classes)
    content = read_checkpoint(checkpoint)
    weights = content.weights
    given = {"--config": config, "--classes": classes, "--vae": vae, "--kind": None if kind == "auto" else kind}
    if dit.TABLE in weights:
        _refuse(given, "--config", "--kind")
        converted = dit.build(weights, names, vae)
    elif stable_diffusion.is_one(weights):
        _refuse(given, "--classes", "--vae", "--kind")
        converted = stable_diffusion.build(weights, None if config is None else str(config))
    elif what := another_model(weights):
        raise UserError(f"{checkpoint}: {what}")
    else:
        _refuse(given, "--vae")
        if config is not None:
            config = Path(config)
            kind, params = config.name, _read_config(config)
        else:
            kind = _recognise(weights, checkpoint) if kind == "auto" else kind
            params = KINDS[kind]
        converted = build(params, weights, names, kind)
    used = converted.used
    averaged = any(name.startswith(EMA + "diffusion_model") for name in used)
    report = {
        "checkpoint": checkpoint.name,
        "sha256": digest(checkpoint),
        "denoiser weights": "averaged (EMA)" if averaged else "as trained",
        **converted.facts,
        "note": converted.note,
        "tensors used": len(used),
        "tensors left out": _left_out(weights.keys() - used, averaged),
        "objects left out": content.foreign,
    }

    def fill(folder: Path) -> None:
        converted.save(folder)
        write_json(folder / "provenance.json", report)

    _write(output, fill)
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
        prior = untrained(kind)
    _write(output, prior.save_configurations)


def _refuse(given: Mapping[str, Any], *options: str) -> None:
    """Raises a UserError for an option that has no part in the conversion of a model of this kind."""
    for option in options:
        if given[option] is not None:
            raise UserError(f"{option}: has no part in the conversion of a model of this kind; leave it out")


def _check_empty(output: Path) -> None:
    try:
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except (OSError, ValueError) as error:  # no permission, no name for a file
        raise UserError(f"{output}: cannot be looked into ({one_line(error)}); give another folder") from None
    if taken:
        raise UserError(f"{output}: exists already; give another folder")


def _write(output: Path, fill: Callable[[Path], None]) -> None:
    """The folder as a whole or not at all, unless it is there already, which may be the working folder."""
    if not output.is_dir():
        write_folder(output, fill)
        return
    try:
        fill(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written to ({one_line(error)}); give another folder") from None


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
        elif name.startswith(stable_diffusion.TEXT):
            why[name] = "its text encoder does not use it"
        else:
            raise UserError(f"{name}: the checkpoint has this tensor, which the prior does not need")
    return why


# --- reading -----------------------------------------------------------------------------------------------


def read_classes(given: str) -> list[str]:
    """The names of a model's classes: one per line of a file, or the numbers below a count.

    Raises:
        UserError: if it is neither, or a name is there twice.
    """
    if given.isdecimal() and not Path(given).exists():
        if not 1 <= (count := int(given[:9])) <= MOST_CLASSES:
            raise UserError(f"--classes: {given} is not between 1 and {MOST_CLASSES}")
        return [str(number) for number in range(count)]
    advice = "give a file with a class name on each line, or the number of classes"
    lines = read_text(Path(given), advice, f"--classes: {given}").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"--classes: {given} has no names; {advice}")
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"--classes: {given} has {twice!r} on several lines; give each class a name of its own")
    return names


def _read_config(path: Path) -> dict[str, Any]:
    """`model.params` of the original's configuration file."""
    advice = "give the YAML file that the model was trained with"
    text = read_text(path, advice, f"--config: {path}")
    try:
        params = yaml.safe_load(text)["model"]["params"]
        params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
        return dict(params)
    except (ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"--config: {path} is not a configuration of latent-diffusion, with model.params.unet_config and "
            f"first_stage_config ({one_line(error)}); {advice}"
        ) from None


def _recognise(weights: Weights, checkpoint: Path) -> str:
    """The kind whose UNet begins and is conditioned as this one."""
    first = weights.get(UNET + "input_blocks.0.0.weight")
    for kind, params in KINDS.items():
        unet = params["unet_config"]["params"]
        if first is not None and len(first) == unet["model_channels"] and (TABLE in weights) == ("context_dim" in unet):
            return kind
    raise UserError(f"{checkpoint}: is none of {', '.join(KINDS)}; give the original's YAML file by --config")
