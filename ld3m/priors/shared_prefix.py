"""What a UNet computes once for both halves of guidance.

Classifier-free guidance asks a denoiser about the same latents with and without a class. Up to the first layer that
sees the class both halves are the same numbers, so that they go through those layers as one, and are doubled there.
"""

from typing import Any

import torch
from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def share_prefix(unet: Any) -> bool:
    """Lets a UNet2DConditionModel of diffusers take N latents with the conditioning of 2 N, answering 2 N.

    The answers are those of the latents given twice, one after the other. All are of one time, which is embedded once.

    Returns:
        whether it does: not if its first layers see more than latents and time, or it has blocks of other kinds.
    """
    first = _first_that_sees(unet)
    if first is None:
        return False
    unet.time_embedding.register_forward_pre_hook(_first_row)  # it is added to images of either count
    first.register_forward_pre_hook(_twice, with_kwargs=True)
    for block in unet.up_blocks:  # which are handed what the layers before kept
        block.register_forward_pre_hook(_kept_twice, with_kwargs=True)
    return True


def _first_that_sees(unet: Any) -> nn.Module | None:
    """The first transformer that is given the conditioning, if it is the first layer of all that is."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.unets import unet_2d_blocks as blocks

    early = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")
    if any(getattr(unet.config, key, None) is not None for key in early):
        return None
    plain = (blocks.DownBlock2D, blocks.UNetMidBlock2D, blocks.UpBlock2D)
    seeing = (blocks.CrossAttnDownBlock2D, blocks.UNetMidBlock2DCrossAttn, blocks.CrossAttnUpBlock2D)
    path = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else [])]
    if any(type(block) not in plain + seeing for block in (*path, *unet.up_blocks)):
        return None
    seen: list[nn.Module] = [block.attentions[0] for block in path if type(block) in seeing]
    return seen[0] if seen and type(seen[0]) is Transformer2DModel else None


def _first_row(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0][:1], *inputs[1:])


def _twice(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    """Doubles the images that a transformer is given, if there is conditioning for two of each."""
    images: Tensor = inputs[0]
    if len(named["encoder_hidden_states"]) == 2 * len(images):
        images = torch.cat([images, images])
    return (images, *inputs[1:]), named


def _kept_twice(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    """Doubles what was kept for an upper block before the halves differed."""
    count = len(named["hidden_states"])
    kept = tuple(torch.cat([each, each]) if len(each) < count else each for each in named["res_hidden_states_tuple"])
    return inputs, named | {"res_hidden_states_tuple": kept}
