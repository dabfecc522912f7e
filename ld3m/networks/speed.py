"""The same networks, faster: in 16 bits on GPUs, laid out channels last on CPUs. Results differ by rounding."""

from typing import Any

import torch
from torch import Tensor, nn


class Half(nn.Module):
    """A network under `torch.autocast`: its weights, its results and all gradients stay in float32.

    Convolutions and matrix products round to bfloat16 (8 significant bits, of float32's range), and so do the gradients
    that pass through them.

    Args:
        network: a `Network`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @property
    def classifier(self) -> nn.Module:
        """The last layer."""
        layer: nn.Module = self.network.classifier
        return layer

    def embed(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            seen: Tensor = self.network.embed(images)
        return seen.float()

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.network(images)
        return logits.float()


def quick_on_cpus(network: nn.Module) -> nn.Module:
    """A network laid out channels last; its results differ by rounding only.

    Convolutions' gradients and poolings are quicker in that layout (poolings ten times), torch's instance norm is
    slower, so it is replaced by ours. The network given is changed; names and order of parameters stay.

    Args:
        network: on the CPU, to train or to ask; a norm of instances is replaced, others stay.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm) and child.num_groups == child.num_channels:
                setattr(parent, name, InstanceNorm(child))
    laid_out: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return laid_out


class InstanceNorm(nn.Module):
    """A `GroupNorm` of one channel per group, for images laid out channels last; with the weights of the one given."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, images: Tensor) -> Tensor:
        return _InstanceNorm.apply(images, self.weight, self.bias, self.eps)


class _InstanceNorm(torch.autograd.Function):
    """[N, channels, H, W] with mean 0 and variance 1 in each channel of each image, times weight plus bias.

    Differentiable once. Written in whole-tensor operations, which run along the channels.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = images - images.mean((2, 3), keepdim=True)
        scale = centred.square().mean((2, 3), keepdim=True).add_(eps).rsqrt_()
        normal = centred.mul_(scale)
        ctx.save_for_backward(normal, scale, weight)
        return torch.addcmul(bias.view(-1, 1, 1), normal, weight.view(-1, 1, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,) = gradients
        normal, scale, weight = ctx.saved_tensors
        mean = gradient.mean((2, 3), keepdim=True)
        along = (gradient * normal).mean((2, 3), keepdim=True)
        of_images = torch.addcmul(gradient, normal, along, value=-1).sub_(mean).mul_(scale * weight.view(-1, 1, 1))
        pixels = gradient.shape[2] * gradient.shape[3]
        return of_images, along.sum((0, 2, 3)) * pixels, mean.sum((0, 2, 3)) * pixels, None
