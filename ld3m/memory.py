"""Memory: how much goes through the prior at a time, found for what is free, and less where it runs out after all."""

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ld3m.errors import UserError
from ld3m.probe import Bench
from ld3m.recipe import Recipe
from ld3m.sampler import PullBack, render
from ld3m.shapes import Shapes
from ld3m.shortage import free_unheld, ran_out
from ld3m.tally import Tally

SHARE = 0.85
"""Of the free memory, what "auto" plans with; kernels' working space and what lies unused between tensors take some."""
CPU_IMAGES = 64
"""Images at a time that "auto" takes at most without a GPU, where more are no faster."""


# --- what there is -----------------------------------------------------------------------------------------


def peak(device: torch.device) -> int:
    """The most bytes that this process has had: of a GPU its tensors, else all that it has in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux's own figure where there is one, as getrusage's begins with the parent process's
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free(device: torch.device) -> int:
    """Bytes that this process may still take: of a GPU, or its share of the machine's, or of its control group's."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    found = psutil.virtual_memory().available
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found = min(found, max(0, limit - used))
    except (OSError, ValueError):  # no control group, or one without a limit
        pass
    return found // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


# --- what "auto" is ----------------------------------------------------------------------------------------


def settled(bench: Bench, processes: int, images: int, room: float, sharded: bool = False) -> Recipe:
    """The recipe with numbers in the place of `prior.micro_batch: auto` and `prior.keep_graph_steps: auto`.

    The micro-batch is the largest that fits, and graphs are kept in what it leaves; micro-batches of one image
    and of two and the graphs of one and of two steps are measured, and the rest is proportion.

    Args:
        bench: of the process; with an outline for its prior, on the meta device, nothing is computed.
        processes: of the run.
        images: that the process renders in an iteration.
        room: bytes that are free.
        sharded: whether each call of the denoiser is a collective; then "auto" keeps no graph.
    """
    recipe, sampler = bench.recipe, bench.recipe.prior
    if "auto" not in (sampler.micro_batch, sampler.keep_graph_steps):
        return recipe
    try:
        micro_batch, keep = _fitting(bench, processes, images, room, sharded)
    except Exception as error:
        if sharded or not ran_out(error):
            raise
        micro_batch, keep = 1, 0  # two images, or one's graph, are too much already
    if sampler.micro_batch != "auto":
        micro_batch = sampler.micro_batch
    update = {"micro_batch": micro_batch, "keep_graph_steps": keep}
    return recipe.model_copy(update={"prior": sampler.model_copy(update=update)})


