"""What the benchmarks measure ld3m against: how often it calls the denoiser, and the ratios once measured."""

import importlib.util
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import make_prior
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from ld3m.sampling import Schedule, render
from ld3m.sizing.count import Tally

STEPS = 2


@pytest.fixture(scope="module")
def way() -> ModuleType:
    """tests/benchmarks/authors_way.py."""
    path = Path(__file__).parent / "benchmarks" / "authors_way.py"
    spec = importlib.util.spec_from_file_location("authors_way", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(prior: Any, count: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Z, c, ε0 and a gradient at the images."""
    draws = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(count, *prior.latent_shape, generator=draws) for _ in range(2))
    c = prior.table[:count].view(count, *prior.conditioning_shape)
    return z, c, noise, torch.randn(count, 1, 16, 16, generator=draws)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_calls_are_those_of_the_authors_code(way: ModuleType) -> None:
    """In their code a step is under a checkpoint, and so are transformer blocks in it; residual blocks are not.

    So a residual block runs in the pass without a graph, in the one under checkpoints and when that is repeated; a
    transformer block once more, when the gradient reaches it.
    """
    prior = way.authors_prior(make_prior())
    schedule = Schedule.of(prior.noise_schedule, STEPS, "reference", 3.0)
    calls = Counter[type]()
    for module in prior.denoiser.modules():
        if type(module) in (UNet2DConditionModel, ResnetBlock2D, BasicTransformerBlock):
            module.register_forward_pre_hook(lambda module, inputs: calls.update([type(module)]))
    blocks = Counter(type(module) for module in prior.denoiser.modules())
    z, c, noise, grad = inputs(prior)
    way.authors_gradient(prior, schedule, z, c, noise, lambda images: grad)
    assert calls[UNet2DConditionModel] == 3 * STEPS
    assert calls[ResnetBlock2D] == 3 * STEPS * blocks[ResnetBlock2D]
    assert calls[BasicTransformerBlock] == 4 * STEPS * blocks[BasicTransformerBlock]


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_it_gives_the_images_and_gradients_of_ld3m(way: ModuleType) -> None:
    prior = make_prior()
    schedule = Schedule.of(prior.noise_schedule, STEPS, "reference", 3.0)
    z, c, noise, grad = inputs(prior)
    expected = way.authors_gradient(way.authors_prior(prior), schedule, z, c, noise, lambda images: grad)
    images, pull_back = render(prior, schedule, z, c, noise)
    torch.testing.assert_close([images, *pull_back(grad)], expected, rtol=1e-4, atol=1e-5)


def operations(run: Any) -> int:
    with Tally() as tally:
        run()
    return tally.operations


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_it_costs_what_the_authors_code_does(way: ModuleType) -> None:
    """Operations of convolutions and products, against CPU seconds beside the authors' code (commit d691226).

    With graphs kept 0.45 of theirs, with flat memory 0.71, on a UNet of 12.8 M parameters with ten images and S = 10;
    this one is of the same shape but narrower. The decoder, a small part there, is left out, and the halves of guidance
    share no layers, as they did not then.
    """
    prior = make_prior()
    prior.halves_agree = False
    prior.autoencoder.decode = lambda z: type("Decoded", (), {"sample": z})()
    schedule = Schedule.of(prior.noise_schedule, 1, "reference", 3.0)
    z, c, noise, _ = inputs(prior, 1)
    twin = way.authors_prior(prior)
    twin.autoencoder = prior.autoencoder
    theirs = operations(partial(way.authors_gradient, twin, schedule, z, c, noise, lambda images: z))

    def ours(keep: Any) -> float:
        return operations(lambda: render(prior, schedule, z, c, noise, keep_graph_steps=keep)[1](z)) / theirs

    assert (ours("all"), ours(0)) == pytest.approx((0.45, 0.71), abs=0.05)
