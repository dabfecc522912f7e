"""Training the experts of trajectory matching: networks on all real images, with a snapshot after each epoch."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ld3m import networks
from ld3m.data.prepared import ImageSet, Rows, prepare
from ld3m.errors import UserError, counted
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.determinism import repeatable
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.networks.flat import FlatNetwork, weights_of
from ld3m.objectives.experts import Trajectories, experts_of
from ld3m.randomness import generator
from ld3m.recipe import Recipe


@watched_command
def train_experts(processes: Processes, recipe: Recipe, resume: bool = True) -> Path:
    """Trains the recipe's experts into their folder, and resumes if it was interrupted.

    Experts are dealt to the processes of an `accelerate launch`; each is a function of its number alone, so that any
    number of processes makes the same ones, and a larger `experts.count` adds to those there are.

    Raises:
        UserError: if the folder holds other experts, or the disk has no room.
    """
    settings = recipe.experts
    keep_freed_memory()
    main = processes.is_main_process
    images = prepare(recipe.data, progress=main)
    parameters = sum(p.numel() for p in _network(recipe, images, 0).parameters())
    trajectories = Trajectories(experts_of(recipe), images, parameters)
    with ExitStack() as claimed:
        with processes.main_process_first():
            if main:
                if resume:
                    trajectories.check_training()
                _tell_size(trajectories, settings.count, resume)
                claimed.enter_context(trajectories.claim(resume))
        _train_missing(recipe, images, trajectories, processes)
    return trajectories.folder


def _train_missing(recipe: Recipe, images: ImageSet, trajectories: Trajectories, processes: Processes) -> None:
    """Trains the experts that the folder does not hold yet, dealt to the processes."""
    settings, main = recipe.experts, processes.is_main_process
    missing = [expert for expert in range(settings.count) if not trajectories.path(expert).is_file()]
    processes.wait_for_everyone()  # all have looked before any expert is finished
    own = processes.shard(missing)
    stacks = [own[start : start + settings.together] for start in range(0, len(own), settings.together)]
    real = Rows(images, "train")
    with (
        repeatable(processes.device, recipe.tf32),
        tqdm(desc="experts", total=len(own) * settings.epochs, unit="epoch", disable=not main) as bar,
    ):
        for experts in stacks:
            _train(experts, recipe, images, real, trajectories, processes, bar)
    processes.wait_for_everyone()
    if main:
        count, epochs = settings.count, settings.epochs
        print(f"{trajectories.folder}: {counted(count, 'expert')} of {counted(epochs, 'epoch')}")


def _network(recipe: Recipe, images: ImageSet, expert: int) -> torch.nn.Module:
    weights = generator(recipe.seed, "expert", expert)
    network: torch.nn.Module = networks.build(recipe.network.arch, images.shape, recipe.network, weights)
    return network


def _tell_size(trajectories: Trajectories, count: int, resume: bool) -> None:
    """Says what the disk will take before hours of training fill it."""
    needed = trajectories.bytes_needed(count, resume)
    free = trajectories.bytes_free(resume)
    size = f"{needed / 1e6:,.1f} MB in {trajectories.folder}, where {free / 1e6:,.0f} MB are free"
    if needed > free:
        raise UserError(f"experts.count: the experts need {size}; give fewer, or experts.dtype=float16")
    print(f"the experts take {size}")


def _train(
    experts: Sequence[int],
    recipe: Recipe,
    images: ImageSet,
    real: Rows,
    trajectories: Trajectories,
    processes: Processes,
    bar: tqdm,
) -> None:
    """Trains a stack of experts by plain SGD; without momentum a snapshot is all that resuming needs."""
    settings = recipe.experts
    device = processes.device
    built = [_network(recipe, images, expert) for expert in experts]
    student = FlatNetwork(built[0].to(device))
    snapshots = []
    for expert, network in zip(experts, built, strict=True):
        begun = trajectories.progress(expert)
        snapshots.append([weights_of(network).cpu()] if begun is None else list(begun))
    first = min(len(rows) for rows in snapshots) - 1  # the stack resumes where its last expert is
    weights = torch.stack([rows[first] for rows in snapshots]).to(device)
    bar.update(first * len(experts))
    for epoch in range(first, settings.epochs):
        draws = [generator(recipe.seed, "expert epoch", expert, epoch) for expert in experts]
        orders = torch.stack([torch.randperm(len(real), generator=numbers) for numbers in draws])
        for indices in orders.split(settings.batch, dim=1):
            shown = torch.stack(
                [
                    _shown(real[chosen].to(device), images, numbers if settings.augment else None)
                    for chosen, numbers in zip(indices, draws, strict=True)
                ]
            )
            weights = sgd_step(student, weights, shown, real.labels[indices].to(device), settings.lr)
        for expert, rows, row in zip(experts, snapshots, weights.cpu(), strict=True):
            rows[epoch + 1 :] = [row.clone()]
            trajectories.save(expert, torch.stack(rows))
        bar.update(len(experts))


def _shown(pixels: Tensor, images: ImageSet, numbers: torch.Generator | None) -> Tensor:
    """Real images as an expert sees them, augmented where random numbers are given."""
    inputs = images.normalise(bytes_to_unit(pixels))
    return inputs if numbers is None else augment.draw(numbers, inputs.shape[-1], len(inputs))(inputs)


def sgd_step(student: FlatNetwork, weights: Tensor, shown: Tensor, labels: Tensor, lr: float) -> Tensor:
    """One step of gradient descent of a stack of networks.

    Args:
        weights: [networks, parameters].
        shown: each network's batch, [networks, n, channels, H, W].
        labels: [networks, n].
    """
    weights = weights.detach().requires_grad_()
    with torch.enable_grad():
        logits = torch.func.vmap(student)(weights, shown) if len(weights) > 1 else student(weights[0], shown[0])[None]
        # The sum over networks: each has a gradient of its own.
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]
        (gradient,) = torch.autograd.grad(loss, weights)
    return weights.detach() - lr * gradient
