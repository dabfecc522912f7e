"""Finds the teacher that a recipe names, matches its classes to the set's, and tests it before it labels anything."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from ld3m import networks
from ld3m.data.class_matching import by_name
from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet
from ld3m.data.testing import is_permuted, tested
from ld3m.errors import UserError, some
from ld3m.files import ANOTHER_CACHE, cache_folder, cache_key, tensors_digest, writable, write_json
from ld3m.machine.lock import hold
from ld3m.networks import Shape
from ld3m.networks.speed import quick_on_cpus
from ld3m.priors.checkpoints import check_values, read_checkpoint
from ld3m.reading import parse_json, read_json, read_metadata
from ld3m.recipe import NetworkRecipe, Recipe, TeacherRecipe
from ld3m.recipe.class_lists import is_class_list, read_class_list
from ld3m.teachers import pretrained
from ld3m.teachers.folder import is_teacher, read_classifier, read_note
from ld3m.teachers.pretrained import IMAGENET_MEAN, IMAGENET_STD, TIMM, TORCHVISION, imagenet_ids
from ld3m.teachers.teacher import Classifier, Teacher

STORED = "stored"
"""`teacher.source` for the labels that are stored with a set, which need no teacher."""
BY_POSITION = "by-position"
"""`teacher.classes` for those of the real images in their order."""
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""How names of files of weights end."""
PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
"""What wrappers put before the names of all weights."""
UNUSUAL = 7919
"""Outputs by which a network's last layer is found; no layer inside has as many."""
LAYOUT = 1
"""Version of how teachers are tested; part of the key under which their accuracy is kept."""
LOOK_AT = (
    "look at the order of its classes (teacher.classes), its normalisation (teacher.mean, teacher.std) and its size "
    "(teacher.resolution), or train it longer"
)


def load(recipe: Recipe, images: ImageSet, device: torch.device, say: bool = True) -> Teacher:
    """The teacher of a recipe, tested on the real test images.

    Args:
        images: the real images of the set, whose classes it must know.
        say: whether to print what was matched and assumed, and how good it is.

    Raises:
        UserError: if there is none, it is damaged, does not know a class, cannot see the images, or is no better than
            guessing.
    """
    found = _classifier(recipe, images)
    if recipe.teacher.resolution:
        found = replace(found, resolution=recipe.teacher.resolution)
    columns, matched = _columns(found, images)
    if len(images.mean) not in (1, len(found.mean)):
        raise UserError(
            f"teacher.source: {found.name} sees grey images, and data.channels is {len(images.mean)}; give another "
            "teacher, or train one of these images: ld3m train-teacher"
        )
    found.network.to(device).eval().requires_grad_(False)
    if device.type == "cpu":  # ConvNets and ResNets take 0.83 to 0.97 of the time, and round otherwise
        quick_on_cpus(found.network)
    teacher = _tested(Teacher(found, images, columns), device)
    if say:
        notes = [*teacher.classifier.notes, matched]
        if images.resolution != found.resolution:
            notes.append(f"images of {images.resolution} pixels are resized to {found.resolution}")
        count = sum(images.counts[images.judging])
        notes.append(f"{teacher.accuracy:.1f} % of {count:,} {images.judging} images are classified correctly")
        print(f"teacher {found.name}: {'; '.join(notes)}", file=sys.stderr)
    return teacher


def check_source(recipe: Recipe) -> None:
    """Checks that there is something by the name of a recipe's teacher, and the library that has it; loads nothing.

    Raises:
        UserError: if there is not, or its training is unfinished.
    """
    source = recipe.teacher.source
    if source and source.startswith((TORCHVISION, TIMM)):
        pretrained.check_library(source)
        return
    path = folder_of(recipe)
    if is_teacher(path) or path.is_file():
        return
    instead = "give torchvision/<model>, timm/<model>, a folder of ld3m train-teacher, or a .pt or .safetensors file"
    if path.is_dir():
        begun = (path / "training").is_dir()
        what = "is unfinished; the command that began it resumes" if begun else "has no teacher.json"
        raise UserError(f"teacher.source: {path} {what}; or {instead}")
    if source is None:
        raise UserError(
            f"teacher.source: there is no teacher in {path}; ld3m train-teacher with the same recipe trains one, or "
            f"{instead}"
        )
    raise UserError(f"teacher.source: there is no {source!r}; {instead}")


