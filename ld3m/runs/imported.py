"""Distilled sets of other people in the layout of a run: from the Hub, from image folders, from files of tensors."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.data import class_matching
from ld3m.data.class_choice import choose_from
from ld3m.data.class_matching import Order
from ld3m.data.decoding.decode import convert
from ld3m.data.examples import Source
from ld3m.data.prepared import prepare
from ld3m.data.sources import open_source
from ld3m.errors import UserError, classes_text, one_line, visible
from ld3m.files import tensors_digest, write_folder, write_json, write_tensors, write_text
from ld3m.images.grids import shown, to_image, write_grid
from ld3m.images.ranges import bytes_to_unit, unit_to_bytes
from ld3m.recipe import DataRecipe, Recipe
from ld3m.recipe.files import load, to_yaml
from ld3m.runs import download, foreign_tensors, weights
from ld3m.runs import labels as stored
from ld3m.runs.folder import CLASS_ORDER, EXACT_PIXELS, IMPORTED, is_run, newest, note_classes
from ld3m.runs.options import Reading
from ld3m.runs.pixel_values import to_pixels
from ld3m.runs.training_set import stored_digest


def _order(reading: Reading, beside: Path, theirs: Sequence[str]) -> Order | None:
    """The order of a set's classes: as said, else, if it numbers them, of a file that lies with it."""
    if reading.by_position:
        return Order("--by-position", None)
    if reading.class_order:
        return class_matching.read_order(Path(reading.class_order))
    lies_there = class_matching.class_numbers(theirs) and (beside / CLASS_ORDER).is_file()
    return class_matching.read_order(beside / CLASS_ORDER)._replace(said_by=CLASS_ORDER) if lies_there else None


def find_set(
    names: Sequence[str], recipe: str | None = None, overrides: Sequence[str] = (), reading: Reading | None = None
) -> Path:
    """The folder of the distilled set that a command line names, with images/, recipe.yaml and what else is known.

    Args:
        names: none for the newest finished run below runs/, else one: a run's folder, `user/name` or `hub:user/name`
            on the Hub (see `download.fetch`), a folder of images by class, or a .pt or .npz file or a folder of these.
        recipe: for a set without a recipe: which data it stands for, and how it is measured.

    Raises:
        UserError: if there is no such set, or it does not fit the recipe.
    """
    reading = reading or Reading()
    if len(names) > 1:
        raise UserError(f"RUN: give one run, not {len(names)}: {', '.join(names)}")
    if not names:
        return newest(finished=True)
    name, path = names[0], Path(names[0])
    if is_run(path):
        if (path / "images").is_dir():
            return path
        raise UserError(f"RUN: {path} is not a finished run (it has no images); ld3m distill resumes it")
    tensors = foreign_tensors.tensor_files(path)
    if path.is_dir() or tensors:
        if not path.exists():
            raise UserError(f"RUN: there is no {path}")
        measured = _measured_by(name, recipe, overrides)
        if tensors:
            return _import_tensors(tensors, measured, reading)
        return _import_images(name, measured, str(path), reading)
    is_mistyped_folder = not name.startswith("hub:") and path.parent != Path() and path.parent.is_dir()
    if download.NAME.fullmatch(name.removeprefix("hub:")) and not is_mistyped_folder:
        name = name.removeprefix("hub:")
        if fetched := download.fetch(name):
            return fetched
        return _import_images(name, _measured_by(name, recipe, overrides), f"hub:{name}", reading)
    missing = f"{name} is no set" if path.exists() else f"there is no {name}"
    raise UserError(f"RUN: {missing}; give a run's folder, hub:USER/NAME, an image folder or a .pt file")


def _measured_by(name: str, recipe: str | None, overrides: Sequence[str]) -> Recipe:
    if recipe is None:
        raise UserError(
            f"RUN: {name} has no recipe of its own; give one that says which data it stands for and how it is "
            "measured: --recipe fashion-mnist"
        )
    return load(Recipe, recipe, list(overrides))


@dataclass(frozen=True)
class _Classes:
    """The classes that a recipe chooses, and which of them a set's classes are."""

    names: list[str]
    source: Source
    matched: class_matching.Matched
    positions: Mapping[int, int]
    """Of each class of the set by its position there, that among `names`, unless the recipe leaves it out."""

    @classmethod
    def of(cls, name: str, theirs: Sequence[str], recipe: Recipe, beside: Path, reading: Reading) -> "_Classes":
        source = open_source(recipe.data)
        chosen = choose_from(source, recipe.data.subset)
        try:
            matched = class_matching.match(theirs, source, chosen, _order(reading, beside, theirs))
        except UserError as error:
            raise UserError(f"RUN: {name}: {error.lines[0]}") from None
        places = {number: place for place, number in enumerate(chosen)}
        positions = {index: places[number] for index, number in enumerate(matched.numbers) if number in places}
        return cls([source.classes[number] for number in chosen], source, matched, positions)

    def require_all(self, name: str, labels: Tensor) -> None:
        """Checks that a set has images of all classes."""
        if missing := [each for label, each in enumerate(self.names) if label not in labels]:
            absent = classes_text(missing)
            raise UserError(f"RUN: {name} has no images of {absent}; leave out what it lacks by data.subset")

    def say(self, name: str) -> None:
        """Says how classes were matched."""
        print(visible(f"{name}: {self.matched.text}"), file=sys.stderr)


