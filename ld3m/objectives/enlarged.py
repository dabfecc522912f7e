"""Multi-formation: an objective sees each rendered image enlarged, several of which are stored as one.

IDC (Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization, ICML 2022).
"""

from functools import partial

from torch import Tensor
from torch.autograd.functional import vjp

from ld3m.images.multi_formation import enlarge
from ld3m.objectives.base import Objective


class Enlarged(Objective):
    """Another objective, shown images that are `factor` times as high and as wide as those rendered."""

    def __init__(self, objective: Objective, factor: int) -> None:
        self.objective = objective
        self.factor = factor

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`, for pixels [classes, images per class, channels, H / factor, W / factor]."""
        flat, by_class = pixels.flatten(0, 1), pixels.shape[:2]
        seen = enlarge(flat, self.factor).unflatten(0, by_class)
        losses, grad = self.objective.match(iteration, seen)
        grad_flat = vjp(partial(enlarge, factor=self.factor), flat, grad.flatten(0, 1))[1]
        return losses, grad_flat.unflatten(0, by_class)

    def state(self) -> dict[str, Tensor]:
        """The other objective's."""
        return self.objective.state()

    def restore(self, iteration: int, state: dict[str, Tensor]) -> None:
        """The other objective's."""
        self.objective.restore(iteration, state)

    def learnt(self) -> dict[str, float]:
        """The other objective's."""
        return self.objective.learnt()
