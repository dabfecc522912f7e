"""The objectives against the reference code's values, and their laws."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ld3m import networks, objectives
from ld3m.data.prepared import prepare
from ld3m.images import augment
from ld3m.machine.processes import Processes
from ld3m.networks.flat import FlatNetwork, weights_of
from ld3m.objectives.characteristic import CharacteristicFunction, characteristic_distance
from ld3m.objectives.dc import match_gradients, row_distance
from ld3m.objectives.dm import match_features, mean, moments, real_features
from ld3m.objectives.lgm import head_gradient, match_heads
from ld3m.objectives.mtt import draw_batches, match_trajectory
from ld3m.objectives.orthogonal import orthogonal_distance, orthogonalised
from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.recipe.files import load


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
    for label in range(3):
        real = oracle["in/real"][label].double()
        assert (network.embed(real).mean(0) - oracle[f"dm/mean_real/{label}"]).abs().max() <= 1e-12
        pixels = oracle["in/syn"][label].double().requires_grad_()
        loss = match_features(network, mean, mean(real_features(network, real)), pixels)
        assert loss.item() == pytest.approx(oracle["dm/loss"][label].item(), rel=1e-9)
        (gradient,) = torch.autograd.grad(loss, pixels)
        expected = oracle["dm/grad_syn"][label]
        assert (gradient - expected).norm() <= 1e-9 * expected.norm()


def test_moments_are_a_distance_between_gaussians(network: networks.ConvNet, oracle: dict[str, Tensor]) -> None:
    """Wasserstein-2 of Gaussians by its formula of matrices, |μ − ν|² + tr(A + B − 2 (A½ B A½)½), A and B diagonal."""
    real, pixels = oracle["in/real"][0].double(), oracle["in/syn"][0].double()
    loss = match_features(network, moments, moments(real_features(network, real)), pixels)
    first, second = (network.embed(images).detach().numpy() for images in (real, pixels))
    a, b = (np.diag(features.var(0) + 1e-6) for features in (first, second))
    root = np.linalg.cholesky(a)
    roots = np.sqrt(np.linalg.eigvalsh(root @ b @ root))
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(a + b) - 2 * roots.sum()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert match_features(network, moments, moments(real_features(network, real)), real) < 1e-20


def test_the_gradient_of_moments_is_the_slope(network: networks.ConvNet, oracle: dict[str, Tensor]) -> None:
    """Along a random direction, by central differences; finite where all images are the same too."""
    target = moments(real_features(network, oracle["in/real"][0].double()))
    pixels = oracle["in/syn"][0].double()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(pixels: Tensor) -> Tensor:
        return match_features(network, moments, target, pixels)

    gradient = torch.autograd.functional.vjp(loss, pixels)[1]
    ahead, behind = (loss(pixels + sign * direction).item() for sign in (1e-6, -1e-6))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)
    assert torch.autograd.functional.vjp(loss, pixels[:1].repeat(3, 1, 1, 1))[1].isfinite().all()


def test_dc_is_the_reference(network: networks.ConvNet, oracle: dict[str, Tensor]) -> None:
    """Row-wise cosine distance of the gradients, each class by itself; its gradient goes through theirs."""
    for label in range(3):
        pixels = oracle["in/syn"][label].double().requires_grad_()
        loss = match_gradients(network, oracle["in/real"][label].double(), pixels, label)
        assert loss.item() == pytest.approx(oracle["dc/loss"][label].item(), rel=1e-9)
        (gradient,) = torch.autograd.grad(loss, pixels)
        expected = oracle["dc/grad_syn"][label]
        assert (gradient - expected).norm() <= 1e-9 * expected.norm()


def test_dc_does_not_depend_on_how_the_real_batch_is_split(
    network: networks.ConvNet, oracle: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uneven parts too: the reference's halves of 2 and 3 images are off by 14 %, a weighted sum is not."""
    monkeypatch.setattr("ld3m.objectives.draws.REAL_CHUNK", 2)
    loss = match_gradients(network, oracle["in/real"][0].double(), oracle["in/syn"][0].double(), 0)
    assert loss.item() == pytest.approx(oracle["dc/loss"][0].item(), rel=1e-9)
    assert abs(oracle["dc_halves/loss"][0] - oracle["dc/loss"][0]) > 0.1


