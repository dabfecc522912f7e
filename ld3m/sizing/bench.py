"""A sample of an iteration: run on the meta device its work is counted, run on this machine it is timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ld3m import objectives
from ld3m.data.prepared import ImageSet
from ld3m.machine.processes import Processes
from ld3m.networks.flat import FlatNetwork
from ld3m.networks.training import train_epoch
from ld3m.objectives import draws, mtt
from ld3m.priors import Prior
from ld3m.randomness import generator
from ld3m.recipe import DistillRecipe, Recipe, SamplerRecipe
from ld3m.sampling.noise import draw_noise
from ld3m.sampling.sampler import Schedule, render, reverse, to_pixels
from ld3m.sizing.meta_models import Outline
from ld3m.sizing.tally import Tally

BUDGET = 20.0
"""Seconds that the timed iterations may take together, but for one that takes longer."""
REPEATS = 15
"""Timed iterations at most."""


@dataclass(frozen=True)
class Bench:
    """What an iteration of one process needs; without weights and images where the prior is an outline."""

    recipe: Recipe
    prior: Prior
    images: ImageSet
    own: Sequence[int]
    """The classes of a process that has the most."""
    device: torch.device

    @property
    def schedule(self) -> Schedule:
        """As a run has it."""
        sampler = self.recipe.prior
        return Schedule.of(self.prior.noise_schedule, sampler.steps, sampler.skip, sampler.guidance)

    @property
    def everyone(self) -> int:
        """Synthetic images of all processes."""
        return len(self.images.classes) * self.recipe.distill.latents_per_class

    @property
    def units(self) -> int:
        """Of the objective: the process's classes, or for "mtt" parts of at most 256 images of the student's steps."""
        settings = self.recipe.distill
        if settings.objective == "mtt":
            return settings.mtt.syn_steps * -(-(settings.mtt.batch_syn or self.everyone) // mtt.CHUNK)
        return len(self.own)

    @property
    def shown(self) -> int:
        """Images of a unit of "mtt"."""
        return min(self.recipe.distill.mtt.batch_syn or self.everyone, mtt.CHUNK)

    @property
    def batches(self) -> int:
        """Steps of the inner loop of "dc" in an iteration that has one."""
        settings = self.recipe.distill
        inner = settings.objective == "dc" and settings.dc.outer > 1
        return settings.dc.inner * -(-self.everyone // settings.dc.batch) if inner else 0

    @property
    def without_experts(self) -> Recipe:
        """The recipe with random matching networks, which cost what trained ones do and need no files."""
        return self.recipe.model_copy(update={"distill": self.recipe.distill.model_copy(update={"networks": "random"})})

    @property
    def on_average(self) -> "Bench":
        """With as many real images as an iteration passes on average, where the networks of a pool take turns."""
        distill = self.recipe.distill
        changes = {"real_batch": real_images(distill), "dm": distill.dm.model_copy(update={"pool": None})}
        recipe = self.recipe.model_copy(update={"distill": distill.model_copy(update=changes)})
        return replace(self, recipe=recipe)

    def match(self, iteration: int, units: int) -> None:
        """Some units of the objective, on noise; gathers nothing and needs no experts."""
        recipe = self.without_experts
        channels, size = recipe.data.channels, recipe.data.resolution
        if recipe.distill.objective == "mtt":
            self._follow(iteration, units)
            return
        if self.device.type == "meta":  # which operation augments is chance; what is counted should not be
            recipe = _without_augmentation(recipe)
        objective = objectives.build(recipe, self.images, self.own[:units], Processes(self.device))
        pixels = torch.rand(units, recipe.distill.latents_per_class, channels, size, size, device=self.device)
        objective.match(iteration * recipe.distill.dc.outer, pixels)

    def _follow(self, iteration: int, steps: int) -> None:
        """Steps of a student of "mtt" on at most 256 images, its own those of the process's classes."""
        recipe, settings = self.recipe, self.recipe.distill.mtt
        count = self.shown
        pixels = torch.rand(count, recipe.data.channels, *(recipe.data.resolution,) * 2, device=self.device)
        labels = torch.arange(count) % len(self.images.classes)
        own = torch.isin(labels, torch.tensor(self.own))  # dealt like cards, as it is
        student = FlatNetwork(draws.network(recipe, self.images, 0, self.device))
        start, target = torch.randn(2, student.count, device=self.device).mul(0.01).unbind()

        def show(step: int, places: Tensor, images: Tensor) -> Tensor:
            images = self.images.normalise(images)
            if not settings.augment or self.device.type == "meta":
                return images
            numbers = generator(recipe.seed, "augmentation", iteration, step)
            return mtt.augment.draw(numbers, images.shape[-1], count).of(places)(images)

        batches = [torch.arange(count)] * steps
        with torch.enable_grad():
            mtt.match_trajectory(student, start, target, settings.step_size, batches, show, pixels, labels, own)

    def train(self, iteration: int, batches: int) -> None:
        """Steps of the inner loop of "dc", on noise."""
        recipe, settings = self.without_experts, self.recipe.distill.dc
        size = min(settings.batch, self.everyone)
        network = draws.network(recipe, self.images, iteration, self.device)
        optimiser = torch.optim.SGD(network.parameters(), lr=settings.lr_network)
        inputs = torch.rand(size, recipe.data.channels, *(recipe.data.resolution,) * 2, device=self.device)
        targets = torch.arange(size, device=self.device) % len(self.images.classes)
        augmented = settings.augment and self.device.type != "meta"
        with torch.enable_grad():
            for batch in range(batches):
                train_epoch(
                    network, optimiser, inputs, targets, size, augmented, generator(0, "inner loop", iteration, batch)
                )


