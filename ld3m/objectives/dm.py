"""Distribution matching (Zhao and Bilen, WACV 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ld3m.data import ImageSet
from ld3m.objectives import draws
from ld3m.objectives.base import Objective
from ld3m.recipe import Recipe


class DistributionMatching(Objective):
    """Squared distance between the mean features of real and synthetic images, each time in another network."""

    def __init__(self, recipe: Recipe, images: ImageSet, own: Sequence[int], accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.images = images
        self.real = {label: images.images("train", label) for label in own}
        self.device = accelerator.device
        draws.require_experts(recipe, images)

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`; each class shares one augmentation between its real and synthetic images."""
        if not self.real:
            return pixels.new_zeros(0), torch.zeros_like(pixels)
        network = draws.network(self.recipe, self.images, iteration, self.device).requires_grad_(False)
        draws.freeze_norms(network, self.recipe, self.images, iteration, self.device)
        losses, gradients = [], []
        # Class by class: what is summed together, and so rounded, is the same on any number of processes.
        for (label, images), own in zip(self.real.items(), pixels, strict=True):
            real = draws.real_batch(self.recipe, self.images, images, iteration, label, self.device)
            synthetic = own.detach().requires_grad_()
            with torch.enable_grad():
                shown = self.images.normalise(synthetic)
                if self.recipe.distill.dm.augment:
                    augmentation = draws.augmentation(self.recipe, iteration, label)
                    real, shown = augmentation(real), augmentation(shown)
                loss = match_features(network, real, shown)
                gradients += torch.autograd.grad(loss, synthetic)
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(gradients)


def match_features(network: Any, real: Tensor, synthetic: Tensor) -> Tensor:
    """‖mean feature of real − mean feature of synthetic‖² of one class, differentiable in `synthetic`.

    Args:
        network: has `embed`, [N, channels, H, W] to [N, features].
        real: images as the network sees them [n, channels, H, W].
        synthetic: likewise [m, channels, H, W].
    """
    return (mean_feature(network, real) - network.embed(synthetic).mean(0)).square().sum()


@torch.no_grad()
def mean_feature(network: Any, real: Tensor) -> Tensor:
    """The mean over images [n, channels, H, W] of `network.embed`, without a graph, some images at a time."""
    return torch.cat([network.embed(chunk) for chunk in real.split(draws.REAL_CHUNK)]).mean(0)
