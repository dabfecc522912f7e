"""ImageNet-1k: its thousand classes by number, and the subsets of them that the distillation literature uses."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ld3m.data import folders, layout, listing, table_files, tables
from ld3m.data.class_choice import choose
from ld3m.data.examples import Source
from ld3m.data.split_names import split_of
from ld3m.errors import UserError
from ld3m.files import ASSETS
from ld3m.recipe import DataRecipe

IMAGENET = ASSETS / "imagenet"
HUB = "hub:ILSVRC/imagenet-1k"
"""Where the images come from if no folder is known; access is given by the Hub after its terms are accepted."""

FOLDERS = "train/n01440764/… and val/n01440764/…, one per class"


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


@cache
def subsets() -> dict[str, list[int]]:
    """Numbers of the classes of each subset known by name, in the literature's order."""
    return dict(json.loads((IMAGENET / "subsets.json").read_text(encoding="utf-8")))


def source(recipe: DataRecipe) -> Source:
    """ImageNet-1k from `data.root`, $LD3M_IMAGENET or the Hub: all 1,000 classes by number, whichever are there.

    Of a folder, only the classes of `data.subset` are looked at.

    Raises:
        UserError: if the folder is not laid out as ImageNet's is, or lacks a chosen class, or the Hub does not give it.
    """
    names = [each.name for each in classes()]
    aliases = {each.wordnet_id: label for label, each in enumerate(classes())}
    key = "data.root" if recipe.root else "LD3M_IMAGENET"
    root = recipe.root or os.environ.get("LD3M_IMAGENET") or HUB
    if root.startswith("hub:"):
        try:
            images = tables.hub(root.removeprefix("hub:"), recipe, names)
        except UserError as error:
            raise UserError(f"{error}; or name ImageNet's folder by data.root or LD3M_IMAGENET") from None
    elif not Path(root).is_dir():
        raise UserError(f"{key}: {root} needs the folders {FOLDERS}, but is none itself")
    elif table_files.is_table_folder(folder := table_files.hub_snapshot(Path(root))):
        images = table_files.from_files(folder, recipe, names)
    else:
        chosen = choose(recipe.subset, names, aliases, subsets())
        images = _from_folder(folder, names, {label: classes()[label].wordnet_id for label in chosen}, key)
    return replace(images, aliases=aliases, subsets=subsets())


def _from_folder(root: Path, names: list[str], wordnet_ids: dict[int, str], key: str) -> Source:
    """The images of some classes, by number, below `root/train/<WordNet id>` and `root/val/<WordNet id>`.

    The two may lie deeper, as in ILSVRC/Data/CLS-LOC, and may be called otherwise (`imagenet_train`, `val_folders`).
    """
    known = {each.wordnet_id for each in classes()}
    root = layout.pass_through(root, [])
    train, validation, test = (
        [each for each in listing.sub_folders(root) if split_of(each.name) == split]
        for split in ("train", "validation", "test")
    )
    tests = validation + test
    if not train or not tests:
        raise UserError(f"{key}: {root} needs the folders {FOLDERS}")
    sorted_tests = (each for each in tests if known.intersection(below.name for below in listing.sub_folders(each)))
    sorted_test = next(sorted_tests, None)
    if sorted_test is None:
        raise UserError(
            f"{key}: {tests[0]} is not sorted by class; move its images into folders such as {tests[0]}/n01440764"
        )
    for label, name in wordnet_ids.items():
        if missing := [folder for folder in (train[0], sorted_test) if not (folder / name).is_dir()]:
            raise UserError(
                f"{key}: there is no {missing[0] / name}, the class {names[label]!r}; "
                "set data.subset to classes that are there"
            )
    places = {
        split: {label: [folder / name] for label, name in wordnet_ids.items()}
        for split, folder in (("train", train[0]), ("test", sorted_test))
    }
    return folders.from_class_folders(root, places, names)
