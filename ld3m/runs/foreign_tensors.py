"""Distilled sets in files of torch.save and np.savez, as DC, DSA, MTT, IDC, FRePo, DATM and others leave them.

Nothing pickled is run. What the values mean is judged in `pixel_values`; the layout of the set in our own folders is
`imported`.
"""

import importlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ld3m.data.decoding.formats import is_image
from ld3m.errors import UserError, one_line, some
from ld3m.reading import HEAD, foreign_kind
from ld3m.runs.pixel_values import TensorSet

IMAGES, LABELS = ("images", "image", "image_syn", "x", "data"), ("labels", "label", "label_syn", "targets", "y")
"""Keys under which other projects keep tensors in a dictionary."""
SUFFIXES = (".pt", ".pth", ".npz")
_WORDS = r"(?:parts?|chunk|shard|batch|piece|slice)"
PART = re.compile(rf"(.*?)(\d+)([-_. ]?of[-_. ]?(?P<all>\d+).*)|(.*{_WORDS}[-_. ]?)(\d+)()", re.IGNORECASE)
"""A file's name that says that it is one part of several."""
STEP = re.compile(r"step[-_]?(\d+)", re.IGNORECASE)
"""FRePo's name of what it saved after so many steps."""


def tensor_files(path: Path) -> Path | None:
    """The file of tensors, or the folder of such files, that a path stands for; None if it is anything else.

    The folder may be the only one of such below the path, as `Normal` of DATM and `np` of FRePo, of which one beside it
    may have pictures.

    Raises:
        UserError: if the path cannot be read, or several folders below it have files of tensors.
    """
    if not path.is_dir():
        return path if path.suffix in SUFFIXES else None

    def refuse(error: OSError) -> None:
        raise UserError(f"RUN: cannot read {error.filename} ({error.strerror})")

    found, pictures = [], 0
    for name, below, files in os.walk(path, onerror=refuse):
        if any(Path(file).suffix in SUFFIXES for file in files):
            if not below and Path(name) == path:
                return path
            found.append(Path(name))
        elif any(is_image(Path(name, file)) for file in files):
            pictures += 1
            if pictures > 1:  # classes
                return None
    if len(found) > 1:
        names = sorted(str(folder.relative_to(path)) for folder in found)
        raise UserError(
            f"RUN: {path} has files of tensors in several folders ({some(names)}); give the one that is meant"
        )
    return found[0] if found else None


def read(path: Path) -> TensorSet:
    """Images and labels of a file: in a dictionary, a pair, DC's list of pairs, or with labels in a file beside it.

    A folder stands for its newest images, or for all parts of one set; a part stands for all parts.

    Raises:
        UserError: if a file is no such thing.
    """
    paths = _files(path)
    sets = [_set(each, _load(each)) for each in paths]
    if len(sets) == 1:
        return sets[0]
    print(f"{path}: {len(sets)} parts of one set, {paths[0].name} to {paths[-1].name}", file=sys.stderr)
    try:
        joined = torch.cat([each.images for each in sets]), torch.cat([each.labels for each in sets])
        return sets[0]._replace(images=joined[0], labels=joined[1])
    except (RuntimeError, TypeError) as error:
        raise UserError(f"RUN: the parts of {path} do not go together ({one_line(error)})") from None


def _files(path: Path) -> list[Path]:
    """The files of a set, in the order of their numbers."""
    if path.is_file():
        return _parts(path)
    images = [each for each in path.iterdir() if each.suffix in SUFFIXES and not each.name.startswith("labels")]
    if not images:
        raise UserError(f"RUN: {path} has labels alone; give a folder of images*.pt and labels*.pt")
    with_labels = [each for each in images if _labels_beside(each)]
    if with_labels and not all(PART.fullmatch(each.stem) for each in with_labels):
        best = next((each for each in with_labels if each.stem == "images_best"), None)
        newest = best or max(with_labels, key=lambda each: (_number(each), each.name))
        if len(with_labels) > 1:
            print(f"{path}: {newest.name} is taken, of {len(with_labels)} files of images", file=sys.stderr)
        return [newest]
    if all(STEP.fullmatch(each.stem) for each in images) and len(images) > 1:
        newest = max(images, key=_number)
        print(f"{path}: {newest.name} is taken, of {len(images)} steps", file=sys.stderr)
        return [newest]
    parts = _parts(sorted(images)[0])
    if len(parts) < len(images):
        names = sorted(each.name for each in images)
        raise UserError(f"RUN: {path} has several files ({some(names)}); give the one that is meant")
    return parts


def _parts(path: Path) -> list[Path]:
    """All files of the set that a file is a part of; the file alone if it is whole."""

    def split(file: Path) -> tuple[str, str, str] | None:
        match = PART.fullmatch(file.stem)
        groups = [match[index] for index in ((1, 2, 3) if match["all"] else (5, 6, 7))] if match else []
        return (groups[0], groups[2] + file.suffix, groups[1]) if groups else None

    own, match = split(path), PART.fullmatch(path.stem)
    if own is None or match is None:
        _say_others(path)
        return [path]
    parts = {int(other[2]): each for each in path.parent.iterdir() if (other := split(each)) and other[:2] == own[:2]}
    if len(parts) == 1 and not match["all"]:
        print(f"{path}: taken alone, though its name may say that it is a part", file=sys.stderr)
        return [path]
    first = 0 if 0 in parts else 1
    last = first + int(match["all"]) - 1 if match["all"] else max(parts)
    missing = next((number for number in range(first, last + 1) if number not in parts), None)
    if missing is not None:
        raise UserError(f"RUN: of the parts of {path}, number {missing} is missing; give all of them, or one file")
    return [parts[number] for number in sorted(parts)]


