"""What a run will take before it is paid for: shards, memory by part, denoiser calls, hours, communication, disk.

Sizes and calls are arithmetic on cost; what a denoiser step, the decoder and the objective hold and compute is
counted on the meta device; seconds are measured on this machine, or follow from a table of devices.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ld3m import priors
from ld3m.distillation.inputs import check_inputs
from ld3m.distillation.plan_evaluation import evaluation_hours
from ld3m.distillation.plan_sampling import not_counted, sampling_seconds
from ld3m.distillation.setup import load_prior_and_images
from ld3m.distillation.starts import initial_state
from ld3m.images import grids
from ld3m.machine import memory
from ld3m.machine.processes import Processes, start
from ld3m.networks.flat import FlatNetwork
from ld3m.objectives.experts import Trajectories, experts_of
from ld3m.priors.base import weights_of
from ld3m.recipe import Recipe
from ld3m.runs import checkpoints, result
from ld3m.sizing import devices
from ld3m.sizing.auto import solve_auto
from ld3m.sizing.bench import Bench
from ld3m.sizing.cost import RunCost
from ld3m.sizing.count import Counts
from ld3m.sizing.meta_models import MetaImages, meta_prior
from ld3m.sizing.timed import BUDGET, Sample, Seconds, now, timed

FEW = 10
"""Classes that stand for all when the start and the end are timed."""
META = torch.device("meta")


@dataclass(frozen=True)
class Plan:
    """What `ld3m plan` prints, for the process that has the most classes."""

    recipe: str
    basis: str
    """Where the seconds are from."""
    shards: list[tuple[int, int]]
    """(processes, classes of each)."""
    images: int
    """Of the process."""
    iterations: int
    """0 if Z is sampled, and nothing learnt."""
    z: list[int]
    """The shape over all processes."""
    c: list[int]
    learnt_bytes: int
    """Of Z, c and their momentum over all processes."""
    micro_batch: int
    """Images that go through the prior at a time, as the recipe says or "auto" finds."""
    keep_graph_steps: int
    """Steps whose graph is kept, as the recipe says or "auto" finds."""
    denoiser_calls: dict[str, int]
    sampling: dict[str, int]
    """Denoiser calls that sample Z at the start, at most."""
    seconds: dict[str, float]
    """Wall-clock seconds of an iteration by part, of the start and of the end."""
    hours: float
    processor: str
    """GPU or CPU, whose hours are counted."""
    processor_hours: float
    """Hours of all processes: of GPUs also while they wait, of CPUs only while they work."""
    evaluation: dict[str, float]
    """Hours of `ld3m evaluate` by architecture, without baselines and a teacher."""
    memory: dict[str, int]
    """Bytes by part at the worst moment of the process."""
    peak: int
    """Their sum."""
    available: int
    """Bytes of the device, or of this machine."""
    communication: dict[str, float]
    """Bytes that the process is sent in an iteration, on average."""
    real_bytes: int
    """Bytes of real images that the process reads in an iteration, from disk or the system's cache."""
    experts_bytes: int
    """Bytes on disk of the experts, if the recipe needs any."""
    warnings: list[str]


@dataclass(frozen=True)
class Basis:
    """Seconds and what memory there is, measured or from a table."""

    text: str
    parts: dict[str, Seconds]
    """Of an iteration."""
    start: Seconds
    end: Seconds
    available: int
    """Bytes."""
    processor: str
    sample: Sample | None = None
    """What was measured."""
    peak: int = 0
    """Bytes that it took."""


