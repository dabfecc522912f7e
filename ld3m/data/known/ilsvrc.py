"""The images of ImageNet-1k as people have them: folders, tars, lists of the validation images' classes, tables.

A split is found in the first of its places that has all classes that are wanted. `imagenet` knows the classes.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ld3m.data import folders, table_files, tables
from ld3m.data.class_choice import choose
from ld3m.data.examples import Source
from ld3m.data.known import imagenet
from ld3m.data.label_files import WANTED, find_labels
from ld3m.data.listing import exists, files_below, image_files, is_hidden, printable, sub_folders
from ld3m.data.places import Place, SomeFiles, SomeMembers
from ld3m.data.split_names import SplitName, plainest, split_of
from ld3m.data.tars import Member, Tar, is_image_name
from ld3m.errors import UserError, some
from ld3m.recipe import DataRecipe
from ld3m.recipe.class_lists import read_class_list, wordnet_id

HUB = "hub:ILSVRC/imagenet-1k"
"""Where the images come from if no folder is known; access is given by the Hub after its terms are accepted."""
USUAL = (
    "imagenet", "data/imagenet", "~/imagenet", "~/data/imagenet", "~/datasets/imagenet", "/data/imagenet",
    "/data/ILSVRC2012", "/datasets/imagenet", "/mnt/imagenet",
)  # fmt: skip
"""Folders in which ImageNet is looked for if no other is named."""
TRAIN_WANTED = "train/n01440764/…, ILSVRC2012_img_train.tar, or train/n01440764.tar …"
TEST_WANTED = "val/n01440764/…, or val/*.JPEG or ILSVRC2012_img_val.tar with a list of their classes"
DEEPEST = 4
"""Folders between the root and those of the splits that are looked through: Kaggle has ILSVRC/Data/CLS-LOC."""
MOST_OF_FASTAI = 20_000
"""Images of a split: ten classes of at most 1,300 and 50."""
MOST_FOLDERS = 1000
"""Of one level, that are looked through."""
ARCHIVES = (".tar", ".gz", ".tgz", ".zip", ".7z", ".rar", ".bz2", ".xz", ".zst")
OTHER_SETS = re.compile(r"ILSVRC(?!2012)\d{4}|_t3|bbox|devkit|DET|VID|test", re.IGNORECASE)
"""In names of tars with other images than the thousand classes' of 2012, or with none."""


class Split(NamedTuple):
    """Where the images of a split may be."""

    where: str
    classes: Mapping[str, list[Place]]
    """By WordNet id."""


def source(recipe: DataRecipe) -> Source:
    """ImageNet-1k from `data.root`, $LD3M_IMAGENET, a usual folder or the Hub: all 1,000 classes by number.

    Of a folder, only the classes of `data.subset` are looked at.

    Raises:
        UserError: if what is named is not laid out as ImageNet is, or lacks a chosen class, or is damaged, or the Hub
            does not give it.
    """
    names = [each.name for each in imagenet.classes()]
    aliases, subsets = imagenet.numbers(), imagenet.subsets()
    root, key, named_by = _root(recipe)
    if root.startswith("hub:"):
        try:
            images = tables.hub(root.removeprefix("hub:"), recipe, names)
        except UserError as error:
            usual = "" if recipe.root else f"; it is in none of {', '.join(USUAL)}"
            raise UserError(f"{error}{usual}; or name ImageNet's folder by data.root or LD3M_IMAGENET") from None
    elif not Path(root).is_dir():
        raise UserError(f"{key}: {root} is no folder; give one with {TRAIN_WANTED}, and {TEST_WANTED}")
    else:
        folder = table_files.hub_snapshot(Path(root))
        if home := _home(folder, key):
            images = _from_folder(recipe, home, folder, key, named_by)
        elif files_below(folder, table_files.SUFFIXES):
            images = table_files.from_files(folder, recipe, names)
            note = f"ImageNet in {printable(root)}{named_by}; {images.note}".removesuffix("; ")
            images = replace(images, note=note) if named_by else images
        else:
            raise UserError(f"{key}: {printable(root)} has no training split: {TRAIN_WANTED}{_instead(folder)}")
    return replace(images, aliases=aliases, subsets=subsets)


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
            if _home(snapshot, "data.root") or files_below(snapshot, table_files.SUFFIXES):
                return str(folder), "data.root", " (a usual place; data.root would name another)"
    return HUB, "data.root", ""


