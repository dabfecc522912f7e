"""Rendering as a function with its pull-back, exact unless asked otherwise, in the manner of a Jacobian product."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ld3m.machine.timing import span
from ld3m.priors import Prior
from ld3m.sampling.algorithm import Schedule, decoded, noised, reverse_step
from ld3m.sampling.differentiated import EXACT, Through, passed_on

PullBack = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gradient at the pixels to gradients at (Z, c)."""


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
    through: Through | None = None,
) -> tuple[Tensor, PullBack]:
    """Images of latents and codes, and the pull-back of a gradient at them.

    The forward pass keeps each step's state and no graph, except for the last `keep_graph_steps` steps and, if any is
    kept, the decoder. The pull-back runs the other steps again, one step of one micro-batch at a time, and
    differentiates each at top level. It can be called once.

    Args:
        z: latents Z [N, *latent_shape].
        c: conditioning [N, *conditioning_shape].
        noise: ε0 [N, *latent_shape], standard normal.
        resolution: height and width of the images, if not the decoder's.
        micro_batch: images at a time.
        keep_graph_steps: 0 for memory that does not grow with S; "all" for speed.
        through: the denoiser calls that the pull-back differentiates; None: all, so that it is exact.

    Returns:
        Pixels [N, channels, H, W] in [0, 1], without a graph, and the pull-back.
    """
    if not len(z):
        size = resolution or prior.image_size
        return z.new_zeros(0, prior.image_channels, size, size), lambda grad: (z.clone(), c.clone())
    keep = len(schedule.steps) if keep_graph_steps == "all" else keep_graph_steps
    through = through or EXACT.through(schedule, 0)
    batches = zip(z.split(micro_batch), c.split(micro_batch), noise.split(micro_batch), strict=True)
    parts = [_render_batch(prior, schedule, *batch, resolution, keep, through) for batch in batches]

    def pull_back(grad: Tensor) -> tuple[Tensor, Tensor]:
        grads = [pull(part) for (_, pull), part in zip(parts, grad.split(micro_batch), strict=True)]
        return torch.cat([grad_z.contiguous() for grad_z, _ in grads]), torch.cat([grad_c for _, grad_c in grads])

    return torch.cat([pixels for pixels, _ in parts]), pull_back


def _render_batch(
    prior: Prior,
    schedule: Schedule,
    z: Tensor,
    c: Tensor,
    noise: Tensor,
    resolution: int | None,
    keep: int,
    through: Through,
) -> tuple[Tensor, PullBack]:
    """`render` for one micro-batch: `algorithm.images_of` forwards, and the pull-backs of its links backwards."""
    state = start = noised(schedule, z.detach(), noise)
    with torch.no_grad():
        anchor = prior.quantise(z) if schedule.skip == "reference" else start
    links = []
    for i, step in enumerate(schedule.steps):
        advance = partial(reverse_step, prior, schedule, step)
        if i in through.steps:
            state, link = _link(advance, state, c, anchor, keep=len(schedule.steps) - i <= keep)
        else:
            with torch.no_grad():
                state = advance(state, c, anchor)
            link = _linear(c, *(passed_on(schedule, step) if through.carried else (0.0, 0.0)))
        links.append(link)
    with span("decode"):
        pixels, decoder = _link(partial(decoded, prior, resolution=resolution), state, keep=keep > 0)

    def pull_back(grad: Tensor) -> tuple[Tensor, Tensor]:
        with span("decode"):
            (grad_state,) = decoder(grad)
        grad_c, grad_anchor = torch.zeros_like(c), torch.zeros_like(start)
        while links:  # i = 1 … S; a graph that was kept goes as soon as it is used
            grad_state, step_c, step_anchor = links.pop()(grad_state)
            grad_c += step_c
            grad_anchor += step_anchor
        grad_c *= through.weight
        if schedule.skip == "reference":  # Q passes its gradient straight through to Z
            return schedule.start.signal * grad_state + grad_anchor, grad_c
        return schedule.start.signal * (grad_state + grad_anchor), grad_c

    return pixels, pull_back


Link = Callable[[Tensor], tuple[Tensor, ...]]
"""Gradient at a function's value to gradients at its inputs."""


def _link(function: Callable[..., Tensor], *inputs: Tensor, keep: bool) -> tuple[Tensor, Link]:
    """A function's value and its pull-back, which keeps the graph, or builds it when it is called."""
    if keep:
        return _differentiate(function, *inputs)
    with torch.no_grad():
        value = function(*inputs)
    return value, lambda grad: _differentiate(function, *inputs)[1](grad)


def _linear(c: Tensor, by_state: float, by_anchor: float) -> Link:
    """What stands for the pull-back of a step whose answer of the denoiser is held fixed."""
    return lambda grad: (by_state * grad, torch.zeros_like(c), by_anchor * grad)


def _differentiate(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Link]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        value = function(*leaves)
    return value.detach(), lambda grad: torch.autograd.grad(
        value, leaves, grad, allow_unused=True, materialize_grads=True
    )