def folder_of(recipe: Recipe) -> Path:
    """The folder that `ld3m train-teacher` writes for a recipe, and that a recipe takes which names no teacher."""
    return Path(recipe.teacher.source or f"teachers/{recipe.name}")


def is_named(recipe: Recipe, about: Mapping[str, Any]) -> bool:
    """Whether a recipe names the teacher of a row of results, as far as that is known without loading it.

    Args:
        about: as `Teacher.about` has it, or stored labels' note.
    """
    source, name = recipe.teacher.source, str(about["teacher"])
    if about.get("stored"):
        return source in (None, STORED)
    if source and source.startswith((TORCHVISION, TIMM)):
        return name.partition("@")[0] == source or name == source
    path = folder_of(recipe)
    if is_teacher(path):
        return read_note(path).sha256.startswith(about["weights"])
    return name == f"{path.name} ({recipe.teacher.arch})"


# --- what a recipe names -----------------------------------------------------------------------------------


def _classifier(recipe: Recipe, images: ImageSet) -> Classifier:
    settings, source = recipe.teacher, recipe.teacher.source
    if source and source.startswith(TORCHVISION):
        return pretrained.torchvision_classifier(source)
    if source and source.startswith(TIMM):
        return pretrained.timm_classifier(source, _named_classes(settings))
    check_source(recipe)
    path = folder_of(recipe)
    return read_classifier(path) if is_teacher(path) else _from_file(path, settings, images)


def _named_classes(settings: TeacherRecipe) -> list[str] | None:
    """The classes of the outputs that the user gives, if any; `BY_POSITION` is nobody's name."""
    if settings.classes is None or settings.classes == BY_POSITION:
        return None
    if isinstance(settings.classes, list):
        return settings.classes
    if not is_class_list(settings.classes):
        raise UserError(
            f"teacher.classes: {settings.classes!r} is invalid: give a list of names, a .txt or .json file of one, or "
            f"{BY_POSITION}"
        )
    try:
        return [str(each) for each in read_class_list(Path(settings.classes))]
    except UserError as error:
        raise UserError(f"teacher.classes: {error}") from None


def _from_file(path: Path, settings: TeacherRecipe, images: ImageSet) -> Classifier:
    """The classifier whose weights a file has."""
    try:
        weights = _bare(read_checkpoint(path).weights)
        check_values({name: value for name, value in weights.items() if value.is_floating_point()})
    except UserError as error:
        raise UserError(f"teacher.source: {error}") from None
    size = settings.resolution or images.resolution
    shape = _shape_of(settings, weights, size)
    network = _filled(settings, shape, weights, path)
    outputs, channels = shape.classes, shape.channels
    classes, notes = _classes_of_file(path, settings, outputs, images)
    like_imagenet = outputs == len(imagenet_ids()) and channels == 3
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if like_imagenet else (images.mean.tolist(), images.std.tolist())
    if settings.mean is None or settings.std is None:
        whose = "ImageNet's" if like_imagenet else "the training images'"
        notes.append(f"it is taken to be normalised by {whose} mean and std (teacher.mean, teacher.std)")
    else:
        mean, std = settings.mean, settings.std
    if len(mean) not in (1, channels):
        raise UserError(
            f"teacher.mean: {list(mean)} is for {len(mean)} channels, and {path} has weights for {channels}"
        )
    return Classifier(
        name=f"{path.name} ({settings.arch})",
        network=network,
        classes=classes,
        mean=torch.tensor(mean).expand(channels),
        std=torch.tensor(std).expand(channels),
        resolution=size,
        digest=tensors_digest(weights),
        notes=notes,
    )


