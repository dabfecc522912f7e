"""The chains of a class, followed as its method says: DDIM's steps, with as much of DDPM's noise as `sample.eta` asks.

A step is z′ = s′ x̂0 + √(n′² − σ²) ε̂ + σ ξ with signal s′ and noise n′ of the next level and standard normal ξ
(Song et al., ICLR 2021, Eq. 12). Chains of a class never share a batch with those of another, and ξ is keyed by seed,
class, image and step, so that no image depends on how classes are dealt or on how many images go at a time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ld3m.errors import UserError
from ld3m.machine.out_of_memory import in_parts
from ld3m.sampling.algorithm import Step, guided_and_own
from ld3m.sampling.approach import Approach, ClassTask, Moment, rows

ADVICE = (
    "prior.micro_batch: memory ran out as a single image was sampled; give prior.dtype=bfloat16, a smaller "
    "prior.resolution or more memory"
)


@torch.no_grad()
def follow(
    task: ClassTask, approach: Approach, images: Sequence[int], earlier: Tensor, shown: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Clean latents of some images of a class, and what the prior expected of them on the way.

    Args:
        images: their numbers among those drawn; all of one `together`, if the approach has it.
        earlier: clean latents of the images before them, [images before, *latent_shape] on the CPU.
        shown: steps whose x̂0 is kept.

    Returns:
        z_0 [n, *latent_shape], and x̂0 [n, shown, *latent_shape] after each of these steps, on the CPU.

    Raises:
        UserError: if memory runs out with one image at a time, or latents are not finite.
    """
    schedule, prior = task.schedule, task.prior
    z, earlier = _start(task, approach, images), earlier.to(task.device)
    on_the_way = []
    for index, step in list(enumerate(schedule.steps))[approach.first :]:
        clean, noise, own_clean = _answer(task, z, step)
        sigma = added_noise(step, task.settings.eta)
        shift = None
        if approach.guide:
            moment = Moment(index, len(schedule.steps), step, sigma, images, z, clean, noise, own_clean, earlier)
            correction = approach.guide(moment)
            if correction and correction.noise is not None and step.level.signal:
                clean = clean - step.level.noise / step.level.signal * (correction.noise - noise)
                noise = correction.noise
            shift = correction.shift if correction else None
        left = math.sqrt(max(0.0, step.next.noise**2 - sigma**2)) if sigma else step.next.noise
        z = step.next.signal * clean + left * noise
        if sigma:
            z = z + sigma * _normal(task, "step noise", images, index)
        if shift is not None:
            z = z + shift
        if index in shown:
            on_the_way.append(clean.cpu())
    if not z.isfinite().all():
        raise UserError(
            f"sample.method: {task.settings.method} led to latents of class {task.images.classes[task.label]!r} that "
            "are not finite; give a smaller scale of the method, a smaller sample.guidance, or prior.dtype=float32"
        )
    way = torch.stack(on_the_way, 1) if on_the_way else torch.empty(len(images), 0, *prior.latent_shape)
    return z.cpu(), way


def added_noise(step: Step, eta: float) -> float:
    """σ, the standard deviation of the noise that a step adds: η times that of DDPM's posterior.

    With z = (s/s′) z′ + noise from one level to the noisier one before it, the posterior's variance is
    n′²/n² · (n² − (s n′/s′)²), which for signal² + noise² = 1 is the σ² of DDIM's Eq. 16.
    """
    (signal, noise), (next_signal, next_noise) = step.level, step.next
    fresh = max(0.0, noise**2 - (signal * next_noise / next_signal) ** 2)
    return eta * next_noise / noise * math.sqrt(fresh) if noise else 0.0


def _start(task: ClassTask, approach: Approach, images: Sequence[int]) -> Tensor:
    """The noisy latents from which chains start."""
    if approach.start is not None and approach.noisy:
        return rows(approach.start, images).to(task.device)
    noise = _normal(task, "start", images)
    level = task.schedule.steps[approach.first].level
    if approach.start is None:
        return noise
    return level.signal * rows(approach.start, images).to(task.device) + level.noise * noise


def _normal(task: ClassTask, purpose: str, images: Sequence[int], *key: int) -> Tensor:
    """Standard normal draws [n, *latent_shape], each keyed by its image."""
    shape = task.prior.latent_shape
    return torch.stack([torch.randn(shape, generator=task.draws(purpose, image, *key)) for image in images]).to(
        task.device
    )


def _answer(task: ClassTask, z: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """x̂0 and ε̂ under classifier-free guidance, and x̂0 of the class alone."""
    prior, guidance = task.prior, task.schedule.guidance

    def ask(part: Tensor) -> Tensor:
        c = task.embedding.expand(len(part), *prior.conditioning_shape)
        return torch.stack(guided_and_own(prior, part, step.time, c, guidance), 1)

    answer, own = in_parts(ask, z, task.micro_batch, ADVICE).unbind(1)
    clean, noise = prior.noise_schedule.clean_and_noise(z, answer, step.level)
    own_clean = clean if guidance == 1 else prior.noise_schedule.clean_and_noise(z, own, step.level)[0]
    return clean, noise, own_clean
