"""What settings of an iteration cost: the quickstart's, in one thread, each setting in fresh processes, by turns.

    python tests/benchmarks/settings.py [SETTING …]

Medians of processor seconds of an iteration after two others, of the system's share of them, and of the peak memory.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from ld3m.distillation import loop
from ld3m.distillation.bookkeeping import Bookkeeping
from ld3m.distillation.setup import Setup
from ld3m.distillation.trackers import Trackers
from ld3m.machine import memory
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import load

ROUNDS = 3
ITERATIONS = 7
SETTINGS = {
    "as it is": [],
    "freed memory returned": [],
    "network.dtype=bfloat16": ["network.dtype=bfloat16"],
    "prior.dtype=bfloat16": ["prior.dtype=bfloat16"],
    "prior.compile=true": ["prior.compile=true"],
}
"""Overrides by name; the second goes without `keep_freed_memory`."""


def measure(name: str) -> list[float]:
    """Processor seconds of an iteration, the system's of these, and MiB at most, of this process."""
    torch.set_num_threads(1)
    if name == "freed memory returned":
        memory.keep_freed_memory = lambda: None
    with tempfile.TemporaryDirectory() as folder, tqdm(disable=True) as bar:
        recipe = load(Recipe, "quickstart", [f"output={folder}", "distill.pictures=0", *SETTINGS[name]])
        setup = Setup.load(Processes(torch.device("cpu")), recipe)
        first, learnt = loop.checkpoint_or_start(setup)
        books = Bookkeeping(setup, Trackers([]), bar)
        spent = []
        for iteration in range(first, first + 2 + ITERATIONS):
            learnt, _ = loop.timed_iteration(setup, iteration, learnt, books, [])
            used = resource.getrusage(resource.RUSAGE_SELF)
            spent.append((used.ru_utime, used.ru_stime))
    user, system = ((spent[-1][part] - spent[1][part]) / ITERATIONS for part in (0, 1))
    return [user + system, system, memory.peak(torch.device("cpu")) / 2**20]


def main(names: list[str]) -> None:
    """Prints a line a setting."""
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, rows in found.items():
            arguments = [sys.executable, str(Path(__file__)), "--one", name]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'':<26}{'seconds':>10}{'system':>10}{'MiB':>8}")
    for name, rows in found.items():
        seconds, system, size = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:<26}{seconds:>10.3f}{system:>10.3f}{size:>8.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(sys.argv[1:] or list(SETTINGS))
