"""How far the moments of groups of latents are from a class's (D3HR, ICML 2025; lin-zhao-resoLve/D3HR 8ba351d)."""

import torch
from torch import Tensor

SKEW = 0.1
"""The weight of skewness, as in its code."""


def distances(groups: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """‖mean − μ‖ + ‖std − σ‖ + 0.1 ‖skewness‖ of groups, [G].

    All are over a group's images; of one image there is no deviation and no skewness, and the mean alone counts.

    Args:
        groups: [G, n, *latent_shape].
        mean: μ [*latent_shape] of the class.
        std: σ, likewise.
    """
    flat, (mean, std) = groups.flatten(2), (each.flatten() for each in (mean, std))
    found = (flat.mean(1) - mean).norm(dim=1)
    if flat.shape[1] == 1:
        return found
    return found + (flat.std(1) - std).norm(dim=1) + SKEW * skew(flat).norm(dim=1)


def skew(groups: Tensor) -> Tensor:
    """The code's skewness of each image [G, n], of groups [G, n, d]: d / ((d − 1) (d − 2)) Σ ((x − mean) / std)³.

    The sum is over an image's elements, mean and std are those of each element over the group.
    """
    d = groups.shape[2]
    standard = (groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True).clamp_min(1e-12)
    return standard.pow(3).sum(2) * (d / max(1, (d - 1) * (d - 2)))


def of_latents(latents: Tensor) -> tuple[Tensor, Tensor]:
    """μ and σ [*latent_shape] of latents [n, *latent_shape]; σ is 0 of a single one."""
    return latents.mean(0), latents.std(0) if len(latents) > 1 else torch.zeros_like(latents[0])
