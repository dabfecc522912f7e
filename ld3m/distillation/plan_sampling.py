"""What sampling Z at the start takes (`distill.init=sample`): measured here on one class and two steps, or counted."""

from dataclasses import replace

import numpy as np
import torch

from ld3m.recipe import Recipe
from ld3m.sampling.approach import ClassTask
from ld3m.sampling.chains import follow
from ld3m.sampling.methods import METHODS
from ld3m.sizing.bench import Bench
from ld3m.sizing.timed import Seconds, now

FEW = 2
"""Steps that are timed."""
NOT_COUNTED = {
    "d3hr": "the inversion of real images, four to six calls of the denoiser in each step",
    "igd": "the gradients through decoder and denoiser in its guided steps, and those of real images",
}
"""What a method does besides its chains, which no table counts."""
TIMED_TOO = {"d3hr"}
"""Methods of which a measurement on this machine counts that too."""


def not_counted(recipe: Recipe, measured: bool) -> list[str]:
    """What the hours of a plan leave out of sampling, a line each.

    Args:
        recipe: of the run.
        measured: whether they were measured here, and not counted for another device.
    """
    method = recipe.sample.method
    left_out = NOT_COUNTED.get(method) if recipe.samples and not (measured and method in TIMED_TOO) else None
    return [f"sample.method: {recipe.sample.method}; the hours leave out {left_out}"] if left_out else []


def sampling_seconds(bench: Bench, embedding: torch.Tensor) -> Seconds:
    """Seconds that a process samples: what the method takes of its first class, and two steps of its chains, scaled.

    Args:
        embedding: the prior's conditioning of its first class.
    """
    images = bench.images
    task = ClassTask(bench.recipe, bench.prior, images, embedding, bench.own[0], bench.device)  # type: ignore[arg-type]
    clock = now(bench.device)
    approach = METHODS.find(task.settings.method)(task)
    prepared = now(bench.device) - clock
    chain = len(task.schedule.steps) - approach.first
    drawn = task.drawn if approach.drawn is None else approach.drawn
    batch = range(min(approach.together or task.micro_batch, drawn))
    steps = min(FEW, task.settings.steps)
    short = replace(task, recipe=task.recipe.changed({"sample.steps": steps}))
    earlier = torch.empty(0, *bench.prior.latent_shape)
    spent = np.zeros(2)
    for _ in range(2):  # the first warms up
        clock = now(bench.device)
        follow(short, replace(approach, first=0), batch, earlier)
        spent = now(bench.device) - clock
    batches = -(-drawn // len(batch))
    return len(bench.own) * (prepared + batches * chain / steps * spent)
