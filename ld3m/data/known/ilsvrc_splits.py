"""Where ImageNet's splits may be below a folder: folders and tars, sorted by class or beside a list of classes."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ld3m.data.known import imagenet
from ld3m.data.layouts.label_files import find_labels
from ld3m.data.layouts.listing import image_files, is_hidden, printable, sub_folders
from ld3m.data.layouts.places import Place, SomeFiles, SomeMembers
from ld3m.data.layouts.split_names import SplitName, plainest, split_of
from ld3m.data.layouts.tars import Member, Tar, is_image_name
from ld3m.errors import UserError, some
from ld3m.recipe.class_lists import wordnet_id

DEEPEST = 4
"""Folders between the root and those of the splits that are looked through: Kaggle has ILSVRC/Data/CLS-LOC."""
MOST_FOLDERS = 1000
"""Of one level, that are looked through."""
OTHER_SETS = re.compile(r"ILSVRC(?!2012)\d{4}|t3|bbox|devkit|test|(?<![A-Za-z])(DET|VID)(?![A-Za-z])")
"""In names of tars with other images than the thousand classes' of 2012, or with none."""


class Split(NamedTuple):
    """Where the images of a split may be."""

    where: str
    classes: Mapping[str, list[Place]]
    """By WordNet id."""


def home_of(root: Path, key: str) -> Path | None:
    """The folder that holds a training split: the root, or the only one of its level below; None if there is none.

    Raises:
        UserError: beginning with `key`, if there are several.
    """
    level = [root]
    for _ in range(DEEPEST + 1):
        homes = [folder for folder in level if _may_train(folder)]
        if len(homes) > 1:
            several = some([printable(str(folder)) for folder in homes])
            raise UserError(f"{key}: {printable(str(root))} holds several sets; give one of {several}")
        if homes:
            return homes[0]
        level = [child for folder in level for child in sub_folders(folder) if not wordnet_id(child.name)][
            :MOST_FOLDERS
        ]
    return None


def _may_train(folder: Path) -> bool:
    return bool(_tars(folder, "train")) or any(map(looks_sorted, _split_folders(folder, "train")))


def looks_sorted(folder: Path) -> bool:
    """Whether a folder has folders or tars of classes with images, or images with ids, by the first of their names."""
    children = [child for child in sub_folders(folder) if wordnet_id(child.name)][:10]
    has_images = any(any(map(_first_image, [each, *sub_folders(each)])) for each in children)
    return has_images or bool(_tars(folder) or wordnet_id(_first_image(folder)))


def _first_image(folder: Path) -> str:
    """The name of an image in a folder; empty if there is none. No file is opened: Kaggle has a million XML files."""
    with os.scandir(folder) as entries:
        return next((each.name for each in entries if not is_hidden(each.name) and is_image_name(each.name)), "")


def train_places(home: Path) -> Iterator[Split]:
    """The places of the training split, the preferred first."""
    parts = [folder for folder in _split_folders(home, "train") if looks_sorted(folder)]
    plain = plainest([folder.name for folder in parts])
    if parts := [folder for folder in parts if folder.name in plain]:
        yield _merged([_sorted_folder(folder) for folder in parts])
    for folder in [home, *_split_folders(home, "train")]:
        if tars := _tars(folder, "train"):
            yield _merged([_sorted_tar(tar) for tar in tars])


def test_places(home: Path, wanted: Collection[str]) -> Iterator[Split]:
    """The places of the split to test on: sorted folders, then folders with a list of classes, then tars.

    Args:
        wanted: WordNet ids of classes of which a list must have no image that is not there.
    """
    validation = _split_folders(home, "validation")
    unsorted = []
    for folder in validation + _split_folders(home, "test"):
        if looks_sorted(folder) and (split := _sorted_folder(folder)).classes:
            yield split
        elif folder in validation:
            unsorted.append(folder)
    for folder in unsorted:
        if names := image_files(folder):
            where, by_class = _by_list(folder, names, wanted)
            yield Split(where, {each: [SomeFiles(folder, chosen)] for each, chosen in by_class.items()})
    for tar in [tar for folder in (home, *validation) for tar in _tars(folder, "validation")]:
        split = _sorted_tar(tar)
        if not split.classes:
            members = {member.name: member for member in tar.images([])}
            where, by_class = _by_list(tar.path, list(members), wanted)
            classes: dict[str, list[Place]] = {
                each: [SomeMembers(tar, [members[name] for name in chosen])] for each, chosen in by_class.items()
            }
            split = Split(where, classes)
        yield split


