"""Gradient matching (Zhao, Mopuri and Bilen, ICLR 2021; with augmentation Zhao and Bilen, ICML 2021)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m import networks
from ld3m.networks.training import siamese, train_epoch
from ld3m.objectives.base import GatherClasses, Objective
from ld3m.objectives.draws import REAL_CHUNK, Draws, RealBatches
from ld3m.objectives.orthogonal import orthogonal_distance
from ld3m.randomness import generator
from ld3m.recipe.objectives import DcRecipe

EPSILON = 1e-6
Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(gradients of the weights on real images, on synthetic ones) to a number."""


class GradientMatching(Objective):
    """Distance between the gradients that real and synthetic images of a class give a network's weights.

    A network goes through `outer` iterations; between two of them it trains on the synthetic images of all classes,
    for `inner` epochs.
    """

    def __init__(self, settings: DcRecipe, draws: Draws, own: Sequence[int], gather_classes: GatherClasses) -> None:
        self.settings = settings
        self.draws = draws
        self.own = list(own)
        self.real = RealBatches(draws, own)
        self.gather_classes = gather_classes
        self.distance = DISTANCES[settings.match]
        self.network: Any = None
        draws.check_networks()

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`; each class shares one augmentation between its real and synthetic images."""
        number, outer = divmod(iteration, self.settings.outer)
        if outer == 0:
            self.network = self.draws.network(number)
        else:
            self._train(iteration, pixels)
        self.draws.freeze_norms(self.network, iteration)
        losses = [pixels.new_zeros(0)]
        gradients = [pixels.new_zeros(0, *pixels.shape[1:])]
        for label, own in zip(self.own, pixels, strict=True):
            real = self.real.draw(iteration, label)
            synthetic = own.detach().requires_grad_()
            with torch.enable_grad():
                shown = self.draws.images.normalise(synthetic)
                if self.settings.augment:
                    augmentation = self.draws.augmentation(iteration, label)
                    real, shown = augmentation(real), augmentation(shown)
                loss = match_gradients(self.network, real, shown, label, self.distance)
                gradients += [gradient[None] for gradient in torch.autograd.grad(loss, synthetic)]
            losses.append(loss.detach()[None])
        return torch.cat(losses), torch.cat(gradients)

    def _train(self, iteration: int, pixels: Tensor) -> None:
        """The inner loop, on all classes as they are rendered in this iteration; the same on every process."""
        every = self.gather_classes(pixels, len(self.draws.images.classes))
        inputs = self.draws.images.normalise(every.flatten(0, 1))
        targets = torch.arange(len(every), device=inputs.device).repeat_interleave(every.shape[1])
        train_inner_loop(self.network, self.settings, inputs, targets, self.draws.seed, iteration)
        networks.without_dropout(self.network)

    def state(self) -> dict[str, Tensor]:
        """The network, if a further iteration uses it."""
        return self.network.state_dict() if self.network is not None and self.settings.outer > 1 else {}

    def restore(self, iteration: int, state: dict[str, Tensor]) -> None:
        """The network of an outer loop under way."""
        number, outer = divmod(iteration, self.settings.outer)
        if outer:
            self.network = self.draws.network(number)
            self.network.load_state_dict(state)


def train_inner_loop(
    network: Any, settings: DcRecipe, inputs: Tensor, targets: Tensor, seed: int, iteration: int
) -> None:
    """Trains a network for `inner` epochs by plain SGD.

    Args:
        network: is changed, and left in training mode.
        settings: `inner`, `batch`, `lr_network` and `augment` of the recipe.
        inputs: normalised synthetic images [N, channels, H, W].
        targets: their classes, int64 [N].
        iteration: keys the order and the augmentation.
    """
    optimiser = torch.optim.SGD(network.parameters(), lr=settings.lr_network)
    network.train()
    with torch.enable_grad():
        for epoch in range(settings.inner):
            numbers = generator(seed, "inner loop", iteration, epoch)
            shown = siamese(inputs, targets, settings.augment, numbers)
            train_epoch(network, optimiser, shown, len(inputs), settings.batch, numbers)


def match_gradients(
    network: nn.Module, real: Tensor, synthetic: Tensor, label: int, distance: Distance | None = None
) -> Tensor:
    """How far apart the gradients of the classification loss are, differentiable in `synthetic`.

    Args:
        real: images of one class as the network sees them, [n, channels, H, W].
        synthetic: images of the same class, [m, channels, H, W].
        distance: of the gradients; left out: `row_distance`.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.dim() in (2, 4)]
    target = [torch.zeros_like(parameter) for parameter in parameters]
    for chunk in real.split(REAL_CHUNK):
        loss = _loss(network, chunk, label) * (len(chunk) / len(real))
        for total, part in zip(target, torch.autograd.grad(loss, parameters), strict=True):
            total += part
    own = torch.autograd.grad(_loss(network, synthetic, label), parameters, create_graph=True)
    return (distance or row_distance)(target, own)


def _loss(network: nn.Module, images: Tensor, label: int) -> Tensor:
    targets = torch.full((len(images),), label, device=images.device)
    return functional.cross_entropy(network(images), targets)


def row_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Σ (1 − cosine) over the output rows of every weight: its first axis, the rest being one vector.

    Weights of one and three dimensions (biases, norms, embeddings) count nothing in the authors' code; leave them out.
    """
    total = torch.zeros((), dtype=synthetic[0].dtype, device=synthetic[0].device)
    for one, other in zip(real, synthetic, strict=True):
        one, other = one.flatten(1), other.flatten(1)
        cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1) + EPSILON)
        total = total + (1 - cosine).sum()
    return total


DISTANCES: dict[str, Distance] = {"rows": row_distance, "orthogonal": orthogonal_distance}
"""By what `distill.dc.match` says."""
