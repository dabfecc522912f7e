"""What is said of a set of somebody else that its files do not say: options of several commands, defined once."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from ld3m.errors import UserError


@dataclass(frozen=True)
class Reading:
    """What each field means is its help on the command line.

    Raises:
        UserError: for a kind of pixels that is not known, or two orders.
    """

    pixels: Annotated[
        str | None,
        Option(
            metavar="KIND",
            help="What the floats of a .pt file mean: normalised, unit (in [0, 1]), signed (in [-1, 1]), whitened (by "
            "ZCA), or normalised by public code's mean and std of mnist, fashion-mnist, svhn, cifar10, cifar100 or "
            "imagenet; by default it is judged by their spread, and printed.",
        ),
    ] = None
    class_order: Annotated[
        str | None,
        Option(
            "--class-order",
            metavar="FILE",
            help="For a set that numbers its classes: names or WordNet ids of the classes 0, 1, …, one per line.",
        ),
    ] = None
    by_position: Annotated[
        bool,
        Option(
            "--by-position", help="For a set that numbers its classes: 0, 1, … are the recipe's classes in their order."
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.class_order and self.by_position:
            raise UserError("--by-position: --class-order gives an order already; give one of them")
        if self.pixels is not None:
            from ld3m.runs.pixel_values import check_pixels  # which imports torch

            check_pixels(self.pixels)
