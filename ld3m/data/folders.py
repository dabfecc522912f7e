"""Images in class folders."""

import os
from array import array
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from ld3m.data.examples import Example, Source
from ld3m.data.identity import Identity
from ld3m.errors import UserError

IMAGE_SUFFIXES = tuple(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""Endings of the names of files that Pillow reads; some it only writes."""


def image_folder(root: Path) -> Source:
    """`root/train/<class>/…` and `root/test/<class>/…` (or `val`), or `root/<class>/…` alone.

    Raises:
        UserError: if there are no class folders, or the test split has a class that the training split has not.
    """
    folders = {"train": root / "train"} if (root / "train").is_dir() else {"train": root}
    if folders["train"] != root:
        tests = [root / name for name in ("test", "val", "validation") if (root / name).is_dir()]
        if tests:  # ImageNet's test folder has no classes, its val may have
            folders["test"] = next(filter(class_folders, tests), tests[0])
    classes = class_folders(folders["train"])
    if not classes:
        raise UserError(
            f"data.source: {folders['train']} has no class folders; put images in <class>/ folders below it"
        )
    for folder in folders.values():
        if unknown := sorted(set(class_folders(folder)) - set(classes)):
            raise UserError(f"data.source: {folder / unknown[0]} is a class that {folders['train']} does not have")
    return from_class_folders(folders, classes, dict(enumerate(classes)))


def from_class_folders(folders: Mapping[str, Path], classes: Sequence[str], names: Mapping[int, str]) -> Source:
    """A source of the images below class folders.

    Args:
        folders: of each split.
        classes: names of the classes.
        names: of each class to read, by its number, the name of its folder below that of a split.
    """
    identity = Identity()
    splits = {split: _Files(folder) for split, folder in folders.items()}
    for split, files in splits.items():
        for label, name in names.items():
            folder = (files.folder / name).resolve()
            for path in _image_files(folder):
                identity.add(folder / path, f"{split} {label}")
                files.add(f"{name}/{path}", label)
    return Source(classes, splits, identity.digest())


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a split's folder, in order."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))


class _Files:
    """`Examples` by path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        """Below the folder."""
        self.labels = array("l")

    def add(self, path: str, label: int) -> None:
        self.paths.append(path)
        self.labels.append(label)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = str(self.folder / self.paths[index])
        return Example(path, self.labels[index], partial(Image.open, path))


def _image_files(root: Path) -> list[str]:
    """Images anywhere below a folder, in order; links that lead nowhere are among them, so that they are reported."""
    paths: list[tuple[str, ...]] = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        below = Path(parent).relative_to(root).parts
        paths += [(*below, name) for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name)]
    return ["/".join(parts) for parts in sorted(paths)]


def _is_hidden(name: str) -> bool:
    """Whether systems and tools leave it beside images, such as ._1.png, .ipynb_checkpoints and __MACOSX."""
    return name.startswith((".", "__"))
