"""The sampler: DDIM with a linearly decaying skip, top to bottom.

LD3M (Moser et al., NeurIPS 2025, arXiv 2403.03881), Algorithm 1, and the authors' public code. `images_of` is the whole
algorithm; `pull_back.render` gives the same images with their gradient, one `reverse_step` at a time.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ld3m.errors import UserError
from ld3m.images.ranges import signed_to_unit
from ld3m.images.resample import resize
from ld3m.priors import Prior
from ld3m.priors.noise_schedule import Level, NoiseSchedule

Skip = Literal["paper", "reference", "none"]
Linear = TypeVar("Linear", Tensor, float)


@dataclass(frozen=True)
class Step:
    """One reverse step i, from z_i to z_{i−1}."""

    time: float
    """τ_i, the training time step the denoiser is given; of a flow any number between them."""
    level: Level
    """Signal and noise at τ_i."""
    next: Level
    """Signal and noise at τ_{i−1}."""
    weight: float
    """w_i, the share of the skip."""
    velocity_fixed: Level
    """The derivatives of x̂ and ε̂ by z_i if the denoiser's velocity is held fixed."""


@dataclass(frozen=True)
class Schedule:
    """All that rendering needs besides the prior and the latents."""

    steps: tuple[Step, ...]
    """In the order of execution, i = S … 1; without any, an image is D(Z), the autoencoder alone."""
    skip: Skip
    guidance: float
    """g of classifier-free guidance."""

    @classmethod
    def of(
        cls,
        noise_schedule: NoiseSchedule,
        steps: int,
        skip: Skip,
        guidance: float,
        made: int | None = None,
        key: str = "prior.steps",
    ) -> "Schedule":
        """S steps of the prior's noise schedule, or the last `made` of them, with the weights of a skip.

        Args:
            made: how many of the steps; None: all.

        Raises:
            UserError: if the noise schedule has fewer time steps.
        """
        stages = zip(range(steps, 0, -1), noise_schedule.walk(steps, key), strict=True)
        chain = tuple(
            Step(time, level, after, skip_weight(skip, i, steps), noise_schedule.velocity_fixed(level))
            for i, (time, level, after) in stages
        )
        return cls(chain[len(chain) - (steps if made is None else made) :], skip, guidance)

    def asks_denoiser(self, step: Step) -> bool:
        """Whether a step calls the denoiser, whose answer has weight 0 in the first of Eq. 7."""
        return self.skip != "paper" or step.weight < 1

    @property
    def start(self) -> Level:
        """Signal and noise of z_S; all signal if there are no steps."""
        return self.steps[0].level if self.steps else Level(signal=1, noise=0)


def skip_weight(skip: Skip, i: int, steps: int) -> float:
    """w_i, which falls linearly: "paper" i/S (Eq. 7); "reference" (i − 1)/(S − 1), at S = 1 zero; "none" 0."""
    match skip:
        case "paper":
            return i / steps
        case "reference":
            return (i - 1) / max(1, steps - 1)
        case "none":
            return 0.0


# --- the algorithm -----------------------------------------------------------------------------------------


def images_of(prior: Prior, schedule: Schedule, z: Tensor, c: Tensor, noise: Tensor) -> Tensor:
    """Images of latents and codes: the algorithm as it stands, differentiable if every step's graph fits into memory.

    Args:
        z: latents Z [N, *latent_shape].
        c: conditioning [N, *conditioning_shape].
        noise: ε0 [N, *latent_shape], standard normal.

    Returns:
        Pixels [N, channels, H, W] in [0, 1].
    """
    state = noised(schedule, z, noise)  # z_S
    anchor = prior.quantise(z) if schedule.skip == "reference" else state
    for step in schedule.steps:  # i = S … 1
        state = reverse_step(prior, schedule, step, state, c, anchor)
    return decoded(prior, state)


def noised(schedule: Schedule, z: Tensor, noise: Tensor) -> Tensor:
    """z_S = √ᾱ Z + √(1 − ᾱ) ε0 at the first time step, which is in mid-chain if the first steps are left out."""
    return schedule.start.signal * z + schedule.start.noise * noise


def reverse_step(prior: Prior, schedule: Schedule, step: Step, z: Tensor, c: Tensor, anchor: Tensor) -> Tensor:
    """z_{i−1} of z_i, c and what the skip carries, its anchor: z_S for "paper", Q(Z) for "reference"."""
    if not schedule.asks_denoiser(step):
        return anchor.clone()
    answer = guided(prior, z, step.time, c, schedule.guidance)
    return advanced(schedule, step, *prior.noise_schedule.clean_and_noise(z, answer, step.level), anchor)


def advanced(schedule: Schedule, step: Step, clean: Linear, noise: Linear, anchor: Linear) -> Linear:
    """z_{i−1} of x̂, ε̂ and the anchor, in which it is linear: tensors, or numbers."""
    if schedule.skip == "reference":
        clean = (1 - step.weight) * clean + step.weight * anchor
    z = step.next.signal * clean + step.next.noise * noise  # DDIM, η = 0
    if schedule.skip == "paper":
        z = (1 - step.weight) * z + step.weight * anchor  # Eq. 7
    return z


def guided(prior: Prior, z: Tensor, time: float, c: Tensor, guidance: float) -> Tensor:
    """The denoiser's answer under classifier-free guidance (Ho and Salimans, 2022), both classes in one batch."""
    return guided_and_own(prior, z, time, c, guidance)[0]


def guided_and_own(prior: Prior, z: Tensor, time: float, c: Tensor, guidance: float) -> tuple[Tensor, Tensor]:
    """The denoiser's answer under classifier-free guidance, and that of the class alone."""
    if guidance == 1:
        answer = prior.denoise(z, time, c).contiguous()  # sums over latents do not depend on a prior's layout
        return answer, answer
    if prior.null_embedding is None:
        raise UserError(f"prior.guidance: {guidance:g}, but the prior has no null class to guide away from; give 1")
    null = prior.null_embedding.to(c).expand_as(c)
    both = z if getattr(prior, "halves_agree", False) else torch.cat([z, z])
    unconditional, conditional = prior.denoise(both, time, torch.cat([null, c])).contiguous().chunk(2)
    return unconditional + guidance * (conditional - unconditional), conditional


def decoded(prior: Prior, z: Tensor, resolution: int | None = None) -> Tensor:
    """Pixels in [0, 1] of latents z_0, resized if the decoder's images have another resolution."""
    pixels = signed_to_unit(prior.decode(z))
    return pixels if resolution in (None, pixels.shape[-1]) else resize(pixels, resolution)
