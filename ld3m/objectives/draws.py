"""What an objective draws in an iteration: a network, real images, augmentations; each keyed by what it is for."""

from typing import Any

import torch
from torch import Tensor

from ld3m import augment, networks
from ld3m.data import ImageSet, to_pixels
from ld3m.randomness import generator
from ld3m.recipe import Recipe


def network(recipe: Recipe, images: ImageSet, number: int, device: torch.device) -> Any:
    """The `number`-th fresh random matching network of a run, its dropout switched off."""
    shape = networks.Shape(recipe.data.channels, recipe.data.resolution, len(images.classes))
    weights = generator(recipe.seed, "network", number)
    return networks.without_dropout(networks.build(recipe.network.arch, shape, recipe.network, weights).to(device))


def real_batch(
    recipe: Recipe, images: ImageSet, real: Tensor, iteration: int, label: int, device: torch.device
) -> Tensor:
    """A class's real images of an iteration, normalised [n, channels, H, W], out of all it has, uint8 [N, …]."""
    order = torch.randperm(len(real), generator=generator(recipe.seed, "real batch", iteration, label))
    return images.normalise(to_pixels(real[order[: recipe.distill.real_batch]].to(device)))


def augmentation(recipe: Recipe, iteration: int, label: int) -> augment.Augmentation:
    """The one augmentation that a class's real and synthetic images share in an iteration."""
    return augment.draw(generator(recipe.seed, "augmentation", iteration, label), recipe.data.resolution)
