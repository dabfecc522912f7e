"""Distribution matching (Zhao and Bilen, WACV 2023)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ld3m.objectives.base import Objective
from ld3m.objectives.characteristic import CharacteristicFunction, characteristic_distance
from ld3m.objectives.draws import REAL_CHUNK, Draws, RealBatches
from ld3m.randomness import generator
from ld3m.recipe.objectives import DmRecipe

Statistics = Callable[[Tensor], Tensor]
"""Of features [n, features]; a tensor of any shape."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""(statistics of real, of synthetic features) to a number."""
SMALLEST_VARIANCE = 1e-6
"""Added to variances, so that a feature that is the same in all images has a finite gradient."""


class DistributionMatching(Objective):
    """Distance between statistics of real and synthetic images' features, each time in another network.

    A network of a pool comes with the same real images and augmentation whenever it is its turn, so that their
    statistics are computed once, by the process that owns the class.
    """

    def __init__(self, settings: DmRecipe, draws: Draws, own: Sequence[int]) -> None:
        self.settings = settings
        self.draws = draws
        self.own = list(own)
        self.real = RealBatches(draws, own, ahead=False if settings.pool else None)  # a pool's come once
        self.targets: dict[tuple[int, int], Tensor] = {}
        """Statistics of real images' features, by number of the network in the pool and class."""
        draws.check_networks()

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`; each class shares one augmentation between its real and synthetic images."""
        if not self.own:
            return pixels.new_zeros(0), torch.zeros_like(pixels)
        number = iteration % self.settings.pool if self.settings.pool else iteration
        network = self.draws.network(number).requires_grad_(False)
        if pixels.device.type == "cpu":  # where many real images take 0.7 of the time so
            network = network.to(memory_format=torch.channels_last)
        self.draws.freeze_norms(network, number)
        statistics, distance = measure(self.settings, generator(self.draws.seed, "frequencies", number))
        losses, gradients = [], []
        # Class by class: what is summed together, and so rounded, is the same on any number of processes.
        for label, own in zip(self.own, pixels, strict=True):
            augmentation = self._augmentation(number, label)
            target = self._target(network, statistics, number, label, augmentation)
            synthetic = own.detach().requires_grad_()
            with torch.enable_grad():
                seen = augmentation(self.draws.images.normalise(synthetic))
                loss = match_features(network, statistics, target, seen, distance)
                gradients += torch.autograd.grad(loss, synthetic)
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(gradients)

    def _augmentation(self, number: int, label: int) -> Callable[[Tensor], Tensor]:
        """What a class's real and synthetic images share."""
        return self.draws.augmentation(number, label) if self.settings.augment else lambda images: images

    def _target(
        self,
        network: Any,
        statistics: Statistics,
        number: int,
        label: int,
        augmentation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The statistics of a class's real images."""
        if (number, label) in self.targets:
            return self.targets[number, label]
        real = self.real.draw(number, label)
        target = statistics(real_features(network, augmentation(real)))
        if self.settings.pool:
            self.targets[number, label] = target
        return target


def mean(features: Tensor) -> Tensor:
    """The mean feature: features [n, features] to [features]."""
    return features.mean(0)


def moments(features: Tensor) -> Tensor:
    """Mean and standard deviation of each feature: features [n, features] to [2 · features].

    The squared distance of two of them is that of Wasserstein-2 between Gaussians with these moments and diagonal
    covariances (Dowson and Landau, J. Multivariate Analysis, 1982).
    """
    return torch.cat([features.mean(0), (features.var(0, correction=0) + SMALLEST_VARIANCE).sqrt()])


def squared_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """‖real − synthetic‖²"""
    return (real - synthetic).square().sum()


def measure(settings: DmRecipe, numbers: torch.Generator) -> tuple[Statistics, Distance]:
    """The statistics of features and their distance, as `distill.dm.match` says.

    Args:
        numbers: decide the frequencies of the characteristic function.
    """
    match settings.match:
        case "mean":
            return mean, squared_distance
        case "moments":
            return moments, squared_distance
        case "characteristic":
            distance = partial(characteristic_distance, amplitude=settings.amplitude, phase=settings.phase)
            return CharacteristicFunction(settings.frequencies, numbers), distance


def match_features(
    network: Any, statistics: Statistics, target: Tensor, synthetic: Tensor, distance: Distance = squared_distance
) -> Tensor:
    """The distance of real and synthetic features' statistics of one class, differentiable in `synthetic`.

    Args:
        network: has `embed`, [N, channels, H, W] to [N, features].
        target: the statistics of real images' features.
        synthetic: images as the network sees them [m, channels, H, W].
    """
    return distance(target, statistics(network.embed(synthetic)))


@torch.no_grad()
def real_features(network: Any, real: Tensor) -> Tensor:
    """`network.embed` of images [n, channels, H, W], without a graph, some images at a time."""
    return torch.cat([network.embed(chunk) for chunk in real.split(REAL_CHUNK)])