def real_images(recipe: DistillRecipe) -> int:
    """Of each class, those that an iteration passes through its network, on average over the run."""
    pool = recipe.dm.pool if recipe.objective == "dm" else None
    share = min(1.0, pool / max(1, recipe.iterations)) if pool else 1.0
    return max(1, round(recipe.real_batch * share))


def _without_augmentation(recipe: Recipe) -> Recipe:
    off = {"augment": False}
    distill = recipe.distill
    parts = {"dm": distill.dm.model_copy(update=off), "dc": distill.dc.model_copy(update=off)}
    return recipe.model_copy(update={"distill": distill.model_copy(update=parts)})


# --- counted -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """A function and its gradient, for one micro-batch."""

    forward: int
    """Floating point operations."""
    backward: int
    """Floating point operations."""
    graph: int
    """Bytes that its graph holds between the two."""
    peak: int
    """The most bytes at a time, the graph included."""

    @classmethod
    def of(cls, function: Callable[..., Tensor], inputs: Sequence[Tensor], known: Sequence[Tensor]) -> "Pass":
        """Counts a function of tensors on the meta device; `known` are its weights."""
        leaves = [tensor.requires_grad_() for tensor in inputs]
        with Tally([*known, *leaves]) as tally:
            value = function(*leaves)
            forward, graph = tally.operations, tally.bytes
            torch.autograd.grad(value, leaves, torch.empty_like(value), allow_unused=True)
        return cls(forward, tally.operations - forward, graph, tally.peak)