@pytest.mark.parametrize("case", ["mtt", "mtt_full_batch"])
@pytest.mark.parametrize("chunk", [256, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_mtt_is_the_reference(
    network: networks.ConvNet,
    oracle: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    chunk: int,
    processes: int,
) -> None:
    """With the true factor 2, in any chunks, and summed over processes that each have some of the images."""
    monkeypatch.setattr("ld3m.objectives.mtt.CHUNK", chunk)
    student = FlatNetwork(network)
    steps = sum(key.startswith(f"{case}/batch_idx/") for key in oracle)
    batches = [oracle[f"{case}/batch_idx/{step}"].long() for step in range(steps)]
    start, target = (oracle[f"mtt/{name}_params"].double() for name in ("start", "target"))
    gradient = torch.zeros(6, 3, 16, 16, dtype=torch.float64)
    for process in range(processes):
        own = torch.arange(6) % processes == process
        loss, part, slope = match_trajectory(
            student,
            start,
            target,
            oracle["mtt/syn_lr"].item(),
            batches,
            lambda step, places, images: images,
            oracle["in/syn"].double().flatten(0, 1),
            oracle["in/label_syn"].long(),
            own,
        )
        assert not part[~own].any()
        gradient += part
    assert loss.item() == pytest.approx(oracle[f"{case}/grand_loss"].item(), rel=1e-9)
    assert slope == pytest.approx(oracle[f"{case}/grad_syn_lr"].item(), rel=1e-9)
    expected = oracle[f"{case}/grad_img_true"].view_as(gradient)
    assert (gradient - expected).norm() <= 1e-9 * expected.norm()


@given(count=st.integers(1, 12), size=st.integers(1, 15), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_image_is_shown_once_before_any_a_second_time(count: int, size: int, steps: int, seed: int) -> None:
    batches = draw_batches(count, size, steps, torch.Generator().manual_seed(seed))
    assert len(batches) == steps
    shown = torch.bincount(torch.cat(batches), minlength=count)
    assert shown.max() - shown.min() <= 1
    assert all(len(batch) <= size for batch in batches)


def test_a_flat_network_is_the_network(network: networks.ConvNet, oracle: dict[str, Tensor]) -> None:
    weights = weights_of(network)
    assert weights.shape == (1227,), "the reference's count"
    images = oracle["in/syn"].double().flatten(0, 1)
    assert torch.equal(FlatNetwork(network)(weights, images), network(images))


# --- characteristic functions ------------------------------------------------------------------------------


def test_characteristic_functions_are_compared_as_the_authors_do(
    network: networks.ConvNet, oracle: dict[str, Tensor]
) -> None:
    """By numpy's complex numbers; the two weights differ, so that they cannot be mistaken for each other."""
    real, pixels = oracle["in/real"][0].double(), oracle["in/syn"][0].double()
    statistics = CharacteristicFunction(50, torch.Generator().manual_seed(0))
    distance = partial(characteristic_distance, amplitude=0.2, phase=0.7)
    loss = match_features(network, statistics, statistics(real_features(network, real)), pixels, distance)
    frequencies = torch.randn(50, network.classifier.in_features, generator=torch.Generator().manual_seed(0)).numpy()

    def characteristic(images: Tensor) -> np.ndarray:
        features = network.embed(images).detach().numpy()
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return np.exp(1j * features @ frequencies.T).mean(0)

    one, other = characteristic(real), characteristic(pixels)
    phase = 2 * (abs(one) * abs(other) - (one * other.conj()).real)
    expected = 300 * np.sqrt(0.2 * (abs(one) - abs(other)) ** 2 + 0.7 * phase).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    halves = characteristic_distance(
        statistics(real_features(network, real)), statistics(network.embed(pixels)), 0.5, 0.5
    )
    assert halves.item() == pytest.approx(300 * np.sqrt(0.5) * abs(one - other).mean(), rel=1e-6)


@pytest.mark.parametrize("match", ["characteristic", "orthogonal"])
def test_gradients_are_the_slope(network: networks.ConvNet, oracle: dict[str, Tensor], match: str) -> None:
    """Along a random direction, by central differences."""
    network = copy.deepcopy(network).requires_grad_()
    real, pixels = oracle["in/real"][0].double(), oracle["in/syn"][0].double()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = CharacteristicFunction(50, torch.Generator().manual_seed(0))
    target = statistics(real_features(network, real))

    def loss(pixels: Tensor) -> Tensor:
        if match == "orthogonal":
            return match_gradients(network, real, pixels, 0, orthogonal_distance)
        distance = partial(characteristic_distance, amplitude=0.5, phase=0.5)
        return match_features(network, statistics, target, pixels, distance)

    gradient = torch.autograd.functional.vjp(loss, pixels)[1]
    ahead, behind = (loss(pixels + sign * direction).item() for sign in (1e-6, -1e-6))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-4)


def test_equal_characteristic_functions_have_a_finite_gradient() -> None:
    """The root's slope is infinite at 0, where a phase of less than 1e-12 stands."""
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    statistics = CharacteristicFunction(20, torch.Generator().manual_seed(1))
    loss = characteristic_distance(statistics(features).detach(), statistics(features), 0.5, 0.5)
    assert loss.item() == pytest.approx(300 * np.sqrt(0.5e-12), rel=1e-3)
    assert torch.autograd.grad(loss, features)[0].isfinite().all()


# --- orthogonalised gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns", "rank"), [(5, 9, 5), (9, 5, 5), (8, 8, 3), (10, 40, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_are_set_to_one(rows: int, columns: int, rank: int, dtype: torch.dtype) -> None:
    """Against an SVD; values over two decades become 1, and those that are 0 stay."""
    numbers = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, rank, generator=numbers, dtype=dtype)).Q for size in (rows, columns))
    values = torch.logspace(0, -2, rank, dtype=dtype)
    found = orthogonalised(u * values @ v.T * 1e-3)
    assert (found - u @ v.T).abs().max() <= 2e-3
    assert torch.linalg.svdvals(found)[rank:].sum() <= 2e-3
    assert not orthogonalised(torch.zeros(rows, columns)).any()


