"""`ld3m train-teacher`: a classifier of a recipe's real images, trained once for everything that wants soft labels."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m import networks
from ld3m.data.prepared import ImageSet, Rows
from ld3m.data.selection.testing import tested
from ld3m.data.sources import check_source
from ld3m.errors import UserError, counted
from ld3m.files import cache_key, tensors_digest
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.randomness import generator, global_draws
from ld3m.recipe import Recipe
from ld3m.recipe.files import to_yaml
from ld3m.teachers.folder import FORMAT, NOTE, Note, fingerprints, is_teacher, read_note, untrained, write
from ld3m.teachers.pretrained import TIMM, TORCHVISION
from ld3m.teachers.sources import FILES, STORED, folder_of
from ld3m.training.fit import Fit, LossOf, fit, steps_of_a_pass
from ld3m.training.folder import TRAINING, claimed

NAME = "teacher"
"""Of its checkpoint, its log and its curve, and what its random numbers are for."""
SETTINGS = ("arch", "norm", "width", "depth", "epochs", "batch", "lr", "augment")
"""Keys of the recipe's `teacher` section that decide what it becomes."""
NOT_LEARNT_FROM = {"source", "root", "max_pixels", "on_corrupt", "keep", "keep_order", "scorer"}
"""Keys of a data recipe without which the training images are the same; their content is compared by itself."""


@watched_command
def train_teacher(processes: Processes, recipe: Recipe, resume: bool = True) -> Path:
    """Trains a recipe's teacher on all its real training images, tests it, and returns its folder.

    Interrupt it at any time; it saves its state and resumes from there, and after a kill from its newest checkpoint:
    to the same weights, bit for bit, on one process. Under `accelerate launch` each process takes its share of every
    batch; results then differ by rounding, and with batch norm more, as each normalises by its own share.

    Raises:
        UserError: if the data is not there or has changed, the network does not fit it, or the folder holds something
            else or is in use.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1.
    """
    folder, settings = _folder(recipe), recipe.teacher
    check_source(recipe.data)  # before the folder is made
    keep_freed_memory()
    what = {key: getattr(settings, key) for key in SETTINGS}
    digest = cache_key([recipe.seed, what, recipe.data.model_dump(mode="json", exclude=NOT_LEARNT_FROM)])
    made = NOTE, f"{TRAINING}/{NAME}.safetensors"
    with claimed(
        processes, folder, recipe.data, digest=digest, recipe=to_yaml(recipe), kind="a teacher of ld3m train-teacher",
        made=made, resume=resume, key="teacher.source", tf32=recipe.tf32,
    ) as images:  # fmt: skip
        note = read_note(folder) if is_teacher(folder) else _train(recipe, images, folder, processes)
        processes.wait_for_everyone()  # all have looked before another command may change it
    if processes.is_main_process:
        print(
            f"{folder}: {note.arch} of {len(note.classes)} classes, {note.accuracy:.2f} % of {note.tested_on:,} test "
            f"images after {counted(note.epochs, 'epoch')}"
        )
    return folder


def _folder(recipe: Recipe) -> Path:
    """Where the teacher goes.

    Raises:
        UserError: if `teacher.source` is what nothing can be written to.
    """
    source = recipe.teacher.source or ""
    if source == STORED or source.startswith((TORCHVISION, TIMM)) or source.endswith(FILES):
        raise UserError(
            f"teacher.source: {source!r} is trained already; give a folder to train another one into, or leave it out "
            f"for teachers/{recipe.name}"
        )
    if recipe.teacher.arch.startswith(TORCHVISION):
        raise UserError(
            f"teacher.arch: {recipe.teacher.arch!r} is read from files alone; to train one give timm's, such as "
            "timm/resnet18, or resnet18, which is for small images"
        )
    return folder_of(recipe)


def _train(recipe: Recipe, images: ImageSet, folder: Path, processes: Processes) -> Note:
    """Trains the network, and writes it with its accuracy; the note, on all processes."""
    settings, device = recipe.teacher, processes.device
    main = processes.is_main_process
    networks.check(settings.arch, images.shape, settings.network, "teacher.arch")
    real = Rows(images, "train")
    batch = min(settings.batch, len(real))
    if batch < processes.num_processes:
        raise UserError(
            f"teacher.batch: {batch} images for {processes.num_processes} processes; give one for each, or start fewer"
        )
    network = untrained(settings.arch, settings.network, images.shape, recipe.seed).to(device).train()
    how = Fit(
        name=NAME,
        folder=folder / TRAINING,
        seed=recipe.seed,
        steps=settings.epochs * steps_of_a_pass(len(real), batch),
        batch=batch,
        lr=settings.lr,
        ema=0,  # the rate ends at 0: an average would add nothing
        checkpoint_every=settings.checkpoint_every,
        in_passes=True,
    )
    loss_of = _loss(recipe, network, images, real, processes)
    trained, seconds = fit(how, network, loss_of, len(real), processes)
    note: list[Note] = []
    if main:
        measured = tested(trained.eval(), images, images.judging, device)
        note.append(
            Note(
                format=FORMAT,
                **{key: getattr(settings, key) for key in SETTINGS},
                classes=images.classes,
                channels=images.shape.channels,
                resolution=images.resolution,
                mean=images.mean.tolist(),
                std=images.std.tolist(),
                seed=recipe.seed,
                images=fingerprints(images.classes, images.fingerprints),
                accuracy=round(measured.accuracy, 2),
                tested_on=sum(images.counts[images.judging]),
                seconds=seconds,
                processes=processes.num_processes,
                sha256=tensors_digest(trained.state_dict()),
            )
        )
        write(folder, note[0], trained)
        if measured.at_chance:
            print(
                f"{folder}: no better than guessing; give more teacher.epochs, another teacher.lr, or look whether the "
                "classes of data.source are right",
                file=sys.stderr,
            )
    return processes.gather(note)[0]


def _loss(recipe: Recipe, network: nn.Module, images: ImageSet, real: Rows, processes: Processes) -> LossOf:
    """The loss of a process's share of a batch, as `fit` takes it."""

    def loss_of(step: int, indices: Tensor, share: slice) -> Tensor:
        chosen = indices[share]
        inputs = images.normalise(bytes_to_unit(real[chosen].to(processes.device)))
        if recipe.teacher.augment:
            draws = generator(recipe.seed, "teacher augmentation", step)
            own = torch.arange(len(indices))[share]
            inputs = augment.draw(draws, inputs.shape[-1], len(indices)).of(own)(inputs)
        with global_draws(generator(recipe.seed, "teacher dropout", step, processes.process_index)):
            logits = network(inputs)
        return functional.cross_entropy(logits, real.labels[chosen].to(processes.device))

    return loss_of
