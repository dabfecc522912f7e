"""An iteration's parts timed on this machine, on a sample of it."""

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ld3m.sampling import render
from ld3m.sampling.differentiated import Differentiated
from ld3m.sizing.bench import Bench, calls

BUDGET = 20.0
"""Seconds that the timed iterations may take together, unless one takes longer."""
REPEATS = 15
"""Timed iterations at most."""
Seconds = np.ndarray
"""[2]: on the clock, and of this process's processors."""


class Sample(NamedTuple):
    """How much of an iteration is run."""

    images: int
    """Images of one micro-batch."""
    steps: int
    """The last of the reverse steps."""
    units: int
    batches: int
    iterations: int = 1


def run_sample(bench: Bench, sample: Sample, iteration: int) -> dict[str, Seconds]:
    """Runs a sample of an iteration as the loop runs a whole one, or of what a run renders that learns nothing.

    Returns:
        The seconds of its parts.
    """
    prior, settings, own = bench.prior, bench.recipe.prior, bench.own
    count = sample.images
    per_class = bench.recipe.distill.latents_per_class
    z = torch.randn(count, *prior.latent_shape, device=bench.device)
    c = torch.zeros(count, *prior.conditioning_shape, device=bench.device)
    full = bench.schedule
    schedule = replace(full, steps=full.steps[len(full.steps) - sample.steps :])
    seconds = {}
    last = now(bench.device)

    def lap(part: str) -> None:
        nonlocal last
        this = now(bench.device)
        seconds[part], last = this - last, this

    noise = bench.noise.draw(own[: -(-count // per_class)], iteration, bench.device).flatten(0, 1)[:count]
    pixels, pull_back = render(
        prior,
        schedule,
        z,
        c,
        noise,
        resolution=bench.recipe.rendered_size,
        micro_batch=settings.images_at_a_time,
        keep_graph_steps=settings.kept_steps,
        through=Differentiated.of(bench.recipe).through(schedule, iteration),
    )
    lap("render")
    if not bench.recipe.distill.iterations:
        return seconds
    bench.match(iteration, sample.units)
    lap("objective")
    if sample.batches:
        bench.train(iteration, sample.batches)
        lap("inner loop")
    pull_back(torch.randn_like(pixels))
    lap("pull_back")
    return seconds


def now(device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return np.array([time.perf_counter(), time.process_time()])


def timed(bench: Bench) -> tuple[dict[str, Seconds], Sample]:
    """Seconds of the parts of a process's iteration, and the sample that they were measured on; see `run_sample`.

    Medians of a few iterations: whole ones if there is one micro-batch only and `BUDGET` allows, else smaller in
    images, steps and units, and scaled in proportion.
    """
    bench, settings = bench.on_average, bench.recipe.prior
    count, steps = len(bench.own) * bench.recipe.distill.latents_per_class, len(bench.schedule.steps)
    least = Sample(1, min(1, steps), 1, min(1, bench.batches))
    for iteration in range(2):  # the first warms up
        # On a processor that others keep busy, the clock's seconds would make the sample smaller than it may be.
        small = {
            part: float(spent.min() if bench.device.type == "cpu" else spent[0])
            for part, spent in run_sample(bench, least, iteration).items()
        }
    chain, share = small["render"] + small.get("pull_back", 0.0), BUDGET / 2
    images = min(count, settings.images_at_a_time, max(1, int(share / (chain * max(1, steps)))))
    fewer = min(steps, max(2, int(share / (chain * images))))
    sample = Sample(
        images,
        fewer if settings.pull_back == "exact" else steps,  # the calls that are differentiated take longer than others
        min(bench.units, max(1, int(share / small.get("objective", share)))),
        min(bench.batches, max(1, int(share / small.get("inner loop", share)))),
    )
    rounds: list[dict[str, Seconds]] = []
    began = time.perf_counter()
    while len(rounds) < REPEATS and (time.perf_counter() - began) * (1 + 1 / max(1, len(rounds))) < BUDGET:
        rounds.append(run_sample(bench, sample, len(rounds)))
    median = {part: np.median([each[part] for each in rounds], axis=0) for part in rounds[0]}
    through_prior = [part for part in ("render", "pull_back") if part in median]
    if sample.steps < steps:  # the decoder's share must not grow with the steps
        short = run_sample(bench, sample._replace(steps=1), len(rounds))
        for part in through_prior:
            a_step = (median[part] - short[part]) / (sample.steps - 1)
            median[part] = short[part] + a_step * (calls(bench.recipe.prior) - 1)
    for part in through_prior:
        median[part] *= count / sample.images
    if "objective" in median:
        median["objective"] *= bench.units / sample.units
    if "inner loop" in median:
        outer = bench.recipe.distill.dc.outer
        median["inner loop"] *= bench.batches / sample.batches * (outer - 1) / outer
    return median, sample._replace(iterations=len(rounds))