def _import_images(name: str, recipe: Recipe, location: str, reading: Reading) -> Path:
    """Imports a folder of images by class, or a data set of the Hub."""
    settings = {"source": location, "resolution": recipe.data.resolution, "channels": recipe.data.channels}
    theirs = open_source(DataRecipe.model_validate(settings))
    classes = _Classes.of(name, theirs.classes, recipe, Path(location), reading)
    images, labels, numbers, examples = [], [], [], theirs.splits["train"]
    if not len(examples):
        raise UserError(f"RUN: {name} has no images")
    sizes: dict[tuple[int, int], str] = {}
    for example in (examples[index] for index in range(len(examples))):
        try:
            with example.read() as image:
                sizes.setdefault(image.size, example.name)
                images.append(torch.from_numpy(convert(image, recipe.data.resolution, recipe.data.channels).copy()))
        except Exception as error:  # decoders raise nearly anything
            raise UserError(f"RUN: {example.name} cannot be read ({one_line(error)})") from None
        if example.label not in classes.positions:
            ours = classes.source.classes[classes.matched.numbers[example.label]]
            raise UserError(f"RUN: {example.name} is of class {ours!r}, which the recipe leaves out")
        labels.append(classes.positions[example.label])
        numbers.append(example.label)
    resized = _resized(sizes, recipe)
    classes.require_all(name, torch.tensor(labels))
    classes.say(name)
    if resized:
        print(f"{name}: {resized}", file=sys.stderr)
    counted = _weights(Path(location), theirs.classes, numbers)
    return _write_set(name, recipe, classes, torch.stack(images), torch.tensor(labels), counted)


def _resized(sizes: Mapping[tuple[int, int], str], recipe: Recipe) -> str | None:
    """What was done about images of another size: those of one larger size become smaller as real ones do.

    Raises:
        UserError: for images of several sizes, small ones, and larger ones that hold several each.
    """
    resolution = recipe.data.resolution
    if not (others := {size: example for size, example in sizes.items() if size != (resolution,) * 2}):
        return None
    size, example = next(iter(others.items()))
    text = " × ".join(map(str, size))
    if len(sizes) > 1 or min(size) < resolution or recipe.distill.factor > 1:
        raise UserError(f"RUN: {example} has {text} pixels, not data.resolution={resolution}")
    return f"images of {text} pixels are resized to data.resolution={resolution}, as real images are"


# --- tensors -----------------------------------------------------------------------------------------------


def _import_tensors(path: Path, recipe: Recipe, reading: Reading) -> Path:
    """Imports files of torch.save or np.savez."""
    found = foreign_tensors.read(path)
    shape = (recipe.data.channels, recipe.data.resolution, recipe.data.resolution)
    images = found.images
    if images.dim() == 4 and tuple(images.shape[1:]) == (*shape[1:], shape[0]) != shape:  # as JAX and TensorFlow do
        images = images.permute(0, 3, 1, 2).contiguous()
    if images.dim() == 3 and shape[0] == 1:
        images = images[:, None]
    side, factor = images.shape[-1] if images.dim() else 0, recipe.distill.factor
    padding = shape[-1] - side if factor > 1 and -(-side // factor) * factor == shape[-1] else 0
    if images.dim() != 4 or tuple(images.shape[1:]) != (shape[0], shape[1] - padding, shape[2] - padding):
        raise UserError(
            f"RUN: {path} has images of shape {list(images.shape)}, not [N, {', '.join(map(str, shape))}]; "
            "set data.channels and data.resolution to theirs"
        )
    if not len(images):
        raise UserError(f"RUN: {path} has no images")
    labels, said = _hard(path, found.labels, len(images))
    learnt = found.labels if said else None
    numbers = sorted(set(labels.tolist()))
    if numbers[0] < 0:
        count = len(choose_from(open_source(recipe.data), recipe.data.subset))
        raise UserError(f"RUN: {path} has label {numbers[0]}, but the recipe's classes go from 0 to {count - 1}")
    theirs = found.classes or [str(number) for number in numbers]
    if found.classes and numbers[-1] >= len(found.classes):
        raise UserError(f"RUN: {path} has label {numbers[-1]}, but names {len(found.classes)} classes")
    classes = _Classes.of(str(path), theirs, recipe, path if path.is_dir() else path.parent, reading)
    places = {number: index if found.classes is None else number for index, number in enumerate(numbers)}
    if outside := [number for number, index in places.items() if index not in classes.positions]:
        ours = classes.source.classes[classes.matched.numbers[places[outside[0]]]]
        raise UserError(f"RUN: {path} has images of class {ours!r}, which the recipe leaves out")
    counted = _weights(path if path.is_dir() else path.parent, theirs, [places[number] for number in labels.tolist()])
    labels = torch.tensor([classes.positions[places[number]] for number in labels.tolist()])
    classes.require_all(str(path), labels)
    if learnt is not None and (counted is not None or factor > 1 or learnt.shape[1] != len(numbers)):
        learnt, said = None, f"{said}, and not trained with it, which its authors do: expect less than they published"
    elif learnt is not None:
        learnt = learnt[:, sorted(range(len(numbers)), key=lambda index: classes.positions[index])].float()
        way = "soft_loss=squared" if found.code == "frepo" else "temperature=1"
        said += f", and its soft label is kept: evaluate.labels=soft evaluate.{way} trains with it"
    images = to_pixels(path, found._replace(images=images), lambda: prepare(recipe.data), reading.pixels)
    classes.say(str(path))
    if padding:
        said = f"{said}; " * bool(said) + f"padded by {padding} grey pixels to {shape[-1]}, as IDC's decode_zoom does"
        grey = 0.5 if images.is_floating_point() else 128
        images = functional.pad(images, (0, padding, 0, padding), value=grey)
    if said:
        print(f"{path}: {said}", file=sys.stderr)
    return _write_set(path.stem, recipe, classes, images, labels, counted, learnt)


def _hard(path: Path, labels: Tensor, count: int) -> tuple[Tensor, str]:
    """A class number per image, int64 [N], and what was made of soft labels, if they are that."""
    said = ""
    if labels.dim() == 2 and labels.shape[1] > 1 and len(labels) == count:
        said = f"soft labels of {labels.shape[1]} classes; each image counts as of the class of its largest value"
        labels = labels.argmax(1)
    labels = labels.flatten() if labels.shape == (count, 1) else labels
    if labels.is_floating_point() and torch.equal(labels, labels.round()):
        labels = labels.long()
    if len(labels) != count or labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            f"RUN: {path} has labels of shape {list(labels.shape)}, not one class number per image, nor a row of soft "
            "labels"
        )
    return labels.long(), said


