"""Networks, their averaging and the evaluation schedule, against the literature's code."""

import json
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ld3m import networks
from ld3m.errors import UserError
from ld3m.evaluation.protocols.details import warmup_cosine
from ld3m.networks import Shape, vit
from ld3m.networks.speed import quick_on_cpus
from ld3m.randomness import generator, global_draws
from ld3m.recipe import NetworkRecipe

REFERENCE = json.loads((DATA / "networks.json").read_text())
MINIMAX = json.loads((DATA / "minimax_networks.json").read_text())
OF_MINIMAX = {"resnet_ap10": "resnetap10", "resnet18": "resnet18_idc", "convnet6": "convnet6"}

BUILT_IN = list(networks.NETWORKS)
COLOUR = Shape(channels=3, resolution=32, classes=10)


def built(arch: str, shape: Shape = COLOUR, **settings: Any) -> Any:
    return networks.build(arch, shape, NetworkRecipe(**settings), generator(0, "test"))


def smallest(arch: str) -> int:
    """A side of images that the network takes."""
    return 64 if arch == "convnet6" else 32


@pytest.mark.parametrize("name", REFERENCE)
def test_parameters_are_those_of_the_literature(name: str) -> None:
    """Counts and ordered shapes of GLaD's networks; where theirs name the classifier `classifier`, all names too."""
    reference = REFERENCE[name]
    resolution = reference["res"]
    network = built(reference["model"].lower(), Shape(3, resolution, 10))
    assert sum(parameter.numel() for parameter in network.parameters()) == reference["params"]
    ours = [[key, list(parameter.shape)] for key, parameter in network.named_parameters()]
    theirs = reference.get("parameters", ours)
    assert [shape for _, shape in ours] == [shape for _, shape in theirs]
    if reference["model"] in ("ConvNet", "ResNet18", "VGG11"):
        assert ours == theirs
    with torch.no_grad():
        assert network(torch.zeros(1, 3, resolution, resolution)).shape == (1, 10)


@pytest.mark.parametrize("case", MINIMAX)
def test_networks_of_minimax_are_those_of_its_code(case: str) -> None:
    """Shapes, logits and the image's gradient, with the weights and the image that the public code was given."""
    reference = MINIMAX[case]
    arch, side = OF_MINIMAX[case.split("@")[0].removesuffix("_instance")], reference["size"]
    exact = torch.float64 if side == 32 else torch.float32  # the larger ones take a second in float64
    network = built(arch, Shape(3, side, 10)).to(exact)
    ours = list(network.parameters())
    if arch == "convnet6":  # theirs are all convolutions, then all norms
        ours = [ours[4 * block + k] for first in (0, 2) for block in range(6) for k in (first, first + 1)] + ours[-2:]
    listed = reference["named_parameters"]
    theirs = MINIMAX[listed.removeprefix("as ")]["named_parameters"] if isinstance(listed, str) else listed
    assert [list(parameter.shape) for parameter in ours] == [shape for _, shape in theirs]
    assert sum(parameter.numel() for parameter in ours) == reference["parameters"]
    for k, (name, shape) in enumerate(theirs):
        values = np.random.default_rng(k).standard_normal(shape)
        if len(shape) > 1:
            values *= (2 / math.prod(shape[1:])) ** 0.5
        else:
            values = 1 + 0.1 * values if name.endswith("weight") else 0.05 * values
        ours[k].data.copy_(torch.from_numpy(values))
    image = torch.from_numpy(np.random.default_rng(1234).standard_normal((2, 3, side, side))[:1]).to(exact)
    logits = network(image.requires_grad_())
    assert logits[0].tolist() == pytest.approx(reference["logits"], abs=2e-5)
    if exact == torch.float64:
        assert logits[0].tolist() == pytest.approx(reference["logits"], rel=1e-9)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([3])) / 2, image)
        expected = torch.tensor(reference["grad_corner"], dtype=exact)
        assert torch.allclose(gradient[0, :, 0, :4], expected, rtol=1e-8, atol=1e-12)


def test_resnetap10_without_norm_has_biases() -> None:
    """As in the public code: two numbers per normalised channel go, and one comes."""
    channels = 64 + 2 * 64 + 3 * (128 + 256 + 512)
    count = sum(parameter.numel() for parameter in built("resnetap10", norm="none").parameters())
    assert count == MINIMAX["resnet_ap10_instance@32"]["parameters"] - channels