def _from_folder(recipe: DataRecipe, home: Path, root: Path, key: str, named_by: str) -> Source:
    """The images of the chosen classes.

    Args:
        recipe: chooses them.
        home: the folder that holds the training split.
        root: the folder that was named, which is or holds it.
        key: what named it, for errors.
        named_by: the same for people, unless it is the recipe.
    """
    names, ids = [each.name for each in imagenet.classes()], [each.wordnet_id for each in imagenet.classes()]
    declared = _declared(home) if recipe.subset is None else None
    chosen = declared or choose(recipe.subset, names, imagenet.numbers(), imagenet.subsets())
    wanted = [ids[number] for number in chosen]
    train = _first_whole(_train(home), wanted, "it needs folders or tars of classes, such as n01440764.tar")
    above = [folder for folder in (home, *home.parents) if folder == root or root in folder.parents]
    tests = (split for folder in above for split in _tests(folder, wanted))
    test = _first_whole(tests, wanted, f"no list of its classes lies beside or above it; add {WANTED}")
    if train is None or test is None:
        missing = f"training split: {TRAIN_WANTED}" if train is None else f"validation split: {TEST_WANTED}"
        raise UserError(f"{key}: {printable(str(root))} has no {missing}{_instead(root)}")
    places = {
        split: {number: found.classes[wordnet_id] for number, wordnet_id in zip(chosen, wanted, strict=True)}
        for split, found in (("train", train), ("test", test))
    }
    note = ""
    if named_by or (train.where, test.where) != (printable(str(root / "train")), printable(str(root / "val"))):
        which = f" of subset {recipe.subset}" if isinstance(recipe.subset, str) else ""
        where = f"ImageNet in {printable(str(root))}{named_by}"
        note = f"{where}, train: {train.where}, test: {test.where}; {len(chosen):,} classes{which}"
    images = folders.from_places(root, places, names, note)
    caveat = _caveat(home, test, images)
    note = "; ".join(part for part in (images.note, caveat) if part)
    return replace(images, note=note, caveat=caveat, default=declared)


def _declared(home: Path) -> list[int] | None:
    """The classes of a set that says which of the thousand it has: fastai's, Tiny ImageNet, ImageNet-100."""
    for name in ("wnids.txt", "Labels.json"):
        if (path := home / name).is_file():
            return choose(read_class_list(path), [each.name for each in imagenet.classes()], imagenet.numbers())
    kinds = [home.name, *(path.name for path in home.glob("noisy_image*.csv"))]
    return next(
        (imagenet.subsets()[kind] for name in kinds for kind in ("imagenette", "imagewoof") if kind in name), None
    )


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
    if _looks_sorted(root):
        return f"; it looks like a split itself: give the folder above it, {printable(str(root.absolute().parent))}"
    names = sorted(path.name for path in root.iterdir() if not is_hidden(path.name))
    about = []
    for name in names:
        if name.lower().endswith(ARCHIVES[1:]):
            about.append(f"{name} (compressed; unpack it)")
        elif name.endswith(".tar") and (other := OTHER_SETS.search(name)):
            about.append(f"{name} ({other[0]}: not the images of ILSVRC 2012's thousand classes)")
    return f"; found {some(about or names) or 'nothing'}"


# --- where splits are --------------------------------------------------------------------------------------


