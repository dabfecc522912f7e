"""The sets of a comparison: their names, whether they can be compared, and what is to be said of them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError, classes_text, some
from ld3m.evaluation.training_sets import TrainingSets
from ld3m.files import cache_key
from ld3m.recipe import Recipe
from ld3m.runs import sources
from ld3m.runs.folder import classes, image_paths, load_recipe

LONGEST = 100
"""Characters of a folder's name before it is cut."""
PREFIX = "set "
"""How results name a set, so that it cannot be taken for a baseline."""


REAL = "real images"
"""The kind of baselines."""


@dataclass(frozen=True)
class Measured:
    """What the table says of a set before its accuracies."""

    trained_on: str
    """As results name it."""
    name: str
    kind: str
    """run, imported, or `REAL`."""
    group: int
    """Sets of one number of images per class; baselines are of the group of the sets that they go with."""
    images: int
    """As they are stored."""
    images_per_class: tuple[int, int]
    """The fewest and the most."""
    bytes: int
    """Of the pixels, as they are stored: one for each channel, or four if the set has more than 8 bits."""

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def goes_with(self, other: "Measured") -> bool:
        """Whether their difference is of interest: that of two sets, or of a set and its baselines."""
        real = [each.trained_on for each in (self, other) if each.kind == REAL]
        return not real or (len(real) == 1 and (self.group == other.group or real == ["full"]))


def names_of(arguments: Sequence[str]) -> list[str]:
    """What each set is called: the last part of its path, with as many before it as tell it from the others.

    Args:
        arguments: folders, files, and data sets of the Hub as the command line has them.

    Raises:
        UserError: if one is named twice.
    """
    paths = [
        tuple(Path(each).resolve().parts) if Path(each).exists() else (each.removeprefix("hub:"),) for each in arguments
    ]
    if repeated := [each for each, path in zip(arguments, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"SET: {repeated[0]} is named twice; name each set once")
    lengths = [
        next(n for n in range(1, len(path) + 1) if [other[-n:] for other in paths].count(path[-n:]) == 1)
        for path in paths
    ]
    return ["/".join(path[-length:]) for path, length in zip(paths, lengths, strict=True)]


def folder_of(names: Iterable[str]) -> Path:
    """Where a comparison is written by default; a name that is too long is cut, and ends in a digest."""
    name = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", each).strip("-._") or "set" for each in names)
    return Path("comparisons") / (name if len(name) <= LONGEST else f"{name[:LONGEST]}-{cache_key(name)[:8]}")


def check(argument: str, folder: Path, recipe: Recipe) -> None:
    """Checks, before any data is prepared, that the images of a set fit the recipe.

    Raises:
        UserError: naming what differs.
    """
    theirs = load_recipe(folder).data
    for key in ("resolution", "channels"):
        if (found := getattr(theirs, key)) != (wanted := getattr(recipe.data, key)):
            raise UserError(
                f"SET: {argument} has data.{key}={found}, not {wanted} as the recipe says; give sets of one size, or "
                "--recipe RECIPE"
            )


def check_classes(argument: str, folder: Path, images: ImageSet) -> None:
    """Checks that a set is of the classes of the real images, in whatever order.

    Raises:
        UserError: naming those that are missing on either side.
    """
    theirs = classes(folder)
    wanted = set(images.classes)
    if unknown := [name for name in theirs if name not in wanted]:
        raise UserError(
            f"SET: {argument} has {classes_text(unknown)}, not among the recipe's: {some(images.classes)}; "
            "give sets of the same classes, or data.subset"
        )
    if missing := [name for name in images.classes if name not in theirs]:
        raise UserError(
            f"SET: {argument} has no images of {classes_text(missing)}; give sets of the same classes, or data.subset"
        )


def counts(folder: Path, images: ImageSet) -> tuple[int, ...]:
    """Images of each class, in the order of the real images' classes."""
    return tuple(len(image_paths(folder, name)) for name in images.classes)


def describe(trained_on: str, name: str, folder: Path | None, group: int, sets: TrainingSets) -> Measured:
    """What the table says of a set.

    Args:
        folder: None for a baseline.
        group: of sets of its number of images per class.
    """
    pixels, labels = sets.stored.get(trained_on) or sets.seen(trained_on, 0)
    each = labels.bincount().tolist()
    imported = folder is not None and (folder / "origin.json").is_file()
    kind = REAL if folder is None else "imported" if imported else "run"
    return Measured(name, name.removeprefix(PREFIX), kind, group, len(pixels), (min(each), max(each)), pixels.nbytes)


def notes(name: str, folder: Path, images: ImageSet, recipe: Recipe) -> list[str]:
    """What readers must know of a set: that it is of other real images, or that each image holds several."""
    found = []
    ours, theirs = sources.describe_data(images, recipe.data), sources.read_data(folder)
    if theirs and theirs["classes"].keys() == ours["classes"].keys():  # in whatever order
        theirs = {"classes": {each: theirs["classes"][each] for each in ours["classes"]}, "scorer": ours["scorer"]}
    if theirs and (difference := sources.data_difference(theirs, ours)):
        found.append(f"{name} was made from other real images than the recipe's, of which {difference}.")
    own = load_recipe(folder)
    if own.distill.factor > 1:
        side = own.distill.factor
        found.append(f"{name}: each image holds {side} × {side} smaller ones, which networks see enlarged.")
    return found
