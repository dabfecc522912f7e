"""The shape that networks are built for, and their normalisations."""

from typing import NamedTuple

from torch import nn


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