@dataclass(frozen=True)
class Counts:
    """The parts of an iteration's work, counted."""

    step: Pass
    """One reverse step of a micro-batch, guidance included."""
    decoder: Pass
    """Of a micro-batch."""
    objective: tuple[int, int]
    """Operations of a further unit, and what is there without any: of the two, one unit has the sum."""
    objective_bytes: tuple[int, int]
    """As `objective`."""
    inner: int
    """Operations of a step of the inner loop."""
    inner_bytes: int
    images: int
    """Of a micro-batch."""
    shown: int
    """Images of a unit of "mtt"."""
    units: int
    """Of the objective in an iteration."""
    batches: int
    """Steps of the inner loop in an iteration that has one."""

    @classmethod
    def of(cls, bench: Bench, prior: Outline) -> "Counts":
        """Those of a recipe; `bench` has the outline for its prior, on the meta device."""
        settings = bench.recipe.distill
        micro_batch = min(len(bench.own) * settings.latents_per_class, bench.recipe.prior.images_at_a_time)
        z = torch.empty(micro_batch, *prior.latent_shape, device="meta")
        c = torch.empty(micro_batch, *prior.conditioning_shape, device="meta")
        schedule = bench.schedule
        step = Pass(0, 0, 0, 0)
        if schedule.steps:
            step = Pass.of(reverse(prior, schedule, schedule.steps[-1]), [z.clone(), c, z.clone()], prior.weights)
        decoder = Pass.of(lambda z: to_pixels(prior.decode(z), bench.recipe.data.resolution), [z], prior.weights)
        # In proportion to the units, from where the real images are as many as go through the network at a time.
        enough = 1 if settings.objective == "mtt" else -(-draws.REAL_CHUNK // settings.real_batch)
        low, high = (enough, enough + 1) if bench.units > enough else (1, max(2, bench.units))
        few = _counted(bench, min(low, bench.units))
        more = _counted(bench, high) if bench.units > 1 else tuple(2 * each for each in few)
        slopes = [(b - a) // (high - low) for a, b in zip(few, more, strict=True)]
        operations, held = ((slope, a - low * slope) for a, slope in zip(few, slopes, strict=True))
        inner = _tallied(bench.train, 1) if bench.batches else (0, 0)
        return cls(step, decoder, operations, held, *inner, micro_batch, bench.shown, bench.units, bench.batches)


def _counted(bench: Bench, units: int) -> tuple[int, int]:
    """Operations of some units of the objective on average over the run, and their peak bytes."""
    return _tallied(bench.on_average.match, units)[0], _tallied(bench.match, units)[1]


def _tallied(run: Callable[[int, int], None], units: int) -> tuple[int, int]:
    """Operations and peak bytes."""
    with Tally() as tally:
        run(0, units)
    return tally.operations, tally.peak


# --- timed -------------------------------------------------------------------------------------------------

Seconds = np.ndarray
"""[2]: on the clock, and of this process's processors."""


class Sample(NamedTuple):
    """How much of an iteration is run."""

    images: int
    """Of one micro-batch."""
    steps: int
    """The last of the reverse steps."""
    units: int
    batches: int
    iterations: int = 1


def run(bench: Bench, sample: Sample, iteration: int) -> dict[str, Seconds]:
    """Runs a sample of an iteration as the loop runs a whole one; the seconds of its parts."""
    prior, settings, own = bench.prior, bench.recipe.prior, bench.own
    count = sample.images
    per_class = bench.recipe.distill.latents_per_class
    z = torch.randn(count, *prior.latent_shape, device=bench.device)
    c = prior.null_embedding.expand(count, *prior.conditioning_shape).to(bench.device, torch.float32)
    full = bench.schedule
    schedule = replace(full, steps=full.steps[len(full.steps) - sample.steps :])
    seconds = {}
    last = _now(bench.device)

    def lap(part: str) -> None:
        nonlocal last
        now = _now(bench.device)
        seconds[part], last = now - last, now

    noise = draw_noise(bench.recipe, prior, own[: -(-count // per_class)], iteration, bench.device)[:count]
    pixels, pull_back = render(
        prior,
        schedule,
        z,
        c,
        noise,
        resolution=bench.recipe.data.resolution,
        micro_batch=settings.images_at_a_time,
        keep_graph_steps=settings.kept_steps,
    )
    lap("render")
    bench.match(iteration, sample.units)
    lap("objective")
    if sample.batches:
        bench.train(iteration, sample.batches)
        lap("inner loop")
    pull_back(torch.randn_like(pixels))
    lap("pull_back")
    return seconds


def _now(device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return np.array([time.perf_counter(), time.process_time()])


def timed(bench: Bench) -> tuple[dict[str, Seconds], Sample]:
    """Seconds of the parts of a process's iteration, and the sample that they were measured on.

    Medians of a few iterations, whole ones where a micro-batch is all there is and `BUDGET` allows, else smaller in
    images, steps and units, and scaled in proportion.
    """
    bench, settings = bench.on_average, bench.recipe.prior
    count, steps = len(bench.own) * bench.recipe.distill.latents_per_class, len(bench.schedule.steps)
    least = Sample(1, min(1, steps), 1, min(1, bench.batches))
    for iteration in range(2):  # the first warms up
        # On a processor that others keep busy, the clock's seconds would make the sample smaller than it may be.
        small = {
            part: float(spent.min() if bench.device.type == "cpu" else spent[0])
            for part, spent in run(bench, least, iteration).items()
        }
    chain, share = small["render"] + small["pull_back"], BUDGET / 2
    images = min(count, settings.images_at_a_time, max(1, int(share / (chain * max(1, steps)))))
    sample = Sample(
        images,
        min(steps, max(2, int(share / (chain * images)))),
        min(bench.units, max(1, int(share / small["objective"]))),
        min(bench.batches, max(1, int(share / small.get("inner loop", share)))),
    )
    rounds: list[dict[str, Seconds]] = []
    began = time.perf_counter()
    while len(rounds) < REPEATS and (time.perf_counter() - began) * (1 + 1 / max(1, len(rounds))) < BUDGET:
        rounds.append(run(bench, sample, len(rounds)))
    median = {part: np.median([each[part] for each in rounds], axis=0) for part in rounds[0]}
    if sample.steps < steps:  # the decoder's share must not grow with the steps
        short = run(bench, sample._replace(steps=1), len(rounds))
        for part in ("render", "pull_back"):
            a_step = (median[part] - short[part]) / (sample.steps - 1)
            median[part] = short[part] + a_step * (calls(bench.recipe.prior) - 1)
    for part in ("render", "pull_back"):
        median[part] *= count / sample.images
    median["objective"] *= bench.units / sample.units
    if sample.batches:
        outer = bench.recipe.distill.dc.outer
        median["inner loop"] *= bench.batches / sample.batches * (outer - 1) / outer
    return median, sample._replace(iterations=len(rounds))


def calls(recipe: SamplerRecipe) -> int:
    """Denoiser calls of one chain: a step each, but for the paper's first, whose answer would have weight 0."""
    return recipe.steps - (recipe.skip == "paper" and recipe.steps > 0)