def _say_others(path: Path) -> None:
    """Says which files beside one are called alike but for a number: they may be parts of one set."""
    if _labels_beside(path) or STEP.fullmatch(path.stem) or not (match := re.fullmatch(r"(.*\D)(\d+)", path.stem)):
        return
    alike = re.compile(re.escape(match[1]) + r"\d+")
    others = [each.name for each in path.parent.glob(f"*{path.suffix}") if alike.fullmatch(each.stem)]
    if len(others) > 1:
        print(
            f"{path}: taken alone, of {some(sorted(others))}; parts of one set are taken together if they are called "
            f"{match[1]}part0{path.suffix}, …",
            file=sys.stderr,
        )


def _number(path: Path) -> int:
    return int(numbers[-1]) if (numbers := re.findall(r"\d+", path.stem)) else -1


def _labels_beside(path: Path) -> Path | None:
    """MTT's labels: labels_best.pt of images_best.pt, labels_500.pt of images_500.pt and of images_zca_500.pt."""
    for name in (path.name.replace("images", "labels"), path.name.replace("images_zca", "labels")):
        if name != path.name and path.with_name(name).is_file():
            return path.with_name(name)
    return None


def _load(path: Path) -> Any:
    """What torch.save wrote, if it is nothing but tensors, arrays and numbers in lists, tuples and dictionaries."""
    try:
        if not path.is_file():
            raise UserError(f"RUN: {path} is {'a folder' if path.is_dir() else 'missing'}; give a file of torch.save")
        with path.open("rb") as file:
            head = file.read(HEAD)
        if not head:
            raise UserError(f"RUN: {path} is empty; save or copy it again")
        if not head.startswith(b"PK") and (kind := foreign_kind(head)):  # torch.save's files are zip archives, too
            raise UserError(f"RUN: {path} is {kind}")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        with torch.serialization.safe_globals(_numpy()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"RUN: cannot read {path} ({error.strerror or one_line(error)})") from None
    except Exception as error:  # unpickling raises nearly anything
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it wants {code[1]} to be run" if code else one_line(error)
        raise UserError(
            f"RUN: {path} cannot be read as tensors alone ({reason}); save a dictionary of images and labels"
        ) from None


def _numpy() -> list[Any]:
    """What pickles of NumPy's numbers and arrays name, under today's names and those of before NumPy 2: data alone."""
    from _codecs import encode

    multiarray: Any = importlib.import_module("numpy._core.multiarray")

    scalar, rebuild = multiarray.scalar, multiarray._reconstruct
    old = [(scalar, "numpy.core.multiarray.scalar"), (rebuild, "numpy.core.multiarray._reconstruct")]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [scalar, rebuild, *old, np.ndarray, np.dtype, encode, *sorted(kinds, key=str)]


def _set(path: Path, content: Any) -> TensorSet:
    statistics = code = classes = None
    if isinstance(content, Mapping):
        if "mean" in content and "std" in content:
            statistics = content["mean"], content["std"]
        named = content.get("classes")
        if isinstance(named, list | tuple) and named and all(isinstance(name, str) for name in named):
            classes = list(named)
        images, labels = (
            next((content[name] for name in names if name in content), None) for names in (IMAGES, LABELS)
        )
        content = images, labels
        code = "frepo" if path.suffix == ".npz" else None
        if isinstance(images, list) and images and labels is None:  # DC and DSA: data, a list of [images, labels]
            content, code = images[-1], "dc"
            if len(images) > 1:
                print(f"{path}: holds {len(images)} sets, of which the last is taken", file=sys.stderr)
    if isinstance(content, Tensor | np.ndarray) and (beside := _labels_beside(path)):
        content, code = (content, _load(beside)), "mtt"
    if not isinstance(content, list | tuple) or len(content) < 2:
        raise UserError(
            f"RUN: {path} has no images and labels; save a dictionary of them, with mean and std if they are normalised"
        )
    if len(content) > 2:
        print(f"{path}: the first two of its {len(content)} parts are taken as images and labels", file=sys.stderr)
    images, labels = (_plain(path, each, what) for each, what in zip(content, ("images", "labels"), strict=False))
    return TensorSet(images, labels, statistics, code, classes)


def _plain(path: Path, value: Any, what: str) -> Tensor:
    """A tensor of ordinary numbers, without a graph.

    Raises:
        UserError: naming what it is instead.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("=")))
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        raise UserError(
            f"RUN: {path} has no images and labels; save a dictionary of them, with mean and std if they are normalised"
        )
    unlike = {
        "sparse": value.layout != torch.strided,
        "quantised": value.is_quantized,
        "complex": value.is_complex(),
        "without values (on meta)": value.is_meta,
    }
    if kinds := [kind for kind, so in unlike.items() if so]:
        raise UserError(f"RUN: {path} has {what} that are {kinds[0]}; save an ordinary tensor of numbers")
    value = value.detach()
    try:
        return value.float() if value.is_floating_point() else value if value.dtype == torch.uint8 else value.long()
    except RuntimeError as error:
        raise UserError(f"RUN: {path} has {what} of type {value.dtype} ({one_line(error)})") from None
