"""`ld3m label`: a teacher's soft labels of a set, stored with it, so that others need no teacher."""

import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError, shortened
from ld3m.evaluation.options import Kept
from ld3m.evaluation.protocols import Protocol, Task, protocol
from ld3m.evaluation.soft_labels import Online, views
from ld3m.evaluation.training import LEAST, epoch_draws, shown_in_epoch
from ld3m.files import remove_temporary
from ld3m.images.ranges import bytes_to_unit
from ld3m.images.transforms import CutMix
from ld3m.machine import lock, signals
from ld3m.machine.determinism import repeatable
from ld3m.machine.processes import Processes, watched_command
from ld3m.networks.training import orders
from ld3m.recipe import Recipe
from ld3m.runs import labels as stored
from ld3m.runs.training_set import stored_digest, stored_set
from ld3m.teachers.loading import load
from ld3m.teachers.sources import STORED

CHUNK = 100
"""Images labelled at a time, if none are mixed."""
NETWORK = 0
"""The network whose views are labelled; all others see the same then."""


@watched_command
def label(processes: Processes, folder: Path, recipe: Recipe, kept: Kept, again: bool = False) -> Path:
    """Stores a teacher's labels of a set in its folder; the processes of a launch share the epochs.

    Interrupt it at any time; the same call resumes with the epochs that are missing.

    Args:
        recipe: its recipe; its `teacher` section names the teacher, `evaluate` says how images are changed in an epoch.

    Returns:
        The folder of the labels.

    Raises:
        UserError: if there is no teacher, the folder has other labels, or the disk has no room.
        SystemExit: after an interrupt; the same call resumes.
    """
    if recipe.teacher.source == STORED:
        raise UserError("teacher.source: stored labels come from a teacher: name it, or leave the key out")
    main, device = processes.is_main_process, processes.device
    with repeatable(device, recipe.tf32, warn_only=True), signals.exiting():
        images = prepare(recipe.data, progress=main)
        pixels, targets = stored_set(folder)
        how = _protocol(recipe, images, len(pixels))
        teacher = load(recipe, images, device, main)
        note = _note(folder, recipe, images, kept, how, teacher.about, len(pixels))
        labels = folder / stored.FOLDER
        with ExitStack() as claimed:
            with processes.main_process_first():
                if main:
                    kind = "labels of ld3m label"
                    claimed.enter_context(lock.claim(labels, stored.NOTE, kind, "RUN", "move it away"))
                    _begin(folder, note, again)
            own = processes.shard(stored.missing(folder, note))
            processes.wait_for_everyone()  # all have looked before any view is finished
            for view in tqdm(own, "labelling", unit="epoch", disable=not main or not kept.epochs):
                record = _Record(teacher, torch.empty(len(pixels), len(images.classes)))
                if kept.epochs:
                    see_epoch(pixels, targets, images, how, recipe.seed, view, record, device)
                else:
                    for indices in torch.arange(len(pixels)).split(CHUNK):
                        seen = images.normalise(bytes_to_unit(pixels[indices].to(device)))
                        record(seen, indices, 0, None)
                stored.write_view(folder, note, view, record.logits)
            processes.wait_for_everyone()
    if main:
        print(f"{labels}: {stored.text(note)}; ld3m evaluate {folder} evaluate.labels=soft trains with them")
    return labels


def see_epoch(
    pixels: Tensor,
    targets: Tensor,
    images: ImageSet,
    how: Protocol,
    seed: int,
    epoch: int,
    record: "_Record",
    device: torch.device,
) -> None:
    """Shows the record each image of a set once, as a network of `NETWORK` sees them in an epoch."""
    draws = epoch_draws((seed, NETWORK, epoch))
    soft = replace(how, labels="soft")
    shown = shown_in_epoch(pixels.to(device), targets.to(device), images, soft, draws, epoch, record)
    for indices in orders(len(pixels), how.batch, draws, LEAST["soft"]):
        shown(indices)


@dataclass(frozen=True)
class _Record(Online):
    """A teacher whose labels are noted as it gives them."""

    logits: Tensor
    """float32 [images, classes]."""

    def __call__(
        self, images: Tensor, indices: Tensor, epoch: int, mix: CutMix | None, own: Tensor | None = None
    ) -> Tensor:
        given = super().__call__(images, indices, epoch, mix)
        self.logits[indices] = given.cpu()
        return given


def _protocol(recipe: Recipe, images: ImageSet, count: int) -> Protocol:
    """How networks are trained: of the first architecture, as views depend on none."""
    return protocol(recipe.evaluate, Task(recipe.evaluate.arch[0], len(images.classes), count, images.resolution))


def _note(
    folder: Path, recipe: Recipe, images: ImageSet, kept: Kept, how: Protocol, teacher: dict[str, Any], count: int
) -> stored.Note:
    classes = len(images.classes)
    if kept.top is not None and kept.top >= classes:
        raise UserError(f"--top: {kept.top} of {classes} classes are all of them; give fewer, or leave it out")
    if kept.dtype not in stored.DTYPES:
        raise UserError(f"--dtype: {kept.dtype!r} is not known; give {' or '.join(stored.DTYPES)}")
    return stored.Note(
        **teacher,
        classes=images.classes,
        content=stored_digest(folder),
        images=count,
        epochs=kept.epochs,
        views={**views(how), "seed": recipe.seed} if kept.epochs else None,
        dtype=kept.dtype,
        top=kept.top,
        temperature=how.temperature,
    )


def _begin(folder: Path, note: stored.Note, again: bool) -> None:
    """Prepares the folder, and says what the disk will take before it is filled."""
    labels = folder / stored.FOLDER
    if again:
        for path in (labels / stored.NOTE, *labels.glob("*.safetensors")):
            path.unlink(missing_ok=True)
    if stored.has_labels(folder):
        before = stored.read_note(folder)
        if unlike := [key for key, value in note.model_dump().items() if before.model_dump()[key] != value]:
            raise UserError(
                f"RUN: {labels} has labels with {unlike[0]} {shortened(getattr(before, unlike[0]))}, not "
                f"{shortened(getattr(note, unlike[0]))}; ld3m label with --again replaces them"
            )
    remove_temporary(labels)
    left = note.size * len(stored.missing(folder, note)) // len(note.files)
    free = shutil.disk_usage(folder).free
    if left > free:
        raise UserError(
            f"--epochs: the labels need {left / 1e6:,.1f} MB in {labels}, where {free / 1e6:,.0f} MB are free; give "
            "fewer, or --top"
        )
    if note.epochs:
        print(f"the labels take {stored.size_text(note)} in {labels}", file=sys.stderr)
    stored.write_note(folder, note)