# --- the folder --------------------------------------------------------------------------------------------


def _weights(beside: Path, theirs: Sequence[str], labels: Sequence[int]) -> Tensor | None:
    """Weights of a set's images, [N] float64, if weights.json lies beside them.

    Args:
        theirs: names of the set's classes, by which the file has a list each, in the order of the images of the class.
        labels: of the images, numbers of these classes.
    """
    found = weights.read(beside, {name: labels.count(index) for index, name in enumerate(theirs)})
    if found is None:
        return None
    left = [iter(found[name]) for name in theirs]
    return torch.tensor([next(left[label]) for label in labels], dtype=torch.float64)


def _write_set(
    name: str, recipe: Recipe, matched: _Classes, images: Tensor, labels: Tensor, counted: Tensor | None = None,
    learnt: Tensor | None = None,
) -> Path:  # fmt: skip
    """Writes a set in the layout of a run, in the order of its classes; accuracies of the same set stay.

    Args:
        matched: the classes that the recipe chooses, and how the set's were matched.
        images: [N, channels, H, W], uint8, or float32 in units of [0, 1].
        labels: int64 [N], of these classes.
        counted: weights of the images, [N]; None: all count the same.
        learnt: soft labels that were learnt with them, logits float32 [N, classes].
    """
    classes = matched.names
    order = labels.argsort(stable=True)
    own = None if counted is None else counted[order]
    images, labels = images[order], labels[order]
    soft = None if learnt is None else learnt[order]
    described = [classes, labels.tolist(), *(each.tolist() for each in (own, soft) if each is not None)]
    content = images.numpy().tobytes() + json.dumps(described).encode()
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
        if own is not None:
            weights.write(target, {each: own[labels == label].tolist() for label, each in enumerate(classes)})
        note_classes(target, {each: label for label, each in enumerate(classes)})

    if not folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder, fill)
    about = {"sha256": hashlib.sha256(content).hexdigest(), "classes": matched.matched.text}
    write_json(folder / "origin.json", {"source": name, **about})  # how it is read this time
    fewest = int(torch.bincount(labels).min())
    made = {"distill.images_per_class": fewest, "distill.iterations": 0}
    named = recipe.changed({"name": folder.name, "output": str(folder), **made})
    write_text(folder / "recipe.yaml", to_yaml(named))
    if soft is not None:
        _keep_learnt(folder, classes, soft)
    return folder


def _keep_learnt(folder: Path, classes: list[str], logits: Tensor) -> None:
    """Stores labels that were learnt with a set's images as `ld3m label` stores a teacher's, one for each image."""
    note = stored.Note(
        teacher=stored.LEARNT, weights=tensors_digest({"logits": logits})[:16], classes=classes,
        content=stored_digest(folder), images=len(logits), epochs=0, dtype="float32", temperature=1,
    )  # fmt: skip
    if stored.has_labels(folder) and stored.read_note(folder) == note and not stored.missing(folder, note):
        return
    stored.write_note(folder, note)
    stored.write_view(folder, note, 0, logits)
