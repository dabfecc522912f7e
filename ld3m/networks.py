"""Classifiers: what objectives match in and what the distilled set is judged by."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from ld3m.errors import UserError
from ld3m.recipe import NetworkRecipe


class Shape(NamedTuple):
    """What a network must fit: the images it sees and the classes it tells apart."""

    channels: int
    resolution: int
    classes: int


def _norm(name: str, channels: int) -> nn.Module:
    """A normalisation over [N, channels, H, W]; "instance" is GroupNorm with one channel a group, as in DC's code."""
    match name:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "group":
            return nn.GroupNorm(4, channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
    return nn.Identity()


class ConvNet(nn.Module):
    """Blocks of 3×3 convolution, norm, ReLU and 2×2 average pooling, then one linear layer.

    The ConvNet-D of the distillation literature (Gidaris and Komodakis, CVPR 2018; Zhao et al., ICLR 2021).
    """

    def __init__(self, shape: Shape, width: int = 128, depth: int | None = None, norm: str = "instance") -> None:
        super().__init__()
        depth = depth or default_depth(shape.resolution)
        side = shape.resolution // 2**depth
        if side < 1:
            raise UserError(f"network.depth: {depth} halvings leave nothing of {shape.resolution} pixels")
        blocks: list[nn.Module] = []
        for block in range(depth):
            blocks += [
                nn.Conv2d(width if block else shape.channels, width, 3, padding=1),
                _norm(norm, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * side * side, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, features], what the classifier sees."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


def default_depth(resolution: int) -> int:
    """Blocks of a ConvNet: 3 at 32 pixels, one more for each doubling, as the literature has 5 at 128 and 6 at 256."""
    return max(1, round(math.log2(resolution)) - 2)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _norm(norm, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), _norm(norm, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3×3 stem and instance norm, as the distillation literature evaluates with."""

    def __init__(self, shape: Shape, norm: str = "instance") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape.channels, 64, 3, padding=1, bias=False)
        self.bn1 = _norm(norm, 64)
        stages = []
        in_channels = 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            stages.append(
                nn.Sequential(BasicBlock(in_channels, channels, stride, norm), BasicBlock(channels, channels, 1, norm))
            )
            in_channels = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.classifier = nn.Linear(512, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, 512]."""
        x = functional.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


NETWORKS: dict[str, Callable[..., Any]] = {"convnet": ConvNet, "resnet18": ResNet18}
"""Networks by the name recipes and `--arch` give."""


def build(arch: str, shape: Shape, recipe: NetworkRecipe, generator: torch.Generator) -> Any:
    """A freshly initialised network, a function of the generator alone.

    Args:
        arch: a name of `NETWORKS`.
        shape: the images and classes it is for.
        recipe: width, depth and norm of a ConvNet; other networks have sizes of their own.
        generator: decides the initial weights.
    """
    if arch not in NETWORKS:
        raise UserError(f"network: {arch!r} is not known; known are {', '.join(NETWORKS)}")
    settings = {"width": recipe.width, "depth": recipe.depth, "norm": recipe.norm} if arch == "convnet" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return NETWORKS[arch](shape, **settings)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it: the plain mean of its first states, then an exponential one.

    The k-th update has decay min((k − 1)/k, `decay`), the warm-up of ema_pytorch that GLaD's evaluation uses.
    """

    def blend(average: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        weight = max(1 / (int(updates) + 1), 1 - decay)
        return average + (new - average) * weight

    return AveragedModel(network, avg_fn=blend)
