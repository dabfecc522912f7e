"""Where the images of a class are: below a folder or in a tar, all that are there or some of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ld3m.data.layouts.listing import image_files
from ld3m.data.layouts.tars import Member, Tar


class SomeFiles(NamedTuple):
    """Some of the files below a folder."""

    folder: Path
    names: Sequence[str]
    """Their paths below it."""


class SomeMembers(NamedTuple):
    """Some of the files in a tar."""

    tar: Tar
    members: Sequence[Member]


Place = Path | Tar | SomeFiles | SomeMembers


def listed(place: Place, ignored: list[str]) -> SomeFiles | SomeMembers:
    """The images of a place, one by one.

    Args:
        ignored: takes the names of files that are no images.

    Raises:
        UserError: naming a folder or tar that cannot be read.
    """
    if isinstance(place, Path):
        return SomeFiles(place, image_files(place, ignored))
    if isinstance(place, Tar):
        return SomeMembers(place, place.images(ignored))
    return place
