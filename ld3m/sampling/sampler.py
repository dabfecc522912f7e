"""The sampler: DDIM with a decaying skip, as a function with its exact pull-back.

LD3M (Moser et al., NeurIPS 2025, arXiv 2403.03881), Algorithm 1, and the authors' public code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ld3m.images import resample
from ld3m.images.ranges import signed_to_unit
from ld3m.machine import timing
from ld3m.priors import Prior
from ld3m.priors.noise_schedule import Level, NoiseSchedule

Skip = Literal["paper", "reference", "none"]
PullBack = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gradient of the pixels to gradients of (Z, c)."""


@dataclass(frozen=True)
class Step:
    """One reverse step i, from z_i to z_{i−1}."""

    time: int
    """τ_i, the training time step the denoiser is told."""
    level: Level
    """At τ_i."""
    next: Level
    """At τ_{i−1}."""
    weight: float
    """w_i, the share of the skip."""


@dataclass(frozen=True)
class Schedule:
    """All that a render needs besides the prior and the latents."""

    steps: tuple[Step, ...]
    """In the order of execution, i = S … 1; none at all is the autoencoder alone, an image being D(Z)."""
    skip: Skip
    guidance: float

    @classmethod
    def of(cls, noise_schedule: NoiseSchedule, steps: int, skip: Skip, guidance: float) -> "Schedule":
        """S steps of the prior's noise schedule.

        The skip's weight falls linearly: "paper" i/S (Eq. 7), "reference" (i − 1)/(S − 1), which at S = 1 is 0.

        Raises:
            UserError: where the schedule has not so many time steps.
        """
        weights = {
            "paper": lambda i: i / steps,
            "reference": lambda i: (i - 1) / max(1, steps - 1),
            "none": lambda i: 0.0,
        }[skip]
        walk = noise_schedule.walk(steps)
        return cls(
            tuple(Step(*stage, weights(i)) for i, stage in zip(range(steps, 0, -1), walk, strict=True)), skip, guidance
        )


def render(
    prior: Prior,
    schedule: Schedule,
    z: Tensor,
    c: Tensor,
    noise: Tensor,
    *,
    resolution: int | None = None,
    micro_batch: int = 64,
    keep_graph_steps: int | Literal["all"] = 0,
) -> tuple[Tensor, PullBack]:
    """Images of latents and codes, and the exact pull-back of a gradient at them, in the manner of a vjp.

    The forward keeps each step's state and no graph, but for the last `keep_graph_steps` steps and, where any is
    kept, the decoder; the pull-back runs the others again, one step of one micro-batch at a time, each
    differentiated at top level. It can be called once.

    Args:
        prior: the frozen model.
        schedule: steps, skip and guidance.
        z: latents Z [N, *latent_shape].
        c: conditioning [N, *conditioning_shape].
        noise: ε0 [N, *latent_shape], standard normal.
        resolution: of the images; they are resized where the decoder's is another.
        micro_batch: images at a time.
        keep_graph_steps: 0 for memory flat in S; "all" for speed.

    Returns:
        Pixels [N, channels, H, W] in [0, 1], without a graph, and the pull-back.
    """
    if not len(z):
        size = resolution or prior.image_size
        return z.new_zeros(0, prior.image_channels, size, size), lambda grad: (z.clone(), c.clone())
    keep = len(schedule.steps) if keep_graph_steps == "all" else keep_graph_steps
    batches = zip(z.split(micro_batch), c.split(micro_batch), noise.split(micro_batch), strict=True)
    parts = [_render_part(prior, schedule, *batch, resolution, keep) for batch in batches]

    def pull_back(grad: Tensor) -> tuple[Tensor, Tensor]:
        grads = [pull(part) for (_, pull), part in zip(parts, grad.split(micro_batch), strict=True)]
        return torch.cat([grad_z for grad_z, _ in grads]), torch.cat([grad_c for _, grad_c in grads])

    return torch.cat([pixels for pixels, _ in parts]), pull_back