@pytest.mark.parametrize("arch", ["resnetap10", "resnet18_idc"])
def test_first_weights_of_convolutions_are_those_of_idc(arch: str) -> None:
    """Normal, of variance 2 / (side² · channels that come out), and norms 1 and 0."""
    network = built(arch, Shape(3, 224, 10))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            wanted = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(
                wanted, rel=4 / (2 * module.weight.numel()) ** 0.5
            )
        elif isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_networks_of_idc_are_ours_where_they_say_so() -> None:
    """ResNet-18 up to 64 pixels, ConvNet-6 at 224: the same parameters give the same logits."""
    for theirs, ours, side in (("resnet18_idc", "resnet18", 64), ("convnet6", "convnet", 224)):
        one, other = (built(arch, Shape(1, side, 3), width=8) for arch in (theirs, ours))
        one.load_state_dict(other.state_dict())
        images = torch.randn(1, 1, side, side)
        with torch.no_grad():
            assert torch.equal(one(images), other(images))


@pytest.mark.parametrize("arch", BUILT_IN)
def test_logits_are_the_classifier_of_the_features(arch: str) -> None:
    side = smallest(arch)
    network = built(arch, Shape(1, side, 3)).eval()
    images = torch.randn(2, 1, side, side)
    features = network.embed(images)
    assert features.ndim == 2
    assert torch.equal(network.classifier(features), network(images))


@pytest.mark.parametrize("arch", [name for name in BUILT_IN if name != "resnet18_idc"])  # it is resnet18 at 32 pixels
def test_every_network_trains_and_matches_gradients(arch: str) -> None:
    """Gradients reach all parameters, or `grad` would fail, and theirs reach the images, as gradient matching needs."""
    side = smallest(arch)
    network = built(arch, Shape(3, side, 3))
    images = torch.randn(2, 3, side, side, requires_grad=True)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(network(images).square().mean(), parameters, create_graph=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    (of_images,) = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), images)
    assert of_images.abs().sum() > 0


def test_a_network_is_a_function_of_its_generator() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        networks.build("convnet", Shape(1, 16, 3), NetworkRecipe(width=8), generator(0, "network", i))
        for i in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("arch", ["convnet", "resnet18", "vgg11"])
@pytest.mark.parametrize("norm", ["instance", "batch", "group", "layer", "none"])
def test_every_norm_trains(arch: str, norm: str) -> None:
    network = built(arch, Shape(1, 32, 3), width=8, norm=norm)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()) == (norm == "batch")
    network(torch.randn(4, 1, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("pooling", "side"), [("avg", 4), ("max", 4), ("none", 16)])
def test_pooling_decides_what_the_classifier_sees(pooling: str, side: int) -> None:
    network = built("convnet", Shape(1, 16, 3), width=8, depth=2, pooling=pooling)
    assert network.classifier.in_features == 8 * side**2
    assert network.embed(torch.randn(2, 1, 16, 16)).shape == (2, 8 * side**2)


def test_max_and_average_pooling_are_what_they_say() -> None:
    images = torch.randn(2, 1, 8, 8)
    average, largest, none = (
        built("convnet", Shape(1, 8, 3), width=4, depth=1, pooling=pooling).embed(images).unflatten(1, (4, -1))
        for pooling in ("avg", "max", "none")
    )
    quarters = none.view(2, 4, 4, 2, 4, 2).transpose(3, 4).flatten(4).flatten(2, 3)
    assert torch.allclose(average, quarters.mean(-1), atol=1e-6)
    assert torch.equal(largest, quarters.amax(-1))


def test_attention_is_torchs_own() -> None:
    """The layout of heads is that of the public code: queries, keys, values, each 8 heads of 64."""
    attention = vit.Attention().eval()
    tokens = torch.randn(2, 5, 512)
    parts = attention.queries_keys_values(tokens).chunk(3, dim=-1)
    heads = [part.view(2, 5, 8, 64).transpose(1, 2) for part in parts]
    mixed = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 5, 512)
    assert torch.allclose(attention(tokens), attention.output(mixed), atol=1e-6)


def test_patches_are_read_row_by_row_with_channels_last() -> None:
    network = built("vit", Shape(3, 32, 2)).eval()
    seen = []
    network.patch_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(1, 3, 32, 32)
    network(images)
    second = images[0, :, :16, 16:].permute(1, 2, 0).flatten()  # first row, second column
    assert torch.equal(seen[0][0, 1], second)


def test_dropout_is_a_function_of_its_generator() -> None:
    network, images = built("vit"), torch.randn(2, 3, 32, 32)

    def logits(key: int) -> torch.Tensor:
        with global_draws(generator(0, "dropout", key)):
            return network(images)

    before = torch.random.get_rng_state()
    one = logits(1)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"
    assert torch.equal(one, logits(1))
    assert not torch.equal(one, logits(2))


def test_matching_sees_one_function_of_its_images() -> None:
    network, images = networks.without_dropout(built("vit")), torch.randn(2, 3, 32, 32)
    assert torch.equal(network.embed(images), network.embed(images))
    network, images = networks.without_dropout(built("convnet", norm="batch")), torch.randn(64, 3, 32, 32) + 3
    normed = network.features[1](network.features[0](images))
    assert normed.mean((0, 2, 3)).abs().max() < 1e-4, "batch norm still normalises by the batch"


