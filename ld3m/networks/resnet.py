"""ResNet-18 for small images, and with a stem for larger ones."""

from torch import Tensor, nn
from torch.nn import functional

from ld3m.networks.blocks import Shape, initialise_convolutions, norm


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm_name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm(norm_name, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(norm_name, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm(norm_name, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3×3 stem and instance norm, as the distillation literature evaluates with."""

    def __init__(self, shape: Shape, norm_name: str = "instance") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape.channels, 64, 3, padding=1, bias=False)
        self.bn1 = norm(norm_name, 64)
        self.pool: nn.Module = nn.Identity()
        stages = []
        in_channels = 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks = BasicBlock(in_channels, channels, stride, norm_name), BasicBlock(channels, channels, 1, norm_name)
            stages.append(nn.Sequential(*blocks))
            in_channels = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.classifier = nn.Linear(512, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, 512]."""
        x = self.pool(functional.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


class ResNet18Idc(ResNet18):
    """The ResNet-18 of IDC's code and of those that evaluate as it does (vimar-gu/MinimaxDiffusion's train_models).

    Up to 64 pixels it is `ResNet18`; larger images are halved by max-pooling after the first convolution, and above 128
    pixels that one is 7×7 and of stride 2, as for ImageNet. Its convolutions' first weights are others, too.
    """

    def __init__(self, shape: Shape, norm_name: str = "instance") -> None:
        super().__init__(shape, norm_name)
        if shape.resolution > 128:
            self.conv1 = nn.Conv2d(shape.channels, 64, 7, 2, padding=3, bias=False)
        if shape.resolution > 64:
            self.pool = nn.MaxPool2d(3, 2, padding=1)
        initialise_convolutions(self)
