"""Layers of a frozen network that keep less for the gradient than those for training do, with the same gradient.

Where no weight learns, a convolution's gradient needs the weight alone, while torch keeps the input too; and what lies
between a norm and its activation, or in a gate, is made again for less than keeping it costs. Without them the graph of
a UNet's step holds little more than half as much.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Network = TypeVar("Network", bound=nn.Module)
Nothing = tuple[None, ...]
LEAST = 2**13
"""Elements that a layer is given of one image from which on it keeps less; of fewer, Python costs more than it saves.

Not of a batch: memory stays in proportion to the images, which "auto" counts on."""


def freeze(network: Network) -> Network:
    """The network itself, for inference and for gradients of its input; names and values of its weights stay.

    Its convolutions, diffusers' GEGLU, and in diffusers' residual blocks each norm with the SiLU behind it become
    layers that keep less. Their answers and gradients are the same to the bit, and can be differentiated once.
    """
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

    network.eval().requires_grad_(False)
    for layer in list(network.modules()):
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            layer.__class__ = _Convolution
        elif type(layer) is ResnetBlock2D:
            _join_norms(layer)
        for name, child in list(layer.named_children()):
            if type(child) is GEGLU:
                setattr(layer, name, _GatedLinear(child.proj))  # type: ignore[arg-type]
    return network


def _keeps_less(input: Tensor) -> bool:
    return torch.is_grad_enabled() and input.requires_grad and input.shape[1:].numel() >= LEAST


# --- convolutions ------------------------------------------------------------------------------------------


class _Convolution(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not _keeps_less(input):
            return super().forward(input)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        answer: Tensor = _Convolved.apply(input, self.weight, self.bias, *settings)
        return answer


class _Convolved(torch.autograd.Function):
    """An input [N, channels, H, W], of which shape and strides are kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout, ctx.settings = (input.shape, input.stride()), settings
        return torch.conv2d(input, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, *Nothing]:
        (weight,) = ctx.saved_tensors
        input = gradient.new_empty_strided(*ctx.layout)  # what is in it plays no part
        stride, padding, dilation, groups = ctx.settings
        settings = (None, stride, padding, dilation, False, [0, 0], groups, [True, False, False])
        return torch.ops.aten.convolution_backward(gradient, input, weight, *settings)[0], *[None] * 6


# --- norms -------------------------------------------------------------------------------------------------


def _join_norms(block: Any) -> None:
    """Has both norms of a diffusers ResnetBlock2D apply its activation, where that is SiLU and follows at once."""
    norms = (block.norm1, block.norm2)
    follows = block.time_embedding_norm == "default" and isinstance(block.nonlinearity, nn.SiLU)
    if not follows or any(type(norm) is not nn.GroupNorm or not norm.affine for norm in norms):
        return
    for norm in norms:
        norm.__class__ = _NormThenSiLU
    if block.time_emb_proj is not None and not block.skip_time_act:  # the time embedding goes through it too
        block.time_emb_proj.__class__ = _SiLUThenLinear
    block.nonlinearity = nn.Identity()


class _NormThenSiLU(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not _keeps_less(input):
            return functional.silu(super().forward(input))
        answer: Tensor = _NormedActivated.apply(
            input.contiguous(memory_format=_order(input)), self.weight, self.bias, self.num_groups, self.eps
        )
        return answer


def _order(input: Tensor) -> torch.memory_format:
    """In which torch's kernels of group norm take input and gradient; only those of a CPU know channels last.

    They go by the strides, also by that of a batch of one, of which `is_contiguous` takes no notice.
    """
    _, channels, height, width = input.shape
    last = input.stride() == (height * width * channels, 1, width * channels, channels)
    return torch.channels_last if last and input.device.type == "cpu" else torch.contiguous_format


class _NormedActivated(torch.autograd.Function):
    """An input [N, channels, H, W], and of its groups mean and deviation, are kept; what SiLU is given is not."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.sizes = (*input.shape[:2], input.shape[2:].numel(), groups)
        ctx.eps = eps
        normed, mean, scale = torch.ops.aten.native_group_norm(input, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(input, weight, bias, mean, scale)
        return functional.silu(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, *Nothing]:
        input, weight, bias, mean, scale = ctx.saved_tensors
        normed = torch.ops.aten.native_group_norm(input, weight, bias, *ctx.sizes, ctx.eps)[0]
        gradient = torch.ops.aten.silu_backward(gradient, normed)
        statistics = (mean, scale, weight, *ctx.sizes)
        of_input, _, _ = torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(memory_format=_order(input)), input, *statistics, [True, False, False]
        )
        return of_input, *[None] * 4


class _SiLUThenLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.silu(input))


# --- gates -------------------------------------------------------------------------------------------------


class _GatedLinear(nn.Module):
    """diffusers' GEGLU."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, input: Tensor) -> Tensor:
        both = self.proj(input)
        if not _keeps_less(both):
            value, gate = both.chunk(2, -1)
            return value * functional.gelu(gate)
        answer: Tensor = _Gated.apply(both)
        return answer


class _Gated(torch.autograd.Function):
    """The first half of the last dimension times GELU of the second; both are kept, the activation is not."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        value, gate = both.chunk(2, -1)
        return functional.gelu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        value, gate = both.chunk(2, -1)
        of_gate = torch.ops.aten.gelu_backward(gradient * value, gate)
        return torch.cat([functional.gelu(gate).mul_(gradient), of_gate], -1)
