"""Checkpoints: one folder per iteration with one file per class, and a manifest, without which they do not count."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ld3m.files import write_bytes, write_json
from ld3m.machine.processes import Processes
from ld3m.reading import read_tensors
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest
from ld3m.runs import sources
from ld3m.runs.folder import checkpoint_folders, is_number
from ld3m.runs.manifests import FORMAT, Manifest

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
        iteration: the next to do.
        states: of each of the process's classes.
        objective: the objective's own state, which is the same on all processes.
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
        about = Manifest(format=FORMAT, iteration=iteration, recipe=digest(recipe), **made_from, files=files)
        write_json(folder / "manifest.json", about.model_dump() | {"sha256": about.digest})
        before = [path for path in checkpoint_folders(recipe.folder) if int(path.name) <= iteration]
        for path in folder.parent.iterdir():  # also damaged and incomplete ones of later iterations
            if path not in before[-KEPT:] and is_number(path.name):
                shutil.rmtree(path, ignore_errors=True)


def read_states(
    folder: Path, labels: Iterable[int], device: torch.device | str
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The states of some classes, and the state of the objective, on a device.

    Raises:
        UserError: if a file is missing or damaged.
    """
    advice = f"remove {folder}, and the same command resumes from the checkpoint before it"
    states = [read_tensors(folder / f"class-{label:04d}.safetensors", advice).tensors for label in labels]
    objective = read_tensors(folder / OBJECTIVE_FILE, advice, finite=False).tensors
    return [{name: tensor.to(device) for name, tensor in state.items()} for state in states], objective
