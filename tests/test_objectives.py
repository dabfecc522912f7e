"""Distribution matching against the reference code's values."""

import pytest
import safetensors.torch
import torch
from conftest import DATA
from torch import Tensor

from ld3m import networks
from ld3m.objectives.dm import match_features


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    return safetensors.torch.load_file(DATA / "objectives_tiny.safetensors")


@pytest.fixture(scope="module")
def network(oracle: dict[str, Tensor]) -> networks.ConvNet:
    """The reference's small ConvNet: its names and shapes are ours."""
    network = networks.ConvNet(networks.Shape(3, 16, 3), width=8, depth=2)
    network.load_state_dict({k.removeprefix("net/"): oracle[k] for k in oracle if f"{k}"[4:] in network.state_dict()})
    return network.double()


def test_convnet_is_the_reference(network: networks.ConvNet, oracle: dict[str, Tensor]) -> None:
    images = oracle["in/syn"].double().flatten(0, 1)
    assert (network.embed(images) - oracle["net/embed_syn"]).abs().max() <= 1e-12
    assert (network(images) - oracle["net/logits_syn"]).abs().max() <= 1e-12


def test_dm_is_the_reference(network: networks.ConvNet, oracle: dict[str, Tensor]) -> None:
    with torch.no_grad():
        real = torch.stack([network.embed(images.double()).mean(0) for images in oracle["in/real"]])
    assert (real - torch.stack([oracle[f"dm/mean_real/{k}"] for k in range(3)])).abs().max() <= 1e-12
    pixels = oracle["in/syn"].double().requires_grad_()
    losses = match_features(network, real, lambda images: images, [None] * 3, pixels)
    assert losses.tolist() == pytest.approx(oracle["dm/loss"].tolist(), rel=1e-9)
    (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    assert (gradient - oracle["dm/grad_syn"]).norm() <= 1e-9 * oracle["dm/grad_syn"].norm()
