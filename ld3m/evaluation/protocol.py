"""How a network is trained from scratch on a few images, and tested: GLaD's protocol, with a recipe's changes.

Cazenavette et al., CVPR 2023; LD3M uses the same.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ld3m import networks
from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError
from ld3m.evaluation.rows import LEARNING_RATES, full_ema
from ld3m.images.ranges import bytes_to_unit
from ld3m.networks.speed import quick_on_cpus
from ld3m.networks.training import train_epoch
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe, NetworkRecipe, Recipe
from ld3m.runs.folder import learnt

LEARNING_RATE = 1e-3
"""The protocol's learning rate; `rows.LEARNING_RATES` has that of architectures with another."""
OTHERS = "others"
"""The name in `evaluate.lr` of all architectures that it does not name."""


def training(recipe: Recipe, trained_on: str, augment: bool) -> Recipe:
    """The recipe that says how networks are trained on a set; only "full" has epochs of its own."""
    settings = recipe.evaluate
    changes: dict[str, Any] = {"augment": augment}
    if trained_on == "full" and settings.full_epochs:
        decay = full_ema(settings.ema, settings.epochs, settings.full_epochs)
        changes |= {"epochs": settings.full_epochs, "ema": decay}
    return recipe.model_copy(update={"evaluate": settings.model_copy(update=changes)})


def row_protocol(recipe: Recipe, arch: str) -> dict[str, Any]:
    """How networks of an architecture are trained: `protocol` in rows of results."""
    settings = recipe.evaluate.model_dump(exclude={"arch", "seeds", "full_epochs"})
    return settings | {"lr": learning_rate(arch, recipe.evaluate)}


def with_learnt_rate(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the step size that the run learnt in place of `evaluate.lr: learnt`."""
    step_size = learnt(folder).get("step_size")
    if step_size is None:
        raise UserError(f"evaluate.lr: {folder} has learnt no step size (objective mtt does); give a number")
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"lr": step_size})})


def learning_rate(arch: str, settings: EvaluateRecipe) -> float:
    """The rate that the recipe names for the architecture, else the protocol's own for it, else that of all others."""
    rates = settings.lr if isinstance(settings.lr, dict) else {OTHERS: settings.lr}
    return float(rates.get(arch) or LEARNING_RATES.get(arch) or rates.get(OTHERS) or LEARNING_RATE)


def names_rate(arch: str, settings: EvaluateRecipe) -> bool:
    """Whether the recipe names a rate for this architecture."""
    return isinstance(settings.lr, dict) and arch in settings.lr


def rate_factor(epoch: int, epochs: int) -> float:
    """The factor of the learning rate in an epoch: linear warm-up over the first half, cosine decay over the second.

    As the reference's LinearLR(1e-7) over half the epochs and CosineAnnealingLR from the epoch after.
    """
    half = max(1, epochs // 2)
    if epoch <= half:
        return 1e-7 + (1 - 1e-7) * epoch / half
    return (1 + math.cos(math.pi * (epoch - half - 1) / half)) / 2


def train(
    arch: str,
    pixels: Tensor,
    labels: Tensor,
    images: ImageSet,
    recipe: Recipe,
    seed: int,
    device: torch.device,
) -> nn.Module:
    """A network trained on a few images and nothing else, its weights averaged over epochs.

    Args:
        arch: as `networks.build` takes it.
        pixels: [N, channels, H, W], uint8, or float32 in [0, 1].
        labels: int64 [N].
        images: the set they stand for, which normalises them.
        recipe: its seed and `evaluate` section count; a ConvNet is the literature's, whatever the set was matched in.
        seed: of the initial weights, the order of images, the augmentation and dropout.
        device: where to train.

    Returns:
        The averaged network in evaluation mode, on the device.
    """
    settings = recipe.evaluate
    network = untrained(arch, images, recipe, seed, device)
    average = networks.averaged(network, settings.ema)
    rate = learning_rate(arch, settings)
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    inputs = images.normalise(bytes_to_unit(pixels.to(device)))
    targets = labels.to(device)
    for epoch in range(settings.epochs):
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_factor(epoch, settings.epochs)
        draws = generator(recipe.seed, "evaluation epoch", seed, epoch)
        train_epoch(network, optimiser, inputs, targets, settings.batch, settings.augment, draws)
        average.update_parameters(network)
    return average.module.eval()


def untrained(arch: str, images: ImageSet, recipe: Recipe, seed: int, device: torch.device) -> nn.Module:
    """A network with the initial weights of a seed, on the device."""
    network: nn.Module = networks.build(
        arch, images.shape, NetworkRecipe(), generator(recipe.seed, "evaluation network", seed)
    ).to(device)
    if device.type == "cpu" and isinstance(network, networks.ConvNet):  # it is not faster for the others
        return quick_on_cpus(network)
    return network
