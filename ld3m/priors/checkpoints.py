"""Checkpoints of other programs: their tensors, read without running what is pickled with them, and whose they are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from ld3m.errors import UserError, one_line, some
from ld3m.priors.file_kinds import LEGACY, READABLE, SAFETENSORS, kind_of

WRAPPERS = ("state_dict", "ema", "model", "model_state_dict")
"""Under which of its keys a program keeps the weights, the better ones first."""
OTHER_MODELS = {
    "conditioner.embedders.": "is a Stable Diffusion XL model, which takes several conditionings and cannot be a prior",
    "model.diffusion_model.joint_blocks.": "is a Stable Diffusion 3 model, of flow matching, which cannot be a prior",
    "double_blocks.": "is a Flux model, of flow matching, which cannot be a prior",
    "model.diffusion_model.double_blocks.": "is a Flux model, of flow matching, which cannot be a prior",
    "cond_stage_model.": "is conditioned on text or images, not on classes; only class-conditional and unconditional "
    "models of latent-diffusion are converted",
    "lora_": "holds a LoRA, changes to another model; give the model itself",
    "down_blocks.": "has diffusers' names already; put it with its config.json into unet/ of a prior's folder",
    "encoder.down_blocks.": "is an autoencoder of diffusers; put it with its config.json into vae/ of a prior's folder",
    "encoder.down.": "is an autoencoder alone; give the checkpoint of the whole latent diffusion model",
    "input_blocks.": "is a UNet alone, such as of guided-diffusion; give the checkpoint of a latent diffusion model",
    "text_model.": "is a text encoder alone; give the checkpoint of the whole latent diffusion model",
    "layer1.": "is a classifier; give the checkpoint of a latent diffusion model",
}
"""Models that are no latent diffusion model of the original code, by how one of their tensors' names begins."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    weights: dict[str, Tensor]
    """Tensors by name."""
    foreign: list[str]
    """The types of other objects in it, none of which is created."""


class _Nothing:
    """Stands for whatever a pickle names: takes any arguments and state, and keeps none."""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Nothing":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a checkpoint, in whichever of PyTorch's formats or in safetensors, by its content.

    Raises:
        UserError: if it cannot be read without running what is pickled in it, is something else, or has no tensors or
            ones that no weight can be.
    """
    if path.is_dir():
        whole = "is a prior's folder already; give it as prior.source" if (path / "model_index.json").is_file() else ""
        raise UserError(f"{path}: {whole or 'is a folder; give the checkpoint in it'}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        kind = kind_of(path)
        if kind not in READABLE:
            raise UserError(f"{path}: is {kind}")
        content, foreign = _read(path, kind)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None
    weights = _tensors(content)
    if not weights:
        objects = f", but objects that are not created ({some(foreign, 2)})" if foreign else ""
        raise UserError(f"{path}: holds no tensors by name{objects}; save the model's state_dict()")
    for name, weight in weights.items():
        if problem := _problem(weight):
            raise UserError(f"{path}: {name} {problem}; save the weights as plain tensors of floats")
    return Checkpoint(weights, foreign)


def another_model(weights: Mapping[str, Tensor]) -> str | None:
    """What weights are, if they are known to be those of another model, and what to do with them."""
    for beginning, what in OTHER_MODELS.items():
        if any(name.startswith(beginning) for name in weights) and not (
            beginning == "cond_stage_model." and "cond_stage_model.embedding.weight" in weights
        ):
            return what
    return None


def _read(path: Path, kind: str) -> tuple[Any, list[str]]:
    """The content of a file of a kind, and the types of foreign objects."""
    try:
        if kind == SAFETENSORS:
            return safetensors.torch.load_file(path), []
        if kind == LEGACY:  # which can be neither mapped nor searched for foreign objects
            return torch.load(path, map_location="cpu", weights_only=True), []
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        stand_ins: list[Any] = [(type("Nothing", (_Nothing,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), foreign
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is a damaged safetensors file ({one_line(error)}); get it again") from None
    except EOFError:
        raise UserError(f"{path}: ends too early; get it again as a whole") from None
    except OSError:
        raise
    except Exception as error:  # the unpickler raises all kinds
        if kind == LEGACY and "Unsupported" not in str(error):
            raise UserError(f"{path}: is damaged or cut off ({one_line(error)}); get it again") from None
        code = re.search(r"Unsupported [^.]*[\w.]*", str(error))
        why = code[0] if code else one_line(error)  # PyTorch adds advice to run it
        raise UserError(
            f"{path}: cannot be read without running code that is in it ({why}); if you trust it, "
            "load it and save its state_dict again, as .safetensors or by torch.save"
        ) from None


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors by name of a checkpoint's content: under one of the usual keys, at the top, or under another key.

    Training scripts call that `net`, `network`, `params` and more: it is that with the most tensors in it.
    """
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _by_name(content[key])
    inner = (_by_name(each) for each in content.values() if isinstance(each, Mapping))
    return _by_name(content) or max(inner, key=len, default={})


def _by_name(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _problem(weight: Tensor) -> str | None:
    """What is wrong with a tensor as a weight or a table of a model."""
    if weight.layout != torch.strided or weight.is_quantized:
        return f"is {'quantised' if weight.is_quantized else 'sparse'}"
    if weight.is_meta:
        return "is on the meta device and has no values"
    if weight.is_complex():
        return f"is of {weight.dtype}"
    return None


def check_values(weights: Mapping[str, Tensor]) -> None:
    """That tensors are of floats and finite.

    Raises:
        UserError: naming the first that is not.
    """
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise UserError(f"{name} is of {weight.dtype}; a weight is of floats")
        wide = weight.float() if weight.element_size() == 1 else weight  # PyTorch looks into no fp8
        if not wide.isfinite().all():
            raise UserError(f"{name} has values that are not finite; the training diverged, or the file is damaged")
