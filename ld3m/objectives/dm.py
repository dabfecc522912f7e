"""Distribution matching (Zhao and Bilen, WACV 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ld3m import augment
from ld3m.data import ImageSet
from ld3m.objectives import draws
from ld3m.objectives.base import Objective
from ld3m.recipe import Recipe


class DistributionMatching(Objective):
    """Squared distance between the mean features of real and synthetic images in a fresh random network."""

    def __init__(self, recipe: Recipe, images: ImageSet, own: Sequence[int], accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.images = images
        self.real = {label: images.images("train", label) for label in own}
        self.device = accelerator.device

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`; each class shares one augmentation between its real and synthetic images."""
        if not self.real:
            return pixels.new_zeros(0), torch.zeros_like(pixels)
        network = draws.network(self.recipe, self.images, iteration, self.device).requires_grad_(False)
        draws.freeze_norms(network, self.recipe, self.images, iteration, self.device)
        augmentations = [
            draws.augmentation(self.recipe, iteration, label) if self.recipe.distill.dm.augment else None
            for label in self.real
        ]
        real = self._real_features(network, iteration, augmentations)
        pixels = pixels.detach().requires_grad_()
        with torch.enable_grad():
            losses = match_features(network, real, self.images.normalise, augmentations, pixels)
            (gradient,) = torch.autograd.grad(losses.sum(), pixels)
        return losses.detach(), gradient

    @torch.no_grad()
    def _real_features(self, network: Any, iteration: int, augmentations: list[augment.Augmentation | None]) -> Tensor:
        """Mean features [classes, features] of this iteration's real batch of each class."""
        batches = []
        for (label, images), augmentation in zip(self.real.items(), augmentations, strict=True):
            batch = draws.real_batch(self.recipe, self.images, images, iteration, label, self.device)
            batches.append(augmentation(batch) if augmentation else batch)
        features = torch.cat([network.embed(chunk) for chunk in torch.cat(batches).split(draws.REAL_CHUNK)])
        return torch.stack([part.mean(0) for part in features.split([len(batch) for batch in batches])])


def match_features(
    network: Any,
    real: Tensor,
    normalise: Any,
    augmentations: Sequence[augment.Augmentation | None],
    pixels: Tensor,
) -> Tensor:
    """‖mean feature of real − mean feature of synthetic‖² of each class.

    Args:
        network: has `embed`, [N, channels, H, W] to [N, features].
        real: mean features of the real images [classes, features].
        normalise: pixels in [0, 1] to what the network sees.
        augmentations: one of each class, or None.
        pixels: [classes, images per class, channels, H, W].

    Returns:
        [classes], differentiable in `pixels`.
    """
    synthetic = [normalise(images) for images in pixels]
    synthetic = [
        augmentation(images) if augmentation else images
        for images, augmentation in zip(synthetic, augmentations, strict=True)
    ]
    features = network.embed(torch.cat(synthetic)).view(*pixels.shape[:2], -1).mean(1)
    return (real - features).square().sum(1)
