"""The images of ImageNet-1k as people have them: folders, tars, lists of the validation images' classes, tables.

A split is found in the first of its places that has all classes that are wanted. `imagenet` knows the classes.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ld3m.data import folders, table_files, tables
from ld3m.data.class_choice import choose
from ld3m.data.examples import Source
from ld3m.data.known import imagenet
from ld3m.data.known.ilsvrc_splits import (
    OTHER_SETS,
    Split,
    first_whole,
    home_of,
    looks_sorted,
    test_places,
    train_places,
)
from ld3m.data.layouts.label_files import WANTED
from ld3m.data.layouts.listing import exists, files_below, is_hidden, printable
from ld3m.errors import UserError, some
from ld3m.recipe import DataRecipe
from ld3m.recipe.class_lists import read_class_list

HUB = "hub:ILSVRC/imagenet-1k"
"""Where the images come from if no folder is known; access is given by the Hub after its terms are accepted."""
USUAL = (
    "imagenet", "data/imagenet", "~/imagenet", "~/data/imagenet", "~/datasets/imagenet", "/data/imagenet",
    "/data/ILSVRC2012", "/datasets/imagenet", "/mnt/imagenet",
)  # fmt: skip
"""Folders in which ImageNet is looked for if no other is named."""
TRAIN_WANTED = "train/n01440764/…, ILSVRC2012_img_train.tar, or train/n01440764.tar …"
TEST_WANTED = "val/n01440764/…, or val/*.JPEG or ILSVRC2012_img_val.tar with a list of their classes"
MOST_OF_FASTAI = 20_000
"""Images of a split: ten classes of at most 1,300 and 50."""
ARCHIVES = (".tar", ".gz", ".tgz", ".zip", ".7z", ".rar", ".bz2", ".xz", ".zst")


def source(recipe: DataRecipe) -> Source:
    """ImageNet-1k from `data.root`, $LD3M_IMAGENET, a usual folder or the Hub: all 1,000 classes by number.

    Of a folder, only the classes of `data.subset` are looked at.

    Raises:
        UserError: if what is named is not laid out as ImageNet is, or lacks a chosen class, or is damaged, or the Hub
            does not give it.
    """
    names = imagenet.names()
    root, key, named_by = _root(recipe)
    if root.startswith("hub:"):
        with _or_a_folder(recipe):
            images = tables.hub(root.removeprefix("hub:"), recipe, names)
    else:
        folder = _folder(root, key)
        if home := home_of(folder, key):
            images = _from_folder(recipe, home, folder, key, named_by)
        elif files_below(folder, table_files.SUFFIXES):
            images = table_files.from_files(folder, recipe, names)
            note = f"ImageNet in {printable(root)}{named_by}; {images.note}".removesuffix("; ")
            images = replace(images, note=note) if named_by else images
        else:
            raise UserError(f"{key}: {printable(root)} has no training split: {TRAIN_WANTED}{_instead(folder)}")
    return replace(images, aliases=imagenet.numbers(), subsets=imagenet.subsets())


def check_access(recipe: DataRecipe) -> None:
    """That the Hub lets us read ImageNet, if it is in no folder; as `tables.check_access`."""
    root, _, _ = _root(recipe)
    if root.startswith("hub:"):
        with _or_a_folder(recipe):
            tables.check_access(root.removeprefix("hub:"))


@contextmanager
def _or_a_folder(recipe: DataRecipe) -> Iterator[None]:
    """Adds to an error of the Hub that a folder would do."""
    try:
        yield
    except UserError as error:
        usual = "" if recipe.root else f"; it is in none of {', '.join(USUAL)}"
        raise UserError(f"{error}{usual}; or name ImageNet's folder by data.root or LD3M_IMAGENET") from None


def check(recipe: DataRecipe) -> None:
    """That a folder has both splits and the chosen classes; no image is opened, no table either, and the Hub not asked.

    Raises:
        UserError: as `source` does.
    """
    root, key, _ = _root(recipe)
    if not root.startswith("hub:"):
        folder = _folder(root, key)
        if home := home_of(folder, key):
            _find(recipe, home, folder, key)


def _root(recipe: DataRecipe) -> tuple[str, str, str]:
    """The folder or data set of the Hub, the key for errors, and what named it unless the recipe does."""
    if recipe.root:
        return recipe.root, "data.root", ""
    if named := os.environ.get("LD3M_IMAGENET"):
        return named, "LD3M_IMAGENET", " (LD3M_IMAGENET)"
    for usual in USUAL:
        folder = Path(usual).expanduser()
        if exists(str(folder)) and folder.is_dir():
            snapshot = table_files.hub_snapshot(folder)
            if home_of(snapshot, "data.root") or files_below(snapshot, table_files.SUFFIXES):
                return str(folder), "data.root", " (a usual place; data.root would name another)"
    return HUB, "data.root", ""


def _folder(root: str, key: str) -> Path:
    """The folder that was named; in the Hub's cache, the newest files."""
    if not Path(root).is_dir():
        wanted = "train/n01440764/… and val/n01440764/…, or in another layout of recipes/DATA.md"
        raise UserError(f"{key}: {root} is not a folder; give ImageNet's, with {wanted}")
    return table_files.hub_snapshot(Path(root))


