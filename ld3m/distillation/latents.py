"""What is learnt: latents Z and conditioning c of this process's images, and the step that moves them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ld3m.recipe import DistillRecipe

SQUARE_DECAY = 0.999
"""Adam's β2."""


@dataclass(frozen=True)
class LearntLatents:
    """Z, c and what their optimiser keeps, each [classes, latents per class, …] in float32; a step gives new ones."""

    z: Tensor
    c: Tensor
    z_momentum: Tensor
    c_momentum: Tensor
    z_square: Tensor | None = None
    """Adam's running mean of the squared gradient."""
    c_square: Tensor | None = None
    weight: Tensor | None = None
    """By which images count in training, of mean one over a class; it stays as it is. None: all count the same."""

    @classmethod
    def stack(cls, states: Sequence[dict[str, Tensor]], count: int) -> "LearntLatents":
        """Stacks the states of the first `count` classes, as `by_class` gives them; `count` may be 0.

        In one memory layout, wherever the states come from: kernels add up in the order of memory, and an encoder's
        output may have another layout than a file's.
        """
        return cls(**{name: torch.stack([state[name] for state in states])[:count].contiguous() for name in states[0]})

    def by_class(self) -> list[dict[str, Tensor]]:
        """The state of each class, which checkpoints keep: classes may move to other processes."""
        known = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return [{name: tensor[index] for name, tensor in known.items()} for index in range(len(self.z))]

    def step(self, iteration: int, grad_z: Tensor, grad_c: Tensor, settings: DistillRecipe) -> "LearntLatents":
        """The latents after the optimiser's step of an iteration, on what the recipe learns.

        Args:
            iteration: from 0; decides the share of a falling learning rate, and Adam's correction of its means.
            settings: `learn`, the rates, `momentum`, `schedule` and `iterations`.
        """
        share = 1.0
        if settings.schedule == "cosine":
            share = (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
        moved = self
        if settings.learn != "conditioning":
            state = self.z_momentum, self.z_square
            direction, momentum, square = _direction(self.z, grad_z, state, iteration, settings)
            z = self.z - share * settings.lr_latents * direction
            moved = replace(moved, z=z, z_momentum=momentum, z_square=square)
        if settings.learn != "latents":
            state = self.c_momentum, self.c_square
            direction, momentum, square = _direction(self.c, grad_c, state, iteration, settings)
            c = self.c - share * settings.lr_conditioning * direction
            moved = replace(moved, c=c, c_momentum=momentum, c_square=square)
        return moved


def _direction(
    moved: Tensor, grad: Tensor, state: tuple[Tensor, Tensor | None], iteration: int, settings: DistillRecipe
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a rate is multiplied with, and the new state: the momentum of SGD or of LARS, or Adam's quotient.

    Adam as Kingma and Ba (ICLR 2015) have it, with β1 = `momentum`. LARS (You et al., arXiv:1708.03888, Algorithm 1
    without weight decay) scales the gradient g of each latent w by |w| / |g| before it enters the momentum; here what
    the paper calls a layer is the latent of one image, so that a step depends on no other image or process.
    """
    (momentum, square), decay = state, settings.momentum
    if settings.optimiser == "lars":
        grad = _as_long_as(moved, grad)
    if square is None:
        momentum = decay * momentum + grad
        return momentum, momentum, None
    momentum = decay * momentum + (1 - decay) * grad
    square = SQUARE_DECAY * square + (1 - SQUARE_DECAY) * grad.square()
    mean, spread = momentum / (1 - decay ** (iteration + 1)), square / (1 - SQUARE_DECAY ** (iteration + 1))
    return mean / (spread.sqrt() + 1e-8), momentum, square


def _as_long_as(moved: Tensor, grad: Tensor) -> Tensor:
    """Each latent's gradient at the latent's norm; a gradient of 0 stays 0, a latent of 0 counts as one of rms 1.

    Class by class, because a sum over other classes' memory may be added up in another order.
    """
    scaled = []
    for latents, grads in zip(moved.flatten(2), grad.flatten(2), strict=True):
        largest = grads.abs().amax(1, keepdim=True)
        grads = grads / largest.where(largest > 0, 1)  # squares of a small gradient would vanish
        length, wanted = (torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in (grads, latents))
        wanted = wanted.where(wanted > 0, math.sqrt(latents.shape[1]))
        scaled.append(grads * (wanted / length.where(length > 0, 1)))
    return torch.stack(scaled).view_as(grad) if scaled else grad


def unmoved(settings: DistillRecipe, z: Tensor, c: Tensor) -> dict[str, Tensor]:
    """The state of a class before the first step, of its Z and c [latents per class, …]."""
    kept = ("momentum", "square") if settings.optimiser == "adam" else ("momentum",)
    still = {f"{name}_{each}": torch.zeros_like(tensor) for each in kept for name, tensor in (("z", z), ("c", c))}
    return {"z": z, "c": c, **still}
