"""Sets in the layouts that other projects read: class folders, RDED's, rethinkdc's, and IDC's data.pt."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ld3m.data.known import imagenet
from ld3m.errors import UserError, some
from ld3m.files import writable, write_folder
from ld3m.images.ranges import bytes_to_unit
from ld3m.recipe import Recipe
from ld3m.runs import weights
from ld3m.runs.folder import CLASS_ORDER, EXACT_PIXELS, classes, image_paths, is_run, load_recipe
from ld3m.runs.result import read_image, read_images


class _Set(NamedTuple):
    """What is exported."""

    folder: Path
    recipe: Recipe
    names: Sequence[str]
    """Of the classes, in the recipe's order."""
    ids: Sequence[str]
    """Their WordNet ids if the images are ImageNet's, else their names: what other projects call their folders."""

    def images(self, name: str) -> list[Path]:
        """The PNGs of a class, each read once, so that no damaged one is passed on."""
        paths = image_paths(self.folder, name)
        for path in paths:
            read_image(path, self.recipe.data.channels, self.recipe.data.resolution)
        return paths


Files = Mapping[str, bytes | Path]
"""What a layout consists of, by path below the folder: contents, or the files to copy."""


def _folder(exported: _Set) -> Files:
    """`<class>/00000.png`, by WordNet id for ImageNet: torchvision's ImageFolder, Minimax and its successors."""
    return {
        f"{called}/{index:05d}.png": path
        for name, called in zip(exported.names, exported.ids, strict=True)
        for index, path in enumerate(exported.images(name))
    }


def _rethinkdc(exported: _Set) -> Files:
    """`<class>/<class>_00000.png` and nothing beside the class folders: `ImageFolderIPC` of rethinkdc/imagenet_ipc.py.

    It takes the first images of each class by name, and numbers classes by their folders' order, as those of the
    validation images; it looks for images in whatever lies in the folder.
    """
    return {"{0}/{0}_{1}".format(*name.split("/")): path for name, path in _folder(exported).items()}


def _rded(exported: _Set) -> Files:
    """`00000/class00000_id00000.png`, numbered by the recipe's order: `ImageFolder` of RDED's validation/utils.py.

    RDED writes JPEG, which would lose some of the pixels, and reads either.
    """
    numbered = {
        f"{label:05d}/class{label:05d}_id{index:05d}.png": path
        for label, name in enumerate(exported.names)
        for index, path in enumerate(exported.images(name))
    }
    return {**numbered, CLASS_ORDER: _order(exported)}


def _pt(exported: _Set) -> Files:
    """`data.pt`, the list [images, labels] of float32 in [0, 1] and int64, as IDC's condense.py and test.py have it."""
    data = exported.recipe.data
    images, labels = read_images(exported.folder, exported.names, data.channels, data.resolution)
    content = io.BytesIO()
    torch.save([bytes_to_unit(images), labels], content)
    return {"data.pt": content.getvalue(), CLASS_ORDER: _order(exported)}


def _weights(exported: _Set, layout: str) -> Files:
    """`weights.json`, by class as the layout calls it, in the order of its images there; {} if all count the same."""
    found = weights.of_run(exported.folder, exported.names)
    if found is None:
        return {}
    if layout == "rethinkdc":
        print(f"--as rethinkdc: {weights.text(found)}, which this layout has no place for", file=sys.stderr)
        return {}
    numbers = {"rded": "{:05d}", "pt": "{}"}.get(layout)
    called = [numbers.format(label) for label in range(len(exported.names))] if numbers else exported.ids
    by_class = {each: list(found[name]) for each, name in zip(called, exported.names, strict=True)}
    return {weights.FILE: json.dumps(by_class, indent=1, ensure_ascii=False).encode()}


def _order(exported: _Set) -> bytes:
    return "".join(f"{called}\n" for called in exported.ids).encode()


LAYOUTS: dict[str, Callable[[_Set], Files]] = {
    "folder": _folder,
    "rded": _rded,
    "rethinkdc": _rethinkdc,
    "pt": _pt,
}
"""The layouts by the names of `--as`."""


def export(folder: Path, layout: str, output: Path | None = None) -> Path:
    """Writes a set in a layout, whole or not at all; what an earlier export wrote there is replaced.

    Args:
        folder: of a finished run, or an imported set.
        output: the folder to write; by default export/LAYOUT in the run's.

    Returns:
        The folder.

    Raises:
        UserError: for an unknown layout, a damaged run, or a folder that holds anything else.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--as: {layout!r} is not known; give {', '.join(LAYOUTS)}")
    recipe, names = load_recipe(folder), classes(folder)
    by_name = {each.name: each.wordnet_id for each in imagenet.classes()} if recipe.data.source == "imagenet" else {}
    exported = _Set(folder, recipe, names, [by_name.get(name, name) for name in names])
    if missing := [name for name in names if not image_paths(folder, name)]:
        raise UserError(f"RUN: {folder / 'images' / missing[0]} has no images; ld3m render makes them from the latents")
    files = {**LAYOUTS[layout](exported), **_weights(exported, layout)}
    target = output or folder / "export" / layout
    _check_target(target, files)
    writable(target.absolute().parent, "give --output FOLDER")

    def fill(temporary: Path) -> None:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
        if target.exists():  # now that the new one is whole
            shutil.rmtree(target)

    write_folder(target, fill)
    if layout != "pt" and (folder / EXACT_PIXELS).is_file():
        print(
            f"{target}: the set's pixels have more than 8 bits, which PNGs round; --as pt keeps them", file=sys.stderr
        )
    return target


def _check_target(target: Path, files: Files) -> None:
    """That a folder is not there, is empty, or holds what an earlier export of this kind wrote."""
    if not target.exists() and not target.is_symlink():
        return
    if is_run(target):
        raise UserError(f"--output: {target} is a run; give a folder of your own")
    if target.is_symlink() or not target.is_dir():
        raise UserError(f"--output: {target} is {'a link' if target.is_symlink() else 'a file'}; give a folder")
    there = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir())
    if foreign := [name for name in there if name not in files]:
        raise UserError(
            f"--output: {target} holds what this export would not write ({some(foreign, 2)}); give another folder, or "
            "remove it"
        )