def _from_folder(recipe: DataRecipe, home: Path, root: Path, key: str, named_by: str) -> Source:
    """The images of the chosen classes.

    Args:
        home: the folder that holds the training split.
        root: the folder that was named, which is or holds it.
        named_by: the same for people, unless it is the recipe.
    """
    found = _find(recipe, home, root, key)
    train, test, chosen = found.train, found.test, found.chosen
    names = imagenet.names()
    places = {
        name: {number: split.classes[imagenet.classes()[number].wordnet_id] for number in chosen}
        for name, split in (("train", train), ("test", test))
    }
    note = ""
    plain = (train.where, test.where) == (printable(str(root / "train")), printable(str(root / "val")))
    if named_by or found.declared or not plain:
        which = f" of subset {recipe.subset}" if isinstance(recipe.subset, str) else ", its own" * found.declared
        where = f"ImageNet in {printable(str(root))}{named_by}"
        note = f"{where}, train: {train.where}, test: {test.where}; {len(chosen):,} classes{which}"
    images = folders.from_places(root, places, names, note)
    caveat = _caveat(home, test, images)
    note = "; ".join(part for part in (images.note, caveat) if part)
    return replace(images, note=note, caveat=caveat, default=chosen if found.declared else None)


class Found(NamedTuple):
    """The splits of the chosen classes."""

    train: Split
    test: Split
    chosen: list[int]
    declared: bool
    """Whether the folder says which classes it has, and the recipe does not."""


def _find(recipe: DataRecipe, home: Path, root: Path, key: str) -> Found:
    """The splits, and the classes that the recipe chooses, or the folder.

    Raises:
        UserError: if a split is missing, or lacks a class, or is damaged.
    """
    names, ids = imagenet.names(), imagenet.ids()
    declared = _declared(home) if recipe.subset is None else None
    chosen = declared or choose(recipe.subset, names, imagenet.numbers(), imagenet.subsets())
    wanted = [ids[number] for number in chosen]
    train = first_whole(train_places(home), wanted, key, "it needs folders or tars of classes, such as n01440764.tar")
    above = [folder for folder in (home, *home.parents) if folder == root or root in folder.parents]
    tests = (split for folder in above for split in test_places(folder, wanted))
    advice = f"add a list of its classes ({WANTED}), or move its images into folders such as {home}/val/n01440764"
    test = first_whole(tests, wanted, key, advice)
    if train is None or test is None:
        missing = f"training split: {TRAIN_WANTED}" if train is None else f"validation split: {TEST_WANTED}"
        raise UserError(f"{key}: {printable(str(root))} has no {missing}{_instead(root)}")
    return Found(train, test, chosen, declared is not None)


def _declared(home: Path) -> list[int] | None:
    """The classes of a set that says which of the thousand it has: fastai's, Tiny ImageNet, ImageNet-100."""
    for name in ("wnids.txt", "Labels.json"):
        if (path := home / name).is_file():
            return choose(read_class_list(path), imagenet.names(), imagenet.numbers())
    for name in (home.name, *(path.name for path in home.glob("noisy_image*.csv"))):
        if kind := re.fullmatch(r"(?:noisy_)?(imagenette|imagewoof)\d?(?:-\d+)?(?:\.csv)?", name):
            return imagenet.subsets()[kind[1]]
    return None


def _caveat(home: Path, test: Split, images: Source) -> str:
    """That figures cannot be compared with ImageNet's, if the splits are others."""
    own = ""
    if re.search(r"image(nette|woof)2", home.name) or any(home.glob("noisy_image*.csv")):
        own = f"{home.name} has splits of its own"
    elif "val_annotations.txt" in test.where:
        own = "Tiny ImageNet has splits and sizes of its own"
    else:
        trained = any(name.startswith("ILSVRC2012_val_") for name in _names(images, "train"))
        if trained or any(re.match(r"n\d{8}_\d+\.", name) for name in _names(images, "test")):
            own = "training and validation images of ImageNet are mixed here, as in fastai's sets"
    return f"{own}: accuracies are not comparable with those on ImageNet's splits" if own else ""


def _names(images: Source, split: str) -> Iterator[str]:
    """The names of a split's images, without folders; none if there are more than fastai's sets have."""
    examples = images.splits[split]
    few = len(examples) <= MOST_OF_FASTAI
    return (examples[index].name.rpartition("/")[2] for index in range(len(examples) if few else 0))


def _instead(root: Path) -> str:
    """What a folder has in place of a split, for an error."""
    if looks_sorted(root):
        return f"; it looks like a split itself: give the folder above it, {printable(str(root.absolute().parent))}"
    names = sorted(path.name for path in root.iterdir() if not is_hidden(path.name))
    about = []
    for name in names:
        if name.lower().endswith(ARCHIVES[1:]):
            about.append(f"{name} (compressed; unpack it)")
        elif name.endswith(".tar") and (other := OTHER_SETS.search(name)):
            about.append(f"{name} ({other[0]}: not the labelled images of ILSVRC 2012)")
        elif name.endswith(".tar") and not (root / name).is_file():
            about.append(f"{name} (no regular file)")
    return f"; found {some(about or names) or 'nothing'}"
