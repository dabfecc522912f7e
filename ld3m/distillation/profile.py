"""A few iterations of a run under torch.profiler: the time and the memory of their parts, and a trace."""

import gzip
import json
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ld3m.distillation import loop
from ld3m.distillation.bookkeeping import Bookkeeping
from ld3m.distillation.setup import Setup
from ld3m.distillation.trackers import Trackers
from ld3m.files import write_bytes
from ld3m.machine.determinism import repeatable
from ld3m.machine.processes import Processes, watched_command
from ld3m.machine.timing import ITERATION
from ld3m.recipe import Recipe

WARM_UP = 2
"""Iterations before: a first one, and one that is timed without the profiler."""
MEASURED = 5
PARTS = {
    "render": "render, without its decoder",
    "decode": "decode, forwards and back",
    "data": "data: real images",
    "objective": "objective: features, matching",
    "pull_back": "pull-back, without its decoder",
    "optimiser": "optimiser",
    "logging": "logging",
    "saving": "checkpoints and pictures",
}
"""What a table calls the ranges of an iteration; what is within another one counts on its own."""


@dataclass(frozen=True)
class Part:
    """A part of an iteration."""

    seconds: float
    """Mean of the iterations."""
    bytes: int
    """The most that it takes beyond what there was when it began: tensors, of the GPU if there is one."""


@watched_command
def profile(processes: Processes, recipe: Recipe) -> str:
    """Runs the first iterations of a recipe under the profiler; nothing is read from its run folder or written there.

    The trace, in Chrome's format, lies beside the folder as <its name>.trace.json.gz; under `accelerate launch` both
    trace and table are the main process's.

    Returns:
        The table, and where the trace is.
    """
    trace = recipe.folder.with_name(f"{recipe.folder.name}.trace.json.gz")
    with tempfile.TemporaryDirectory() as own, repeatable(processes.device, recipe.tf32):
        folder = processes.gather([own])[0]
        enough = max(recipe.distill.iterations, WARM_UP + MEASURED)
        setup = Setup.load(processes, recipe.changed({"output": folder, "distill.iterations": enough}))
        first, latents = loop.checkpoint_or_start(setup)
        main = processes.is_main_process
        profiler: Any = torch.profiler.profile(profile_memory=True) if main else nullcontext()
        with tqdm(disable=True) as bar:
            books = Bookkeeping(setup, Trackers([]), bar)
            for i in range(first, WARM_UP):
                began = time.perf_counter()
                latents, _ = loop.timed_iteration(setup, i, latents, books, [])
                without = time.perf_counter() - began
            with profiler:
                for i in range(WARM_UP, WARM_UP + MEASURED):
                    latents, _ = loop.timed_iteration(setup, i, latents, books, [])
        if main:
            profiler.export_chrome_trace(f"{own}/trace.json.gz")
            trace.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(trace, Path(own, "trace.json.gz").read_bytes())
        processes.wait_for_everyone()  # before the folder goes
    if not main:
        return ""
    times = parts(trace)
    return "\n".join(
        [
            f"{recipe.name}: {MEASURED} iterations, {times[ITERATION].seconds:.4g} s each; {without:.4g} s without "
            "the profiler",
            parts_text(times),
            f"{trace}: every operation; open it in ui.perfetto.dev or chrome://tracing",
        ]
    )


def parts(trace: Path) -> dict[str, Part]:
    """The parts of the iterations that a trace has, and of those as a whole."""
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    names = (*PARTS, ITERATION)
    ranges = [event for event in events if event.get("cat") == "user_annotation" and event["name"] in names]
    ranges.sort(key=lambda event: (event["ts"], -event["dur"]))
    moments, held = _held(events)
    count = sum(event["name"] == ITERATION for event in ranges)
    own = dict.fromkeys(names, 0.0)
    most = dict.fromkeys(names, 0)
    around: list[Any] = []
    for event in ranges:
        name, begin, end = event["name"], event["ts"], event["ts"] + event["dur"]
        while around and around[-1]["ts"] + around[-1]["dur"] <= begin:
            around.pop()
        own[name] += event["dur"]
        if around and around[-1]["name"] != ITERATION:
            own[around[-1]["name"]] -= event["dur"]
        around.append(event)
        low, high = np.searchsorted(moments, [begin, end])
        most[name] = max(most[name], int(held[low : high + 1].max() - held[low]))
    return {name: Part(own[name] / count / 1e6, most[name]) for name in names}


def _held(events: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Moments at which memory was taken or given back, and the bytes held before the first and after each."""
    changes = [(event["ts"], event["args"]) for event in events if event["name"] == "[memory]"]
    gpu = any(args["Device Type"] == 1 for _, args in changes)
    changes = sorted((c for c in changes if (c[1]["Device Type"] == 1) == gpu), key=lambda change: change[0])
    totals = [args["Total Allocated"] for _, args in changes]
    before = totals[0] - changes[0][1]["Bytes"] if changes else 0
    return np.array([moment for moment, _ in changes]), np.array([before, *totals])


def parts_text(times: dict[str, Part]) -> str:
    """The parts as aligned text."""
    whole = times[ITERATION]
    rows = {label: times[name] for name, label in PARTS.items()}
    rest = whole.seconds - sum(part.seconds for part in rows.values())
    rows |= {"the rest": Part(rest, 0), "an iteration": whole}
    lines = [f"{'part':<32}{'seconds':>10}{'share':>9}{'MiB':>12}"]
    for label, part in rows.items():
        share = part.seconds / whole.seconds
        lines.append(f"{label:<32}{part.seconds:>10.4f}{share:>8.1%} {part.bytes / 2**20:>12,.1f}")
    return "\n".join(lines)
