"""The noise ε0 that latents are noised with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ld3m.machine.transfer import send
from ld3m.priors import Prior
from ld3m.randomness import generator
from ld3m.recipe import Recipe


def draw_noise(recipe: Recipe, prior: Prior, labels: Sequence[int], iteration: int, device: torch.device) -> Tensor:
    """ε0 [classes · images per class, *latent_shape]: of the iteration ("fresh"), or the run's ("fixed")."""
    moment = iteration if recipe.prior.noise == "fresh" else 0
    draws = [
        torch.randn(prior.latent_shape, generator=generator(recipe.seed, "noise", moment, label, image))
        for label in labels
        for image in range(recipe.distill.latents_per_class)
    ]
    return send(torch.stack(draws), device) if draws else torch.empty(0, *prior.latent_shape, device=device)
