"""The images that cover all that were drawn (Sener and Savarese, ICLR 2018), by the distances of their latents."""

from torch import Tensor

from ld3m.data.selection import coresets
from ld3m.sampling.approach import ClassTask, Kept


def k_center(task: ClassTask, drawn: Tensor) -> Kept:
    """Farthest first, from the one nearest to the mean."""
    return Kept(coresets.k_center(drawn.flatten(1), task.count))
