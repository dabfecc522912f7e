"""Diffusion Transformers of the original code (Peebles and Xie, ICCV 2023) as diffusers builds and names them.

Names and arithmetic are those of github.com/facebookresearch/DiT.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ld3m.data.known import imagenet
from ld3m.errors import UserError
from ld3m.priors.originals.borrowed import autoencoder, save_parts
from ld3m.priors.originals.latent_diffusion import Converted, Weights, load_weights

TABLE = "y_embedder.embedding_table.weight"
POSITIONS = "pos_embed"
HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""By width, of the XL, L, B and S models: the weights do not tell."""
VAE = "hub:stabilityai/sd-vae-ft-ema"
"""The autoencoder of the published ones."""
NOTE = (
    "taken for a DiT; a SiT has tensors of the same names and shapes, but is of flow matching and cannot be a prior: "
    "check which it is"
)
_OF_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
"""diffusers' names of a block's layers, and the original's."""
_OF_ALL = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
"""The same of the layers outside of the blocks."""
_TIME = {"linear_1": "t_embedder.mlp.0", "linear_2": "t_embedder.mlp.2"}
"""The same of the embedding of time steps, which diffusers has in each block."""


def build(weights: Weights, classes: list[str] | None, vae: str | None) -> Converted:
    """The parts of a DiTPipeline of an original's weights.

    Args:
        classes: names of its classes, without the null class; None: ImageNet's, or numbers.
        vae: where the autoencoder is, a folder or `hub:<id>`; the checkpoint has none.

    Raises:
        UserError: if there is no autoencoder, or the weights are not those of a DiT of known width.
    """
    if vae is None:
        raise UserError(f"--vae: a DiT's checkpoint has no autoencoder; give a folder of one, or --vae {VAE}")
    denoiser = _denoiser(weights)
    rows = len(weights[TABLE])
    known = imagenet.names()
    names = classes or (known if len(known) == rows - 1 else [str(number) for number in range(rows - 1)])
    if len(names) != rows - 1:
        raise UserError(
            f"--classes: {len(names)} classes, but the checkpoint's class table has {rows} rows, of which the last is "
            f"the null class; give {rows - 1}"
        )
    plain = {name: value for name, value in weights.items() if name != POSITIONS}
    used = load_weights(denoiser, lambda given: _rename(given, len(denoiser.transformer_blocks)), plain, "the DiT")
    if not torch.allclose(denoiser.pos_embed.pos_embed, weights[POSITIONS].float(), atol=1e-3):
        raise UserError(f"{POSITIONS}: the checkpoint's positions are others than DiT's; it is of another kind")
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    parts = {"transformer": denoiser, "vae": autoencoder(vae), "scheduler": scheduler}
    index = {"_class_name": "DiTPipeline", "id2label": dict(enumerate(names)), "original_time_embedding": True}
    facts = {"kind": "DiT", "autoencoder": vae, "classes": len(names), "null class": True}
    return Converted(partial(save_parts, parts, index), used | {POSITIONS}, facts, NOTE)


def _denoiser(weights: Weights) -> Any:
    """The transformer of a checkpoint's shapes."""
    from diffusers import DiTTransformer2DModel

    shapes = {}
    for name, axes in ((TABLE, 2), (POSITIONS, 3), ("x_embedder.proj.weight", 4), ("final_layer.linear.weight", 2)):
        if name not in weights or weights[name].dim() != axes:
            raise UserError(f"{name}: the checkpoint has none of {axes} axes; it is not a DiT of the original code")
        shapes[name] = tuple(weights[name].shape)
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    side = math.isqrt(shapes[POSITIONS][1])
    if width not in HEADS:
        raise UserError(
            f"x_embedder.proj.weight: a width of {width}, but only DiTs of {', '.join(map(str, HEADS))} are converted, "
            "since the weights do not tell the number of heads"
        )
    with torch.device("cpu"):
        return DiTTransformer2DModel(
            num_attention_heads=HEADS[width],
            attention_head_dim=width // HEADS[width],
            in_channels=channels,
            out_channels=shapes["final_layer.linear.weight"][0] // patch**2,
            num_layers=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
            sample_size=side * patch,
            patch_size=patch,
            num_embeds_ada_norm=shapes[TABLE][0] - 1,
            norm_eps=1e-6,
        )


def _rename(weights: Weights, blocks: int) -> dict[str, Tensor]:
    """The weights by diffusers' names."""
    result = {}
    for kind in ("weight", "bias"):
        for name, original in _OF_ALL.items():
            result[f"{name}.{kind}"] = weights[f"{original}.{kind}"]
        for number in range(blocks):
            ours, theirs = f"transformer_blocks.{number}", f"blocks.{number}"
            for name, original in _OF_BLOCK.items():
                result[f"{ours}.{name}.{kind}"] = weights[f"{theirs}.{original}.{kind}"]
            for name, value in zip("qkv", weights[f"{theirs}.attn.qkv.{kind}"].chunk(3), strict=True):
                result[f"{ours}.attn1.to_{name}.{kind}"] = value
            for name, original in _TIME.items():  # safetensors keeps no tensor twice
                result[f"{ours}.norm1.emb.timestep_embedder.{name}.{kind}"] = weights[f"{original}.{kind}"].clone()
            result[f"{ours}.norm1.emb.class_embedder.embedding_table.weight"] = weights[TABLE].clone()
    return result
