"""What networks are trained on, of a set in the layout of a run: its images as they see them, labels and weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ld3m.data.prepared import Rows, buffers
from ld3m.files import cache_key
from ld3m.images.multi_formation import shown
from ld3m.images.ranges import bytes_to_unit
from ld3m.runs import weights as image_weights
from ld3m.runs.folder import classes, load_recipe
from ld3m.runs.result import read_images


def stored_digest(folder: Path) -> str:
    """A digest of what networks are trained on, of the images of a run; the real images are not asked."""
    return set_digest(*stored_set(folder), stored_weights(folder, classes(folder)))


def stored_set(folder: Path) -> tuple[Tensor, Tensor]:
    """What networks are trained on, of the images of a run: pixels and labels; the real images are not asked."""
    recipe = load_recipe(folder)
    stored = read_images(folder, classes(folder), recipe.data.channels, recipe.data.resolution)
    return seen_images(*stored, recipe.distill.factor)


def set_digest(pixels: Tensor | Rows, labels: Tensor, weights: Tensor | None) -> str:
    """A digest of what networks are trained on: images, labels, and weights unless all count the same."""
    described = labels.tolist() if weights is None else [labels.tolist(), weights.tolist()]
    return cache_key(described, *buffers(pixels))


def stored_weights(folder: Path, names: Sequence[str]) -> Tensor | None:
    """Weights of what networks are trained on, of the images of a run, by class; None if all count the same."""
    found = image_weights.of_run(folder, names)
    if found is None:
        return None
    of_images = torch.tensor([value for name in names for value in found[name]])
    return of_images.repeat_interleave(load_recipe(folder).distill.factor ** 2)


def seen_images(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """What networks are trained on: the images, or the enlarged images that each of them holds."""
    return shown(bytes_to_unit(images), labels, factor) if factor > 1 else (images, labels)