def plan(recipe: Recipe, processes: int, device: str | None = None) -> Plan:
    """What a run on so many processes takes.

    Without a device a sample of an iteration is timed here, a minute at most, and nothing is left in the run's folder;
    images that were never prepared are prepared, and kept for the run. With one, neither images nor weights need be
    here. Communication is not in the seconds, nor, from a table, are reading and the start.

    Raises:
        UserError: for an unknown device, a prior whose configurations are not here, or what `distill` refuses.
    """
    check_inputs(recipe)
    chosen = devices.find(device) if device else None
    here = None if chosen else _prepare(recipe, processes)
    basis = _measure(*here) if here else None  # before anything else takes memory
    meta = meta_prior(recipe)
    images: Any = here[0].images if here else MetaImages.of(recipe.data)
    own = range(0, len(images.classes), processes)
    weights = sum(tensor.nbytes for tensor in weights_of(meta))
    bench = Bench(recipe, meta, images, own, META)
    if here:
        recipe = here[0].recipe
    elif chosen:
        recipe = _with_auto(bench, processes, chosen.gib * 2**30 - devices.RESERVED - weights)
    _say(f"counting operations and memory{_with_network(recipe)}")
    counts = Counts.of(replace(bench, recipe=recipe), meta)
    features = bench.gathered_features
    cost = RunCost(recipe, processes, len(images.classes), meta.latent_shape, meta.conditioning_shape, features)
    if chosen:
        basis = _look_up(chosen, cost, counts)
    assert basis
    real = images.counts["train"]
    parts = _memory(cost, counts, weights, basis, real)
    warnings = not_counted(recipe, measured=not chosen)
    if processes > cost.classes:
        idle = processes - cost.classes
        warnings.append(f"{idle} of {processes} processes would be idle; give --processes {cost.classes} or fewer")
    if sum(parts.values()) > basis.available:
        fitting = (
            changes
            for changes, other in remedies(cost)
            if sum(_memory(other, counts, weights, basis, real).values()) <= basis.available
        )
        warnings.append(_does_not_fit(parts, basis.available, next(fitting, None)))
    each = sum(basis.parts.values(), np.zeros(2))
    clock, busy = (basis.start + basis.end + recipe.distill.iterations * each).tolist()
    per_class = recipe.distill.latents_per_class
    archs = ", ".join(recipe.evaluate.arch)
    _say(f"{'counting' if chosen else 'timing'} the networks of ld3m evaluate: {archs}")
    return Plan(
        recipe=recipe.name,
        basis=basis.text,
        shards=cost.shards,
        images=cost.images,
        iterations=recipe.distill.iterations,
        z=[cost.classes, per_class, *cost.latent],
        c=[cost.classes, per_class, *cost.conditioning],
        learnt_bytes=cost.everyone * cost.learnt_bytes,
        micro_batch=min(cost.images, recipe.prior.images_at_a_time),
        keep_graph_steps=cost.kept,
        denoiser_calls=cost.denoiser_calls(),
        sampling=cost.sampling_calls(),
        seconds={name: float(spent[0]) for name, spent in basis.parts.items()}
        | {"start": float(basis.start[0]), "end": float(basis.end[0])},
        hours=clock / 3600,
        processor=basis.processor,
        processor_hours=busy * (processes if basis.processor == "GPU" else cost.share) / 3600,
        evaluation=evaluation_hours(recipe, images, processes, here[0].device if here else META, chosen),
        memory={name: round(size) for name, size in parts.items()},
        peak=round(sum(parts.values())),
        available=basis.available,
        communication=cost.communication(),
        real_bytes=cost.real_bytes(real),
        experts_bytes=_experts(bench) if recipe.needs_experts else 0,
        warnings=warnings,
    )


def _with_network(recipe: Recipe) -> str:
    """What an iteration matches in, as part of a line; nothing if there is none."""
    return f", with {recipe.distill.backbone or recipe.network.arch}" if recipe.distill.iterations else ""


def _say(phase: str) -> None:
    """Says what is begun: on a busy machine each phase may take a minute."""
    print(f"{phase} …", file=sys.stderr, flush=True)


# --- seconds -----------------------------------------------------------------------------------------------


