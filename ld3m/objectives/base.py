"""What the loop asks of an objective."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ld3m.data.prepared import ImageSet
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe

GatherClasses = Callable[[Tensor, int], Tensor]
"""(rows of the process's own classes, count of all classes) to rows of all classes: `Processes.gather_classes`."""


class Objective(Protocol):
    """A matching loss over the classes this process owns; derive from it to have the defaults below."""

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient at the rendered images.

        Args:
            iteration: keys every random draw.
            pixels: [classes, images per class, channels, H, W] in [0, 1], in the order of the process's classes.

        Returns:
            The loss of each class [classes], and the gradient of the sum over all processes' classes, of the shape of
            `pixels`.
        """

    def state(self) -> dict[str, Tensor]:
        """What checkpoints must keep beside the latents for `match` to continue; the same on all processes."""
        return {}

    def restore(self, iteration: int, state: dict[str, Tensor]) -> None:
        """Takes up the `state` before an iteration."""
        return

    def learnt(self) -> dict[str, float]:
        """Numbers learnt beside the latents, for metrics.jsonl and the metadata of the result."""
        return {}


ObjectiveFactory = Callable[[Recipe, ImageSet, Sequence[int], Processes], Objective]
"""(recipe, prepared images, the process's classes, its processes) to an objective; what `distill.objective` names."""
