"""The work and the memory of an iteration's parts, counted on the meta device rather than run."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ld3m.objectives.draws import REAL_CHUNK
from ld3m.priors import Prior
from ld3m.priors.base import weights_of
from ld3m.sampling.algorithm import decoded, reverse_step
from ld3m.sizing.bench import Bench


class Tally(TorchDispatchMode):
    """Counts while it is entered: on the meta device, where nothing is computed, a large model's pass takes a second.

    A multiplication and the addition after it are two operations, by PyTorch's own formulas for convolutions, matrix
    products and attention; the rest counts nothing. Bytes are of tensors, not of a kernel's working space.

    Args:
        known: tensors that are there before, such as weights; they and their views count no bytes.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.operations = 0
        self.bytes = 0
        """Bytes of tensors that are alive now."""
        self.peak = 0
        """The most bytes that were alive at once since it was last set."""
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until it is freed."""
        if (key := storage._cdata) in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


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
    """The decoder on a micro-batch."""
    objective: tuple[int, int]
    """Operations of each further unit, and those there are without any; one unit takes the sum of the two."""
    objective_bytes: tuple[int, int]
    """The same for the peak bytes."""
    inner: int
    """Operations of a step of the inner loop."""
    inner_bytes: int
    """Peak bytes of such a step."""
    images: int
    """Images of a micro-batch."""
    shown: int
    """Images of a unit of "mtt"."""
    units: int
    """Units of the objective in an iteration."""
    batches: int
    """Steps of the inner loop in an iteration that has one."""

    @classmethod
    def of(cls, bench: Bench, prior: Prior) -> "Counts":
        """Those of a recipe; `bench` has the meta prior."""
        settings = bench.recipe.distill
        micro_batch = min(len(bench.own) * settings.latents_per_class, bench.recipe.prior.images_at_a_time)
        z = torch.empty(micro_batch, *prior.latent_shape, device="meta")
        c = torch.empty(micro_batch, *prior.conditioning_shape, device="meta")
        schedule = bench.schedule if bench.schedule.steps else bench.sampling_schedule
        step, known = Pass(0, 0, 0, 0), weights_of(prior)
        if schedule.steps:
            step = Pass.of(partial(reverse_step, prior, schedule, schedule.steps[-1]), [z.clone(), c, z.clone()], known)
        decoder = Pass.of(partial(decoded, prior, resolution=bench.recipe.rendered_size), [z], known)
        # In proportion to the units, from where the real images are as many as go through the network at a time.
        enough = 1 if settings.objective == "mtt" else -(-REAL_CHUNK // settings.real_batch)
        low, high = (enough, enough + 1) if bench.units > enough else (1, max(2, bench.units))
        few = _counted(bench, min(low, bench.units))
        more = _counted(bench, high) if bench.units > 1 else tuple(2 * each for each in few)
        slopes = [(b - a) // (high - low) for a, b in zip(few, more, strict=True)]
        operations, held = ((slope, a - low * slope) for a, slope in zip(few, slopes, strict=True))
        inner = _tallied(bench.train, 1) if bench.batches else (0, 0)
        return cls(step, decoder, operations, held, *inner, micro_batch, bench.shown, bench.units, bench.batches)


def _counted(bench: Bench, units: int) -> tuple[int, int]:
    """Operations of some units of the objective on average over the run, and their peak bytes."""
    operations, peak = _tallied(bench.match, units)
    average = bench.on_average
    return (operations if average.recipe == bench.recipe else _tallied(average.match, units)[0]), peak


def _tallied(run: Callable[[int, int], None], units: int) -> tuple[int, int]:
    """Operations and peak bytes."""
    with Tally() as tally:
        run(0, units)
    return tally.operations, tally.peak