@pytest.mark.parametrize(
    ("arch", "resolution", "parts"),
    [
        ("lenet", 32, ("--arch: 'lenet' is not known; known are convnet, resnet18, vgg11, alexnet, vit, convnet6, ",)),
        ("vit", 40, ("data.resolution: 40", "32 or 48")),
        ("vit", 8, ("data.resolution: 8", "give 16, or")),
        ("vgg11", 28, ("data.resolution: 28", "32 or more")),
        ("convnet6", 32, ("data.resolution: 32", "convnet6 halves images 6 times; give 64 or more")),
        ("resnetap10", 7, ("data.resolution: 7", "8 or more")),
    ],
)
def test_what_does_not_fit_is_told(arch: str, resolution: int, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        networks.check(arch, Shape(3, resolution, 10), NetworkRecipe(), "--arch")
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert len(error.value.lines) == 1


@pytest.mark.parametrize("arch", BUILT_IN)
def test_what_fits_passes(arch: str) -> None:
    networks.check(arch, Shape(1, smallest(arch), 1), NetworkRecipe())


def test_a_network_that_breaks_the_contract_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Featureless(torch.nn.Module):
        def __init__(self, shape: Shape, recipe: NetworkRecipe) -> None:
            super().__init__()
            self.classifier = torch.nn.Linear(4, shape.classes)

    monkeypatch.setitem(networks.NETWORKS, "featureless", Featureless)
    with pytest.raises(
        UserError, match=r"network\.arch: 'featureless' fails on images of 16 pixels .*no attribute 'embed'"
    ):
        networks.check("featureless", Shape(1, 16, 3), NetworkRecipe())
    Featureless.embed = lambda self, images: images[:, 0, :2, :2].flatten(1).repeat(2, 1)
    with pytest.raises(UserError, match=r"gives logits \[2, 3\], not \[1, 3\]"):
        networks.check("featureless", Shape(1, 16, 3), NetworkRecipe())


def test_timm_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"--arch: 'timm/resnet18' needs the extra timm: pip install 'ld3m\[timm\]'"):
        networks.check("timm/resnet18", Shape(3, 32, 10), NetworkRecipe(), "--arch")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_models_are_networks(name: str) -> None:
    """ResNet takes images of any size, the transformer is told theirs."""
    pytest.importorskip("timm")
    shape = Shape(1, 32, 3)
    networks.check(f"timm/{name}", shape, NetworkRecipe())
    network, images = built(f"timm/{name}", shape).eval(), torch.randn(2, 1, 32, 32)
    assert torch.allclose(network(images), network.model(images), atol=1e-6)
    assert torch.equal(network.classifier(network.embed(images)), network(images))
    with pytest.raises(UserError, match=r"timm has no model 'resnet19'; near are timm/resnet18"):
        networks.check("timm/resnet19", shape, NetworkRecipe())


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


def test_averaging_includes_the_statistics_of_batch_norm() -> None:
    network = torch.nn.BatchNorm1d(1).double()
    average = networks.averaged(network, 0.995)
    for value in (1.0, 2.0, 6.0):
        network.running_mean.fill_(value)
        network.num_batches_tracked.add_(1)
        average.update_parameters(network)
    assert average.module.running_mean.item() == pytest.approx(3, rel=1e-12)
    assert average.module.num_batches_tracked.item() == 3


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
    assert 1e-3 * warmup_cosine(epoch, 1000) == pytest.approx(rate, rel=1e-9)


@given(epochs=st.integers(1, 2000))
def test_learning_rate_stays_in_range(epochs: int) -> None:
    factors = [warmup_cosine(epoch, epochs) for epoch in range(epochs)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_quick_network_differs_from_the_plain_one_by_rounding_only(channels: int) -> None:
    """Against the same in float64, logits and gradients are as near as the plain network's, within a factor of 3."""
    shape = Shape(channels, 32, 10)
    plain, exact, quick = (
        networks.build("convnet", shape, NetworkRecipe(width=32), torch.Generator().manual_seed(0)) for _ in range(3)
    )
    for network in (plain, exact, quick):
        for parameter in network.parameters():  # norms have weights and biases of their own
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.data += 0.1 * noise
    names = [name for name, _ in quick.named_parameters()]
    quick = quick_on_cpus(quick)
    assert [name for name, _ in quick.named_parameters()] == names
    images = torch.randn(20, channels, 32, 32, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(20) % 10

    def outcome(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        logits = network(inputs)
        loss = nn.functional.cross_entropy(logits, targets)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        return torch.cat([part.detach().flatten().double() for part in (logits, *gradients)])

    truth = outcome(exact.double(), images.double())
    errors = [(outcome(network, images) - truth).norm() / truth.norm() for network in (plain, quick)]
    assert errors[1] < max(3 * errors[0], 1e-5)
    assert torch.allclose(outcome(quick.double(), images.double()), truth, rtol=0, atol=1e-12 * float(truth.norm()))
