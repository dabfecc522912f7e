"""Which folders of an image folder are splits and which are classes; a guess is put into words, or refused."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from ld3m.data.layouts.label_files import find_labels
from ld3m.data.layouts.listing import has_images_itself, holds_images, image_files, is_empty, printable, sub_folders
from ld3m.data.layouts.places import Place, SomeFiles
from ld3m.data.layouts.split_names import SplitName, is_plain, plainest, split_of
from ld3m.errors import UserError, some
from ld3m.recipe.class_lists import wordnet_id

ClassFolders = dict[str, list[Path]]
"""The folders of each class's images, by its name."""
SplitFolders = Mapping[SplitName, list[Path]]


class Layout(NamedTuple):
    """How a folder of images is understood."""

    train: ClassFolders
    test: Mapping[str, Sequence[Place]]
    """Where its images are, by class; empty if there is no test split."""
    train_text: str
    """Where the training split was found, in words."""
    test_text: str
    guessed: bool
    """Whether it is anything but the plain `train/<class>/` with `test/<class>/`, or `<class>/` alone."""

    def note(self, unused: Sequence[str]) -> str:
        """What was found, in a line."""
        parts = [f"classes: {len(self.train)} ({some(sorted(self.train))}), from {self.train_text}"]
        parts.append(f"test: {self.test_text}" if self.test else "test: a share of them (data.test_share)")
        return "; ".join([*parts, *([f"not used: {some(unused)}"] if unused else [])])


def find_layout(root: Path) -> tuple[Layout, str]:
    """Which folders below `root` are splits, and which are classes; and what was guessed, in a line (else empty).

    Folders above the splits or classes are passed through. A folder is a split if its name says so and it holds class
    folders: one called "train" that holds images, beside other classes, is a class. Tests are done on the test split,
    or on the validation split if only that is sorted by the classes of the training split.

    Raises:
        UserError: if there are no class folders, or it is not clear which folder is what, or the test split has a class
            that the training split does not have.
    """
    unused: list[str] = []
    folder = pass_through(root, unused)
    children = sub_folders(folder)
    filled = [child for child in children if holds_images(child)]
    empty = [child for child in children if is_empty(child)]
    unused += [f"{_text(child)} (no images)" for child in children if child not in filled + empty]
    if has_images_itself(folder):
        unused.append(f"the images in {_text(folder)} itself")
    splits = _split_folders(filled)
    if splits["train"]:
        layout = _by_split_folders(folder, splits, filled, unused)
    else:
        layout = _splits_inside_classes(filled) or _by_class_folders(folder, splits, filled, empty, unused)
    guessed = layout.guessed or bool(unused) or folder != root or len(layout.train) == 1
    return layout, layout.note(unused) if guessed else ""


def pass_through(root: Path, unused: list[str]) -> Path:
    """The folder that holds splits or classes: `root`, or one below it if there is nothing to choose on the way.

    What lies beside the way goes to `unused`.

    Raises:
        UserError: if there are several data sets below.
    """
    folder = root
    while True:
        filled = _filled(folder)
        if _split_folders(filled)["train"]:
            return folder
        data_sets = [child for child in filled if _holds_splits(child)]
        if len(data_sets) > 1:
            raise UserError(f"data.source: {_text(folder)} holds several data sets; give one of {_texts(data_sets)}")
        only = data_sets or (filled if not has_images_itself(folder) else [])
        nested = len(only) == 1 and _filled(only[0]) and not has_images_itself(only[0])
        if not nested or (not data_sets and split_of(only[0].name)):
            return folder
        unused += [_text(child) for child in filled if child not in only]
        folder = only[0]


def _by_split_folders(folder: Path, splits: SplitFolders, filled: list[Path], unused: list[str]) -> Layout:
    """`train/<class>/…`, with the test split beside it if one is sorted by the same classes."""
    train_folders = _one_or_all(splits["train"])
    train = _class_folders(train_folders, unused)
    test, test_folders = _test_folders(splits, train)
    if unknown := [name for name in test if name not in train]:
        raise UserError(
            f"data.source: {_text(test[unknown[0]][0])} is a class that {_texts(train_folders)} does not have"
        )
    by_list = _test_by_list(filled, train) if not test else None
    if by_list:
        test_folders = [by_list.folder]
    others = [child for child in filled if child not in train_folders + test_folders]
    if not test_folders:
        _refuse_unnamed_splits(folder, train_folders + [child for child in others if not split_of(child.name)])
    for child in others:
        unsorted = split_of(child.name) and not _class_folders([child]).keys() & train.keys()
        unused.append(_text(child) + (" (not sorted by these classes)" if unsorted else ""))
    guessed = train_folders != [folder / "train"] or test_folders not in ([], [folder / "test"])
    if by_list:
        return Layout(train, by_list.classes, _texts(train_folders), by_list.text, guessed)
    return Layout(train, test, _texts(train_folders), _texts(test_folders), guessed)


