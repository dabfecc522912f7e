"""Guidance's halves through the layers in which they agree: once, with the answers and gradients of twice."""

import copy
from typing import Any

import pytest
import torch
from conftest import make_prior
from diffusers import UNet2DConditionModel
from torch import Tensor

from ld3m.priors.shared_prefix import share_prefix
from ld3m.sampling import Schedule, render
from ld3m.sampling.algorithm import guided_and_own

PLAIN_FIRST = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
SEEN_AT_ONCE = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SEEN_IN_THE_MIDDLE = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def unet(**config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 2, "norm_num_groups": 4, "attention_head_dim": 2}
    network = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, cross_attention_dim=6, **sizes, **config
    )
    return network.double().eval().requires_grad_(False)


@pytest.mark.parametrize(
    "config",
    [PLAIN_FIRST, SEEN_AT_ONCE, SEEN_IN_THE_MIDDLE, {**SEEN_AT_ONCE, "use_linear_projection": True}],
    ids=["plain blocks first", "the first block sees c", "the middle alone", "linear projections"],
)
@pytest.mark.parametrize("tokens", [1, 5])
def test_answers_and_gradients_are_those_of_latents_given_twice(config: dict[str, Any], tokens: int) -> None:
    """In float64, at a difference between both halves as guidance takes it, and on three rows before the class."""
    original = unet(**config)
    network = copy.deepcopy(original)
    assert share_prefix(network)
    rows: list[int] = []
    for layer in (network.conv_in, network.down_blocks[0].resnets[0], network.conv_out):
        layer.register_forward_hook(lambda layer, inputs, output: rows.append(len(inputs[0])))
    z = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    c = torch.randn(6, tokens, 6, dtype=torch.float64, requires_grad=True)
    toward = torch.randn(6, 3, 8, 8, dtype=torch.float64)

    def there_and_back(network: Any, images: Tensor) -> list[Tensor]:
        answer = network(images, torch.full((len(images),), 300), c).sample
        return [answer, *torch.autograd.grad(answer, (z, c), toward)]

    found, expected = there_and_back(network, z), there_and_back(original, torch.cat([z, z]))
    assert rows == [3, 3, 6]
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(there_and_back(network, torch.cat([z, z])), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 15},
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 4},
        {
            "down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        },
        {
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "mid_block_type": "UNetMidBlock2D",
        },
    ],
    ids=["Stable Diffusion XL", "a class by its number", "a table of classes", "other blocks", "no lower block sees c"],
)
def test_it_steps_aside_where_the_first_layers_see_more_or_are_of_other_kinds(config: dict[str, Any]) -> None:
    network = unet(**{**PLAIN_FIRST, **config})
    assert not share_prefix(network)
    assert not network.time_embedding._forward_pre_hooks


@pytest.mark.parametrize("skip", ["paper", "reference"])
def test_a_chain_is_that_of_both_halves_in_one_batch(skip: str) -> None:
    """Images and gradients of Z and c through guided steps, in float64."""
    prior = make_prior()
    prior.autoencoder.double()
    prior.denoiser.double()
    assert prior.halves_agree
    draws = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(2, *prior.latent_shape, generator=draws, dtype=torch.float64) for _ in range(2))
    c, grad = prior.table[:2].double().view(2, 1, -1), torch.randn(2, 1, 16, 16, generator=draws, dtype=torch.float64)
    schedule = Schedule.of(prior.noise_schedule, 3, skip, 3.0)
    answers = []
    for halves_agree in (True, False):
        prior.halves_agree = halves_agree
        images, pull_back = render(prior, schedule, z, c, noise)
        answers.append([images, *pull_back(grad), *guided_and_own(prior, z, 500, c, 3.0)])
    for found, expected in zip(*answers, strict=True):
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