def _fitting(bench: Bench, processes: int, images: int, room: float, sharded: bool) -> tuple[int, int]:
    """Images at a time and steps whose graph is kept."""
    recipe, sampler = bench.recipe, bench.recipe.prior
    shapes = Shapes(
        recipe, processes, len(bench.images.classes), bench.prior.latent_shape, bench.prior.conditioning_shape
    )
    room = SHARE * room - sum(shapes.lasting(images, sampler.steps).values())
    if bench.device.type == "cuda":
        _flat(bench, 1)  # what the first call alone takes, such as a library's working space
    one, two = _flat(bench, 1), _flat(bench, 2)
    each, rest = max(1, two - one), max(0, 2 * one - two)
    more = sampler.keep_graph_steps == "auto" and images > 0 and not sharded
    step, decoder = _graphs(bench) if more or sampler.kept_steps else (1, 0)
    micro_batch, keep = min(sampler.images_at_a_time, images), sampler.kept_steps
    if sampler.micro_batch == "auto":
        kept = images * (keep * step + decoder) if keep else 0
        most = CPU_IMAGES if bench.device.type == "cpu" else images
        micro_batch = max(1, min(int((room - kept - rest) // each), images, most))
    if more:
        left = room - max(rest + each * micro_batch, _objective(bench) + shapes.gathered_bytes)
        keep = max(0, min(int((left / images - decoder) // step), sampler.steps))
    return micro_batch, keep


def _flat(bench: Bench, count: int) -> int:
    """The most bytes of a micro-batch through a step and the decoder and back, no graph being kept."""
    return _watched(bench, lambda _: _there(bench, count, 1, 0)())[0]


def _graphs(bench: Bench) -> tuple[int, int]:
    """Bytes that the graphs of a step and of the decoder hold, of one image."""

    def held(steps: int, used: Callable[[], int]) -> int:
        back = _there(bench, 1, steps, steps)
        found = used()
        del back
        return found

    short, long = (_watched(bench, lambda used, steps=steps: held(steps, used))[1] for steps in (1, 2))  # type: ignore[misc]
    step = max(1, long - short)
    return step, max(0, short - step)


def _there(bench: Bench, count: int, steps: int, keep: int) -> Callable[[], object]:
    """Renders images through the last steps; what comes back pulls a gradient through them."""
    prior, schedule, device = bench.prior, bench.schedule, bench.device
    short = replace(schedule, steps=schedule.steps[-steps:])
    z = torch.zeros(count, *prior.latent_shape, device=device)
    c = torch.zeros(count, *prior.conditioning_shape, device=device)
    resolution = bench.recipe.data.resolution
    pixels, pull_back = render(prior, short, z, c, z, resolution=resolution, micro_batch=count, keep_graph_steps=keep)
    return lambda: pull_back(torch.zeros_like(pixels))


def _objective(bench: Bench) -> int:
    """The most bytes that the objective takes, in proportion to its classes, or that its inner loop does."""
    few = [_watched(bench, lambda _, units=units: bench.match(0, units))[0] for units in (1, 2)[: bench.units]]  # type: ignore[misc]
    matched = few[0] + (bench.units - 1) * max(0, few[-1] - few[0]) if few else 0
    return max(matched, _watched(bench, lambda _: bench.train(0, 1))[0] if bench.batches else 0)


def _watched(bench: Bench, run: Callable[[Callable[[], int]], Any]) -> tuple[int, Any]:
    """The most bytes that a function takes beyond those before, and its answer; it can ask how many there are.

    A GPU's allocator counts its own; elsewhere tensors are counted as they are made.
    """
    device = bench.device
    if device.type != "cuda":
        weights = [
            tensor
            for model in vars(bench.prior).values()
            if isinstance(model, nn.Module)
            for tensor in (*model.parameters(), *model.buffers())
        ]
        with Tally(weights) as tally:
            answer = run(lambda: tally.bytes)
        return tally.peak, answer
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    answer = run(lambda: torch.cuda.memory_allocated(device) - before)
    return torch.cuda.max_memory_allocated(device) - before, answer


# --- where it runs out -------------------------------------------------------------------------------------

Attempt = Callable[[int, int], tuple[Tensor, PullBack]]
"""A render by its micro-batch and the steps whose graph it keeps; called again, it gives the same."""


@dataclass
class Room:
    """What a process puts through the prior at a time: less from each moment on at which memory ran out."""

    micro_batch: int
    keep_graph_steps: int
    together: bool = False
    """Whether all processes must make the same calls of the denoiser, so that none can repeat its own."""
    process: str = ""
    """Names the process in what it says."""

    @classmethod
    def of(cls, recipe: Recipe, images: int, together: bool = False, process: str = "") -> "Room":
        """That of a recipe, for so many images."""
        sampler = recipe.prior
        return cls(max(1, min(sampler.images_at_a_time, images)), sampler.kept_steps, together, process)

    def render(self, attempt: Attempt) -> tuple[Tensor, "Pulling"]:
        """Images and their pull-back; either is done again with less where memory runs out.

        Raises:
            UserError: where it runs out with one image at a time, or other processes would wait for ever.
        """
        while True:
            try:
                pixels, pull_back = attempt(self.micro_batch, self.keep_graph_steps)
                return pixels, Pulling(self, attempt, pull_back)
            except Exception as error:
                if not ran_out(error):
                    raise
            self.lower()  # out here nothing holds what the attempt had

    def lower(self) -> None:
        """Keeps no graph from here on, or halves the micro-batch, and says so; frees what nobody holds."""
        free_unheld()
        if self.keep_graph_steps:
            less = "prior.keep_graph_steps=0"
        elif self.micro_batch > 1:
            less = f"prior.micro_batch={self.micro_batch // 2}"
        else:
            raise UserError(
                "prior.micro_batch: memory ran out with one image at a time and no graph kept; give "
                "prior.dtype=bfloat16, a smaller prior.resolution or more memory, or launch by launch/zero3.yaml"
            )
        if self.together:
            raise UserError(
                "prior.micro_batch: memory ran out, and under ZeRO-3 and FSDP no process can go on with less than the "
                f"others; give {less}, and the same command goes on where it stood"
            )
        if self.keep_graph_steps:
            self.keep_graph_steps = 0
        else:
            self.micro_batch //= 2
        tqdm.write(
            f"ld3m: {self.process}memory ran out; goes on with {less}, which on the command line saves the attempt",
            file=sys.stderr,
        )


class Pulling:
    """A pull-back that renders again with less where memory runs out; its images stay those that there are."""

    def __init__(self, room: Room, attempt: Attempt, pull_back: PullBack) -> None:
        self.room = room
        self.attempt = attempt
        self.pull_back: PullBack | None = pull_back

    def __call__(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of (Z, c) of one of the pixels."""
        while True:
            pull_back, self.pull_back = self.pull_back, None
            try:
                pull_back = pull_back or self.attempt(self.room.micro_batch, self.room.keep_graph_steps)[1]
                return pull_back(grad)
            except Exception as error:
                if not ran_out(error):
                    raise
            del pull_back
            self.room.lower()

    def release(self) -> None:
        """Lets go of the graphs that are kept; they are made again when they are needed."""
        self.pull_back = None
        self.room.lower()
