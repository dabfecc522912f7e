"""The one training loop of classifiers, by which evaluation, core-set scorers and inner loops train."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ld3m.images import augment
from ld3m.machine.transfer import send
from ld3m.randomness import generator, global_draws


def train(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """One step of gradient descent on the cross-entropy of each batch.

    Args:
        network: any classifier, in training mode; dropout draws from torch's global generators (`global_draws`).
        optimiser: of its weights.
        batches: normalised images [n, channels, H, W] and their labels, int64 [n], on the network's device.
        schedule: of the learning rate, moved on by each step.
    """
    for images, labels in batches:
        loss = functional.cross_entropy(network(images), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if schedule is not None:
            schedule.step()


def train_epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    batch: int,
    augmented: bool,
    draws: torch.Generator,
) -> None:
    """Shows a network each of a few images once.

    Args:
        network: any classifier.
        optimiser: of its weights.
        inputs: normalised images [N, channels, H, W].
        targets: their labels, int64 [N].
        batch: images of a step; batch norm, which needs two to compare, gets no less.
        augmented: whether each step augments its images, by one operation with its own random numbers for each image.
        draws: decides the order, the augmentation and, on the CPU, dropout.
    """
    with global_draws(generator(draws.initial_seed(), "dropout")):
        by_batch = any(isinstance(module, _BatchNorm) for module in network.modules())
        train(network, optimiser, _batches(inputs, targets, batch, augmented, draws, at_least=2 if by_batch else 1))


def _batches(
    inputs: Tensor, targets: Tensor, batch: int, augmented: bool, draws: torch.Generator, at_least: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once, in random order, augmented if wanted; a last batch that is too small joins the one before."""
    batches = list(torch.randperm(len(inputs), generator=draws).split(max(batch, at_least)))
    if len(batches) > 1 and len(batches[-1]) < at_least:
        batches[-2:] = [torch.cat(batches[-2:])]
    for indices in batches:
        indices_there = send(indices, inputs.device)
        images = inputs[indices_there]
        if augmented:
            images = augment.draw(draws, images.shape[-1], len(indices))(images)
        yield images, targets[indices_there]
