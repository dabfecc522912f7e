"""ConvNet, the network that nearly all of the distillation literature matches in."""

import math

from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.networks.blocks import Shape, check_halvings, norm

POOLINGS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}
"""Halvings by the name that `network.pooling` gives; "none" is no halving."""


class ConvNet(nn.Module):
    """Blocks of 3×3 convolution, norm, ReLU and 2×2 pooling, then one linear layer.

    The ConvNet-D of the distillation literature (Gidaris and Komodakis, CVPR 2018; Zhao et al., ICLR 2021).

    Args:
        width: channels of every block.
        depth: blocks; left out, `default_depth` of the resolution.
        norm: "instance", "batch", "group", "layer" or "none".
        pooling: "avg", "max" or "none", which leaves the classifier the full resolution.

    Raises:
        UserError: if the blocks halve the images to nothing.
    """

    def __init__(
        self,
        shape: Shape,
        width: int = 128,
        depth: int | None = None,
        norm: str = "instance",
        pooling: str = "avg",
    ) -> None:
        super().__init__()
        depth = depth or default_depth(shape.resolution)
        side = shape.resolution if pooling == "none" else shape.resolution // 2**depth
        if side < 1:
            raise UserError(f"network.depth: {depth} halvings leave nothing of {shape.resolution} pixels")
        self.features = nn.Sequential()
        for block in range(depth):
            self.features.extend(_block(width if block else shape.channels, width, norm, pooling))
        self.classifier = nn.Linear(width * side * side, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, features], what the classifier sees."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


def _block(in_channels: int, width: int, norm_name: str, pooling: str) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, width, 3, padding=1),
        norm(norm_name, width),
        nn.ReLU(inplace=True),
        nn.Identity() if pooling == "none" else POOLINGS[pooling](2),
    ]


class ConvNet6(ConvNet):
    """The ConvNet with six blocks whatever the resolution, as the literature evaluates with at 224 and 256 pixels.

    `ConvNet` has as many at those resolutions; this one has them at others too. IDC's code, the same for colour images,
    pads greyscale ones by two pixels more.

    Raises:
        UserError: if six halvings leave nothing of the images.
    """

    def __init__(self, shape: Shape, width: int = 128, norm: str = "instance", pooling: str = "avg") -> None:
        if pooling != "none":
            check_halvings("convnet6", shape, 6)
        super().__init__(shape, width, 6, norm, pooling)


def default_depth(resolution: int) -> int:
    """Blocks of a ConvNet: 3 at 32 pixels, one more for each doubling, as the literature has 5 at 128 and 6 at 256."""
    return max(1, round(math.log2(resolution)) - 2)
