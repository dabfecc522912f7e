"""Layers of a frozen network that keep less for the gradient than those for training do, with the same gradient.

If no weight learns, a convolution's gradient needs the weight alone, while torch keeps the input too; and what lies
between a norm and its activation, or in a gate, is computed again for less than keeping it costs. With these layers the
graph of a UNet's step holds little more than half as much.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Network = TypeVar("Network", bound=nn.Module)
Nothing = tuple[None, ...]
LEAST = 2**13
"""Elements of one image in a layer's input from which on the layer keeps less; for fewer, Python costs more than it
saves. They are not counted over the batch: memory stays in proportion to the images, which "auto" counts on."""


def freeze(network: Network) -> Network:
    """A network for inference and for gradients of its input; names and values of its weights stay.

    Inside it, convolutions, diffusers' GEGLU, and in diffusers' residual blocks each norm with the SiLU behind it are
    replaced by layers that keep less. On a CPU convolutions lie channels last, where they are quicker: their weights,
    what they take and what they give. Results and gradients are the same to the bit as those of the layers replaced, in
    that layout, and can be differentiated once. The network given is changed, and is the one returned unless it is
    itself a layer to replace.
    """
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

    lean: dict[nn.Module, nn.Module] = {}
    for name, layer in list(network.named_modules(remove_duplicate=False)):  # diffusers has some under two names
        if layer in lean:
            pass
        elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            lean[layer] = _Convolution(layer)
        elif type(layer) is GEGLU:
            lean[layer] = _GatedLinear(layer.proj)
        else:
            if type(layer) is ResnetBlock2D:
                _join_norms(layer)
            continue
        parent, _, child = name.rpartition(".")
        if child:
            setattr(network.get_submodule(parent), child, lean[layer])
    frozen: Network = lean.get(network, network)  # type: ignore[assignment]
    return frozen.eval().requires_grad_(False)


def _keeps_less(input: Tensor) -> bool:
    return torch.is_grad_enabled() and input.requires_grad and input.shape[1:].numel() >= LEAST


def _laid_out(tensor: Tensor) -> Tensor:
    """Channels last on a CPU, where convolutions are quicker so; elsewhere as it is."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.device.type == "cpu" else tensor


# --- convolutions ------------------------------------------------------------------------------------------


class _Convolution(nn.Conv2d):
    """With the settings and the weights of a convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.weight.data = _laid_out(self.weight.data)

    def forward(self, input: Tensor) -> Tensor:
        input = _laid_out(input)
        if not _keeps_less(input):
            return super().forward(input)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        output: Tensor = _Convolved.apply(input, self.weight, self.bias, *settings)
        return output


class _Convolved(torch.autograd.Function):
    """Keeps the shape and the strides of an input [N, channels, H, W]."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout, ctx.settings = (input.shape, input.stride()), settings
        return torch.conv2d(input, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, *Nothing]:
        (weight,) = ctx.saved_tensors
        input = gradient.new_empty_strided(*ctx.layout)  # its values do not matter
        stride, padding, dilation, groups = ctx.settings
        settings = (None, stride, padding, dilation, False, [0, 0], groups, [True, False, False])
        return torch.ops.aten.convolution_backward(gradient, input, weight, *settings)[0], *[None] * 6


# --- norms -------------------------------------------------------------------------------------------------


def _join_norms(block: Any) -> None:
    """Has both norms of a diffusers ResnetBlock2D apply its activation, if that is SiLU and follows at once."""
    norms = (block.norm1, block.norm2)
    follows = block.time_embedding_norm == "default" and isinstance(block.nonlinearity, nn.SiLU)
    if not follows or any(type(norm) is not nn.GroupNorm or not norm.affine for norm in norms):
        return
    block.norm1, block.norm2 = (_NormThenSiLU(norm) for norm in norms)
    if block.time_emb_proj is not None and not block.skip_time_act:  # the time embedding goes through it too
        block.time_emb_proj = _SiLUThenLinear(block.time_emb_proj)
    block.nonlinearity = nn.Identity()


class _NormThenSiLU(nn.GroupNorm):
    """With the settings and the weights of a norm."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not _keeps_less(input):
            return functional.silu(super().forward(input))
        output: Tensor = _NormedActivated.apply(
            input.contiguous(memory_format=_order(input)), self.weight, self.bias, self.num_groups, self.eps
        )
        return output


def _order(input: Tensor) -> torch.memory_format:
    """The memory format in which torch's kernels of group norm take input and gradient: on CPUs also channels last.

    They look at all strides, also at that of the batch if it is of one image, which `is_contiguous` ignores.
    """
    _, channels, height, width = input.shape
    last = input.stride() == (height * width * channels, 1, width * channels, channels)
    return torch.channels_last if last and input.device.type == "cpu" else torch.contiguous_format


class _NormedActivated(torch.autograd.Function):
    """Keeps an input [N, channels, H, W] and its groups' means and deviations, but not what SiLU is given."""

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
    """With the weights of a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

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
        output: Tensor = _Gated.apply(both)
        return output


class _Gated(torch.autograd.Function):
    """The first half of the last dimension times GELU of the second; keeps both, but not the activation."""

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
