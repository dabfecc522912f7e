"""The one training loop of classifiers, by which evaluation, core-set scorers and inner loops train."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ld3m.images import augment
from ld3m.machine.transfer import send
from ld3m.randomness import generator, global_draws

Loss = Callable[..., Tensor]
"""Of logits [n, classes], and targets: labels, int64 [n], or what else a loss takes, such as weights [n]."""
Batch = tuple[Tensor, ...]
"""Images [n, channels, H, W] as a network sees them, and what its loss takes besides logits."""
Shown = Callable[[Tensor], Batch]
"""What a network is shown of a set: a batch, on its device, for indices [n] on the CPU."""


def train(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    loss: Loss = functional.cross_entropy,
) -> None:
    """One step of gradient descent on the loss of each batch.

    Args:
        network: any classifier, in training mode; dropout draws from torch's global generators (`global_draws`).
        batches: normalised images, and what the loss takes, on the network's device.
        schedule: of the learning rate, moved on by each step.
        loss: of logits and what a batch has besides images.
    """
    for images, *targets in batches:
        value = loss(network(images), *targets)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        if schedule is not None:
            schedule.step()


def train_epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    shown: Shown,
    count: int,
    batch: int,
    draws: torch.Generator,
    loss: Loss = functional.cross_entropy,
    at_least: int = 1,
    process: int = 0,
) -> None:
    """Shows a network each of a few images once.

    Args:
        shown: what it is shown of each batch; may draw from `draws`, too.
        batch: images of a step; batch norm, which needs two to compare, gets no less.
        draws: decides the order and, on the CPU, dropout.
        at_least: images of every batch.
        process: of those that share each batch; dropout is its own.
    """
    own = [process] if process else []
    with global_draws(generator(draws.initial_seed(), "dropout", *own)):
        by_batch = any(isinstance(module, _BatchNorm) for module in network.modules())
        batches = orders(count, batch, draws, max(at_least, 2 if by_batch else 1))
        train(network, optimiser, map(shown, batches), loss=loss)


def orders(count: int, batch: int, draws: torch.Generator, at_least: int) -> Iterator[Tensor]:
    """Each index once, in random order, a batch at a time; a last one that is too small joins the one before."""
    batches = list(torch.randperm(count, generator=draws).split(max(batch, at_least)))
    if len(batches) > 1 and len(batches[-1]) < at_least:
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches


def siamese(inputs: Tensor, targets: Tensor, augmented: bool, draws: torch.Generator) -> Shown:
    """Images as they are, or each batch augmented by one operation with its own random numbers for each image.

    Args:
        inputs: normalised images [N, channels, H, W].
        targets: their labels, int64 [N].
    """

    def shown(indices: Tensor) -> tuple[Tensor, Tensor]:
        there = send(indices, inputs.device)
        images = inputs[there]
        if augmented:
            images = augment.draw(draws, images.shape[-1], len(indices))(images)
        return images, targets[there]

    return shown


def squared_error(logits: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Half of the squared distance of logits [n, classes] from those wanted, its mean over the batch: FRePo's loss.

    Weights [n], if given, multiply each image's part.
    """
    each = (logits - wanted).square().sum(1) / 2
    return (each if weights is None else weights * each).mean()


def divergence(temperature: float, squared: bool) -> Loss:
    """The loss of soft labels: the Kullback-Leibler divergence of a network from a teacher, its mean over the batch.

    Its gradient is that of the cross-entropy with the teacher's shares.

    Args:
        temperature: by which logits are divided on both sides.
        squared: whether the loss is multiplied by its square, so that its gradient does not shrink with it (Hinton et
            al., 2015).

    Returns:
        A loss whose targets are the teacher's logits [n, classes]; weights [n], if given, multiply each image's part.
    """
    scale = temperature**2 if squared else 1.0

    def loss(logits: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
        own, wanted = functional.log_softmax(logits / temperature, 1), functional.log_softmax(teacher / temperature, 1)
        if weights is not None:
            each = functional.kl_div(own, wanted, reduction="none", log_target=True).sum(1)
            return scale * (weights * each).mean()
        return scale * functional.kl_div(own, wanted, reduction="batchmean", log_target=True)

    return loss
