"""Which soft labels are stored with a set: the options of `ld3m label`, defined once."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option


@dataclass(frozen=True)
class Kept:
    """What each field means is its help on the command line."""

    epochs: Annotated[
        int,
        Option(
            metavar="N",
            min=0,
            max=10**6,
            help="Label each image as it is seen in each of so many epochs, which come round again in a longer "
            "training; by default it is labelled once, as it is.",
        ),
    ] = 0
    top: Annotated[
        int | None,
        Option(
            metavar="K", min=1, help="Keep the K likeliest classes of each label, and of the others what they share."
        ),
    ] = None
    dtype: Annotated[str, Option(metavar="TYPE", help="How exactly: float16 or float32.")] = "float16"
