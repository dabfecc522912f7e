"""VGG-11 with one linear layer."""

from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.networks.parts import Shape, norm

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Output channels of the convolutions; each stage ends in a halving."""


class VGG11(nn.Module):
    """Eight 3×3 convolutions with instance norm, max-pooled to 7×7, and one linear layer.

    Configuration A of Simonyan and Zisserman (ICLR 2015), normalised and with one layer for three, as in GLaD's code.

    Raises:
        UserError: where five halvings leave nothing of the images.
    """

    def __init__(self, shape: Shape, norm_name: str = "instance") -> None:
        super().__init__()
        smallest = 2 ** len(STAGES)
        if shape.resolution < smallest:
            raise UserError(
                f"data.resolution: {shape.resolution}, but vgg11 halves images five times; "
                f"give {smallest} or more, or choose another network"
            )
        self.features = nn.Sequential()
        in_channels = shape.channels
        for stage in STAGES:
            for channels in stage:
                convolution = nn.Conv2d(in_channels, channels, 3, padding=1)
                self.features.extend([convolution, norm(norm_name, channels), nn.ReLU(inplace=True)])
                in_channels = channels
            self.features.append(nn.MaxPool2d(2))
        self.features.append(nn.AdaptiveMaxPool2d(7))
        self.classifier = nn.Linear(512 * 7 * 7, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, 25088]."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))
