"""What an objective draws in an iteration: a network, real images, augmentations; each keyed by what it is for."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters

from ld3m import networks
from ld3m.data.prepared import ImageSet
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine import timing
from ld3m.machine.transfer import send
from ld3m.objectives.experts import Trajectories
from ld3m.randomness import generator
from ld3m.recipe import Recipe

REAL_CHUNK = 100
"""Real images of a class, or of all, that an objective puts through a network at a time."""
NORM_IMAGES = 16
"""Real images of each class that batch norm takes its statistics from, as in the code of Zhao et al."""


def network(recipe: Recipe, images: ImageSet, number: int, device: torch.device) -> Any:
    """The `number`-th matching network of a run, fresh and random or an expert's snapshot, its dropout switched off."""
    draws = generator(recipe.seed, "network", number)
    built = _random(recipe, images, draws)
    if recipe.distill.networks == "experts":
        expert = int(torch.randint(recipe.experts.count, (), generator=draws))
        epoch = int(torch.randint(recipe.experts.epochs + 1, (), generator=draws))
        vector_to_parameters(_experts(recipe, images, built).weights(expert, epoch), built.parameters())
    if recipe.network.dtype != "float32" and device.type != "meta":  # a plan counts its memory in float32
        built = networks.Half(built)
    return networks.without_dropout(built.to(device, non_blocking=device.type != "mps"))


def require_experts(recipe: Recipe, images: ImageSet) -> None:
    """Checks that there are the experts that `network` is to take, if it is.

    Raises:
        UserError: naming what is missing or differs.
    """
    if recipe.distill.networks == "experts":
        built = _random(recipe, images, generator(recipe.seed, "network", 0))
        _experts(recipe, images, built).require(recipe.experts.count, recipe.experts.epochs, "experts.epochs")


def _random(recipe: Recipe, images: ImageSet, draws: torch.Generator) -> Any:
    return networks.build(recipe.network.arch, images.shape, recipe.network, draws)


def _experts(recipe: Recipe, images: ImageSet, built: Any) -> Trajectories:
    return Trajectories(recipe, images, sum(parameter.numel() for parameter in built.parameters()))


@timing.span("data")
def real_batch(
    recipe: Recipe, images: ImageSet, real: Tensor, iteration: int, label: int, device: torch.device
) -> Tensor:
    """A class's real images of an iteration, normalised [n, channels, H, W], out of all it has, uint8 [N, …]."""
    order = torch.randperm(len(real), generator=generator(recipe.seed, "real batch", iteration, label))
    return images.normalise(bytes_to_unit(send(real[order[: recipe.distill.real_batch]], device)))


def augmentation(recipe: Recipe, iteration: int, label: int) -> augment.Augmentation:
    """The one augmentation that a class's real and synthetic images share in an iteration."""
    return augment.draw(generator(recipe.seed, "augmentation", iteration, label), recipe.data.resolution)


@torch.no_grad()
def freeze_norms(network: Any, recipe: Recipe, images: ImageSet, iteration: int, device: torch.device) -> None:
    """Gives batch norms the statistics of real images of all classes, for as long as the network is not trained.

    What a network makes of an image then depends neither on the other images of its batch nor on the processes
    that share the classes.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    batch = []
    for label in range(len(images.classes)):
        real = images.images("train", label)
        order = torch.randperm(len(real), generator=generator(recipe.seed, "norm batch", iteration, label))
        batch.append(real[order[:NORM_IMAGES]])
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # statistics of this batch alone, not a moving mean
        norm.train()
    network(images.normalise(bytes_to_unit(send(torch.cat(batch), device))))
    for norm in norms:
        norm.eval()
