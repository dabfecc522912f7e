"""Guidance of a class's images as a set: towards its mean, and away from each other (CGS, CVPR 2026, by its abstract).

The chains of a class go side by side, tilted by exp(−E) with the energy of their noisy latents
E = η ‖mean z − √ᾱ μ‖² − δ log det(K + ε I), μ the mean of the class's real latents and K_ij = cos(z_i, z_j). As for any
density, ε̂ becomes ε̂ + √(1 − ᾱ) ∇E (Dhariwal and Nichol, NeurIPS 2021), which moves DDIM's next latents by −ω ∇E,
ω = n (s′ n/s − n′); ∇E has a closed form. The mean's part is linear, and followed exactly: a large η ω, as in the first
steps or with few images, leads to √ᾱ μ and not beyond. Published: η 30 to 300; no code was public.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ld3m.sampling.approach import Approach, ClassTask, Correction, Moment

EPSILON = 1e-3
"""ε, by which log det stays finite if two latents are parallel."""


def cgs(task: ClassTask) -> Approach:
    """Chains that are guided together; an over-draw's groups are sets of their own."""
    settings, approach = task.settings.cgs, task.starting_at("noise")
    if not settings.mean and not settings.diversity:
        return approach
    centre = task.encodings().mean(0).to(task.device)

    def guide(moment: Moment) -> Correction | None:
        (signal, noise), (next_signal, next_noise) = moment.step.level, moment.step.next
        if not signal:
            return None
        rate = noise * (next_signal * noise / signal - next_noise)
        shift = mean_move(moment.z, signal * centre, settings.mean * rate)
        return Correction(shift=shift + settings.diversity * rate * diversity_gradient(moment.z))

    return replace(approach, guide=guide, together=task.count)


def mean_move(z: Tensor, centre: Tensor, rate: float) -> Tensor:
    """What dz/dτ = −∇ ‖mean z − centre‖² makes of z [n, *latent_shape] until τ = rate, less z."""
    return (-math.expm1(-2 / len(z) * rate) * (centre - z.mean(0))).expand_as(z)


def diversity_gradient(z: Tensor) -> Tensor:
    """The gradient of log det(K + ε I), K_ij = cos(z_i, z_j), at each of z [n, *latent_shape].

    With u = z/‖z‖ and A = (K + ε I)⁻¹ it is 2 A u at u, of which z feels what is at right angles to it, by 1/‖z‖.
    """
    flat = z.flatten(1)
    lengths = flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit = flat / lengths
    shifted = unit @ unit.T + EPSILON * torch.eye(len(unit), dtype=z.dtype, device=z.device)
    at_unit = 2 * torch.linalg.solve(shifted, unit)
    across = at_unit - (at_unit * unit).sum(1, keepdim=True) * unit
    return (across / lengths).view_as(z)
