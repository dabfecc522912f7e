"""A network whose forward and backward passes compute in 16 bits; weights, results and gradients are float32."""

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
