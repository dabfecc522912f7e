"""How far the moments of groups of latents are from a class's (D3HR, ICML 2025; lin-zhao-resoLve/D3HR 8ba351d)."""

import torch
from torch import Tensor

SKEW = 0.1
"""The weight of skewness, as in its code."""


def distances(groups: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """‖mean − μ‖ + ‖std − σ‖ + 0.1 ‖skewness‖ of groups, [G].

    Mean and standard deviation are of each element over a group's images, skewness of each image over its elements. One
    image has no deviation, and is judged by the others.

    Args:
        groups: [G, n, *latent_shape].
        mean: μ [*latent_shape] of the class.
        std: σ, likewise.
    """
    flat, (mean, std) = groups.flatten(2), (each.flatten() for each in (mean, std))
    skewness = skew(flat).norm(dim=1)
    found = (flat.mean(1) - mean).norm(dim=1) + SKEW * skewness
    return found + (flat.std(1) - std).norm(dim=1) if flat.shape[1] > 1 else found


def skew(values: Tensor) -> Tensor:
    """Adjusted skewness over the last axis: n / ((n − 1) (n − 2)) Σ ((x − mean) / std)³."""
    n = values.shape[-1]
    standard = (values - values.mean(-1, keepdim=True)) / values.std(-1, keepdim=True).clamp_min(1e-12)
    return standard.pow(3).sum(-1) * (n / max(1, (n - 1) * (n - 2)))


def of_latents(latents: Tensor) -> tuple[Tensor, Tensor]:
    """μ and σ [*latent_shape] of latents [n, *latent_shape]; σ is 0 of a single one."""
    return latents.mean(0), latents.std(0) if len(latents) > 1 else torch.zeros_like(latents[0])