def _look_up(device: devices.Device, cost: RunCost, counts: Counts) -> Basis:
    """Seconds from the operations counted and a device's data sheet."""
    parts = {
        name: np.full(2, sum(device.seconds(operations, dtype, cost.recipe.tf32) for operations, dtype in done))
        for name, done in cost.operations(counts).items()
    }
    name = next(name for name, known in devices.DEVICES.items() if known is device)
    text = f"estimated for {name} from its data sheet and times measured on an H100; nothing was run"
    sampling = device.seconds(*cost.sampling_operations(counts), cost.recipe.tf32)
    return Basis(text, parts, np.full(2, sampling), parts["render"], round(device.gib * 2**30), "GPU")


def _prepare(recipe: Recipe, processes: int) -> tuple[Bench, torch.Tensor, Seconds]:
    """Data and prior as `distill` has them, the embeddings of the classes, and the seconds until they were there."""
    before = time.process_time()  # of the interpreter and the libraries, in one thread and so on the clock too
    began = time.perf_counter()
    _say("loading the images and the prior")
    alone = start()
    prior, images, embeddings = load_prior_and_images(recipe, alone)
    own = range(0, len(images.classes), processes)
    priors.provenance(recipe.prior.source)
    spent = np.array([before + time.perf_counter() - began, time.process_time()])
    bench = Bench(recipe, prior, images, own, alone.device)
    bench = replace(bench, recipe=_with_auto(bench, processes, memory.free(alone.device)))
    return bench, embeddings, spent


def _with_auto(bench: Bench, processes: int, available: float) -> Recipe:
    """The recipe with numbers for "auto" in so many free bytes, on the process that has the most images."""
    return solve_auto(bench, processes, len(bench.own) * bench.recipe.distill.latents_per_class, available)


def _measure(bench: Bench, embeddings: torch.Tensor, start: Seconds) -> Basis:
    """Seconds of a sample of an iteration, of the start and of the end, run here."""
    recipe, images, device = bench.recipe, bench.images, bench.device
    few = list(bench.own[:FEW])
    if recipe.samples:
        start = start + sampling_seconds(bench, embeddings[few[0]])
    begun = recipe.changed({"distill.init": "noise"}) if recipe.samples else recipe
    clock = np.array([time.perf_counter(), time.process_time()])
    states = [initial_state(begun, images, bench.prior, embeddings[label], label, device) for label in few]  # type: ignore[arg-type]
    start = start + (now(device) - clock) * len(bench.own) / len(few)
    what = f"an iteration{_with_network(recipe)}" if recipe.distill.iterations else "how images are rendered"
    _say(f"timing {what}: about {BUDGET:.0f} seconds of this processor alone")
    parts, sample = timed(bench)
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = recipe.changed({"output": folder})
        size = (recipe.distill.latents_per_class, recipe.data.channels, *(recipe.data.resolution,) * 2)
        pixels = torch.randint(256, size, dtype=torch.uint8)
        clock = now(device)
        checkpoints.save(elsewhere, 0, dict(zip(few, states, strict=True)), {}, Processes(device))
        parts["checkpoints"] = (now(device) - clock) / len(few) * len(images.classes) / recipe.distill.checkpoint_every
        classes, each = grids.shown(len(images.classes), len(pixels))
        clock = now(device)
        images_shown = pixels[:each].expand(classes, -1, -1, -1, -1)
        grids.write_grid(Path(folder), images_shown, images.classes)
        grids.write_frame(Path(folder), 0, images_shown)
        parts["pictures"] = (now(device) - clock) * recipe.distill.pictures / max(1, recipe.distill.iterations)
        clock = now(device)
        names = [images.classes[label] for label in few]
        for name in names:
            result.write_images(Path(folder), name, pixels)
        result.write_result(elsewhere, dict(zip(names, few, strict=True)), states, 0, {})
        end = parts["render"] + (now(device) - clock) / len(few) * len(bench.own)
    if device.type == "cuda":
        free, available = torch.cuda.mem_get_info(device)
        peak = available - free - torch.cuda.memory_reserved(device) + torch.cuda.max_memory_reserved(device)
        parts = {name: np.full(2, spent[0]) for name, spent in parts.items()}
        start, end = np.full(2, start[0]), np.full(2, end[0])
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        peak = memory.peak(device)
    text = f"measured here on {sample.images} images at a time through {sample.steps} steps"
    return Basis(text, parts, start, end, available, "GPU" if device.type == "cuda" else "CPU", sample, peak)