def test_orthogonal_matching_is_that_of_an_svd(network: networks.ConvNet, oracle: dict[str, Tensor]) -> None:
    """Value and gradient: through PyTorch's SVD, of gradients of full rank as 5 and 2 images give them here."""
    network = copy.deepcopy(network).requires_grad_()
    real = oracle["in/real"][0].double()
    pixels = oracle["in/syn"][0].double().requires_grad_()
    weights = [parameter for parameter in network.parameters() if parameter.dim() in (2, 4)][:2]

    def polar(images: Tensor) -> list[Tensor]:
        loss = torch.nn.functional.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.long))
        parts = [
            torch.linalg.svd(each.flatten(1), full_matrices=False)
            for each in torch.autograd.grad(loss, weights, create_graph=True)
        ]
        return [u @ vh for u, _, vh in parts]

    expected = sum((one.detach() - other).square().sum() for one, other in zip(polar(real), polar(pixels), strict=True))
    found = match_gradients(network, real, pixels, 0, lambda one, other: orthogonal_distance(one[:2], other[:2]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    one, other = (torch.autograd.grad(loss, pixels)[0] for loss in (found, expected))
    assert (one - other).norm() <= 2e-2 * other.norm()


# --- linear heads ------------------------------------------------------------------------------------------


def test_a_heads_gradient_is_that_of_autograd() -> None:
    """Classes of 4, 1 and 3 images, each class of the same weight."""
    numbers = torch.Generator().manual_seed(0)
    features = [torch.randn(count, 6, generator=numbers, dtype=torch.float64) for count in (4, 1, 3)]
    head = torch.nn.Linear(6, 3).double()
    torch.nn.init.zeros_(head.bias)
    losses = [
        torch.nn.functional.cross_entropy(head(rows), torch.full((len(rows),), label))
        for label, rows in enumerate(features)
    ]
    weight, bias = torch.autograd.grad(torch.stack(losses).mean(), [head.weight, head.bias])
    found = head_gradient(features, head.weight.detach())
    assert torch.allclose(found, torch.cat([weight, bias[:, None]], dim=1), rtol=1e-12, atol=1e-14)


def test_linear_gradients_are_matched_as_by_differentiating_twice(
    network: networks.ConvNet, oracle: dict[str, Tensor]
) -> None:
    real, pixels = oracle["in/real"].double(), oracle["in/syn"].double().requires_grad_()
    head = torch.randn(
        3, network.classifier.in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def gradient(images: Tensor) -> Tensor:
        weight, bias = head.clone().requires_grad_(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
        labels = torch.arange(3).repeat_interleave(images.shape[1])
        logits = network.embed(images.flatten(0, 1)) @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, [weight, bias], create_graph=True)])

    one, other = gradient(real).detach(), gradient(pixels)
    expected = 1 - one @ other / (one.norm() * other.norm())
    (slope,) = torch.autograd.grad(expected, pixels)
    features = network.embed(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    target = head_gradient([real_features(network, each) for each in real], head)
    loss, slopes = match_heads(target, features, head)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    found = torch.autograd.grad(features, pixels, slopes)[0]
    assert (found - slope).norm() <= 1e-9 * slope.norm()


# --- as a run asks them ------------------------------------------------------------------------------------


def compared(recipe: Recipe, network: Any, real: list[Tensor], own: list[Tensor]) -> list[Tensor]:
    """The losses of classes by the functions above, of images as networks see them."""
    settings, keys = recipe.distill, (recipe.seed, "head", 1)
    if settings.objective == "dc":
        distance = {"rows": row_distance, "orthogonal": orthogonal_distance}[settings.dc.match]
        pairs = enumerate(zip(real, own, strict=True))
        return [match_gradients(network, one, other, label, distance) for label, (one, other) in pairs]
    features = [[network.embed(each) for each in images] for images in (real, own)]
    if settings.objective == "lgm":
        head = 0.01 * torch.randn(3, features[0][0].shape[1], generator=generator(*keys))
        one, other = (head_gradient(each, head).flatten() for each in features)
        return [1 - torch.nn.functional.cosine_similarity(one, other, dim=0)]
    if settings.dm.match == "mean":
        return [(one.mean(0) - other.mean(0)).square().sum() for one, other in zip(*features, strict=True)]
    statistics = CharacteristicFunction(30, generator(recipe.seed, "frequencies", 1))
    return [
        characteristic_distance(statistics(one), statistics(other), 0.2, 0.7)
        for one, other in zip(*features, strict=True)
    ]


CHARACTERISTIC = ("distill.dm.match=characteristic", "distill.dm.frequencies=30", "distill.dm.amplitude=0.2")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("network.norm=batch",),
        (*CHARACTERISTIC, "distill.dm.phase=0.7"),
        ("distill.objective=dc", "distill.dc.outer=1"),
        ("distill.objective=dc", "distill.dc.outer=1", "distill.dc.match=orthogonal"),
        ("distill.objective=lgm",),
    ],
    ids=["mean", "batch norm", "characteristic", "rows", "orthogonal", "heads"],
)
def test_real_and_synthetic_images_are_seen_alike(recipe_file: Path, options: tuple[str, ...]) -> None:
    """Normalised by the real images' mean and deviation and under one augmentation; five real ones of each class, and
    the network, are those of the second iteration.
    """
    recipe = load(Recipe, str(recipe_file), ["distill.real_batch=5", "distill.images_per_class=2", *options])
    images = prepare(recipe.data, progress=False)
    processes = Processes(torch.device("cpu"))
    draws = objectives.draws_of(recipe, images, processes)
    network = networks.build("convnet", images.shape, recipe.network, generator(recipe.seed, "network", 1)).eval()
    draws.freeze_norms(network, 1)
    pixels = torch.rand(3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    real, own = [], []
    for label in range(3):
        chosen = torch.randperm(12, generator=generator(recipe.seed, "real batch", 1, label))[:5]
        augmentation = augment.draw(generator(recipe.seed, "augmentation", 1, label), 16)
        for seen, shown in ((real, images.images("train", label)[chosen] / 255), (own, pixels[label])):
            seen.append(augmentation((shown - images.mean) / images.std))
    expected = compared(recipe, network, real, own)
    (slope,) = torch.autograd.grad(torch.stack(expected).sum(), pixels)
    losses, gradient = objectives.build(recipe, images, range(3), processes).match(1, pixels.detach())
    assert losses.sum().item() == pytest.approx(sum(each.item() for each in expected), rel=1e-4)
    if len(expected) == 3:
        assert losses.tolist() == pytest.approx([each.item() for each in expected], rel=1e-4)
    assert (gradient - slope).norm() <= 1e-3 * slope.norm()
