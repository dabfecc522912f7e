"""DDIM backwards: the noisy latents that a chain leads to given clean ones from (Song et al., ICLR 2021, §4.3).

A step leads from z to z′ = s′ x̂0 + n′ ε̂ with the denoiser's answer at z. Backwards, z = (s/s′) z′ + (n − s n′/s′) ε̂(z)
holds z on both sides. The usual way, which D3HR's code takes too, puts z′ in place of the right one and is off by what
the answer differs there. Here that is the first of several iterations of the fixed point, Anderson's with a memory of
one (J. ACM 1965), until each image leads back to where it came from.
"""

import torch
from torch import Tensor

from ld3m.machine.out_of_memory import in_parts
from ld3m.priors import Prior
from ld3m.sampling.algorithm import Schedule, Step, guided

CLOSE = 1e-5
"""Root mean square by which an image may miss where it came from, in each step."""
ADVICE = (
    "prior.micro_batch: memory ran out as the latent of a single image was inverted; give prior.dtype=bfloat16, a "
    "smaller prior.resolution or more memory"
)


@torch.no_grad()
def inverted(
    prior: Prior,
    schedule: Schedule,
    clean: Tensor,
    c: Tensor,
    first: int,
    micro_batch: int,
    device: torch.device,
    iterations: int = 30,
) -> tuple[Tensor, Tensor]:
    """Noisy latents from which the steps from `first` on lead to clean ones; no image depends on the others.

    Args:
        schedule: its steps, without a skip, and guidance.
        clean: [n, *latent_shape].
        c: conditioning of their class, [*conditioning_shape].
        first: the step at which the chain starts; the latents have its noise.
        micro_batch: images that go through the prior at a time.
        iterations: calls of the denoiser for each step, at most; 1 is the usual way.

    Returns:
        The latents [n, *latent_shape], and by how much each misses in its worst step [n], root mean square; on the CPU.
    """

    def invert(part: Tensor) -> Tensor:
        z = part.to(device)
        missed = torch.zeros(len(z), device=device)
        for step in reversed(schedule.steps[first:]):
            z, error = before(prior, schedule, step, z, c.to(device).expand(len(z), *c.shape), iterations)
            missed = torch.maximum(missed, error)
        return torch.cat([missed[:, None], z.flatten(1)], 1).cpu()

    missed, flat = in_parts(invert, clean, micro_batch, ADVICE).split([1, clean[0].numel()], 1)
    return flat.view(clean.shape), missed.flatten()


def before(
    prior: Prior, schedule: Schedule, step: Step, after: Tensor, c: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """z of which a DDIM step makes z′, the `after` [n, *latent_shape], and how far its fixed point is from it, [n].

    With one call of the denoiser that is not known: infinity.
    """
    (signal, noise), (next_signal, next_noise) = step.level, step.next
    keeps, moves = signal / next_signal, noise - signal * next_noise / next_signal

    def image(z: Tensor) -> Tensor:
        """The right side of the fixed point at z."""
        answer = guided(prior, z, step.time, c, schedule.guidance)
        return keeps * after + moves * prior.noise_schedule.clean_and_noise(z, answer, step.level)[1]

    z = after
    value = image(z)
    residual = value - z
    best, least = value, residual.new_full((len(z),), torch.inf)
    for _ in range(iterations - 1):
        z_before, residual_before, z = z, residual, value
        value = image(z)
        residual = value - z
        error = residual.flatten(1).square().mean(1).sqrt()
        is_better = error < least
        best, least = torch.where(_wide(is_better, z), z, best), torch.where(is_better, error, least)
        if bool((least <= CLOSE).all()):
            break
        change = residual - residual_before
        share = (residual * change).flatten(1).sum(1) / change.flatten(1).square().sum(1).clamp_min(1e-20)
        value = value - _wide(share, z) * (z - z_before + change)
        value = torch.where(_wide(least <= CLOSE, z), best, value)
    return best, least


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """[n] to [n, 1, …], for rows of `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
