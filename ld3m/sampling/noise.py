"""The noise ε0 that latents are noised with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m.machine.transfer import send
from ld3m.randomness import generator


@dataclass(frozen=True)
class Noise:
    """Standard normal draws, each keyed by (seed, iteration, class, image), whichever process makes them."""

    seed: int
    fresh: bool
    """Whether each iteration draws its own ("fresh"), or the run draws once ("fixed")."""
    per_class: int
    """Latents of a class."""
    latent_shape: tuple[int, ...]

    def key(self, iteration: int) -> int:
        """The iteration whose draws these are: 0 for all of them if noise is fixed."""
        return iteration if self.fresh else 0

    def draw(self, labels: Sequence[int], iteration: int, device: torch.device) -> Tensor:
        """ε0 [classes, latents per class, *latent_shape] of some classes."""
        shape = (len(labels), self.per_class, *self.latent_shape)
        draws = [
            torch.randn(self.latent_shape, generator=generator(self.seed, "noise", self.key(iteration), label, image))
            for label in labels
            for image in range(self.per_class)
        ]
        return send(torch.stack(draws).view(shape), device) if draws else torch.empty(shape, device=device)
