"""Pull-backs that are cheaper than exact, as they go through some of the denoiser's calls alone.

With F a call forwards and B one backwards, an exact gradient costs S (2F + B) with flat memory, one through K calls
S F + K (F + B). At the other calls `shortcut` and `drawn` hold the denoiser's answer fixed and carry the rest of the
step, which is linear (SDO, arXiv 2505.07477); `last` cuts the chain there (DRaFT, arXiv 2309.17400), so that Z has its
gradient through the skip alone.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.sampling.algorithm import Schedule, Step, advanced

Kind = Literal["exact", "shortcut", "drawn", "last"]


@dataclass(frozen=True)
class Through:
    """Which of a chain's denoiser calls a pull-back differentiates, and what it does at the others."""

    steps: frozenset[int]
    """Positions in `Schedule.steps`."""
    carried: bool
    """Whether the others pass on what is linear in them, or nothing."""
    weight: float = 1.0
    """What c's gradient is multiplied by."""


@dataclass(frozen=True)
class Differentiated:
    """The calls that the pull-backs of a run differentiate."""

    kind: Kind = "exact"
    count: int = 0
    """K; not read if exact."""
    seed: int = 0
    """Of the run; keys what is drawn."""

    @classmethod
    def of(cls, recipe: Recipe) -> "Differentiated":
        """What a recipe asks for."""
        return cls(recipe.prior.pull_back, recipe.prior.differentiated, recipe.seed)

    def through(self, schedule: Schedule, iteration: int) -> Through:
        """The calls of an iteration, the same for all images and on all processes.

        K drawn calls hold K/S of c's gradient on average, which is therefore multiplied by S/K.
        """
        calls = [i for i, step in enumerate(schedule.steps) if schedule.asks_denoiser(step)]
        if self.kind == "exact" or self.count >= len(calls):
            return Through(frozenset(calls), carried=True)
        if self.kind != "drawn":
            return Through(frozenset(calls[len(calls) - self.count :]), carried=self.kind == "shortcut")
        order = torch.randperm(len(calls), generator=generator(self.seed, "differentiated", iteration)).tolist()
        return Through(frozenset(calls[i] for i in order[: self.count]), True, len(calls) / max(1, self.count))


EXACT = Differentiated()


def passed_on(schedule: Schedule, step: Step) -> tuple[float, float]:
    """The derivatives of z_{i−1} by z_i and by the anchor, numbers, if the denoiser's velocity is held fixed.

    Of a flow, whose velocity is ε̂ − x̂, a plain step passes on all of a gradient. Of a diffusion:

    With z = s x̂ + n ε̂ and s² + n² = 1 the velocity is v = s ε̂ − n x̂, so that x̂ = s z − n v and ε̂ = s v + n z. Fixed v
    leaves s' s + n' n ≤ 1 of a gradient in a plain DDIM step to (s', n'), the cosine of the angle between the levels.
    Fixed ε̂ would leave s'/s, which grows without bound at high noise, and fixed x̂ n'/n, which ends at next to nothing.
    """
    return advanced(schedule, step, *step.velocity_fixed, 0.0), advanced(schedule, step, 0.0, 0.0, 1.0)
