"""One resumable training loop, which trains both networks of a prior, and teachers."""

import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from tqdm import tqdm

from ld3m.errors import UserError, user_error_if_damaged
from ld3m.files import tensors_digest, write_tensors, write_text
from ld3m.images.grids import curves
from ld3m.machine import signals
from ld3m.machine.processes import Processes
from ld3m.networks import averaged
from ld3m.randomness import generator
from ld3m.reading import parse_json, read_tensors, read_text
from ld3m.training import states

LOG_EVERY = 100
SAVE_EVERY = 300.0
"""Seconds of training that a kill may cost at most, however many steps lie between checkpoints."""
LISTEN_EVERY = 10
"""Steps after which several processes look whether one of them has received a signal."""
LossOf = Callable[[int, Tensor, slice], Tensor]
"""(step, indices of the whole batch, this process's share of them) to the mean loss of the share."""


@dataclass(frozen=True)
class Fit:
    """How a network is trained, and the folder of its checkpoint, log and curve."""

    name: str
    """Of what is trained, and of its files; random numbers are keyed by it."""
    folder: Path
    seed: int
    steps: int
    """Optimiser steps in all, 1 or more."""
    batch: int
    """Examples of a step, over all processes."""
    lr: float
    """The highest rate, after the warm-up."""
    ema: float
    """Decay of the average of the weights per step, in [0, 1); 0: no average."""
    checkpoint_every: int
    """Steps."""
    in_passes: bool = False
    """Whether each example is shown once before any is shown again, but for those that fill no batch of a pass; else
    each batch is drawn by itself."""

    def file(self, suffix: str) -> Path:
        """The file of a kind: safetensors, the checkpoint; jsonl, the log; png, the curve."""
        return self.folder / f"{self.name}.{suffix}"


class Row(BaseModel):
    """A line of the log: the mean loss since the line before, up to and with a step."""

    step: int = Field(ge=0)
    loss: float


class Progress(BaseModel):
    """How far a checkpoint is."""

    step: int = Field(ge=0)
    """The next to do."""
    seconds: float
    losses: list[float] = []
    """Of the steps since the last line of the log; older versions dropped them."""
    sha256: str | None = None
    """Of all the above and the tensors; older versions did not write it."""

    def digest(self, tensors: Mapping[str, Tensor]) -> str:
        """What `sha256` must be."""
        content = self.model_dump_json(exclude={"sha256"}) + tensors_digest(tensors)
        return hashlib.sha256(content.encode()).hexdigest()


