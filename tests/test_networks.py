"""Networks, their averaging and the evaluation schedule, against the literature's code."""

import json

import pytest
import torch
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from ld3m import networks
from ld3m.evaluate import rate_factor
from ld3m.networks import Shape
from ld3m.randomness import generator
from ld3m.recipe import NetworkRecipe

REFERENCE = json.loads((DATA / "networks.json").read_text())


@pytest.mark.parametrize(
    ("name", "arch", "resolution"),
    [
        ("ConvNet_32_d3", "convnet", 32),
        ("ConvNet_128_d5", "convnet", 128),
        ("ConvNet_256_d6", "convnet", 256),
        ("ResNet18_32", "resnet18", 32),
        ("ResNet18_128", "resnet18", 128),
    ],
)
def test_parameters_are_those_of_the_literature(name: str, arch: str, resolution: int) -> None:
    network = networks.build(arch, Shape(3, resolution, 10), NetworkRecipe(), generator(0, "test"))
    assert sum(parameter.numel() for parameter in network.parameters()) == REFERENCE[name]["params"]
    if "parameters" in REFERENCE[name]:
        ours = [[key, list(parameter.shape)] for key, parameter in network.named_parameters()]
        assert ours == REFERENCE[name]["parameters"]


def test_a_network_is_a_function_of_its_generator() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        networks.build("convnet", Shape(1, 16, 3), NetworkRecipe(width=8), generator(0, "network", i))
        for i in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "layer", "none"])
def test_every_norm_trains(norm: str) -> None:
    network = networks.build("convnet", Shape(1, 16, 3), NetworkRecipe(width=8, norm=norm), generator(0, "network"))
    network(torch.randn(4, 1, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_instance_norm_is_per_image_and_channel() -> None:
    network = networks.ConvNet(Shape(1, 8, 2), width=4, depth=1)
    normed = network.features[1](torch.randn(3, 4, 8, 8) * 5 + 2)
    assert normed.mean((2, 3)).abs().max() < 1e-5
    assert (normed.var((2, 3), unbiased=False) - 1).abs().max() < 1e-3


@given(decay=st.floats(0, 0.999), values=st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_averaging_starts_as_the_mean_and_goes_on_exponentially(decay: float, values: list[float]) -> None:
    """ema_pytorch's rule with power 1: update k has decay min((k − 1)/k, decay)."""
    network = torch.nn.Linear(1, 1, bias=False).double()
    average = networks.averaged(network, decay)
    expected = 0.0
    for k, value in enumerate(values, start=1):
        network.weight.data.fill_(value)
        average.update_parameters(network)
        share = min((k - 1) / k, decay)
        expected = value if k == 1 else share * expected + (1 - share) * value
    assert average.module.weight.item() == pytest.approx(expected, abs=1e-9)


def test_averaging_is_that_of_ema_pytorch_after_400_updates() -> None:
    """Decay 0.995: the plain mean up to update 200, then exponential. Here of the states 1, 2, …, 400."""
    network = torch.nn.Linear(1, 1, bias=False).double()
    average = networks.averaged(network, 0.995)
    for k in range(1, 201):
        network.weight.data.fill_(k)
        average.update_parameters(network)
    assert average.module.weight.item() == pytest.approx(100.5, rel=1e-12)
    network.weight.data.fill_(201)
    average.update_parameters(network)
    assert average.module.weight.item() == pytest.approx(0.995 * 100.5 + 0.005 * 201, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 1e-10),
        (100, 2.0000008e-4),
        (250, 5.0000005e-4),
        (499, 9.980000002e-4),
        (500, 1e-3),
        (501, 1e-3),
        (750, 5.031415719827801e-4),
        (999, 3.947789809194417e-8),
    ],
)
def test_learning_rate_is_the_reference_protocols(epoch: int, rate: float) -> None:
    """Values printed by the reference's LinearLR and CosineAnnealingLR at 1000 epochs and lr 0.001."""
    assert 1e-3 * rate_factor(epoch, 1000) == pytest.approx(rate, rel=1e-9)


@given(epochs=st.integers(1, 2000))
def test_learning_rate_stays_in_range(epochs: int) -> None:
    factors = [rate_factor(epoch, epochs) for epoch in range(epochs)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
