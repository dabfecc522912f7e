"""Classes of images that all lie in one folder or tar, from the lists that come with ImageNet and its kin.

A list either names images, with the WordNet id of each (LOC_val_solution.csv, val_annotations.txt), or has one line per
image in the order of ILSVRC2012_val_00000001, … (the devkit's ground truth, by numbers that its meta.mat explains).
"""

import re
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from ld3m.data.known import imagenet
from ld3m.data.layouts.listing import exists, printable
from ld3m.errors import UserError, one_line
from ld3m.reading import HEAD, foreign_kind, read_text

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
DEVKIT = "ILSVRC2012_devkit_t12"
ALL = 50_000
"""Validation images of ILSVRC 2012, and lines of its ground truth."""
ABOVE = 4
"""Folders above the images in which a list is looked for: Kaggle's lies above ILSVRC/Data/CLS-LOC/val."""
FIRST = [65, 970, 230, 809, 516, 57]
"""Classes of the first of them, by the numbers of sorted WordNet ids, as Caffe's val.txt begins."""
WANTED = f"LOC_val_solution.csv or {DEVKIT}.tar.gz"
"""The lists that are known best, for errors."""
ADVICE = f"download it again, or give {WANTED} in its place"
_ID = re.compile(r"n\d{8}")


class Labels(NamedTuple):
    """What a list says."""

    file: str
    by_name: Mapping[str, str]
    """The class of each image, by its name without folders and ending."""
    numbered: bool = False
    """Whether lines go by the numbers of images."""

    def by_class(self, images: Sequence[str], wanted: Collection[str], where: str) -> dict[str, list[str]]:
        """The images of each class.

        Args:
            images: their names, which may have folders and endings.
            wanted: classes of which no image may be missing.

        Raises:
            UserError: if an image is not in the list; an image of a wanted class is in the list alone; or the list has
                one line per image, and neither as many as there are images nor all of ImageNet's.
        """
        count = len(self.by_name)
        if self.numbered and count not in (ALL, len(images)):
            raise UserError(
                f"{self.file} has {count:,} lines, but {where} has {len(images):,} images, and ImageNet {ALL:,}; "
                f"{ADVICE}"
            )
        stems = {_stem(image): image for image in images}
        if unknown := [image for stem, image in stems.items() if stem not in self.by_name]:
            others = f" and {len(unknown) - 1:,} others" if len(unknown) > 1 else ""
            raise UserError(
                f"{where} has {unknown[0]}{others}, which {self.file} does not name among its {count:,}; complete it, "
                f"or give {WANTED} in its place"
            )
        missing = [name for name, label in self.by_name.items() if label in wanted and name not in stems]
        if missing:
            others = f" and {len(missing) - 1:,} others" if len(missing) > 1 else ""
            raise UserError(
                f"{self.file} names {missing[0]}{others} of the classes that are used, but {where} does not have "
                f"{'them' if others else 'it'}; copy them there, or take them out of the list"
            )
        found: dict[str, list[str]] = {}
        for stem, image in stems.items():
            found.setdefault(self.by_name[stem], []).append(image)
        return found


def find_labels(place: Path, where: str) -> Labels | None:
    """The list of the images of a folder or tar: in that folder, beside it or above, as it is or in a devkit.

    Raises:
        UserError: if the only list cannot be read, or lacks what explains it.
    """
    above = [*place.parents, *place.absolute().parents[len(place.parents) :]]
    incomplete: list[str] = []
    for folder in [place, *above[:ABOVE]]:
        for name, read in _READERS.items():
            for path in (folder / name, *(folder / each / name for each in _BELOW)):
                if exists(str(path)) and path.is_file() and (labels := read(path, incomplete)):
                    return labels
    if incomplete:
        raise UserError(f"{where} has images without classes: {incomplete[0]}")
    return None


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _named(path: Path, incomplete: list[str]) -> Labels:
    """A line per image: its name, then WordNet ids, all the same, among boxes and other words."""
    by_name: dict[str, str] = {}
    file = printable(str(path))
    text = read_text(path, ADVICE)
    for number, line in enumerate(text.splitlines(), 1):
        name, *words = re.split(r"[,\s]+", line.replace('"', "").strip())
        ids = {word for word in words if _ID.fullmatch(word)}
        if len(ids) == 1:
            known = by_name.setdefault(_stem(name), *ids)
            ids.add(known)
        if len(ids) > 1 or (not ids and name and number > 1):
            found = f"the WordNet ids {' and '.join(sorted(ids))}" if ids else "no WordNet id"
            raise UserError(f"{file} has {found} for {name} in line {number}, not one; {ADVICE}")
    if not by_name:
        kind = foreign_kind(text.encode()[:HEAD])
        raise UserError(f"{file} is {kind}" if kind else f"{file} names no image with a WordNet id; {ADVICE}")
    return Labels(file, by_name)


