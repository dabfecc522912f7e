"""ImageNet-1k: its thousand classes by number, and the subsets of them that the distillation literature uses."""

import json
from functools import cache
from typing import NamedTuple

from ld3m.files import ASSETS

IMAGENET = ASSETS / "imagenet"


class ImageNetClass(NamedTuple):
    """A class; its number is its position in `classes()`."""

    wordnet_id: str
    """Such as n01440764, which names its folder in the usual layout."""
    name: str
    """English, unlike that of any other class, and fit to name a folder."""


@cache
def classes() -> tuple[ImageNetClass, ...]:
    """All 1,000 in the order of their WordNet ids, which is that of every pre-trained model's outputs."""
    lines = (IMAGENET / "classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple(ImageNetClass(*line.split()) for line in lines)


def names() -> list[str]:
    """English names of all classes, in their order."""
    return [each.name for each in classes()]


def ids() -> list[str]:
    """WordNet ids of all classes, in their order."""
    return [each.wordnet_id for each in classes()]


@cache
def subsets() -> dict[str, list[int]]:
    """Numbers of the classes of each subset known by name, in the literature's order."""
    return dict(json.loads((IMAGENET / "subsets.json").read_text(encoding="utf-8")))


@cache
def numbers() -> dict[str, int]:
    """The number of each class by its WordNet id."""
    return {each.wordnet_id: number for number, each in enumerate(classes())}


def in_english(name: str) -> str:
    """What a class is called, for a text prompt: English for a WordNet id of ImageNet, else its own name."""
    number = numbers().get(name)
    return name if number is None else classes()[number].name.replace("-", " ")
