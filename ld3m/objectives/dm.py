"""Distribution matching (Zhao and Bilen, WACV 2023)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ld3m.data import ImageSet
from ld3m.objectives import draws
from ld3m.objectives.base import Objective
from ld3m.recipe import Recipe


class DistributionMatching(Objective):
    """Squared distance between the mean features of real and synthetic images, each time in another network.

    A network of a pool comes with the same real images and augmentation whenever it is its turn, so that their mean
    feature is computed once, by the process that owns the class.
    """

    def __init__(self, recipe: Recipe, images: ImageSet, own: Sequence[int], accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.images = images
        self.real = {label: images.images("train", label) for label in own}
        self.device = accelerator.device
        self.targets: dict[tuple[int, int], Tensor] = {}
        """Mean features of real images, by number of the network in the pool and class."""
        draws.require_experts(recipe, images)

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`; each class shares one augmentation between its real and synthetic images."""
        if not self.real:
            return pixels.new_zeros(0), torch.zeros_like(pixels)
        pool = self.recipe.distill.dm.pool
        number = iteration % pool if pool else iteration
        network = draws.network(self.recipe, self.images, number, self.device).requires_grad_(False)
        draws.freeze_norms(network, self.recipe, self.images, number, self.device)
        losses, gradients = [], []
        # Class by class: what is summed together, and so rounded, is the same on any number of processes.
        for label, own in zip(self.real, pixels, strict=True):
            augmentation = self._augmentation(number, label)
            target = self._target(network, number, label, augmentation)
            synthetic = own.detach().requires_grad_()
            with torch.enable_grad():
                loss = match_features(network, target, augmentation(self.images.normalise(synthetic)))
                gradients += torch.autograd.grad(loss, synthetic)
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(gradients)

    def _augmentation(self, number: int, label: int) -> Callable[[Tensor], Tensor]:
        """What a class's real and synthetic images share."""
        if not self.recipe.distill.dm.augment:
            return lambda images: images
        return draws.augmentation(self.recipe, number, label)

    def _target(self, network: Any, number: int, label: int, augmentation: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean feature of a class's real images, [features]."""
        if (number, label) in self.targets:
            return self.targets[number, label]
        images = self.real[label]
        real = draws.real_batch(self.recipe, self.images, images, number, label, self.device)
        target = mean_feature(network, augmentation(real))
        if self.recipe.distill.dm.pool:
            self.targets[number, label] = target
        return target


def match_features(network: Any, target: Tensor, synthetic: Tensor) -> Tensor:
    """‖mean feature of real − mean feature of synthetic‖² of one class, differentiable in `synthetic`.

    Args:
        network: has `embed`, [N, channels, H, W] to [N, features].
        target: the mean feature of real images [features].
        synthetic: images as the network sees them [m, channels, H, W].
    """
    return (target - network.embed(synthetic).mean(0)).square().sum()


@torch.no_grad()
def mean_feature(network: Any, real: Tensor) -> Tensor:
    """The mean over images [n, channels, H, W] of `network.embed`, without a graph, some images at a time."""
    return torch.cat([network.embed(chunk) for chunk in real.split(draws.REAL_CHUNK)]).mean(0)
