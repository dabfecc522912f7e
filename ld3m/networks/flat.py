"""Networks as functions of one vector of weights, for methods that move in the space of weights."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_


class FlatNetwork:
    """A network whose weights are a vector [parameters], given with each call.

    Dropout is off and batch norm uses the statistics of the batch: logits are a function of weights and images alone.
    The network given is changed accordingly, and must not be used elsewhere.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = replace_all_batch_norm_modules_(network).eval().requires_grad_(False)
        self.shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        self.count = sum(shape.numel() for shape in self.shapes.values())

    def __call__(self, weights: Tensor, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised images [N, channels, H, W]."""
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return functional_call(self.network, named, (images,))


def weights_of(network: nn.Module) -> Tensor:
    """A copy of a network's weights as one vector, in the order of its parameters."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
