"""Objectives: how far synthetic images are from real ones, and which way to go; and the experts that some of them need.

How images are rendered, and how the gradient reaches the latents, is `sampling`.
"""

from collections.abc import Sequence

from ld3m.data.prepared import ImageSet
from ld3m.machine.processes import Processes
from ld3m.objectives.base import Objective, ObjectiveFactory
from ld3m.objectives.dc import GradientMatching
from ld3m.objectives.dm import DistributionMatching
from ld3m.objectives.draws import Draws
from ld3m.objectives.enlarged import Enlarged
from ld3m.objectives.experts import experts_of
from ld3m.objectives.lgm import LinearGradientMatching
from ld3m.objectives.mtt import TrajectoryMatching
from ld3m.recipe import Recipe
from ld3m.registry import Registry

__all__ = ["OBJECTIVES", "Enlarged", "Objective", "build", "draws_of"]


def draws_of(recipe: Recipe, images: ImageSet, processes: Processes) -> Draws:
    """What an objective of this recipe draws."""
    experts = experts_of(recipe) if recipe.distill.networks == "experts" else None
    backbone = recipe.distill.backbone
    return Draws(recipe.seed, images, recipe.network, recipe.distill.real_batch, processes.device, experts, backbone)


def _dm(recipe: Recipe, images: ImageSet, own: Sequence[int], processes: Processes) -> Objective:
    return DistributionMatching(recipe.distill.dm, draws_of(recipe, images, processes), own)


def _dc(recipe: Recipe, images: ImageSet, own: Sequence[int], processes: Processes) -> Objective:
    return GradientMatching(recipe.distill.dc, draws_of(recipe, images, processes), own, processes.gather_classes)


def _lgm(recipe: Recipe, images: ImageSet, own: Sequence[int], processes: Processes) -> Objective:
    draws = draws_of(recipe, images, processes)
    return LinearGradientMatching(recipe.distill.lgm, draws, own, processes.gather_classes)


def _mtt(recipe: Recipe, images: ImageSet, own: Sequence[int], processes: Processes) -> Objective:
    draws = draws_of(recipe, images, processes)
    settings = recipe.distill
    return TrajectoryMatching(settings.mtt, settings.momentum, draws, experts_of(recipe), own, processes.gather_classes)


OBJECTIVES: Registry[ObjectiveFactory] = Registry(
    "ld3m.objectives", "distill.objective", {"dm": _dm, "dc": _dc, "mtt": _mtt, "lgm": _lgm}
)


def build(recipe: Recipe, images: ImageSet, own: Sequence[int], processes: Processes) -> Objective:
    """The recipe's objective for the classes `own`.

    Raises:
        UserError: if `distill.objective` is not known, or what it needs is not there.
    """
    return OBJECTIVES.find(recipe.distill.objective)(recipe, images, own, processes)
