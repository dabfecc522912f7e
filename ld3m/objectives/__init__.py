"""Objectives: how far synthetic images are from real ones, and which way to go."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ld3m import registry
from ld3m.data import ImageSet
from ld3m.objectives.dm import DistributionMatching
from ld3m.recipe import Recipe


class Objective(Protocol):
    """A matching loss over the classes this process owns."""

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient at the rendered images.

        Args:
            iteration: keys every random draw.
            pixels: [classes, images per class, channels, H, W] in [0, 1], in the order of the process's classes.

        Returns:
            The loss of each class [classes], and the gradient of their sum, of the shape of `pixels`.
        """


OBJECTIVES: dict[str, Callable[[Recipe, ImageSet, Sequence[int], torch.device], Objective]] = {
    "dm": DistributionMatching,
}
"""Objectives by the name that `distill.objective` gives; other packages add theirs through entry points of the group
`ld3m.objectives`."""


def build(recipe: Recipe, images: ImageSet, own: Sequence[int], device: torch.device) -> Objective:
    """The recipe's objective for the classes `own`.

    Raises:
        UserError: where `distill.objective` is not known.
    """
    found = registry.find("ld3m.objectives", OBJECTIVES, recipe.distill.objective, "distill.objective")
    return found(recipe, images, own, device)
