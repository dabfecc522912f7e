"""Distilled sets of other people in the layout of a run: from the Hub, from image folders, from files of tensors."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ld3m.data.class_choice import choose, choose_from
from ld3m.data.decode import convert
from ld3m.data.examples import Source
from ld3m.data.prepared import prepare
from ld3m.data.sources import open_source
from ld3m.errors import UserError, one_line
from ld3m.files import write_folder, write_json, write_tensors, write_text
from ld3m.images.grids import shown, to_image, write_grid
from ld3m.images.ranges import bytes_to_unit, unit_to_bytes
from ld3m.recipe import DataRecipe, Recipe
from ld3m.recipe.files import load, to_yaml
from ld3m.runs import download, foreign_tensors
from ld3m.runs.folder import EXACT_PIXELS, IMPORTED, is_run, newest, note_classes


def find_set(
    names: Sequence[str], recipe: str | None = None, overrides: Sequence[str] = (), pixels: str | None = None
) -> Path:
    """The folder of the distilled set that a command line names, with images/, recipe.yaml and what else is known.

    Args:
        names: none for the newest finished run below runs/, else one: a run's folder, `user/name` or `hub:user/name`
            on the Hub (see `download.fetch`), a folder of images by class, or a .pt file or a folder of these.
        recipe: for a set without a recipe: which data it stands for, and how it is measured.
        overrides: of that recipe.
        pixels: what the floats of a .pt file mean, of `foreign_tensors.PIXELS`; None to judge by their spread.

    Raises:
        UserError: if there is no such set, or it does not fit the recipe.
    """
    if pixels is not None and pixels not in foreign_tensors.PIXELS:
        raise UserError(f"--pixels: {pixels!r} is not known; give {', '.join(foreign_tensors.PIXELS)}")
    if len(names) > 1:
        raise UserError(f"RUN: give one run, not {len(names)}: {', '.join(names)}")
    if not names:
        return newest(finished=True)
    name, path = names[0], Path(names[0])
    if is_run(path):
        if (path / "images").is_dir():
            return path
        raise UserError(f"RUN: {path} is not a finished run (it has no images); ld3m distill resumes it")
    if path.is_dir() or foreign_tensors.is_tensor_file(path):
        if not path.exists():
            raise UserError(f"RUN: there is no {path}")
        measured = _measured_by(name, recipe, overrides)
        if foreign_tensors.is_tensor_file(path):
            return _import_tensors(path, measured, pixels)
        return _import_images(name, measured, str(path))
    is_mistyped_folder = not name.startswith("hub:") and path.parent != Path() and path.parent.is_dir()
    if download.NAME.fullmatch(name.removeprefix("hub:")) and not is_mistyped_folder:
        name = name.removeprefix("hub:")
        return download.fetch(name) or _import_images(name, _measured_by(name, recipe, overrides), f"hub:{name}")
    raise UserError(f"RUN: there is no {name}; give a run's folder, hub:USER/NAME, an image folder or a .pt file")


def _measured_by(name: str, recipe: str | None, overrides: Sequence[str]) -> Recipe:
    if recipe is None:
        raise UserError(
            f"RUN: {name} has no recipe of its own; give one that says which data it stands for and how it is "
            "measured: --recipe fashion-mnist"
        )
    return load(Recipe, recipe, list(overrides))


def _classes(recipe: Recipe) -> tuple[list[str], Source]:
    """The classes that a recipe chooses, and the source of its data."""
    source = open_source(recipe.data)
    chosen = choose_from(source, recipe.data.subset)
    return [source.classes[label] for label in chosen], source


def _ours(theirs: Sequence[str], source: Source) -> list[int]:
    """The numbers of their classes among ours, by name, or by the number that all names end in."""
    try:
        return choose(theirs, source.classes, source.aliases)
    except UserError:
        numbers = foreign_tensors.class_numbers(theirs)
        if numbers is None or max(map(int, numbers)) >= len(source.classes) or len(set(numbers)) < len(numbers):
            raise
    first, last = min(numbers, key=int), max(numbers, key=int)
    print(f"classes: {theirs[0]}, … are taken as the numbers {first} to {last} of the source's", file=sys.stderr)
    return [int(number) for number in numbers]


def _import_images(name: str, recipe: Recipe, location: str) -> Path:
    """Imports a folder of images by class, or a data set of the Hub; its classes are names, or numbers, of ours."""
    settings = {"source": location, "resolution": recipe.data.resolution, "channels": recipe.data.channels}
    theirs = open_source(DataRecipe.model_validate(settings))
    classes, source = _classes(recipe)
    try:
        ours = [source.classes[label] for label in _ours(theirs.classes, source)]
    except UserError as error:
        raise UserError(f"RUN: {name}: {error.lines[0].removeprefix('data.subset: ')}") from None
    images, labels, examples = [], [], theirs.splits["train"]
    if not len(examples):
        raise UserError(f"RUN: {name} has no images")
    for example in (examples[index] for index in range(len(examples))):
        try:
            with example.read() as image:
                size, pixels = image.size, convert(image, recipe.data.resolution, recipe.data.channels)
        except Exception as error:  # decoders raise nearly anything
            raise UserError(f"RUN: {example.name} cannot be read ({one_line(error)})") from None
        if size != (recipe.data.resolution,) * 2:
            pixels_text = " × ".join(map(str, size))
            raise UserError(
                f"RUN: {example.name} has {pixels_text} pixels, not data.resolution={recipe.data.resolution}"
            )
        images.append(torch.from_numpy(pixels.copy()))
        if ours[example.label] not in classes:
            raise UserError(f"RUN: {example.name} is of class {ours[example.label]!r}, which the recipe leaves out")
        labels.append(classes.index(ours[example.label]))
    _require_all(name, classes, torch.tensor(labels))
    return _write_set(name, recipe, classes, torch.stack(images), torch.tensor(labels))


# --- tensors -----------------------------------------------------------------------------------------------


def _import_tensors(path: Path, recipe: Recipe, pixels: str | None) -> Path:
    """Imports files of torch.save."""
    found = foreign_tensors.read(path)
    shape = (recipe.data.channels, recipe.data.resolution, recipe.data.resolution)
    images, labels = found.images, found.labels
    if images.dim() != 4 or tuple(images.shape[1:]) != shape:
        raise UserError(
            f"RUN: {path} has images of shape {list(images.shape)}, not [N, {', '.join(map(str, shape))}]; "
            "set data.channels and data.resolution to theirs"
        )
    if not len(images):
        raise UserError(f"RUN: {path} has no images")
    classes, _ = _classes(recipe)
    if len(labels) != len(images) or labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            f"RUN: {path} has labels of shape {list(labels.shape)}, not one class number per image; soft labels are "
            "not supported"
        )
    if wrong := [label for label in labels.tolist() if not 0 <= label < len(classes)]:
        raise UserError(f"RUN: {path} has label {wrong[0]}, but the recipe's classes go from 0 to {len(classes) - 1}")
    _require_all(str(path), classes, labels)
    images = foreign_tensors.to_pixels(path, found, lambda: prepare(recipe.data), pixels)
    return _write_set(path.stem, recipe, classes, images, labels.long())


# --- the folder --------------------------------------------------------------------------------------------


def _require_all(name: str, classes: list[str], labels: Tensor) -> None:
    """Checks that a set has images of all classes."""
    if missing := [each for label, each in enumerate(classes) if label not in labels]:
        raise UserError(f"RUN: {name} has no images of class {missing[0]!r}; leave it out by data.subset")


def _write_set(name: str, recipe: Recipe, classes: list[str], images: Tensor, labels: Tensor) -> Path:
    """Writes a set in the layout of a run, in the order of its classes; accuracies of the same set stay.

    Args:
        name: of the set.
        recipe: whose data the set stands for.
        classes: that the recipe chooses.
        images: [N, channels, H, W], uint8, or float32 in units of [0, 1].
        labels: int64 [N], of `classes`.
    """
    order = labels.argsort(stable=True)
    images, labels = images[order], labels[order]
    content = images.numpy().tobytes() + json.dumps([classes, labels.tolist()]).encode()
    digest = hashlib.sha256(content).hexdigest()[:8]
    folder = IMPORTED / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-._') or 'set'}-{digest}"

    def fill(target: Path) -> None:
        rounded = images if images.dtype == torch.uint8 else unit_to_bytes(images)
        for label, each in enumerate(classes):
            (target / "images" / each).mkdir(parents=True)
            for index, image in enumerate(rounded[labels == label]):
                to_image(image).save(target / "images" / each / f"{index}.png")
        if not torch.equal(bytes_to_unit(images), bytes_to_unit(rounded)):
            write_tensors(target / EXACT_PIXELS, {"images": images})
        by_class = [rounded[labels == label] for label in range(len(classes))]
        count, least = shown(len(classes), min(map(len, by_class)))
        write_grid(target, torch.stack([of_class[:least] for of_class in by_class[:count]]), classes)
        note_classes(target, {each: label for label, each in enumerate(classes)})
        write_json(target / "origin.json", {"source": name, "sha256": hashlib.sha256(content).hexdigest()})

    if not folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder, fill)
    fewest = int(torch.bincount(labels).min())
    distilled = recipe.distill.model_copy(update={"images_per_class": fewest, "iterations": 0})
    named = recipe.model_copy(update={"name": folder.name, "output": str(folder), "distill": distilled})
    write_text(folder / "recipe.yaml", to_yaml(named))
    return folder
