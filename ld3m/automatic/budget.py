"""How a given time is split: into pilots, a distillation and its evaluation, and what fits into each.

Arithmetic alone. Nothing planned here takes more than the seconds that it is given, by the costs that it is given.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ld3m.evaluation.effort import Cost
from ld3m.runs.metrics import duration

SHARES = {"pilots": 0.3, "distilling": 0.34, "measuring": 0.36}
"""Of the time, in this order; what one stage leaves, the next has. Report and card are part of measuring."""
LONGER = 3
"""How many times as long as the first pilots the second are, and of how many candidates one gets a second."""
MOST_EPOCHS, FEWEST_EPOCHS = 300, 50
"""Of the networks that measure the result."""
MOST_SEEDS = 5
"""Networks of each set."""
MOST_FULL, FEWEST_FULL = 20, 3
"""Epochs over all real images; networks of fewer say nothing, and more are made of fewer images than `MANY`."""
MANY = 10_000
"""Images that a network sees in the course of its epochs before these are enough."""


def ends(seconds: float) -> dict[str, float]:
    """When each stage ends, in seconds from the start."""
    sums, total = {}, 0.0
    for stage, share in SHARES.items():
        total += share
        sums[stage] = min(1.0, total) * seconds
    return sums


def split_text(seconds: float) -> str:
    """The split in words."""
    parts = [f"{duration(share * seconds)} for {stage}" for stage, share in SHARES.items()]
    return f"{duration(seconds)} in all: at most {', '.join(parts)}"


class Bracket(NamedTuple):
    """Which candidates get pilots, and how long these are."""

    tried: int
    """So many, the first of the candidates; 1: none gets a pilot."""
    seconds: float
    """Of each pilot of the first round; those of the second take `LONGER` times as long."""

    @property
    def again(self) -> int:
        """The best, which get a second pilot."""
        return second_round(self.tried)


def second_round(count: int) -> int:
    """How many of so many candidates get a second, longer pilot: a third, but two or more; none of two."""
    return max(2, -(-count // LONGER)) if count > 2 else 0


def pilot_units(count: int) -> int:
    """The time of all pilots of so many candidates, in that of a pilot of the first round."""
    return count + LONGER * second_round(count) if count > 1 else 0


def bracket(seconds: float, least: float, candidates: int, loading: float = 0.0) -> Bracket:
    """As many candidates as get pilots that are long enough.

    Args:
        seconds: for all pilots.
        least: seconds of a pilot below which it says nothing.
        loading: seconds of a pilot in which nothing is learnt.
    """
    for count in range(candidates, 1, -1):
        if (each := (seconds - loading * (count + second_round(count))) / pilot_units(count)) >= max(least, 1e-6):
            return Bracket(count, each)
    return Bracket(1, 0.0)


class Measurement(NamedTuple):
    """What the evaluation of the result trains."""

    sets: int
    """The first of the sets."""
    epochs: int
    seeds: int
    """Networks of each."""


def measurement(seconds: float, cost: Cost, sizes: Sequence[int], tested: int, processes: int = 1) -> Measurement:
    """As many sets, epochs and networks as fit into a time, in this order.

    Args:
        seconds: for all networks.
        sizes: the images of each set as networks see them, the distilled one first, which is always measured.
        tested: images to test on.
    """

    def most_epochs(sets: int, seeds: int) -> int:
        """Epochs of the longest network on each process for which there is time."""
        if processes == 1:
            spare, images = seconds / seeds - sets * cost.test * tested, sum(sizes[:sets])
        else:  # each may be dealt the largest
            spare, images = seconds / -(-sets * seeds // processes) - cost.test * tested, max(sizes[:sets])
        return max(0, min(MOST_EPOCHS, math.floor(spare / (cost.train * images) + 1e-9)))

    sets = next((count for count in range(len(sizes), 1, -1) if most_epochs(count, 1) >= FEWEST_EPOCHS), 1)
    epochs = max(1, most_epochs(sets, 1))
    seeds = max((count for count in range(1, MOST_SEEDS + 1) if most_epochs(sets, count) >= epochs), default=1)
    return Measurement(sets, epochs, seeds)


def full_epochs(seconds: float, cost: Cost, images: int, tested: int) -> int:
    """Epochs of one network over all real images for which there is time; 0 if they are too few to say anything."""
    epochs = math.floor((seconds - cost.test * tested) / (cost.train * images))
    return min(enough(images, MOST_FULL), epochs) if epochs >= enough(images, FEWEST_FULL) else 0


def enough(images: int, epochs: int) -> int:
    """As many epochs, or more if the images are few; `MOST_EPOCHS` at most."""
    return max(epochs, min(MOST_EPOCHS, MANY // images))
