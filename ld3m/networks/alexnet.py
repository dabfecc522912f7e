"""AlexNet for small images."""

from torch import Tensor, nn

from ld3m.networks.blocks import Shape


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
