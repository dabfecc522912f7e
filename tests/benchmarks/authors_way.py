"""The gradient of latents as the authors' public code takes it, in the same weights: what ld3m is measured against.

It renders without a graph, matches, renders again under a checkpoint per step, and differentiates that, with
checkpoints in the denoiser's transformer blocks and nowhere else, and quantises Z at every step of the `reference`
skip. A step so takes three calls of the denoiser, in which a transformer block runs four times, and one backwards:
tests/test_authors_way.py counts them. Networks have diffusers' own layers. The authors' code, which is not part of this
repository, draws other noise in its second pass; this takes the same, so that answers can be compared.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ld3m.sampling import Schedule


def authors_prior(prior: Any) -> Any:
    """The same prior in diffusers' own layers and layout, with checkpoints in transformer blocks."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    twin = copy.copy(prior)
    twin.denoiser, twin.autoencoder = as_diffusers(prior.denoiser), as_diffusers(prior.autoencoder)
    for module in twin.denoiser.modules():
        if isinstance(module, Transformer2DModel):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=True)
    return twin


def as_diffusers(network: Any) -> Any:
    """A frozen network with the same weights in the layers, and the memory layout, that diffusers gives it."""
    with torch.device("meta"):
        plain = type(network).from_config(network.config)
    weights = {name: weight.contiguous() for name, weight in network.state_dict().items()}  # not channels last
    plain.load_state_dict(weights, assign=True)
    return plain.eval().requires_grad_(False)


def authors_render(prior: Any, schedule: Schedule, z: Tensor, c: Tensor, noise: Tensor) -> Tensor:
    """DDIM with the `reference` skip; each step's call of the denoiser is under a checkpoint."""
    first = schedule.steps[0].level
    state = first.signal * z + first.noise * noise
    null = prior.null_embedding.expand_as(c)
    for step in schedule.steps:
        anchor = prior.quantise(z)

        def both(state: Tensor, c: Tensor, time: int = step.time) -> Tensor:
            return prior.denoise(torch.cat([state, state]), time, torch.cat([null, c]))

        without, within = checkpoint(both, state, c, use_reentrant=True).chunk(2)
        answer = without + schedule.guidance * (within - without)
        clean = (state - step.level.noise * answer) / step.level.signal
        clean = (1 - step.weight) * clean + step.weight * anchor
        state = step.next.signal * clean + step.next.noise * answer
    return ((prior.decode(state) + 1) / 2).clamp(0, 1)


def authors_gradient(
    prior: Any, schedule: Schedule, z: Tensor, c: Tensor, noise: Tensor, match: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Images and the gradients of Z and c: renders, asks for the gradient at the images, renders again and
    differentiates.
    """
    with torch.no_grad():
        images = authors_render(prior, schedule, z, c, noise)
    grad = match(images)
    z, c = z.detach().clone().requires_grad_(), c.detach().clone().requires_grad_()
    authors_render(prior, schedule, z, c, noise).backward(grad)
    assert z.grad is not None
    assert c.grad is not None
    return [images, z.grad, c.grad]
