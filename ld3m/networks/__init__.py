"""Classifiers, which objectives match in and which judge the distilled set, and the loop that trains them.

What they are trained on and how they are judged is `evaluation`; experts, the trajectories of such networks, are
`objectives`; the networks of priors come from diffusers.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ld3m.errors import UserError, one_line
from ld3m.networks.blocks import Shape
from ld3m.networks.convnet import ConvNet, ConvNet6
from ld3m.networks.plain import VGG11, AlexNet
from ld3m.networks.resnet import ResNet18, ResNet18Idc
from ld3m.networks.resnet_ap import ResNetAP10
from ld3m.networks.speed import Half
from ld3m.networks.timm import PREFIX, TimmNetwork
from ld3m.networks.vit import ViT
from ld3m.randomness import global_draws
from ld3m.recipe import NetworkRecipe
from ld3m.registry import Registry

__all__ = ["NETWORKS", "ConvNet", "Half", "Network", "Shape", "averaged", "build", "check", "without_dropout"]


class Network(Protocol):
    """What objectives and evaluation need of a network, besides that it is an `nn.Module`."""

    classifier: nn.Module
    """The last layer, [N, features] to [N, classes]."""

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, features], what the classifier sees."""

    def __call__(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to logits [N, classes]."""


NETWORKS: Registry[Callable[[Shape, NetworkRecipe], Any]] = Registry(
    "ld3m.networks",
    "network.arch",
    {
        "convnet": lambda shape, recipe: ConvNet(shape, recipe.width, recipe.depth, recipe.norm, recipe.pooling),
        "resnet18": lambda shape, recipe: ResNet18(shape, recipe.norm),
        "vgg11": lambda shape, recipe: VGG11(shape, recipe.norm),
        "alexnet": lambda shape, recipe: AlexNet(shape),
        "vit": lambda shape, recipe: ViT(shape),
        "convnet6": lambda shape, recipe: ConvNet6(shape, recipe.width, recipe.norm, recipe.pooling),
        "resnetap10": lambda shape, recipe: ResNetAP10(shape, recipe.norm),
        "resnet18_idc": lambda shape, recipe: ResNet18Idc(shape, recipe.norm),
    },
)
"""Constructors of a `Network` by the name that recipes and `--arch` give; `timm/<model>` names one of timm's."""


def build(arch: str, shape: Shape, recipe: NetworkRecipe, generator: torch.Generator, key: str = "network.arch") -> Any:
    """A freshly initialised `Network`, a function of the generator alone.

    Args:
        arch: a name of `NETWORKS` or of another package's, or `timm/<model>`.
        recipe: width, depth and pooling of a ConvNet, norm of all but AlexNet and ViT; its `arch` does not count.
        key: the recipe's key or the option that named it, for messages.

    Raises:
        UserError: if there is no such network, or it does not fit the images.
    """
    with global_draws(generator):
        if arch.startswith(PREFIX):
            return TimmNetwork(arch, shape, key)
        return NETWORKS.find(arch, key)(shape, recipe)


@torch.no_grad()
def check(arch: str, shape: Shape, recipe: NetworkRecipe, key: str = "network.arch") -> None:
    """Checks before any training that a network is known and fits: builds one and shows it a black image.

    Raises:
        UserError: naming `key`, or the key of the recipe that does not fit the network.
    """
    try:
        network = build(arch, shape, recipe, torch.Generator(), key).eval()
        logits = network.classifier(network.embed(torch.zeros(1, shape.channels, shape.resolution, shape.resolution)))
    except UserError:
        raise
    except Exception as error:  # timm's and other packages' networks have other limits
        raise UserError(f"{key}: {arch!r} fails on images of {shape.resolution} pixels ({one_line(error)})") from None
    if logits.shape != (1, shape.classes):
        raise UserError(f"{key}: {arch!r} gives logits {list(logits.shape)}, not [1, {shape.classes}]")


def without_dropout(network: Any) -> Any:
    """The network with its random layers switched off; batch norm still normalises by the batch.

    A matching loss compares what one and the same function makes of real and of synthetic images.
    """
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return network


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it: the plain mean of its first states, then an exponential one.

    The k-th update has decay min((k − 1)/k, `decay`), the warm-up of ema_pytorch that GLaD's evaluation uses; batch
    norm's statistics are averaged as the weights are, counters are copied.
    """

    def blend(average: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return new
        weight = max(1 / (int(updates) + 1), 1 - decay)
        return average + (new - average) * weight

    return AveragedModel(network, avg_fn=blend, use_buffers=True)