def _by_number(path: Path, incomplete: list[str]) -> Labels | None:
    """Caffe's val.txt: a line per image, its name and the number of its class among sorted WordNet ids, from 0.

    Others of that name number images, or classes by ILSVRC's ids: all 50,000 are known by what the first ones are.
    """
    file = printable(str(path))
    lines = [line.split() for line in read_text(path, ADVICE).splitlines() if line.strip()]
    ids = imagenet.ids()
    numbers = [int(line[1]) for line in lines if len(line) == 2 and "." in line[0] and line[1].isdecimal()]
    ordered = [number for _, number in sorted(zip(lines, numbers, strict=False))]
    plausible = len(lines) == len(numbers) > 0 and max(numbers) < len(ids)
    if not plausible or (len(numbers) == ALL and ordered[: len(FIRST)] != FIRST):
        incomplete.append(f"{file} does not number classes as Caffe's list of that name does; give {WANTED}")
        return None
    by_name = {_stem(line[0]): ids[number] for line, number in zip(lines, numbers, strict=True)}
    return Labels(f"{file} (numbers of sorted WordNet ids)", by_name)


def _ids_in_order(path: Path, incomplete: list[str]) -> Labels:
    """A WordNet id per line."""
    file = printable(str(path))
    return _numbered(file, read_text(path, ADVICE).split(), {})


def _ground_truth(path: Path, incomplete: list[str]) -> Labels | None:
    """The devkit's numbers, explained by meta.mat beside them or above."""
    file = printable(str(path))
    meta = next((each for each in (path.parent / META, path.parent.parent / META) if each.is_file()), None)
    if meta is None:
        incomplete.append(f"{file} numbers them by ILSVRC's own ids; add the devkit's {META}, which explains them")
        return None
    try:
        ids = _from_meta(meta.read_bytes(), printable(str(meta)))
    except OSError as error:
        raise UserError(f"cannot read {printable(str(meta))} ({error.strerror}); {ADVICE}") from None
    return _numbered(file, read_text(path, ADVICE).split(), ids)


def _devkit(path: Path, incomplete: list[str]) -> Labels:
    """Both files of the devkit, in its tar."""
    file, content = printable(str(path)), {}
    try:
        with tarfile.open(path) as archive:
            for info in archive:
                name = info.name.rpartition("/")[2]
                if info.isreg() and name in (GROUND_TRUTH, META) and (opened := archive.extractfile(info)):
                    content[name] = opened.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a devkit ({one_line(error)}); {ADVICE}") from None
    if missing := [name for name in (GROUND_TRUTH, META) if name not in content]:
        raise UserError(f"{file} does not hold {' and '.join(missing)}; {ADVICE}")
    ids = _from_meta(content[META], f"{file}/{META}")
    return _numbered(file, content[GROUND_TRUTH].decode(errors="replace").split(), ids)


def _from_meta(content: bytes, file: str) -> dict[str, str]:
    """The WordNet id of each ILSVRC id of meta.mat, which are not in the same order."""
    import numpy as np
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"])
        numbers = [str(int(np.squeeze(each))) for each in synsets["ILSVRC2012_ID"]]
        ids = [str(np.squeeze(each)) for each in synsets["WNID"]]
    except Exception as error:  # scipy raises nearly anything for a damaged file
        raise UserError(f"{file} is not the devkit's ({one_line(error)}); {ADVICE}") from None
    if len(set(numbers)) < len(numbers) or not all(map(_ID.fullmatch, ids)):
        raise UserError(f"{file} is not the devkit's (its ids repeat, or are not WordNet's); {ADVICE}")
    return dict(zip(numbers, ids, strict=True))


def _torchvision(path: Path, incomplete: list[str]) -> Labels:
    """torchvision's meta.bin: what classes are called, and the WordNet id of each validation image in order."""
    import torch

    file = printable(str(path))
    try:
        _, ids = torch.load(path, map_location="cpu", weights_only=True)
        return _numbered(file, [str(each) for each in ids], {})
    except UserError:
        raise
    except Exception as error:  # unpickling raises nearly anything
        raise UserError(
            f"{file} does not hold torchvision's names and ids, or more than that, which is not opened "
            f"({type(error).__name__}); give {WANTED} in its place"
        ) from None


def _numbered(file: str, lines: Sequence[str], ids: Mapping[str, str]) -> Labels:
    """A line per image, in the order of their numbers; `ids` says what the lines mean that are no WordNet ids."""
    meant = [ids.get(line, line) for line in lines]
    if wrong := [number for number, each in enumerate(meant, 1) if not _ID.fullmatch(each)]:
        raise UserError(f"{file} has {lines[wrong[0] - 1][:40]!r} as its label {wrong[0]}, which is no class; {ADVICE}")
    return Labels(file, {f"ILSVRC2012_val_{number:08d}": each for number, each in enumerate(meant, 1)}, numbered=True)


_READERS: dict[str, Callable[[Path, list[str]], Labels | None]] = {
    "LOC_val_solution.csv": _named,
    "val_annotations.txt": _named,
    "validation_synset.txt": _named,
    GROUND_TRUTH: _ground_truth,
    f"{DEVKIT}.tar.gz": _devkit,
    f"{DEVKIT}.tgz": _devkit,
    f"{DEVKIT}.tar": _devkit,
    "imagenet_2012_validation_synset_labels.txt": _ids_in_order,
    "meta.bin": _torchvision,
    "val.txt": _by_number,
    "val_list.txt": _by_number,
}
"""Lists by the names of their files, the preferred first."""
_BELOW = (f"{DEVKIT}/data", DEVKIT, "devkit/data", "devkit", "data", "labels", "meta")
"""Folders in which they lie beside images."""
