"""Matching in pre-trained backbones and in linear heads on them; a small module stands for the library timm."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Outcome
from torch import Tensor, nn
from torch.nn import functional

from ld3m import objectives
from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError
from ld3m.machine.processes import Processes
from ld3m.objectives.lgm import LinearGradientMatching, head_gradient
from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sizing.bench import Bench
from ld3m.sizing.cost import RunCost
from ld3m.sizing.count import Counts
from ld3m.sizing.meta_models import MetaImages, meta_prior

CPU = Processes(torch.device("cpu"))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class Small(nn.Module):
    """A model of three channels with batch norm, and dropout that must be off; features [n, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))
        for index, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(index))
        self.features[1].running_mean.fill_(0.3)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.features(images).mean((2, 3))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The library as far as it is used, with one model; `made` has what was asked for, `config` what the model says."""
    module: Any = ModuleType("timm")
    module.made = []
    module.config = {"input_size": (3, 24, 24), "interpolation": "bicubic", "mean": MEAN, "std": STD}

    def create_model(name: str, **settings: Any) -> Small:
        module.made.append((name, settings))
        return Small()

    module.is_model = lambda name: name == "small"
    module.list_models = lambda: ["small"]
    module.list_pretrained = lambda pattern: ["small.first", "small.second"] if pattern == "small.*" else []
    module.create_model = create_model
    module.data = SimpleNamespace(resolve_model_data_config=lambda model: module.config)
    monkeypatch.setitem(sys.modules, "timm", module)
    return module  # type: ignore[no-any-return]


def recipe_of(recipe_file: Path, *overrides: str) -> Recipe:
    return load(Recipe, str(recipe_file), ["distill.networks=timm/small", *overrides])


def noise(classes: int, count: int = 2) -> Tensor:
    return torch.rand(classes, count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def features_by_hand(pixels: Tensor) -> Tensor:
    """Grey pixels [n, 1, 16, 16] as `Small` sees them, enlarged by PyTorch and normalised as its configuration says."""
    large = functional.interpolate(pixels.double(), (24, 24), mode="bicubic", antialias=True).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (MEAN, STD))
    return Small().double().eval()((large - mean) / std)


def real(images: ImageSet, label: int) -> Tensor:
    """All real images of a class as pixels."""
    return images.images("train", label).float() / 255


def test_dm_matches_what_a_backbone_makes_of_images(recipe_file: Path, timm: Any) -> None:
    recipe = recipe_of(recipe_file, "distill.real_batch=12", "distill.dm.augment=false")
    images = prepare(recipe.data, progress=False)
    pixels = noise(3).requires_grad_()
    losses, gradient = objectives.build(recipe, images, range(3), CPU).match(0, pixels.detach())
    expected = torch.stack(
        [
            (features_by_hand(real(images, label)).mean(0) - features_by_hand(pixels[label]).mean(0)).square().sum()
            for label in range(3)
        ]
    )
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    (slope,) = torch.autograd.grad(expected.sum(), pixels)
    assert (gradient - slope).norm() <= 1e-4 * slope.norm()
    assert timm.made == [("small", {"pretrained": True, "num_classes": 0})], "its weights are read once"


def test_lgm_matches_the_gradients_of_a_head_on_a_backbone(recipe_file: Path, timm: Any) -> None:
    """Differentiated twice by PyTorch, the head drawn as it is: normal, of deviation 0.01."""
    recipe = recipe_of(recipe_file, "distill.objective=lgm", "distill.real_batch=12", "distill.lgm.augment=false")
    images = prepare(recipe.data, progress=False)
    pixels = noise(3).requires_grad_()
    losses, gradient = objectives.build(recipe, images, range(3), CPU).match(5, pixels.detach())
    head = 0.01 * torch.randn(3, 5, generator=generator(recipe.seed, "head", 5)).double()

    def gradients(shown: list[Tensor]) -> Tensor:
        weight, bias = head.clone().requires_grad_(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
        labels = torch.arange(3).repeat_interleave(len(shown[0]))
        logits = features_by_hand(torch.cat(shown)) @ weight.T + bias
        loss = functional.cross_entropy(logits, labels)
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, [weight, bias], create_graph=True)])

    one, other = gradients([real(images, label) for label in range(3)]).detach(), gradients(list(pixels))
    expected = 1 - functional.cosine_similarity(one, other, dim=0)
    assert losses.sum().item() == pytest.approx(expected.item(), rel=1e-3)
    (slope,) = torch.autograd.grad(expected, pixels)
    assert (gradient - slope).norm() <= 1e-3 * slope.norm()


@pytest.mark.parametrize("own", [[0, 2], [1], []])
def test_lgm_on_any_number_of_processes_is_that_of_one(recipe_file: Path, own: list[int]) -> None:
    """Bit for bit, with augmentation, and without a class: what one process gathers is what all would have sent."""
    recipe = load(Recipe, str(recipe_file), ["distill.objective=lgm", "distill.real_batch=5"])
    images, pixels, sent = prepare(recipe.data, progress=False), noise(3), list[Tensor]()
    draws = objectives.draws_of(recipe, images, CPU)

    def alone(rows: Tensor, classes: int) -> Tensor:
        sent.append(rows.clone())
        return rows

    def of_several(rows: Tensor, classes: int) -> Tensor:
        every = sent.pop(0)
        assert classes == 3
        assert torch.equal(rows, every[own])
        return every

    losses, gradient = LinearGradientMatching(recipe.distill.lgm, draws, range(3), alone).match(1, pixels)
    part = LinearGradientMatching(recipe.distill.lgm, draws, own, of_several).match(1, pixels[own])
    assert torch.equal(part[0], losses[own])
    assert torch.equal(part[1], gradient[own])
    assert gradient.abs().amax((1, 2, 3, 4)).min() > 0


def test_classes_count_the_same_however_many_images_they_have() -> None:
    """A class of one image beside one of two equal ones: the gradient is that of one of each."""
    one, other = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).unbind()
    head = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(head_gradient([one, other.repeat(2, 1)], head), head_gradient([one, other], head))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["distill.networks=timm/smal"], "distill.networks: timm has no model 'smal'; near are timm/small"),
        (
            ["distill.networks=timm/small.third"],
            "distill.networks: timm has no such weights of 'small.third'; it has small.first, small.second",
        ),
        (["distill.networks=timm"], ": 'timm' is invalid: give random, experts, or timm/<model>"),
        (
            ["distill.objective=dc", "distill.networks=timm/small"],
            ": timm/small has features alone, and dc compares the weights of whole networks",
        ),
    ],
)
@pytest.mark.usefixtures("timm")
def test_what_is_no_backbone_is_named(
    ld3m: Callable[..., Outcome], recipe_file: Path, overrides: list[str], line: str
) -> None:
    outcome = ld3m("distill", recipe_file, *overrides, "--dry-run")
    assert outcome.code == 2
    assert line in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"forward": lambda self, images: images}, r"timm/small gives features \[1, 3, 24, 24\], not \[1, features\]"),
        ({"input_size": (3, 24, 32)}, r"timm/small sees 24 × 32 pixels; choose a model that sees squares$"),
        ({"input_size": (3, 2, 2)}, r"timm/small fails on these images \(.*; choose another$"),
        ({"pretrained": "refused"}, r"the weights of timm/small cannot be fetched \(.*refused"),
    ],
    ids=["flat", "wide", "tiny", "away"],
)
def test_a_backbone_that_fails_is_named(
    recipe_file: Path, timm: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], line: str
) -> None:
    recipe = recipe_of(recipe_file)
    images = prepare(recipe.data, progress=False)
    timm.config |= {name: value for name, value in change.items() if name in timm.config}
    if "forward" in change:
        monkeypatch.setattr(Small, "forward", change["forward"])
    if "pretrained" in change:
        monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=rf"^distill\.networks: {line}"):
        objectives.build(recipe, images, range(3), CPU)


def refuse(name: str, **settings: Any) -> Small:
    raise OSError("refused")


@pytest.mark.usefixtures("timm")
def test_a_plan_counts_a_backbone_and_what_is_gathered(recipe_file: Path) -> None:
    """Without its weights: two classes of three are another process's, 2 synthetic and 8 real images of 5 features."""
    recipe = recipe_of(recipe_file, "distill.objective=lgm", "prior.source=pixels", "data.resolution=16")
    prior = meta_prior(recipe)
    images = MetaImages(["a", "b", "c"], torch.zeros(1), torch.ones(1), {"train": [12] * 3}, [0], [], Path("x"), 16)
    bench = Bench(recipe, prior, images, range(0, 3, 2), torch.device("meta"))
    assert bench.gathered_features == 5
    counts = Counts.of(bench, prior)
    one_image = 2 * 22 * 22 * 5 * 3 * 9  # multiplications and additions of its convolution
    assert counts.objective[0] >= (8 + 2 + 2) * one_image
    for processes, others in ((1, 0), (2, 1), (3, 2)):
        cost = RunCost(recipe, processes, 3, prior.latent_shape, prior.conditioning_shape, bench.gathered_features)
        assert cost.gathered_bytes == others * (2 + 8) * 5 * 4
        assert cost.communication().get("features of all classes", 0) == (3 * (2 + 8) * 5 * 4 if processes > 1 else 0)
