"""Checkpoints: one folder per iteration with one file per class, and a manifest, without which they do not count."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ld3m.files import write_bytes, write_json
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest
from ld3m.runs import sources

FORMAT = "ld3m-1"
KEPT = 2
OBJECTIVE_FILE = "objective.safetensors"


def path_of(folder: Path, iteration: int) -> Path:
    """The folder of a run's checkpoint of an iteration."""
    return folder / "checkpoints" / f"{iteration:06d}"


def save(
    recipe: Recipe,
    iteration: int,
    states: dict[int, dict[str, Tensor]],
    objective: dict[str, Tensor],
    processes: Processes,
) -> None:
    """Saves the state before an iteration: every process its own classes, the first one the manifest.

    Args:
        recipe: of the run.
        iteration: the next to do.
        states: of each of the process's classes.
        objective: the objective's own state, which is the same on all processes.
        processes: of this launch.
    """
    folder = path_of(recipe.folder, iteration)
    parts = {f"class-{label:04d}.safetensors": state for label, state in states.items()}
    if processes.is_main_process:
        parts[OBJECTIVE_FILE] = objective
    written = []
    for name, state in parts.items():
        content = safetensors.torch.save({key: tensor.cpu().contiguous() for key, tensor in state.items()})
        write_bytes(folder / name, content)
        written.append((name, hashlib.sha256(content).hexdigest()))
    files = dict(processes.gather(written))
    if processes.is_main_process:
        made_from = sources.digests(*sources.read(recipe.folder))
        about = {"format": FORMAT, "iteration": iteration, "recipe": digest(recipe), **made_from, "files": files}
        write_json(folder / "manifest.json", about)
        before = [path.parent for path in folder.parent.glob("*/manifest.json") if path.parent.name <= folder.name]
        for path in folder.parent.iterdir():  # also damaged and incomplete ones of later iterations
            if path not in sorted(before)[-KEPT:]:
                shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """A run's newest checkpoint whose files are all as its manifest says; damaged ones are reported and skipped."""
    for checkpoint in sorted((folder / "checkpoints").glob("[0-9]*"), reverse=True):
        if not (checkpoint / "manifest.json").is_file():
            continue  # the process ended before the last file was written
        damaged = damage(checkpoint)
        if damaged is None:
            return checkpoint
        say(f"{damaged} is damaged; going back to the checkpoint before it")
    return None


def manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest: the next `iteration`, digests of its `recipe`, `data` and `prior`, and its `files`."""
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def damage(folder: Path) -> Path | None:
    """A file of a checkpoint that is missing or not as the manifest says, or None."""
    try:
        files = manifest(folder)["files"]
    except (ValueError, KeyError):
        return folder / "manifest.json"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            return path
    return None


def read_states(
    folder: Path, labels: Iterable[int], device: torch.device | str
) -> tuple[int, list[dict[str, Tensor]], dict[str, Tensor]]:
    """The next iteration, the states of some classes, and the state of the objective, on a device."""
    iteration = manifest(folder)["iteration"]
    states = [safetensors.torch.load_file(folder / f"class-{label:04d}.safetensors") for label in labels]
    objective = safetensors.torch.load_file(folder / OBJECTIVE_FILE)
    return iteration, [{name: tensor.to(device) for name, tensor in state.items()} for state in states], objective