def _splits_inside_classes(filled: list[Path]) -> Layout | None:
    """`<class>/train/…` and `<class>/test/…`; None if folders are laid out in another way."""
    found: dict[SplitName, ClassFolders] = {"train": {}, "test": {}, "validation": {}}
    for child in filled:
        for below in _filled(child):
            split = split_of(below.name) if is_plain(below.name) and not has_images_itself(child) else None
            if split is None:
                return None
            found[split].setdefault(printable(child.name), []).append(below)
    test = found["test"] or found["validation"]
    if len(found["train"]) < max(2, len(filled)) or not test:
        return None
    train_text, test_text = (
        f"the folders {some(sorted({each.name for folders in split.values() for each in folders}))} of each class"
        for split in (found["train"], test)
    )
    return Layout(found["train"], test, train_text, test_text, guessed=True)


def _by_class_folders(
    folder: Path, splits: SplitFolders, filled: list[Path], empty: list[Path], unused: list[str]
) -> Layout:
    """`<class>/…` alone, or with a test split beside the classes."""
    children = filled + empty
    named = [child for child in children if is_plain(child.name)]
    words = {split_of(child.name) for child in children}
    if children and (len(named) == len(children) or (None not in words and len(words) > 1)):
        kinds = "only test folders" if splits["test"] or splits["validation"] else "no class folders in its splits"
        raise UserError(f"data.source: {_text(folder)} has {kinds} ({_texts(children)}); {_ADVICE}")
    classes = [child for child in children if child not in named or split_of(child.name) == "train"]
    if not classes:
        raise UserError(f"data.source: {_text(folder)} has no class folders; put images in <class>/ folders below it")
    for child in classes:
        within = {split_of(each.name) for each in _filled(child) if is_plain(each.name)}
        if len(within) > 1 and not has_images_itself(child):
            raise UserError(
                f"data.source: {_text(child)} holds splits ({_texts(_filled(child))}), but others beside it do not; "
                f"{_ADVICE}"
            )
    train = {printable(child.name): [child] for child in classes}
    test, test_folders = _test_folders(splits, train)
    if not test:
        _refuse_unnamed_splits(folder, [child for child in classes if child in filled])
    elif unknown := [name for name in test if name not in train]:
        raise UserError(f"data.source: {_text(test[unknown[0]][0])} is a class that {_text(folder)} does not have")
    unused += [_text(child) + " (not sorted by class)" for child in named if child not in classes + test_folders]
    nested = [child for child in classes if not has_images_itself(child) and len(_filled(child)) > 1]
    text = _text(folder)
    if nested:
        text += f" ({_texts(nested)} with all folders below)"
    return Layout(train, test, text, _texts(test_folders), guessed=bool(test or nested))


def _refuse_unnamed_splits(folder: Path, classes: list[Path]) -> None:
    """Raises a UserError if all folders hold the same two or more folders, and no images: they look like splits."""
    if len(classes) < 2 or any(map(has_images_itself, classes)):
        return
    below = [{each.name for each in _filled(child)} for child in classes]
    shared, largest = set.intersection(*below), max(below, key=len)
    if len(shared) > 1 and all(names <= largest for names in below):
        raise UserError(
            f"data.source: the folders of {_text(folder)} ({some([printable(child.name) for child in classes])}) all "
            f"hold {some(sorted(map(printable, shared)))}; if they are splits, name them train and test, or give one "
            "of them; if they are classes, move their images up"
        )


