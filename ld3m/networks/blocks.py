"""The shape that networks are built for, their normalisations and first weights."""

from typing import NamedTuple

from torch import nn

from ld3m.errors import UserError


class Shape(NamedTuple):
    """What a network must fit: the images it sees and the classes it tells apart."""

    channels: int
    resolution: int
    classes: int


def norm(name: str, channels: int) -> nn.Module:
    """A normalisation over [N, channels, H, W]; "instance" is GroupNorm with one channel per group, as in DC's code."""
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


def check_halvings(arch: str, shape: Shape, halvings: int) -> None:
    """Checks that a network leaves something of its images.

    Raises:
        UserError: naming the smallest resolution that it takes.
    """
    if shape.resolution < 2**halvings:
        raise UserError(
            f"data.resolution: {shape.resolution}, but {arch} halves images {halvings} times; "
            f"give {2**halvings} or more, or choose another network"
        )


def initialise_convolutions(network: nn.Module) -> None:
    """Draws all convolutions' weights as He et al. (ICCV 2015) do, by what comes out of them, as IDC's code does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
