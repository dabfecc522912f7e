"""Images in class folders, or in tars, as a source."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ld3m.data.decoding.formats import open_image
from ld3m.data.examples import Example, Source
from ld3m.data.layouts.identity import Identity
from ld3m.data.layouts.layout import find_layout
from ld3m.data.layouts.listing import check_regular, printable
from ld3m.data.layouts.places import Place, SomeFiles, listed
from ld3m.data.layouts.tars import Member, Tar, open_member
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
    places: dict[str, dict[int, Sequence[Place]]] = {
        split: {numbers[name]: found for name, found in by_class.items()} for split, by_class in splits.items()
    }
    return replace(from_places(root, places, classes, note), aliases=_wordnet_ids(classes))


def outline(root: Path) -> Source:
    """What `image_folder` makes of a folder, without its images: its classes alone.

    Raises:
        UserError: as `image_folder` does.
    """
    classes = sorted(find_layout(root)[0].train)
    return Source(classes, {}, "", aliases=_wordnet_ids(classes))


def _wordnet_ids(classes: Sequence[str]) -> dict[str, int]:
    """The numbers of classes by the WordNet id in their names, if there is one."""
    return {found: label for label, name in enumerate(classes) if (found := wordnet_id(name))}


def from_places(
    root: Path, places: Mapping[str, Mapping[int, Sequence[Place]]], classes: Sequence[str], note: str = ""
) -> Source:
    """A source of images in class folders, of some of the images in one folder, or of those in tars.

    Args:
        places: of each split, where the images of each class are, by the class's number.
        note: what was guessed; files that are no images are added.
    """
    identity = Identity()
    splits = {split: _Files(root) for split in places}
    ignored: list[str] = []
    for split, files in splits.items():
        indices: dict[Path, Any] = {}  # digests of what is used of each tar, whose time of change says the rest
        for label, place in ((label, place) for label, several in places[split].items() for place in several):
            images = listed(place, ignored)
            if isinstance(images, SomeFiles):
                below, resolved = images.folder.relative_to(root), images.folder.resolve()
                for path in images.names:
                    identity.add(resolved / path, f"{split} {label}")
                    files.add(f"{below}/{path}", label)
            else:
                index = indices.setdefault(images.tar.path, hashlib.sha256())
                for member in images.members:
                    index.update(f"{label} {member}\n".encode())
                    files.add(member.name, label, images.tar, member)
        for tar, index in indices.items():
            identity.add(tar, f"{split} {index.hexdigest()}")
    if ignored:
        about = f"files that are no images: {len(ignored)} ({some(ignored, 3)})"
        note = f"{note}; {about}" if note else about
    return Source(classes, splits, identity.digest(), note=note)


class _Files:
    """`Examples` by path, or by their place in a tar."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: list[str] = []
        """Below the root, or in the tar."""
        self.labels = array("l")
        self.tars: list[Tar] = []
        self.spans = array("q")
        """Of each image the number of its tar (-1: none), its offset and its size."""

    def add(self, path: str, label: int, tar: Tar | None = None, member: Member | None = None) -> None:
        self.paths.append(path)
        self.labels.append(label)
        if not (tar and member):
            self.spans.extend((-1, 0, 0))
            return
        if self.tars[-1:] != [tar]:
            self.tars.append(tar)
        self.spans.extend((len(self.tars) - 1, member.offset, member.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        number, offset, size = self.spans[3 * index : 3 * index + 3]
        if number >= 0:
            tar = self.tars[number]
            read = partial(open_member, tar.path, offset, size)
            return Example(f"{tar}/{self.paths[index]}", self.labels[index], read)
        path = self.root / self.paths[index]
        return Example(printable(str(path)), self.labels[index], partial(_open, path))


def _open(path: Path) -> Image.Image:
    check_regular(path)
    return open_image(path)
