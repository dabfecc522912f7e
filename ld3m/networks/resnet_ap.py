"""ResNetAP-10, in which average pooling stands for strides."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from ld3m.networks.blocks import Shape, check_halvings, initialise_convolutions, norm


class PooledBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut; if `halve`, images are halved by average pooling between the two.

    The public code pools the shortcut after its 1×1 convolution. Before is the same and takes a quarter of the time.
    """

    def __init__(self, in_channels: int, channels: int, halve: bool, norm_name: str) -> None:
        super().__init__()
        bias = norm_name == "none"
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)
        self.bn1 = norm(norm_name, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.bn2 = norm(norm_name, channels)
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.shortcut = nn.Sequential()
        if halve:
            convolution = nn.Conv2d(in_channels, channels, 1, bias=bias)
            self.shortcut = nn.Sequential(nn.AvgPool2d(2), convolution, norm(norm_name, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(functional.relu(self.bn1(self.conv1(x))))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNetAP10(nn.Module):
    """ResNet of ten layers with average pooling, which the literature evaluates with since IDC (Kim et al., ICML 2022).

    One block in each of four stages, all convolutions of stride 1. Images above 64 pixels are halved after the first
    convolution; above 128 pixels that one is 7×7 and they are quartered, as vimar-gu/MinimaxDiffusion's code has it.

    Args:
        norm_name: "instance", "batch", "group", "layer" or "none", with which convolutions have biases.

    Raises:
        UserError: if three halvings leave nothing of the images.
    """

    def __init__(self, shape: Shape, norm_name: str = "instance") -> None:
        super().__init__()
        check_halvings("resnetap10", shape, 3)
        kernel, pooling = (7, 4) if shape.resolution > 128 else (3, 2) if shape.resolution > 64 else (3, 1)
        bias = norm_name == "none"
        self.layer0 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(shape.channels, 64, kernel, padding=kernel // 2, bias=bias),
                bn1=norm(norm_name, 64),
                relu=nn.ReLU(inplace=True),
                pool=nn.AvgPool2d(pooling) if pooling > 1 else nn.Identity(),
            )
        )
        self.layer1 = nn.Sequential(PooledBlock(64, 64, False, norm_name))
        self.layer2 = nn.Sequential(PooledBlock(64, 128, True, norm_name))
        self.layer3 = nn.Sequential(PooledBlock(128, 256, True, norm_name))
        self.layer4 = nn.Sequential(PooledBlock(256, 512, True, norm_name))
        self.classifier = nn.Linear(512, shape.classes)
        initialise_convolutions(self)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, 512]."""
        x = self.layer0(images)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))