def _by_list(place: Path, names: Sequence[str], wanted: Collection[str]) -> tuple[str, Mapping[str, list[str]]]:
    """What sorts images, and their names by class, if a list beside them does; no classes if there is none."""
    where = printable(str(place))
    if labels := find_labels(place, where):
        return f"{where} by {labels.file}", labels.by_class(names, wanted, where)
    return where, {}


def first_whole(splits: Iterator[Split], wanted: Sequence[str], key: str, advice: str) -> Split | None:
    """The first that has all classes that are wanted; None if there are none at all.

    Args:
        wanted: WordNet ids of classes.

    Raises:
        UserError: if none has, saying what the one with most classes lacks; or that they have no classes.
    """
    candidates: list[Split] = []
    for split in splits:
        if all(each in split.classes for each in wanted):
            return split
        candidates.append(split)
    if not candidates:
        return None
    best = max(candidates, key=lambda split: len(split.classes))
    if not best.classes:
        raise UserError(f"{key}: {best.where} is not sorted by class; {advice}")
    missing = next(each for each in wanted if each not in best.classes)
    name = imagenet.classes()[imagenet.numbers()[missing]].name
    there = {imagenet.numbers()[each] for each in best.classes if each in imagenet.numbers()}
    whole = [subset for subset, numbers in imagenet.subsets().items() if there.issuperset(numbers)]
    which = f"all of {', '.join(whole)}" if whole else some(sorted(best.classes), 3)
    raise UserError(
        f"data.subset: {best.where} does not have {missing}, the class {name!r}, but {len(best.classes):,} others "
        f"({which}); set data.subset to classes that are there"
    )


# --- the classes in a folder or tar -------------------------------------------------------------------------


def _split_folders(folder: Path, split: SplitName) -> list[Path]:
    """The folders of a split, or what is sorted by class in them, as in CompVis' ILSVRC2012_train/data."""
    found = []
    for child in sub_folders(folder):
        if split_of(child.name) == split:
            below = [] if looks_sorted(child) else sub_folders(child)
            found.append(below[0] if len(below) == 1 and looks_sorted(below[0]) else child)
    return found


def _tars(folder: Path, split: SplitName | None = None) -> list[Tar]:
    """The tars of a split that lie in a folder, or those of single classes."""
    paths = sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))
    if split is None:
        return [Tar(path) for path in paths if path.stem in imagenet.numbers()]
    return [Tar(path) for path in paths if split_of(path.stem) == split and not OTHER_SETS.search(path.stem)]


def _sorted_folder(folder: Path) -> Split:
    """The folders of classes in a folder, and their tars (beside one, a folder may not be whole), or images with ids.

    Raises:
        UserError: if images lie beside the folders of classes, which are not whole then.
    """
    where = printable(str(folder))
    classes: dict[str, list[Place]] = {}
    for child in sub_folders(folder):
        if found := wordnet_id(child.name):
            classes.setdefault(found, []).append(child)
    classes |= {tar.path.stem: [tar] for tar in _tars(folder)}
    if not classes:
        by_class: dict[str, list[str]] = {}
        for name in image_files(folder):
            by_class.setdefault(wordnet_id(name) or "", []).append(name)
        classes = {each: [SomeFiles(folder, names)] for each, names in by_class.items() if "" not in by_class}
    elif stray := _first_image(folder):
        raise UserError(
            f"{where} is sorted in part: {stray} lies beside the folders of classes; move such images into theirs, or "
            "remove them"
        )
    return Split(where, classes)


def _sorted_tar(tar: Tar) -> Split:
    """The tars of classes in a tar, or the images in folders of classes in it, or such as have ids in their names."""
    classes: dict[str, list[Place]] = {}
    images: dict[str, list[Member]] = {}
    for member in tar.members():
        found = wordnet_id(member.name) or ""
        if found and member.name.endswith(".tar"):
            classes[found] = [tar.inside(member)]
        elif is_image_name(member.name):
            images.setdefault(found, []).append(member)
    if not classes and "" not in images:
        classes = {each: [SomeMembers(tar, members)] for each, members in images.items()}
    return Split(str(tar), classes)


def _merged(splits: Sequence[Split]) -> Split:
    """Several parts of a split, such as train.X1 and train.X2, or shards of it in tars.

    Raises:
        UserError: if a class's images may be twice in them.
    """
    merged: dict[str, list[Place]] = {}
    for split in splits:
        for each, places in split.classes.items():
            known = merged.setdefault(each, [])
            known += places
            names = [member.name for place in known if isinstance(place, SomeMembers) for member in place.members]
            if len(known) > 1 and not (len(set(names)) == len(names) > 0):
                wheres = " and ".join(part.where for part in splits if each in part.classes)
                raise UserError(f"data.root: {wheres} both have the class {each}; rename or move the one not meant")
    return Split(", ".join(split.where for split in splits), merged)
