"""Objectives: how far synthetic images are from real ones, and which way to go."""

from collections.abc import Callable, Sequence

from ld3m import registry
from ld3m.data.prepared import ImageSet
from ld3m.machine.processes import Processes
from ld3m.objectives.base import Objective
from ld3m.objectives.dc import GradientMatching
from ld3m.objectives.dm import DistributionMatching
from ld3m.objectives.mtt import TrajectoryMatching
from ld3m.recipe import Recipe

OBJECTIVES: dict[str, Callable[[Recipe, ImageSet, Sequence[int], Processes], Objective]] = {
    "dm": DistributionMatching,
    "dc": GradientMatching,
    "mtt": TrajectoryMatching,
}
"""Objectives by the name that `distill.objective` gives; other packages add theirs through entry points of the group
`ld3m.objectives`."""


def build(recipe: Recipe, images: ImageSet, own: Sequence[int], processes: Processes) -> Objective:
    """The recipe's objective for the classes `own`.

    Raises:
        UserError: where `distill.objective` is not known.
    """
    found = registry.find("ld3m.objectives", OBJECTIVES, recipe.distill.objective, "distill.objective")
    return found(recipe, images, own, processes)


__all__ = ["OBJECTIVES", "Objective", "build"]