def _render_part(
    prior: Prior, schedule: Schedule, z: Tensor, c: Tensor, noise: Tensor, resolution: int | None, keep: int
) -> tuple[Tensor, PullBack]:
    """`render` for one micro-batch: the chain forwards, and its links' pull-backs backwards."""
    first = schedule.steps[0].level if schedule.steps else Level(signal=1, noise=0)
    start = first.signal * z.detach() + first.noise * noise
    with torch.no_grad():
        anchor = {"paper": start, "reference": prior.quantise(z), "none": start}[schedule.skip]
    state, links = start, []
    for left, step in zip(range(len(schedule.steps), 0, -1), schedule.steps, strict=True):
        state, link = _link(reverse(prior, schedule, step), state, c, anchor, keep=left <= keep)
        links.append(link)
    with timing.span("decode"):
        decode = _link(lambda latents: to_pixels(prior.decode(latents), resolution), state, keep=keep > 0)
        pixels, decode_link = decode

    def pull_back(grad: Tensor) -> tuple[Tensor, Tensor]:
        with timing.span("decode"):
            (grad_state,) = decode_link(grad)
        grad_c, grad_anchor = torch.zeros_like(c), torch.zeros_like(start)
        while links:
            grad_state, step_c, step_anchor = links.pop()(grad_state)
            grad_c += step_c
            grad_anchor += step_anchor
        if schedule.skip == "reference":  # Q passes its gradient straight through to Z
            return first.signal * grad_state + grad_anchor, grad_c
        return first.signal * (grad_state + grad_anchor), grad_c

    return pixels, pull_back


def reverse(prior: Prior, schedule: Schedule, step: Step) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """z_{i−1} as a function of z_i, c and the skip's anchor: z_S for "paper", Q(Z) for "reference"."""

    def reverse(z: Tensor, c: Tensor, anchor: Tensor) -> Tensor:
        if schedule.skip == "paper" and step.weight == 1:
            return anchor.clone()  # whatever the denoiser would say has weight 0
        answer = guided(prior, z, step.time, c, schedule.guidance)
        clean, noise = prior.noise_schedule.clean_and_noise(z, answer, step.level)
        if schedule.skip == "reference":
            clean = (1 - step.weight) * clean + step.weight * anchor
        z = step.next.signal * clean + step.next.noise * noise
        return (1 - step.weight) * z + step.weight * anchor if schedule.skip == "paper" else z

    return reverse


def to_pixels(images: Tensor, resolution: int | None = None) -> Tensor:
    """The decoder's [-1, 1] to pixels in [0, 1], clamped, at another resolution where one is given."""
    pixels = signed_to_unit(images)
    if resolution in (None, pixels.shape[-1]):
        return pixels
    return resample.resize(pixels, resolution)


def guided(prior: Prior, z: Tensor, time: int, c: Tensor, guidance: float) -> Tensor:
    """The denoiser's answer under classifier-free guidance (Ho and Salimans, 2022), both classes in one batch."""
    if guidance == 1:
        return prior.denoise(z, time, c)
    null = prior.null_embedding.to(c).expand_as(c)
    without, within = prior.denoise(torch.cat([z, z]), time, torch.cat([null, c])).chunk(2)
    return without + guidance * (within - without)


def _link(
    function: Callable[..., Tensor], *inputs: Tensor, keep: bool
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """A function's value and its pull-back, which keeps the graph or builds it when it is called."""
    if keep:
        return _differentiate(function, *inputs)
    with torch.no_grad():
        value = function(*inputs)
    return value, lambda grad: _differentiate(function, *inputs)[1](grad)


def _differentiate(
    function: Callable[..., Tensor], *inputs: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        value = function(*leaves)
    return value.detach(), lambda grad: torch.autograd.grad(
        value, leaves, grad, allow_unused=True, materialize_grads=True
    )