def _bare(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without what a wrapper, such as one for several GPUs, has put before all their names."""
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _shape_of(settings: TeacherRecipe, weights: Mapping[str, torch.Tensor], size: int) -> Shape:
    """The channels and outputs of `teacher.arch` that weights have, by where a network of it has them."""
    own = _untrained(settings, Shape(3, size, UNUSUAL), weights).state_dict()
    last = next((name for name, value in own.items() if UNUSUAL in value.shape[:1] and name in weights), None)
    first = next((name for name, value in own.items() if value.dim() == 4 and name in weights), None)
    channels = int(weights[first].shape[1]) if first and weights[first].dim() == 4 else 3
    return Shape(channels, size, len(weights[last]) if last and weights[last].dim() else 1)


def _untrained(settings: TeacherRecipe, shape: Shape, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A network of `teacher.arch`; the stem is that of the weights, if it may be."""
    if settings.arch.startswith((TORCHVISION, TIMM)):
        network = pretrained.untrained(settings.arch, shape.channels, shape.classes, "teacher.arch")
        return pretrained.with_small_stem(network, weights)
    keys = NetworkRecipe(norm=settings.norm, width=settings.width, depth=settings.depth)
    built: nn.Module = networks.build(settings.arch, shape, keys, torch.Generator(), "teacher.arch")
    return built


def _filled(settings: TeacherRecipe, shape: Shape, weights: dict[str, torch.Tensor], path: Path) -> nn.Module:
    """A network of `teacher.arch` with a file's weights."""
    network = _untrained(settings, shape, weights)
    own = network.state_dict()
    wrong = [f"it lacks {some(sorted(missing), 2)}" for missing in (own.keys() - weights.keys(),) if missing]
    wrong += [f"it also has {some(sorted(extra), 2)}" for extra in (weights.keys() - own.keys(),) if extra]
    wrong += [
        f"its {name} is {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ][:1]
    if wrong:
        raise UserError(
            f"teacher.arch: {path} does not hold the weights of a {settings.arch} ({'; '.join(wrong)}); give the "
            "architecture that it was trained as, such as torchvision/resnet18, with its teacher.norm"
        )
    network.load_state_dict(weights)
    return network


def _classes_of_file(
    path: Path, settings: TeacherRecipe, outputs: int, images: ImageSet
) -> tuple[list[str] | None, list[str]]:
    """The classes of a file's outputs, None for those of the real images in their order; and what was assumed."""
    given = _named_classes(settings)
    if settings.classes == BY_POSITION:
        given = images.classes
    elif given is None and path.suffix == ".safetensors":
        metadata = read_metadata(path, "give another file", f"teacher.source: {path}")
        try:
            given = parse_json(metadata["classes"], list[str]) if "classes" in metadata else None
        except ValueError as error:
            raise UserError(
                f"teacher.source: {path} has classes that are no list ({error}); give teacher.classes"
            ) from None
    if given is None:
        if outputs == len(imagenet_ids()):
            return imagenet_ids(), ["its 1,000 outputs are taken to be ImageNet's, in their usual order"]
        raise UserError(
            f"teacher.classes: {path} does not say what its {outputs} outputs are; give their names or WordNet ids in "
            f"their order, as a list or a file, or {BY_POSITION} if they are {some(images.classes, 3)}"
        )
    if len(given) != outputs:
        who = "teacher.classes" if settings.classes else f"teacher.source: {path}"
        raise UserError(f"{who}: has {len(given)} classes, and the network {outputs} outputs; give one for each output")
    return (None if settings.classes == BY_POSITION else list(given)), []


# --- whose class is which ----------------------------------------------------------------------------------


def _columns(found: Classifier, images: ImageSet) -> tuple[torch.Tensor, str]:
    """The output of each class of the set, and how they were matched.

    Raises:
        UserError: naming the classes that the teacher does not know.
    """
    count = len(images.classes)
    if found.classes is None:
        return torch.arange(count), f"its outputs are the {count} classes by position, as teacher.classes says"
    known = by_name(images.classes, found.classes, _other_names(found.classes))
    if missing := [name for name in images.classes if name not in known]:
        raise UserError(
            f"teacher.source: {found.name} has no class {some([repr(name) for name in missing], 3)} among its "
            f"{len(found.classes)} ({some(found.classes, 4)}); give a teacher of these classes, or the names of its "
            "outputs in their order by teacher.classes"
        )
    columns = [known[name] for name in images.classes]
    if len(set(columns)) < count:
        twice = next(number for number in columns if columns.count(number) > 1)
        same = [name for name in images.classes if known[name] == twice]
        raise UserError(
            f"teacher.source: {found.name} has one class for {' and '.join(same)}, {found.classes[twice]!r}"
        )
    pairs = [
        name if name == found.classes[column] else f"{name} = {found.classes[column]}"
        for name, column in zip(images.classes, columns, strict=True)
    ]
    of = "" if count == len(found.classes) else f"{count} of "
    how = "name" if pairs == images.classes else "name or WordNet id"
    return torch.tensor(columns), f"{of}its {len(found.classes):,} classes matched by {how} ({some(pairs, 4)})"


def _other_names(classes: Sequence[str]) -> dict[str, int]:
    """WordNet ids of ImageNet's classes by their English names, and the other way round."""
    ids = imagenet.numbers()
    english = {each.name: each.wordnet_id for each in imagenet.classes()}
    other = {name: imagenet.classes()[number].name for name, number in ids.items()} | english
    return {other[name]: column for column, name in enumerate(classes) if name in other}


# --- how good it is ----------------------------------------------------------------------------------------


class Accuracy(BaseModel):
    """What the cache keeps of a teacher."""

    accuracy: Annotated[float, Field(ge=0, le=100)]
    at_chance: bool
    reassigned: Annotated[float, Field(ge=0, le=100)]
    """If its classes were renamed, one for one, to the best."""

    def hint(self, classes: int) -> str | None:
        """That its classes are in another order than assumed, if it looks so for so many."""
        if not is_permuted(self.accuracy, self.reassigned, classes):
            return None
        return (
            f"renamed one for one, {self.reassigned:.1f} % would be right, so its classes may be in another order than "
            "assumed (teacher.classes)"
        )


def _tested(teacher: Teacher, device: torch.device) -> Teacher:
    """The teacher with its accuracy, which the cache keeps.

    Raises:
        UserError: if it is no better than guessing.
    """
    own, images = teacher.classifier, teacher.images
    how = [own.mean.tolist(), own.std.tolist(), own.resolution, teacher.columns.tolist()]
    path = cache_folder() / "teachers" / f"{cache_key([LAYOUT, own.digest, images.folder.name, how])}.json"
    writable(path.parent, ANOTHER_CACHE)
    with hold(path.with_suffix(".lock"), doing="tests the same teacher"):
        known = _kept(path)
        if known is None:
            measured = tested(teacher, images, images.judging, device)
            renamed = round(measured.reassigned or 0.0, 2)
            known = Accuracy(accuracy=round(measured.accuracy, 2), at_chance=measured.at_chance, reassigned=renamed)
            write_json(path, known.model_dump())
    hint = known.hint(len(images.classes))
    if known.at_chance:
        raise UserError(
            f"teacher.source: {own.name} classifies {known.accuracy:.1f} % of the {images.judging} images of "
            f"{len(images.classes)} classes correctly, no better than guessing; {hint or LOOK_AT}"
        )
    return replace(
        teacher, accuracy=known.accuracy, classifier=replace(own, notes=[*own.notes, *([hint] if hint else [])])
    )


def _kept(path: Path) -> Accuracy | None:
    """A teacher's accuracy, unless it was not measured yet or its file is damaged."""
    if not path.is_file():
        return None
    try:
        return read_json(path, Accuracy, "it is measured again")
    except UserError as error:
        print(error, file=sys.stderr)
        return None
