"""What `auto` is: as many images at a time, and as many graphs kept, as fit into the memory there is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ld3m.machine.out_of_memory import ran_out
from ld3m.priors.base import weights_of
from ld3m.recipe import Recipe
from ld3m.sampling import render
from ld3m.sizing.bench import Bench
from ld3m.sizing.cost import RunCost
from ld3m.sizing.count import Tally

SHARE = 0.85
"""The share of the free memory that "auto" plans with: kernels' working space and gaps between tensors take some."""
CPU_IMAGES = 64
"""Images at a time that "auto" takes at most on a CPU, on which more are no faster."""


def solve_auto(bench: Bench, processes: int, images: int, available: float, sharded: bool = False) -> Recipe:
    """The recipe with numbers in the place of `prior.micro_batch: auto` and `prior.keep_graph_steps: auto`.

    The micro-batch is the largest that fits, and graphs are kept in what it leaves; micro-batches of one image
    and of two and the graphs of one and of two steps are measured, and the rest is proportion.

    Args:
        bench: of the process; with a meta model for its prior, nothing is computed.
        images: that the process renders in an iteration.
        available: bytes that are free.
        sharded: whether each call of the denoiser is a collective; then "auto" keeps no graph.
    """
    recipe, sampler = bench.recipe, bench.recipe.prior
    if "auto" not in (sampler.micro_batch, sampler.keep_graph_steps):
        return recipe
    try:
        micro_batch, keep = _fitting(bench, processes, images, available, sharded)
    except Exception as error:
        if sharded or not ran_out(error):
            raise
        micro_batch, keep = 1, 0  # two images, or one's graph, are too much already
    if sampler.micro_batch != "auto":
        micro_batch = sampler.micro_batch
    return recipe.changed({"prior.micro_batch": micro_batch, "prior.keep_graph_steps": keep})


def _fitting(bench: Bench, processes: int, images: int, available: float, sharded: bool) -> tuple[int, int]:
    """Images at a time and steps whose graph is kept."""
    recipe, sampler = bench.recipe, bench.recipe.prior
    latent, conditioning = bench.prior.latent_shape, bench.prior.conditioning_shape
    cost = RunCost(recipe, processes, len(bench.images.classes), latent, conditioning, bench.gathered_features)
    usable = SHARE * available - sum(cost.lasting(images, sampler.steps_made).values())
    if bench.device.type == "cuda":
        peak_bytes(bench, 1)  # what the first call alone takes, such as a library's working space
    one, two = peak_bytes(bench, 1), peak_bytes(bench, 2)
    each, rest = max(1, two - one), max(0, 2 * one - two)
    more = sampler.keep_graph_steps == "auto" and images > 0 and not sharded
    step, decoder = graph_bytes(bench) if more or sampler.kept_steps else (1, 0)
    micro_batch, keep = min(sampler.images_at_a_time, images), cost.kept
    if sampler.micro_batch == "auto":
        kept = images * (keep * step + decoder) if keep else 0
        most = CPU_IMAGES if bench.device.type == "cpu" else images
        micro_batch = max(1, min(int((usable - kept - rest) // each), images, most))
    if more:
        left = usable - max(rest + each * micro_batch, _objective_bytes(bench) + cost.gathered_bytes)
        fit, most = max(0, int((left / images - decoder) // step)), cost.most_kept
        keep = sampler.steps_made if fit >= most > 0 else min(fit, most)
    return micro_batch, keep


def peak_bytes(bench: Bench, count: int) -> int:
    """The most bytes that a micro-batch of `count` images takes through a step and the decoder and back, flat."""
    return _measured(bench, lambda _: _pulled_back(bench, count, 1, 0)())[0]


def graph_bytes(bench: Bench) -> tuple[int, int]:
    """Bytes that the graph of a step, and that of the decoder, hold for one image."""

    def held(steps: int, used: Callable[[], int]) -> int:
        pull_back = _pulled_back(bench, 1, steps, steps)
        bytes_now = used()
        del pull_back
        return bytes_now

    short, long = (_measured(bench, lambda used, steps=steps: held(steps, used))[1] for steps in (1, 2))  # type: ignore[misc]
    step = max(1, long - short)
    return step, max(0, short - step)


def _pulled_back(bench: Bench, count: int, steps: int, keep: int) -> Callable[[], object]:
    """Renders images through the last steps; calling the result pulls a gradient back through them."""
    prior, schedule, device = bench.prior, bench.schedule, bench.device
    short = replace(schedule, steps=schedule.steps[-steps:])
    z = torch.zeros(count, *prior.latent_shape, device=device)
    c = torch.zeros(count, *prior.conditioning_shape, device=device)
    resolution = bench.recipe.rendered_size
    pixels, pull_back = render(prior, short, z, c, z, resolution=resolution, micro_batch=count, keep_graph_steps=keep)
    return lambda: pull_back(torch.zeros_like(pixels))


def _objective_bytes(bench: Bench) -> int:
    """The most bytes that the objective takes, in proportion to its classes, or that its inner loop does."""
    few = [_measured(bench, lambda _, units=units: bench.match(0, units))[0] for units in (1, 2)[: bench.units]]  # type: ignore[misc]
    matched = few[0] + (bench.units - 1) * max(0, few[-1] - few[0]) if few else 0
    return max(matched, _measured(bench, lambda _: bench.train(0, 1))[0] if bench.batches else 0)


def _measured(bench: Bench, run: Callable[[Callable[[], int]], Any]) -> tuple[int, Any]:
    """The most bytes that a function takes beyond those before, and its answer; it can ask how many there are.

    A GPU's allocator counts its own; elsewhere tensors are counted as they are made.
    """
    device = bench.device
    if device.type != "cuda":
        with Tally(weights_of(bench.prior)) as tally:
            answer = run(lambda: tally.bytes)
        return tally.peak, answer
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    answer = run(lambda: torch.cuda.memory_allocated(device) - before)
    return torch.cuda.max_memory_allocated(device) - before, answer
