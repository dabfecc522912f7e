"""One epoch of a classifier, by which evaluation, core-set scorers and inner loops train."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m.images import augment
from ld3m.machine.transfer import send
from ld3m.randomness import generator, global_draws


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
        batch: images of a step.
        augmented: whether a step augments its images, by one operation with other numbers for each.
        draws: of the order, the augmentation and, on the CPU, dropout.
    """
    with global_draws(generator(draws.initial_seed(), "dropout")):
        for places in torch.randperm(len(inputs), generator=draws).split(batch):
            here = send(places, inputs.device)
            shown = inputs[here]
            if augmented:
                shown = augment.draw(draws, shown.shape[-1], len(places))(shown)
            loss = functional.cross_entropy(network(shown), targets[here])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
