"""One resumable training loop, which trains both networks of a prior."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ld3m.files import write_tensors, write_text
from ld3m.images.grids import curves
from ld3m.machine.processes import Processes
from ld3m.networks import averaged
from ld3m.randomness import generator

LOG_EVERY = 100
LossOf = Callable[[int, Tensor, slice], Tensor]
"""(step, indices of the whole batch, this process's share of them) to the mean loss of the share."""


@dataclass(frozen=True)
class Fit:
    """How a network is trained, and the folder of its checkpoint, log and curve."""

    name: str
    folder: Path
    seed: int
    steps: int
    batch: int
    lr: float
    ema: float
    checkpoint_every: int


def fit(settings: Fit, network: nn.Module, loss_of: LossOf, count: int, processes: Processes) -> tuple[Any, float]:
    """Trains by AdamW with warm-up, cosine decay and weight averaging, resuming from the checkpoint if there is one.

    Every batch, drawn from `count` examples, is a function of (seed, name, step), so an interrupted training gives
    the same weights as an undisturbed one. Processes share each batch and average their gradients.

    Returns:
        The network with averaged weights, and the seconds it took in all sessions.
    """
    share = slice(processes.process_index, None, processes.num_processes)
    main = processes.is_main_process
    average = averaged(network, settings.ema)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint, log, picture = (settings.folder / f"{settings.name}.{kind}" for kind in ("safetensors", "jsonl", "png"))
    first, seconds, rows = 0, 0.0, []
    if checkpoint.is_file():
        first, seconds = _restore(checkpoint, network, average, optimiser)
        rows = [row for row in map(json.loads, log.read_text(encoding="utf-8").splitlines()) if row["step"] < first]
    began = time.monotonic()
    losses: list[Tensor] = []
    bar = tqdm(range(first, settings.steps), settings.name, initial=first, total=settings.steps, disable=not main)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * rate_factor(step, settings.steps)
        indices = torch.randint(count, (settings.batch,), generator=generator(settings.seed, settings.name, step))
        loss = loss_of(step, indices, share)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(parameters, processes)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update_parameters(network)
        losses.append(loss.detach())
        done = step + 1
        if done % LOG_EVERY == 0 or done == settings.steps:
            rows.append({"step": step, "loss": round(float(torch.stack(losses).mean()), 6)})
            losses.clear()
            bar.set_postfix(loss=rows[-1]["loss"], refresh=False)
        if main and (done % settings.checkpoint_every == 0 or done == settings.steps):
            write_text(log, "".join(json.dumps(row) + "\n" for row in rows))
            _save(checkpoint, network, average, optimiser, done, seconds + time.monotonic() - began)
            curves(picture, {settings.name: [(row["step"], row["loss"]) for row in rows]}, "step", "loss")
    return average.module, round(seconds + time.monotonic() - began)


def rate_factor(step: int, steps: int) -> float:
    """The share of the learning rate at a step: linear warm-up over a tenth, at most 500 steps, within a cosine."""
    warm_up = min(500, steps // 10)
    return min(1, (step + 1) / (warm_up + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _average_gradients(parameters: list[nn.Parameter], processes: Processes) -> None:
    """The mean gradient over processes, in one message."""
    if processes.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = processes.mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _save(
    path: Path, network: nn.Module, average: Any, optimiser: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"average.{key}": value.clone() for key, value in average.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{slot}": value for slot, value in slots.items()}
    write_tensors(path, tensors, {"step": str(step), "seconds": str(seconds)})


def _restore(path: Path, network: nn.Module, average: Any, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    tensors = safetensors.torch.load_file(path)
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    network.load_state_dict(parts["network"])
    average.load_state_dict(parts["average"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimiser"].items():
        index, slot = name.split(".")
        state.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]), float(metadata["seconds"])