def fit(settings: Fit, network: nn.Module, loss_of: LossOf, count: int, processes: Processes) -> tuple[Any, int]:
    """Trains by AdamW with warm-up, cosine decay and weight averaging, resuming from the checkpoint if there is one.

    Every batch, drawn from `count` examples, is a function of (seed, name, step), so an interrupted training gives
    the same weights and the same log as an undisturbed one. Processes share each batch and average their gradients;
    buffers, such as the statistics of batch norm, are those of the main process, which sees its share alone.

    Returns:
        The network with averaged weights, and the seconds that it took, in all commands together.

    Raises:
        UserError: if the loss is not finite, or the checkpoint is damaged.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1, once the state is saved.
    """
    share = slice(processes.process_index, None, processes.num_processes)
    main = processes.is_main_process
    average = averaged(network, settings.ema)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
    progress, rows = Progress(step=0, seconds=0), list[Row]()
    if settings.file("safetensors").is_file():
        progress = _restore(settings, network, average, optimiser)
        rows = _read_log(settings.file("jsonl"), progress.step)
    began = kept = time.monotonic()
    losses = [torch.tensor(loss, device=processes.device) for loss in progress.losses]
    steps = range(progress.step, settings.steps)
    bar = tqdm(steps, settings.name, initial=progress.step, total=settings.steps, disable=not main)
    with signals.collected() as received:
        for step, indices in zip(bar, _batches(settings, count, progress.step), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * rate_factor(step, settings.steps)
            loss = loss_of(step, indices, share)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            asks = step % LISTEN_EVERY == 0
            stop = _average_gradients(parameters, max(received, default=0), asks, processes)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            average.update_parameters(network)
            losses.append(loss.detach())
            done = step + 1
            is_due = main and time.monotonic() - kept > SAVE_EVERY
            saved = stop or is_due or done % settings.checkpoint_every == 0 or done == settings.steps
            if saved or done % LOG_EVERY == 0:
                _check_finite(losses, settings, step)
            if done % LOG_EVERY == 0 or done == settings.steps:
                rows.append(Row(step=step, loss=round(float(torch.stack(losses).mean()), 6)))
                losses.clear()
                bar.set_postfix(loss=rows[-1].loss, refresh=False)
            if main and saved:
                curve = [(row.step, row.loss) for row in rows]
                write_text(settings.file("jsonl"), "".join(f"{json.dumps(row.model_dump())}\n" for row in rows))
                seconds = progress.seconds + time.monotonic() - began
                now = Progress(step=done, seconds=seconds, losses=[float(loss) for loss in losses])
                _save(settings, network, average, optimiser, now)
                if curve:
                    curves(settings.file("png"), {settings.name: curve}, "step", "loss")
                kept = time.monotonic()
            if stop:
                bar.close()
                _leave(settings, done, stop, processes)
    return average.module, round(progress.seconds + time.monotonic() - began)


def steps_of_a_pass(count: int, batch: int) -> int:
    """Batches in which so many examples are shown once; those that would fill no batch are left out of that pass."""
    return max(1, count // batch)


def _batches(settings: Fit, count: int, first: int) -> Iterator[Tensor]:
    """The indices of the batches from a step on, int64 [at most batch] each."""
    if not settings.in_passes:
        for step in itertools.count(first):
            yield torch.randint(count, (settings.batch,), generator=generator(settings.seed, settings.name, step))
    begun, skipped = divmod(first, steps_of_a_pass(count, settings.batch))
    for number in itertools.count(begun):
        order = torch.randperm(count, generator=generator(settings.seed, settings.name, number))
        batches = order.split(settings.batch)[: steps_of_a_pass(count, settings.batch)]
        yield from batches[skipped if number == begun else 0 :]


def rate_factor(step: int, steps: int) -> float:
    """The share of the learning rate at a step: linear warm-up over a tenth, at most 500 steps, within a cosine."""
    warm_up = min(500, steps // 10)
    return min(1, (step + 1) / (warm_up + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _average_gradients(parameters: list[nn.Parameter], received: int, asks: bool, processes: Processes) -> int:
    """The mean gradient over processes, in one message; returns the signal that some process received, or 0.

    Several processes learn of it only in a step that asks: that waits for the device.
    """
    if processes.num_processes == 1:
        return received
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flag = torch.tensor([float(received > 0)], device=processes.device)
    flat = processes.mean(torch.cat([*[gradient.flatten() for gradient in gradients], flag]))
    *means, flagged = flat.split([*[gradient.numel() for gradient in gradients], 1])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return max(processes.gather([received])) if asks and flagged > 0 else 0


def _check_finite(losses: list[Tensor], settings: Fit, step: int) -> None:
    """That no loss since the last look was NaN or infinite, which no later step would mend."""
    if torch.stack(losses).isfinite().all():
        return
    raise UserError(
        f"{settings.name}.lr: {settings.lr:g}; the loss has become infinite or no number by step {step + 1}; give a "
        "lower rate, with --no-resume or another output"
    )


def _leave(settings: Fit, done: int, stop: int, processes: Processes) -> None:
    """Ends the command after a signal, once all processes know that the state is saved."""
    processes.wait_for_everyone()  # a launcher ends all when one ends
    if processes.is_main_process:
        where = f"step {done} of {settings.steps} of the {settings.name}"
        print(f"saved after {where}", file=sys.stderr)
    raise SystemExit(128 + stop)


# --- the checkpoint and the log ----------------------------------------------------------------------------


def _save(
    settings: Fit, network: nn.Module, average: Any, optimiser: torch.optim.Optimizer, progress: Progress
) -> None:
    tensors = states.packed({"network": network, "average": average}, optimiser)
    metadata = {key: json.dumps(value) for key, value in progress.model_dump().items()}
    metadata["sha256"] = json.dumps(progress.digest(tensors))
    write_tensors(settings.file("safetensors"), tensors, metadata)


def _restore(settings: Fit, network: nn.Module, average: Any, optimiser: torch.optim.Optimizer) -> Progress:
    """Takes over a checkpoint, which must have all that this training has."""
    path = settings.file("safetensors")
    advice = f"remove it to train the {settings.name} from its first step"
    tensors, metadata = read_tensors(path, advice)
    with user_error_if_damaged(path, advice):
        progress = Progress.model_validate({key: json.loads(value) for key, value in metadata.items()})
        if progress.step > settings.steps:
            raise ValueError(f"step {progress.step} of {settings.steps}")
        states.restore(tensors, {"network": network, "average": average}, optimiser)
        if progress.sha256 not in (None, progress.digest(tensors)):
            raise ValueError("it has another digest than it says")
    return progress


def _read_log(path: Path, first: int) -> list[Row]:
    """The lines of the log before a step; those that cannot be read are counted and left out."""
    if not path.exists() or not path.stat().st_size:  # saved before the first line
        return []
    rows, damaged = [], 0
    for line in read_text(path, "remove it to resume without the losses so far").splitlines():
        try:
            rows.append(parse_json(line, Row))
        except ValueError:
            damaged += 1
    if damaged:
        print(f"{path}: {damaged} damaged lines are left out", file=sys.stderr)
    return [row for row in rows if row.step < first]
