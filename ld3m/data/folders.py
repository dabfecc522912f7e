"""Images in class folders, as a source."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from ld3m.data.examples import Example, Source
from ld3m.data.formats import open_image
from ld3m.data.identity import Identity
from ld3m.data.layout import find_layout
from ld3m.data.listing import check_regular, image_files, printable
from ld3m.errors import some
from ld3m.recipe.class_lists import wordnet_id


def image_folder(root: Path) -> Source:
    """`root/train/<class>/…` and `root/test/<class>/…`, or `root/<class>/…` alone, or what `find_layout` makes of it.

    Raises:
        UserError: as `find_layout` does.
    """
    layout, note = find_layout(root)
    classes = sorted(layout.train)
    numbers = {name: label for label, name in enumerate(classes)}
    splits = {"train": layout.train, **({"test": layout.test} if layout.test else {})}
    places = {
        split: {numbers[name]: folders for name, folders in by_class.items()} for split, by_class in splits.items()
    }
    aliases = {found: label for label, name in enumerate(classes) if (found := wordnet_id(name))}
    return replace(from_class_folders(root, places, classes, note), aliases=aliases)


def from_class_folders(
    root: Path, places: Mapping[str, Mapping[int, Sequence[Path]]], classes: Sequence[str], note: str = ""
) -> Source:
    """A source of the images below class folders.

    Args:
        root: a folder that holds them all.
        places: of each split, the folders of each class to read, by the class's number.
        classes: names of the classes.
        note: what was guessed; files that are no images are added.
    """
    identity = Identity()
    splits = {split: _Files(root) for split in places}
    ignored: list[str] = []
    for split, files in splits.items():
        for label, folders in places[split].items():
            for folder in folders:
                below, resolved = folder.relative_to(root), folder.resolve()
                for path in image_files(folder, ignored):
                    identity.add(resolved / path, f"{split} {label}")
                    files.add(f"{below}/{path}", label)
    if ignored:
        about = f"files that are no images: {len(ignored)} ({some(ignored, 3)})"
        note = f"{note}; {about}" if note else about
    return Source(classes, splits, identity.digest(), note=note)


class _Files:
    """`Examples` by path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: list[str] = []
        """Below the root."""
        self.labels = array("l")

    def add(self, path: str, label: int) -> None:
        self.paths.append(path)
        self.labels.append(label)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.root / self.paths[index]
        return Example(printable(str(path)), self.labels[index], partial(_open, path))


def _open(path: Path) -> Image.Image:
    check_regular(path)
    return open_image(path)
