"""Stable Diffusion 1.x and 2.x in single files, in the parts and names that diffusers has for them.

The file has weights alone: configurations and the tokenizer are lent by a model of the same kind.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.errors import UserError, blamed_on
from ld3m.priors.diffusers_layout import read_index
from ld3m.priors.originals.borrowed import lender, parts_of, save_parts
from ld3m.priors.originals.latent_diffusion import (
    FIRST_STAGE,
    Converted,
    Weights,
    load_weights,
    rename_first_stage,
    rename_unet,
    unet_names,
)

TEXT = "cond_stage_model."
CLIP, OPEN_CLIP = f"{TEXT}transformer.", f"{TEXT}model."
"""How the names of the text encoder's weights begin: in version 1, in version 2."""
SD_1 = "hub:stable-diffusion-v1-5/stable-diffusion-v1-5"
"""What lends to version 1."""
LENT = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/*",
    "scheduler/scheduler_config.json",
)  # fmt: skip
KIND = "StableDiffusionPipeline"


def is_one(weights: Weights) -> bool:
    """Whether a checkpoint is of Stable Diffusion, by the names of its text encoder."""
    return any(name.startswith((f"{CLIP}text_model.", f"{OPEN_CLIP}transformer.")) for name in weights)


def build(weights: Weights, config: str | None) -> Converted:
    """The parts of a StableDiffusionPipeline of a single file's weights.

    Args:
        config: a folder or `hub:<id>` of a model in diffusers' layout, whose configurations and tokenizer are taken;
            None: version 1.5's.

    Raises:
        UserError: if it is of version 2 and there is no `config`, since the weights do not tell what they predict; or
            the weights do not fit the configurations.
    """
    second = any(name.startswith(OPEN_CLIP) for name in weights)
    if second and config is None:
        raise UserError(
            "--config: the weights of Stable Diffusion 2 do not tell whether they predict velocity (2.1) or noise "
            "(2.1-base); give the folder of its configurations, or hub:USER/NAME of the same model in diffusers' layout"
        )
    source = config or SD_1
    folder = lender(source, "--config", LENT)
    if missing := [name for name in LENT if not any(folder.glob(name))]:
        raise UserError(
            f"--config: {source} lacks {', '.join(missing)}; give the folder of a whole model of this kind in "
            "diffusers' layout"
        )
    with blamed_on("--config"):
        if (kind := read_index(folder).kind) != KIND:
            raise UserError(f"--config: {source} is a {kind}; give one of Stable Diffusion 1 or 2 ({KIND})")
        unet, vae, encoder = _networks(folder)
    names = unet_names(weights)
    given = {name: weights[stored] for name, stored in names.items()}
    used = {names[name] for name in load_weights(unet, lambda each: rename_unet(each, unet), given, "the UNet")}
    first_stage = {name: value for name, value in weights.items() if name.startswith(FIRST_STAGE)}
    used |= load_weights(vae, lambda each: rename_first_stage(each, vae), first_stage, "the autoencoder")
    text = {name: value for name, value in weights.items() if name.startswith((CLIP, OPEN_CLIP))}
    used |= load_weights(encoder, lambda each: _rename_text(each, encoder), text, "the text encoder")
    index = {
        "_class_name": KIND,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }

    def save(target: Path) -> None:
        save_parts({"unet": unet, "vae": vae, "text_encoder": encoder}, index, target)
        for part in ("tokenizer", "scheduler"):
            shutil.copytree(folder / part, target / part)

    kind = "Stable Diffusion 2" if second else "Stable Diffusion 1"
    facts = {"kind": kind, "configurations": source, "classes": None, "null class": True}
    return Converted(save, used, facts)


def _networks(folder: Path) -> tuple[Any, Any, Any]:
    """UNet, autoencoder and text encoder of the configurations of a folder, on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError:
        raise UserError("Stable Diffusion needs the package transformers: pip install 'ld3m[text]'") from None
    parts = parts_of(folder)

    def encoder(path: Path) -> Any:
        with torch.device("meta"):
            return CLIPTextModel(CLIPTextConfig.from_pretrained(path, local_files_only=True))

    outlines = parts.outline(UNet2DConditionModel, "unet"), parts.outline(AutoencoderKL, "vae")
    return *outlines, parts.read("text_encoder", encoder)


def _rename_text(weights: Weights, encoder: Any) -> dict[str, Tensor]:
    """The text encoder's weights by the names of transformers; version 2 does not use its last layer."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    if any(name.startswith(OPEN_CLIP) for name in weights):
        renamed = convert_open_clip_checkpoint(encoder, dict(weights), prefix=OPEN_CLIP)
        last = f".layers.{encoder.config.num_hidden_layers}."
        renamed = {name: value for name, value in renamed.items() if last not in name and "projection" not in name}
    else:
        renamed = convert_ldm_clip_checkpoint(dict(weights))
    inner = "" if hasattr(encoder, "text_model") else "text_model."  # transformers had one more level before 5.6
    return {name.removeprefix(inner): value for name, value in renamed.items() if not name.endswith("position_ids")}