def _split_folders(filled: list[Path]) -> dict[SplitName, list[Path]]:
    """The folders that are splits: by their names, and because they hold class folders.

    A name with other words, such as "seg_train", counts if another folder is another split, or no other holds folders.
    """
    found: dict[SplitName, list[Path]] = {"train": [], "test": [], "validation": []}
    holding = [child for child in filled if _filled(child)]
    for child in holding:
        split = split_of(child.name)
        mixed = has_images_itself(child) and not (is_plain(child.name) and len(_filled(child)) > 1)
        if split and not mixed:
            found[split].append(child)
    certain = sum(map(bool, found.values())) > 1 or len(holding) == 1
    return {split: [each for each in folders if certain or is_plain(each.name)] for split, folders in found.items()}


def _holds_splits(folder: Path, deepest: int = 3) -> bool:
    """Whether there are split folders below."""
    filled = _filled(folder)
    return bool(
        _split_folders(filled)["train"] or (deepest and any(_holds_splits(each, deepest - 1) for each in filled))
    )


def _test_folders(splits: SplitFolders, train: ClassFolders) -> tuple[ClassFolders, list[Path]]:
    """The class folders of the test split, else of the validation split, and the folders of that split.

    A class may be written otherwise than in the training split, in its case or punctuation.
    """
    known = {_folded(name): name for name in train}
    for split in ("test", "validation"):
        labelled = []
        for folder in splits[split]:
            names = _class_folders([folder])
            if any(name in train or _folded(name) in known for name in names):
                labelled.append(folder)
        if labelled:
            chosen = _one_or_all(labelled)
            test: ClassFolders = {}
            for name, folders in _class_folders(chosen).items():
                test.setdefault(name if name in train else known.get(_folded(name), name), []).extend(folders)
            return test, chosen
    return {}, []


class _ByList(NamedTuple):
    """A folder whose images a list beside them sorts."""

    folder: Path
    classes: dict[str, list[SomeFiles]]
    text: str


def _test_by_list(filled: list[Path], train: ClassFolders) -> _ByList | None:
    """The validation split by a list of WordNet ids, if it is not in class folders and classes are called by ids."""
    known = {found: name for name in train if (found := wordnet_id(name))}
    for folder in filled if known else []:
        if split_of(folder.name) == "validation" and (labels := find_labels(folder, _text(folder))):
            sorted_names = labels.by_class(image_files(folder), known, _text(folder))
            classes = {known[each]: [SomeFiles(folder, names)] for each, names in sorted_names.items() if each in known}
            if classes:
                return _ByList(folder, classes, f"{_text(folder)} by {labels.file}")
    return None


def _class_folders(split_folders: list[Path], unused: list[str] | None = None) -> ClassFolders:
    """The class folders of a split's folders; folders within them that are the only one, such as "images", are passed.

    Folders without images are among them, so that a class without images is reported.
    """
    found: ClassFolders = {}
    for split_folder in split_folders:
        folder = split_folder
        while len(filled := _filled(folder)) == 1 and _filled(filled[0]) and not has_images_itself(filled[0]):
            folder = filled[0]
        for child in sub_folders(folder):
            found.setdefault(printable(child.name), []).append(child)
        if unused is not None and has_images_itself(folder):
            unused.append(f"the images in {_text(folder)} itself")
    return found


def _one_or_all(folders: list[Path]) -> list[Path]:
    """Of several folders of one split, the one that is called by its plain name; else all, if they share no image.

    Raises:
        UserError: if they do, and no name says which is meant.
    """
    names = plainest([folder.name for folder in folders])
    folders = [folder for folder in folders if folder.name in names]
    by_class = [_class_folders([folder]) for folder in folders]
    for (first, one), (second, other) in combinations(zip(folders, by_class, strict=True), 2):
        for name in one.keys() & other.keys():
            files = [{file for folder in each[name] for file in image_files(folder)} for each in (one, other)]
            if set.intersection(*files):
                raise UserError(
                    f"data.source: {_text(first)} and {_text(second)} hold images of the same names, and either may be "
                    f"the {split_of(first.name)} split; rename or move the one that is not"
                )
    return folders


_ADVICE = "give data.source a folder of train/<class>/ and test/<class>/, or of <class>/ folders"


def _filled(folder: Path) -> list[Path]:
    """The folders in a folder that hold images at any depth."""
    return [child for child in sub_folders(folder) if holds_images(child)]


def _folded(name: str) -> str:
    """A class's name without its case and punctuation."""
    return re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", name).casefold())


def _text(folder: Path) -> str:
    return printable(str(folder))


def _texts(folders: Iterable[Path]) -> str:
    return some([_text(folder) for folder in folders])
