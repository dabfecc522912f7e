"""A teacher whose weights a file has, of an architecture, classes and normalisation that the recipe says."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ld3m import networks
from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError, some
from ld3m.files import tensors_digest
from ld3m.networks import Shape
from ld3m.priors.checkpoints import check_values, read_checkpoint
from ld3m.reading import parse_json, read_metadata
from ld3m.recipe import TeacherRecipe
from ld3m.teachers import pretrained
from ld3m.teachers.classes import BY_POSITION, given_classes
from ld3m.teachers.pretrained import IMAGENET_MEAN, IMAGENET_STD, TIMM, TORCHVISION
from ld3m.teachers.teacher import Classifier

COUNTERS = ("n_averaged", "num_batches_tracked")
"""How names of counters end, which files have or lack by the version that wrote them; no output depends on them."""
UNUSUAL = 7919
"""Outputs by which a network's last layer is found; no layer inside has as many."""


def read_classifier(path: Path, settings: TeacherRecipe, images: ImageSet) -> Classifier:
    """The classifier whose weights a file has.

    Raises:
        UserError: if it cannot be read, or does not fit the recipe.
    """
    try:
        weights = read_checkpoint(path).weights
        check_values({name: value for name, value in weights.items() if value.is_floating_point()})
    except UserError as error:
        raise UserError(f"teacher.source: {error}") from None
    size = settings.resolution or images.resolution
    any_network = _untrained(settings, Shape(3, size, UNUSUAL))
    weights = _bare(weights, any_network.state_dict())
    shape = _shape_of(any_network, weights, size)
    network = _filled(settings, shape, weights, path)
    outputs, channels = shape.classes, shape.channels
    classes, notes = _classes_of_file(path, settings, outputs, images)
    like_imagenet = outputs == len(imagenet.ids()) and channels == 3
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


def _bare(weights: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without what wrappers have put before all their names, such as `module.` or `backbone.`.

    Args:
        own: those of a network, whose names may begin alike, too.
    """
    weights = {name: value for name, value in weights.items() if not name.endswith(COUNTERS[0])}
    known = {name.partition(".")[0] for name in own}
    while all("." in name for name in weights) and len(before := {name.partition(".")[0] for name in weights}) == 1:
        if before & known:
            break
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    return weights


def _shape_of(network: nn.Module, weights: Mapping[str, torch.Tensor], size: int) -> Shape:
    """The channels and outputs that weights have, by where a network with `UNUSUAL` outputs has them."""
    own = network.state_dict()
    last = next((name for name, value in own.items() if UNUSUAL in value.shape[:1] and name in weights), None)
    first = next((name for name, value in own.items() if value.dim() == 4 and name in weights), None)
    channels = int(weights[first].shape[1]) if first and weights[first].dim() == 4 else 3
    return Shape(channels, size, len(weights[last]) if last and weights[last].dim() else 1)


def _untrained(settings: TeacherRecipe, shape: Shape) -> nn.Module:
    """A network of `teacher.arch`."""
    if settings.arch.startswith((TORCHVISION, TIMM)):
        return pretrained.untrained(settings.arch, shape.channels, shape.classes, "teacher.arch")
    built: nn.Module = networks.build(settings.arch, shape, settings.network, torch.Generator(), "teacher.arch")
    return built


def _filled(settings: TeacherRecipe, shape: Shape, weights: dict[str, torch.Tensor], path: Path) -> nn.Module:
    """A network of `teacher.arch` with a file's weights; the stem is that of the weights, if it may be."""
    network = _untrained(settings, shape)
    if settings.arch.startswith((TORCHVISION, TIMM)):
        network = pretrained.with_small_stem(network, weights)
    own = {name: value for name, value in network.state_dict().items() if not name.endswith(COUNTERS)}
    theirs = {name: value for name, value in weights.items() if not name.endswith(COUNTERS)}
    missing, extra = own.keys() - theirs.keys(), theirs.keys() - own.keys()
    wrong = [f"it lacks {some(sorted(missing), 2)}"] if missing else []
    wrong += [f"it also has {some(sorted(extra), 2)}"] if extra else []
    wrong += [
        f"its {name} is {list(theirs[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in theirs and theirs[name].shape != own[name].shape
    ][:1]
    if wrong:
        raise UserError(
            f"teacher.arch: {path} does not hold the weights of a {settings.arch} ({'; '.join(wrong)}); give the "
            "architecture that it was trained as, such as torchvision/resnet18, with its teacher.norm"
        )
    network.load_state_dict(weights, strict=False)  # but for counters
    return network


def _classes_of_file(
    path: Path, settings: TeacherRecipe, outputs: int, images: ImageSet
) -> tuple[list[str] | None, list[str]]:
    """The classes of a file's outputs, None for those of the real images in their order; and what was assumed."""
    given = given_classes(settings)
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
        if outputs == len(imagenet.ids()):
            return imagenet.ids(), ["its 1,000 outputs are taken to be ImageNet's, in their usual order"]
        raise UserError(
            f"teacher.classes: {path} does not say what its {outputs} outputs are; give their names or WordNet ids in "
            f"their order, as a list or a file, or {BY_POSITION} if they are {some(images.classes, 3)}"
        )
    if len(given) != outputs:
        who = "teacher.classes" if settings.classes else f"teacher.source: {path}"
        raise UserError(f"{who}: has {len(given)} classes, and the network {outputs} outputs; give one for each output")
    return (None if settings.classes == BY_POSITION else list(given)), []
