"""Plain stacks of convolutions, cut down for small images: AlexNet, and VGG-11 with one linear layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m.networks.blocks import Shape, check_halvings, norm

VGG_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Output channels of the convolutions; each stage ends in a halving."""
VGG_SIDE = 7
"""Height and width of what the linear layer sees, whatever the images' size."""


class AlexNet(nn.Module):
    """Five convolutions, three halvings and one linear layer, without norm.

    AlexNet (Krizhevsky et al., NeurIPS 2012) as DC's and GLaD's code cut it down for small images.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.features = nn.Sequential()
        in_channels = shape.channels
        for channels, size, halve in ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)):
            self.features.extend([nn.Conv2d(in_channels, channels, size, padding=size // 2), nn.ReLU(inplace=True)])
            if halve:
                self.features.append(nn.MaxPool2d(2))
            in_channels = channels
        self.classifier = nn.Linear(192 * (shape.resolution // 8) ** 2, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, 192 · (H / 8) · (W / 8)]."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


class MaxPoolTo(nn.AdaptiveMaxPool2d):
    """Torch's, with a gradient that GPUs can repeat bit for bit."""

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.side = side

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cuda:
            return super().forward(input)
        with torch.no_grad():
            largest = functional.adaptive_max_pool2d(input, self.side, return_indices=True)[1]
        return input.flatten(2).gather(2, largest.flatten(2)).view(largest.shape)


class VGG11(nn.Module):
    """Eight 3×3 convolutions with instance norm, max-pooled to 7×7, and one linear layer.

    Configuration A of Simonyan and Zisserman (ICLR 2015), normalised and with one layer for three, as in GLaD's code.

    Raises:
        UserError: if five halvings leave nothing of the images.
    """

    def __init__(self, shape: Shape, norm_name: str = "instance") -> None:
        super().__init__()
        check_halvings("vgg11", shape, len(VGG_STAGES))
        self.features = nn.Sequential()
        in_channels = shape.channels
        for stage in VGG_STAGES:
            for channels in stage:
                convolution = nn.Conv2d(in_channels, channels, 3, padding=1)
                self.features.extend([convolution, norm(norm_name, channels), nn.ReLU(inplace=True)])
                in_channels = channels
            self.features.append(nn.MaxPool2d(2))
        self.features.append(MaxPoolTo(VGG_SIDE))
        self.classifier = nn.Linear(512 * VGG_SIDE**2, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, 25088]."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))
