"""Checkpoints: a folder an iteration, a file a class, and a manifest by which they count."""

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

FORMAT = "ld3m-1"
KEPT = 2
OBJECTIVE_FILE = "objective.safetensors"


def saved(folder: Path) -> int:
    """The iteration of a run's newest checkpoint, or 0."""
    return max((int(path.parent.name) for path in folder.glob("checkpoints/*/manifest.json")), default=0)


def place(folder: Path, iteration: int) -> Path:
    """Where a run's checkpoint of an iteration is."""
    return folder / "checkpoints" / f"{iteration:06d}"


def save(
    recipe: Recipe,
    iteration: int,
    states: dict[int, dict[str, Tensor]],
    objective: dict[str, Tensor],
    processes: Processes,
) -> None:
    """Saves the state before `iteration`; every process writes its own classes, the manifest makes it count.

    Args:
        recipe: of the run.
        iteration: the next to do.
        states: of each of the process's classes.
        objective: the objective's own state, which is the same on all processes.
        processes: of this launch.
    """
    folder = place(recipe.folder, iteration)
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
        told = {"format": FORMAT, "iteration": iteration, "recipe": digest(recipe), "files": files}
        write_json(folder / "manifest.json", told)
        before = [path.parent for path in folder.parent.glob("*/manifest.json") if path.parent.name <= folder.name]
        for path in folder.parent.iterdir():  # also what is damaged or was never whole, from when the run was further
            if path not in sorted(before)[-KEPT:]:
                shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """A run's newest checkpoint whose every file is what its manifest says; damaged ones are told and passed over."""
    for checkpoint in sorted((folder / "checkpoints").glob("[0-9]*"), reverse=True):
        if not (checkpoint / "manifest.json").is_file():
            continue  # the process died before the last file was there
        bad = damage(checkpoint)
        if bad is None:
            return checkpoint
        say(f"{bad} is damaged; going back to the checkpoint before it")
    return None


def manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `iteration`, the next to do, the digest of its `recipe`, and its `files`."""
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def damage(folder: Path) -> Path | None:
    """A file of a checkpoint that is not what the manifest says, or None."""
    try:
        files = manifest(folder)["files"]
    except (ValueError, KeyError):
        return folder / "manifest.json"
    for name, known in files.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != known:
            return path
    return None


def load(
    folder: Path, labels: Iterable[int], device: torch.device | str
) -> tuple[int, list[dict[str, Tensor]], dict[str, Tensor]]:
    """The iteration to go on with, the states of some classes, and that of the objective."""
    iteration = manifest(folder)["iteration"]
    states = [safetensors.torch.load_file(folder / f"class-{label:04d}.safetensors") for label in labels]
    objective = safetensors.torch.load_file(folder / OBJECTIVE_FILE)
    return iteration, [{name: tensor.to(device) for name, tensor in state.items()} for state in states], objective
