"""Distilled sets of other people in the layout of a run: from the Hub, from image folders, from files of tensors."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.data.class_choice import choose
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
from ld3m.runs import download
from ld3m.runs.folder import EXACT_PIXELS, IMPORTED, is_run, newest, note_classes

IMAGES, LABELS = ("images", "image", "x", "data"), ("labels", "label", "targets", "y")
"""Keys under which other projects keep tensors in a dictionary."""
LARGEST = 50
"""Largest value of a normalised image; distilled images may go far beyond what real ones reach."""


def find_set(names: Sequence[str], recipe: str | None = None, overrides: Sequence[str] = ()) -> Path:
    """The folder of the distilled set that a command line names, with images/, recipe.yaml and what else is known.

    Args:
        names: none for the newest finished run below runs/, else one: a run's folder, `user/name` or `hub:user/name`
            on the Hub (see `download.fetch`), a folder of images by class, or a .pt file.
        recipe: for a set without a recipe: which data it stands for, and how it is measured.
        overrides: of that recipe.

    Raises:
        UserError: if there is no such set, or it does not fit the recipe.
    """
    if len(names) > 1:
        raise UserError(f"RUN: give one run, not {len(names)}: {', '.join(names)}")
    if not names:
        return newest(finished=True)
    name, path = names[0], Path(names[0])
    if is_run(path):
        if (path / "images").is_dir():
            return path
        raise UserError(f"RUN: {path} is not a finished run (it has no images); ld3m distill resumes it")
    if path.is_dir() or path.suffix in (".pt", ".pth"):
        if not path.exists():
            raise UserError(f"RUN: there is no {path}")
        measured = _measured_by(name, recipe, overrides)
        return _import_tensors(path, measured) if path.is_file() else _import_images(name, measured, str(path))
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
    chosen = choose(recipe.data.subset, source.classes, source.aliases, source.subsets)
    return [source.classes[label] for label in chosen], source


def _import_images(name: str, recipe: Recipe, location: str) -> Path:
    """Imports a folder of images by class, or a data set of the Hub; its classes are names, or numbers, of ours."""
    settings = {"source": location, "resolution": recipe.data.resolution, "channels": recipe.data.channels}
    theirs = open_source(DataRecipe.model_validate(settings))
    classes, source = _classes(recipe)
    try:
        ours = [source.classes[label] for label in choose(theirs.classes, source.classes, source.aliases)]
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
    return _write_set(name, recipe, classes, torch.stack(images), torch.tensor(labels))


# --- tensors -----------------------------------------------------------------------------------------------


def _import_tensors(path: Path, recipe: Recipe) -> Path:
    """Imports a file of torch.save: images and labels, in a dictionary or a pair, or labels in a file beside it.

    Nothing pickled is run. Pixels in [0, 1] or uint8 are taken as they are; others are normalised: by the file's own
    mean and std, or, as DC, DSA and MTT save them, by those of the real images.
    """
    images, labels, statistics = _tensors(path, _load(path))
    shape = (recipe.data.channels, recipe.data.resolution, recipe.data.resolution)
    if images.dim() != 4 or tuple(images.shape[1:]) != shape:
        raise UserError(
            f"RUN: {path} has images of shape {list(images.shape)}, not [N, {', '.join(map(str, shape))}]; "
            "set data.channels and data.resolution to theirs"
        )
    if not len(images):
        raise UserError(f"RUN: {path} has no images")
    classes, _ = _classes(recipe)
    if len(labels) != len(images) or labels.dim() != 1 or labels.is_floating_point():
        raise UserError(f"RUN: {path} has labels of shape {list(labels.shape)}, not one class number per image")
    if wrong := [label for label in labels.tolist() if not 0 <= label < len(classes)]:
        raise UserError(f"RUN: {path} has label {wrong[0]}, but the recipe's classes go from 0 to {len(classes) - 1}")
    if images.dtype != torch.uint8:
        images = _pixels(path, images, statistics, recipe)
    return _write_set(path.stem, recipe, classes, images, labels.long())


def _load(path: Path) -> Any:
    """What torch.save wrote, if it is nothing but tensors in lists, tuples and dictionaries."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises nearly anything
        raise UserError(
            f"RUN: {path} cannot be read as tensors alone ({one_line(error)}); save a dictionary of images and labels"
        ) from None


def _tensors(path: Path, content: Any) -> tuple[Tensor, Tensor, tuple[Any, Any] | None]:
    """Images, labels, and mean and std if the file has them."""
    statistics = None
    if isinstance(content, dict):
        if "mean" in content and "std" in content:
            statistics = content["mean"], content["std"]
        images, labels = (
            next((content[name] for name in names if name in content), None) for names in (IMAGES, LABELS)
        )
        pairs = isinstance(images, list) and labels is None  # DC and DSA: data, a list of [images, labels]
        content = images[-1] if pairs and images else (images, labels)
    beside = path.with_name(path.name.replace("images", "labels"))
    if isinstance(content, Tensor) and beside != path and beside.is_file():  # MTT: images_best.pt, labels_best.pt
        content = content, _load(beside)
    if not (
        isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(each, Tensor) for each in content)
    ):
        raise UserError(
            f"RUN: {path} has no images and labels; save a dictionary of them, with mean and std if they are normalised"
        )
    return content[0], content[1], statistics


def _pixels(path: Path, images: Tensor, statistics: tuple[Any, Any] | None, recipe: Recipe) -> Tensor:
    """The images as uint8, or as float32 in units of [0, 1], which distilled pixels may exceed."""
    if not images.isfinite().all():
        raise UserError(f"RUN: {path} has values that are not finite")
    if not images.is_floating_point() and images.min() >= 0 and images.max() <= 255:
        return images.to(torch.uint8)
    if images.abs().max() > LARGEST:
        raise UserError(
            f"RUN: {path} has values to {images.abs().max():g}: neither bytes, nor pixels in [0, 1], nor normalised; "
            "save uint8, or floats divided by 255"
        )
    images = images.float()
    if statistics is None:
        if images.min() >= 0 and images.max() <= 1:
            return images
        real = prepare(recipe.data)
        statistics = real.mean, real.std
        print(f"{path}: normalised, taken to be by mean and std of {recipe.data.source}", file=sys.stderr)
    mean, std = (torch.as_tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in statistics)
    return images * std + mean


# --- the folder --------------------------------------------------------------------------------------------


def _write_set(name: str, recipe: Recipe, classes: list[str], images: Tensor, labels: Tensor) -> Path:
    """Writes a set in the layout of a run, in the order of its classes; accuracies of the same set stay.

    Args:
        name: of the set.
        recipe: whose data the set stands for.
        classes: that the recipe chooses.
        images: [N, channels, H, W], uint8, or float32 in units of [0, 1].
        labels: int64 [N], of `classes`.
    """
    if missing := [each for label, each in enumerate(classes) if label not in labels]:
        raise UserError(f"RUN: {name} has no images of class {missing[0]!r}; leave it out by data.subset")
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
    distilled = recipe.distill.model_copy(update={"images_per_class": fewest, "factor": 1, "iterations": 0})
    named = recipe.model_copy(update={"name": folder.name, "output": str(folder), "distill": distilled})
    write_text(folder / "recipe.yaml", to_yaml(named))
    return folder