def _home(root: Path, key: str) -> Path | None:
    """The folder that holds a training split: the root, or the only one of its level below."""
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
    return bool(_tars(folder, "train")) or any(map(_looks_sorted, _split_folders(folder, "train")))


def _looks_sorted(folder: Path) -> bool:
    """Whether a folder has folders or tars of classes with images, or images with ids, by the first of their names."""
    children = [child for child in sub_folders(folder) if wordnet_id(child.name)][:10]
    has_images = any(any(map(_first_image, [each, *sub_folders(each)])) for each in children)
    return has_images or bool(_tars(folder) or wordnet_id(_first_image(folder)))


def _first_image(folder: Path) -> str:
    """The name of an image in a folder; empty if there is none. No file is opened: Kaggle has a million XML files."""
    with os.scandir(folder) as entries:
        return next((each.name for each in entries if not is_hidden(each.name) and is_image_name(each.name)), "")


def _train(home: Path) -> Iterator[Split]:
    """The places of the training split, the preferred first."""
    parts = [folder for folder in _split_folders(home, "train") if _looks_sorted(folder)]
    plain = plainest([folder.name for folder in parts])
    if parts := [folder for folder in parts if folder.name in plain]:
        yield _merged([_sorted_folder(folder) for folder in parts])
    for folder in [home, *_split_folders(home, "train")]:
        if tars := _tars(folder, "train"):
            yield _merged([_sorted_tar(tar) for tar in tars])


def _tests(home: Path, wanted: Collection[str]) -> Iterator[Split]:
    """The places of the split to test on: sorted folders, then folders with a list of classes, then tars."""
    validation = _split_folders(home, "validation")
    found = [folder for folder in validation + _split_folders(home, "test") if _looks_sorted(folder)]
    yield from map(_sorted_folder, found)
    for folder in validation:
        if folder not in found and (names := image_files(folder)):
            by_class = _by_list(folder, names, wanted)
            yield Split(
                by_class.where, {each: [SomeFiles(folder, chosen)] for each, chosen in by_class.classes.items()}
            )
    for tar in [tar for folder in (home, *validation) for tar in _tars(folder, "validation")]:
        split = _sorted_tar(tar)
        if not split.classes:
            members = {member.name: member for member in tar.images([])}
            by_class = _by_list(tar.path, list(members), wanted)
            classes: dict[str, list[Place]] = {
                each: [SomeMembers(tar, [members[name] for name in chosen])]
                for each, chosen in by_class.classes.items()
            }
            split = Split(by_class.where, classes)
        yield split


class ByList(NamedTuple):
    """Names of images by their class."""

    where: str
    classes: Mapping[str, list[str]]


def _by_list(place: Path, names: Sequence[str], wanted: Collection[str]) -> ByList:
    """Images that a list beside them sorts; no classes if there is none."""
    where = printable(str(place))
    if labels := find_labels(place, where):
        return ByList(f"{where} by {labels.file}", labels.by_class(names, wanted, where))
    return ByList(where, {})


def _first_whole(splits: Iterator[Split], wanted: Sequence[str], unsorted: str) -> Split | None:
    """The first that has all classes that are wanted; None if there are none at all.

    Raises:
        UserError: if none has, saying what the one with most classes lacks; or `unsorted`, if they have no classes.
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
        raise UserError(f"{best.where} is not sorted by class, and {unsorted}")
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
    return [child for child in sub_folders(folder) if split_of(child.name) == split]


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
        classes = {each: [SomeFiles(folder, names)] for each, names in by_class.items() if each}
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
        found = {each for part in member.name.split("/") if (each := wordnet_id(part))}
        if len(found) == 1 and member.name.endswith(".tar"):
            classes[found.pop()] = [tar.inside(member)]
        elif len(found) == 1 and is_image_name(member.name):
            images.setdefault(found.pop(), []).append(member)
    return Split(str(tar), classes or {each: [SomeMembers(tar, members)] for each, members in images.items()})


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
