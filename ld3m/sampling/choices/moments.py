"""The group of an over-draw whose moments are nearest to those of the class's real latents, by D3HR's measure."""

import torch
from torch import Tensor

from ld3m.sampling.approach import ClassTask, Kept
from ld3m.sampling.moments import distances, of_latents


def moments(task: ClassTask, drawn: Tensor) -> Kept:
    """The best of `sample.draws` groups."""
    groups = drawn.unflatten(0, (task.settings.draws, task.count))
    best = distances(groups, *of_latents(task.encodings())).argmin()
    return Kept(torch.arange(len(drawn)).view(groups.shape[:2])[best])