# --- memory ------------------------------------------------------------------------------------------------


def _memory(cost: RunCost, counts: Counts, weights: int, basis: Basis, real: Sequence[int]) -> dict[str, float]:
    """Bytes by part; the last is what the measurement took beyond the tensors that were counted for it.

    `real` has the number of real images of each class.
    """
    here = basis.processor == "CPU"
    parts, moment = cost.memory(counts)
    parts = {"weights of the prior": float(weights), **parts}
    if (sample := basis.sample) is None:
        slack = devices.SLACK * (parts[moment] + parts["graphs kept"])
        return parts | {"CUDA and its allocator, assumed": devices.RESERVED + slack}
    other = basis.peak - weights - sum(cost.memory(counts, sample)[0].values())
    if not here:
        return parts | {"CUDA and its allocator": max(0.0, other)}
    own = real[:: cost.processes]
    other -= cost.mapped_bytes(own[: sample.units], sample.iterations)
    parts["real images, mapped"] = cost.mapped_bytes(own, cost.recipe.distill.iterations)
    return parts | {"interpreter, libraries, allocator": max(0.0, other)}


def remedies(cost: RunCost) -> Iterator[tuple[str, RunCost]]:
    """Changes that need less memory, the mildest first, and the run so changed."""
    recipe = cost.recipe
    sampler, student = recipe.prior, recipe.distill.mtt
    micro_batches = _halves(min(sampler.images_at_a_time, cost.images))
    shown = _halves(min(student.batch_syn or cost.everyone, 256)) if recipe.distill.objective == "mtt" else [None]
    doublings = [cost.processes * 2**power for power in range(11)]
    for processes in [count for count in doublings if count <= max(cost.classes, cost.processes)]:
        for batch in shown:
            for keep in dict.fromkeys([sampler.keep_graph_steps, 0]):
                for micro_batch in micro_batches:
                    changes = {
                        **({"prior.keep_graph_steps": keep} if keep != sampler.keep_graph_steps else {}),
                        **({"prior.micro_batch": micro_batch} if micro_batch != micro_batches[0] else {}),
                        **({"distill.mtt.batch_syn": batch} if batch != shown[0] else {}),
                    }
                    words = [f"{key}={value}" for key, value in changes.items()]
                    words += [f"--processes {processes}"] if processes != cost.processes else []
                    numbers = changes | {"prior.micro_batch": micro_batch}  # which may be auto, or more than there are
                    yield " ".join(words), replace(cost, recipe=recipe.changed(numbers), processes=processes)


def _halves(count: int) -> list[int]:
    """A number, its half, and so on down to 1."""
    return [max(1, count >> power) for power in range(count.bit_length())]


def _does_not_fit(parts: dict[str, float], available: int, remedy: str | None) -> str:
    """The line that says what is too large, and what to do about it."""
    *known, _ = parts  # the last is nobody's tensors
    needed, largest = sum(parts.values()), max(known, key=lambda name: parts[name])
    problem = f"{needed / 2**30:,.1f} GiB do not fit into {available / 2**30:,.1f}, most of it {largest}"
    if remedy:
        return f"{problem}; it fits with {remedy}"
    if parts["weights of the prior"] > available / 2:
        return f"{problem}; share the weights out by launch/zero3.yaml, or give prior.dtype=bfloat16"
    return f"{problem}; lower distill.images_per_class, distill.real_batch, network.width or data.resolution"


def _experts(bench: Bench) -> int:
    """Bytes on disk of all experts that the recipe asks for."""
    parameters = FlatNetwork(bench.draws.network(0)).count
    trajectories = Trajectories(experts_of(bench.recipe), bench.images, parameters)
    return trajectories.bytes_needed(bench.recipe.experts.count, resume=False)
