"""Inversion, set-level and influence guidance, weights and choices, against closed forms and finite differences."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, Outcome
from torch import Tensor, nn
from torch.nn import functional

from ld3m import priors
from ld3m.errors import UserError
from ld3m.files import write_tensors
from ld3m.priors.noise_schedule import NoiseSchedule, Prediction
from ld3m.randomness import generator
from ld3m.reading import read_tensors
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs import sources, weights
from ld3m.runs.folder import note_classes
from ld3m.sampling.algorithm import Schedule, reverse_step
from ld3m.sampling.approach import Approach, ClassTask, Moment
from ld3m.sampling.chains import follow
from ld3m.sampling.choices import CHOICES
from ld3m.sampling.choices.confident import by_confidence
from ld3m.sampling.choices.moments import moments
from ld3m.sampling.choices.subgroup import worth_of_groups
from ld3m.sampling.inversion import inverted
from ld3m.sampling.moments import distances, of_latents, skew

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
MODULES: list[Any] = [import_module(f"ld3m.sampling.methods.{name}") for name in ("cgs", "d3hr", "ddoq", "igd")]
cgs, d3hr, ddoq, igd = MODULES
MEAN, VARIANCE = 0.5, 0.36


class Gaussian:
    """A prior whose data is normal, of mean `MEAN` and variance `VARIANCE`: the exact denoiser has a closed form.

    With z = s x + n ε the posterior mean of ε is n (z − s μ)/(s² v + n²). Images are latents, one to one.
    """

    image_channels, image_size = 1, 8
    latent_shape = SHAPE
    conditioning_shape = (0,)
    denoiser = null_embedding = None

    def __init__(self, prediction: Prediction = "epsilon") -> None:
        betas = torch.linspace(1e-3, 0.02, 1000, dtype=torch.float64)
        self.noise_schedule = NoiseSchedule((1 - betas).cumprod(0), prediction=prediction)

    def denoise(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        signal, noise = self.noise_schedule.level(t)
        epsilon = noise * (z - signal * MEAN) / (signal**2 * VARIANCE + noise**2)
        clean = (z - noise * epsilon) / signal
        return epsilon if self.noise_schedule.prediction == "epsilon" else signal * epsilon - noise * clean

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, z: Tensor) -> Tensor:
        return z


class Images:
    """Real images of two classes, uint8 as prepared ones are."""

    classes = ("a", "b")
    scores = None

    def __init__(self, count: int = 40) -> None:
        self.counts = {"train": [count, count]}
        draws = torch.Generator().manual_seed(5)
        self.of = [torch.randint(40, 200, (count, *SHAPE), generator=draws, dtype=torch.uint8) for _ in self.classes]

    def images(self, split: str, label: int) -> Tensor:
        return self.of[label]

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.5) / 0.25


def task(tmp_path: Path, *keys: str, count: int = 4, prior: Any = None) -> ClassTask:
    """The second class of the toy, four images of it and ten steps."""
    base = ("distill.init=sample", "distill.iterations=0", f"distill.images_per_class={count}", "sample.steps=10",
            f"output={tmp_path / 'run'}", "prior.guidance=1", "data.resolution=8", "prior.micro_batch=3")  # fmt: skip
    recipe = load(Recipe, "quickstart", [*base, *keys])
    made: Any = ClassTask(recipe, prior or Gaussian(), Images(), torch.zeros(0), 1, CPU)  # type: ignore[arg-type]
    return made  # type: ignore[no-any-return]


def schedule(prior: Any, steps: int = 10, guidance: float = 1) -> Schedule:
    return Schedule.of(prior.noise_schedule, steps, "none", guidance)


def followed(prior: Any, chain: Schedule, z: Tensor, c: Tensor, first: int) -> Tensor:
    for step in chain.steps[first:]:
        z = reverse_step(prior, chain, step, z, c.expand(len(z), *c.shape), z)
    return z


# --- inversion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("first", [0, 4])
def test_what_is_inverted_comes_back(prediction: Prediction, first: int) -> None:
    """On a Gaussian each step is affine, z′ = a z + b, which can be undone exactly."""
    prior: Any = Gaussian(prediction)
    chain, clean = schedule(prior), torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    z, missed = inverted(prior, chain, clean, torch.zeros(0), first, 2, CPU)
    exact = clean.double()
    for step in reversed(chain.steps[first:]):
        (s, n), (after_s, after_n) = step.level, step.next
        of_z = n / (s * s * VARIANCE + n * n)  # ε̂ = of_z (z − s μ)
        a = after_s / s * (1 - n * of_z) + after_n * of_z
        b = (after_s / s * n - after_n) * of_z * s * MEAN
        exact = (exact - b) / a
    assert torch.allclose(z.double(), exact, atol=1e-3)
    assert (followed(prior, chain, z, torch.zeros(0), first) - clean).abs().max() < 1e-3
    assert missed.max() < 1e-4
    alone = torch.cat([inverted(prior, chain, one[None], torch.zeros(0), first, 1, CPU)[0] for one in clean])
    assert torch.allclose(alone, z, atol=1e-5), "no image depends on the others"


def test_what_is_missed_is_that_of_the_worst_step() -> None:
    """Which is not the last with two calls each, each step undone by itself."""
    prior: Any = Gaussian()
    chain, z = schedule(prior), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    _, missed = inverted(prior, chain, z, torch.zeros(0), 0, 3, CPU, iterations=2)
    by_step = []
    for step in reversed(chain.steps):
        z, of_step = inverted(prior, replace(chain, steps=(step,)), z, torch.zeros(0), 0, 3, CPU, iterations=2)
        by_step.append(of_step)
    worst = torch.stack(by_step).max(0).values
    assert (worst > 2 * by_step[-1]).all()
    assert torch.allclose(missed, worst, rtol=1e-4)


def test_one_call_is_the_published_way() -> None:
    """The answer at z′ in the place of that at z: z = (s/s′) z′ + (n − s n′/s′) ε̂(z′)."""
    prior: Any = Gaussian()
    chain, clean = schedule(prior), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    found, _ = inverted(prior, chain, clean, torch.zeros(0), 9, 2, CPU, iterations=1)
    (s, n), (after_s, after_n) = chain.steps[9].level, chain.steps[9].next
    epsilon = n * (clean - s * MEAN) / (s * s * VARIANCE + n * n)
    assert torch.allclose(found, s / after_s * clean + (n - s * after_n / after_s) * epsilon, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "first", "guidance", "images"), [(20, 17, 1.0, 1), pytest.param(50, 19, 4.0, 8, marks=pytest.mark.slow)]
)
def test_real_latents_come_back_from_the_packaged_prior(steps: int, first: int, guidance: float, images: int) -> None:
    """Within 1e-3 of where they came from, root mean square."""
    recipe = load(Recipe, "fashion-mnist", ["data.source=fashion-mnist-small"])
    prior = priors.for_images(recipe.prior, 1, recipe.rendered_size, CPU)
    chain = schedule(prior, steps, guidance)
    clean = torch.randn(images, *prior.latent_shape, generator=generator(0, "test"))
    c = prior.class_embeddings(["trouser"])[0]
    with torch.no_grad():  # something the prior knows
        clean = followed(prior, schedule(prior, 2), clean, c, 0)
        z, missed = inverted(prior, chain, clean, c, first, images, CPU)
        back = followed(prior, chain, z, c, first)
    assert missed.max() < 1e-4
    assert (back - clean).square().mean().sqrt() < 1e-3


# --- draws from the middle of the chain --------------------------------------------------------------------


def test_moments_are_those_of_the_published_code() -> None:
    """lin-zhao-resoLve/D3HR 8ba351d, group_sampling.py: standardised over images, summed over elements."""
    groups = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    values = groups.numpy()
    standard = (values - values.mean(1, keepdims=True)) / values.std(1, ddof=1, keepdims=True)
    skewness = (standard**3).sum(2) * 5 / (4 * 3)
    assert skew(groups).numpy() == pytest.approx(skewness)
    wanted = (
        np.linalg.norm(values.mean(1), axis=1)
        + np.linalg.norm(values.std(1, ddof=1) - 1, axis=1)
        + 0.1 * np.linalg.norm(skewness, axis=1)
    )
    assert distances(groups, mean, std).numpy() == pytest.approx(wanted)
    assert distances(groups[:, :1], mean, std).isfinite().all(), "one image has no deviation"
    found = of_latents(groups[0])
    assert found[0].numpy() == pytest.approx(values[0].mean(0))
    assert found[1].numpy() == pytest.approx(values[0].std(0, ddof=1))


def test_d3hr_draws_what_inverted_latents_look_like(tmp_path: Path) -> None:
    """μ and σ follow from those of the real latents, as each step is affine; of the groups the nearest is taken."""
    own = task(tmp_path, "sample.method=d3hr", "sample.d3hr.groups=7", "sample.strength=0.6")
    found = d3hr.d3hr(own)
    assert (found.first, found.noisy) == (4, True)
    mean, std = of_latents(own.encodings())
    for step in reversed(own.schedule.steps[4:]):
        (s, n), (after_s, after_n) = step.level, step.next
        of_z = n / (s * s * VARIANCE + n * n)
        a = after_s / s * (1 - n * of_z) + after_n * of_z
        mean, std = (mean - (after_s / s * n - after_n) * of_z * s * MEAN) / a, std / a
    kept_mean, kept_std = d3hr.statistics(own)
    assert torch.allclose(kept_mean, mean, atol=1e-3)
    assert torch.allclose(kept_std, std, atol=1e-3)
    groups = torch.stack(
        [kept_mean + kept_std * torch.randn(4, *SHAPE, generator=own.draws("group", g)) for g in range(7)]
    )
    assert found.start is not None
    assert torch.equal(found.start, groups[distances(groups, kept_mean, kept_std).argmin()])


def test_what_is_kept_redraws_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = task(tmp_path, "sample.method=d3hr", "sample.d3hr.groups=2")
    d3hr.statistics(first)
    assert not first.recipe.folder.exists(), "nothing is left where there is no run"
    note_classes(first.recipe.folder, {"a": 0, "b": 1})
    (first.recipe.folder / "recipe.yaml").touch()
    kept = d3hr.statistics(first)
    monkeypatch.setattr(d3hr, "inverted", None)  # is not called again
    source = f"sample.d3hr.source={first.recipe.folder}"
    for count in (1, 9):
        again = task(tmp_path / "more", "sample.method=d3hr", "sample.d3hr.groups=2", source, count=count)
        assert all(torch.equal(one, other) for one, other in zip(d3hr.statistics(again), kept, strict=True))
        start = d3hr.d3hr(again).start
        assert start is not None
        assert len(start) == count
    assert all(torch.equal(one, other) for one, other in zip(d3hr.statistics(first), kept, strict=True)), "a resume"
    over = task(tmp_path / "more", "sample.method=d3hr", "sample.draws=3", "sample.choose=moments", source)
    start = d3hr.d3hr(over).start
    assert start is not None
    assert len(start.unique(dim=0)) == 12, "an over-draw has draws of its own, of all of which the moments are"
    other = task(tmp_path / "more", "sample.method=d3hr", "sample.steps=20", source)
    with pytest.raises(UserError, match=r"sample\.d3hr\.source: .* has statistics of sample\.steps 10, not 20; give"):
        d3hr.statistics(other)
    nowhere = task(tmp_path / "more", "sample.method=d3hr", f"sample.d3hr.source={tmp_path}")
    with pytest.raises(UserError, match=r"sample\.d3hr\.source: .* has no statistics/ of class 'b'; give"):
        d3hr.statistics(nowhere)
    with pytest.raises(UserError, match=r"sample\.start: real, but d3hr starts from draws of its own"):
        d3hr.d3hr(task(tmp_path, "sample.method=d3hr", "sample.start=real"))


def test_statistics_are_of_the_images_that_a_run_has(tmp_path: Path) -> None:
    """Those of other images are made again, and are refused as a source."""

    def noted(folder: Path, digest: str) -> None:
        note_classes(folder, {"a": 0, "b": 1})
        (folder / "recipe.yaml").touch()
        classes = {name: {"images": 9, "sha256": digest} for name in "ab"}
        data = {"source": "toy", "classes": classes, "scorer": None}
        sources.write(folder, sources.Sources({"source": "toy", "kind": "toy", "sha256": "0"}, data))

    first = task(tmp_path, "sample.method=d3hr")
    noted(first.recipe.folder, "1")
    kept = d3hr.statistics(first)
    (path,) = (first.recipe.folder / "statistics").iterdir()
    other_mean = {"mean": kept[0] + 1, "std": kept[1]}
    write_tensors(path, other_mean, read_tensors(path, "", None).metadata)
    assert torch.equal(d3hr.statistics(first)[0], kept[0] + 1), "they are read"
    source = task(tmp_path / "more", "sample.method=d3hr", f"sample.d3hr.source={first.recipe.folder}")
    noted(source.recipe.folder, "2")
    with pytest.raises(UserError, match=r"has statistics of training images with digest 1, not 2; give a run with"):
        d3hr.statistics(source)
    noted(first.recipe.folder, "2")
    assert torch.equal(d3hr.statistics(first)[0], kept[0]), "they are made again"


def test_latents_that_do_not_lead_back_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = task(tmp_path, "sample.method=d3hr", "sample.d3hr.calls=2", "sample.d3hr.images=6")
    monkeypatch.setattr(d3hr, "MISSED", 0.0)
    d3hr.statistics(own)
    assert "d3hr: 6 of 6 latents of class 'b' do not lead back" in capsys.readouterr().err


# --- weights -----------------------------------------------------------------------------------------------


def test_ddoq_counts_clusters(tmp_path: Path) -> None:
    own = task(tmp_path, "sample.method=ddoq", "sample.draws=2", "sample.choose=k-center")
    found, plain = ddoq.ddoq(own), own.starting_at("prototype")
    assert found.start is not None
    assert plain.start is not None
    assert torch.equal(found.start, plain.start)
    points, centres = own.encodings().flatten(1).numpy(), found.start.flatten(1).numpy()
    nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
    shares = np.bincount(nearest, minlength=4) / len(points)
    assert found.weights is not None
    assert found.weights.tolist() == pytest.approx([*(4 * shares), *(4 * shares)])
    with pytest.raises(UserError, match=r"sample\.start: real, but ddoq weights images by .*; leave it out, or give"):
        ddoq.ddoq(task(tmp_path, "sample.method=ddoq", "sample.start=real"))


# --- guidance of a set -------------------------------------------------------------------------------------


def test_gradients_of_a_set_are_autograds() -> None:
    z = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    centre = torch.full(SHAPE, 0.3, dtype=torch.float64)
    unit = functional.normalize(z.flatten(1), dim=1)
    spread = torch.logdet(unit @ unit.T + cgs.EPSILON * torch.eye(5))
    (of_spread,) = torch.autograd.grad(spread, z)
    (of_mean,) = torch.autograd.grad((z.mean(0) - centre).square().sum(), z)
    assert torch.allclose(cgs.diversity_gradient(z.detach()), of_spread, rtol=1e-8)
    assert torch.allclose(cgs.mean_move(z.detach(), centre, 1e-6), -1e-6 * of_mean, rtol=1e-5)
    there = z.detach() + cgs.mean_move(z.detach(), centre, 1e3)
    assert torch.allclose(there.mean(0), centre), "not beyond"


@pytest.mark.parametrize("index", [0, 5, 9])
def test_a_set_is_tilted_by_its_energy(index: int, tmp_path: Path) -> None:
    """DDIM's step with ε̂ + √(1 − ᾱ) ∇E, ∇E by autograd; of a mean's part so small that it is linear."""
    own = task(tmp_path, "sample.method=cgs", "sample.cgs.mean=1e-4", "sample.cgs.diversity=2e-3")
    leaf = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    at = moment(own, index, leaf.detach())
    (signal, noise), (next_signal, next_noise) = at.step.level, at.step.next
    unit = functional.normalize(leaf.flatten(1), dim=1)
    apart = torch.logdet(unit @ unit.T + cgs.EPSILON * torch.eye(4))
    away = (leaf.mean(0) - signal * own.encodings().mean(0)).square().sum()
    parts = torch.autograd.grad(1e-4 * away, leaf)[0], torch.autograd.grad(-2e-3 * apart, leaf)[0]
    assert all(part.norm() > 0.2 * sum(parts).norm() for part in parts)

    def stepped(epsilon: Tensor) -> Tensor:
        return next_signal * (at.z - noise * epsilon) / signal + next_noise * epsilon

    guide = cgs.cgs(own).guide
    assert guide
    shift = guide(at).shift
    expected = stepped(at.noise + noise * sum(parts)) - stepped(at.noise)
    assert (shift - expected).norm() < 1e-3 * expected.norm()


def test_a_set_comes_nearer_to_the_mean_and_further_apart(tmp_path: Path) -> None:
    def sampled(*keys: str) -> Tensor:
        own = task(tmp_path, "sample.method=cgs", *keys)
        return follow(own, cgs.cgs(own), range(4), torch.empty(0, *SHAPE))[0]

    def spread(z: Tensor) -> float:
        unit = functional.normalize(z.flatten(1), dim=1)
        return float(torch.logdet(unit @ unit.T + cgs.EPSILON * torch.eye(4)))

    own = task(tmp_path)
    plain = follow(own, Approach(), range(4), torch.empty(0, *SHAPE))[0]
    assert torch.equal(sampled("sample.cgs.mean=0", "sample.cgs.diversity=0"), plain)
    centre = own.encodings().mean(0)
    drawn = sampled("sample.cgs.mean=30", "sample.cgs.diversity=0")
    assert (drawn.mean(0) - centre).norm() < 0.5 * (plain.mean(0) - centre).norm()
    apart = sampled("sample.cgs.mean=0", "sample.cgs.diversity=1")
    assert spread(apart) > spread(plain)
    assert cgs.cgs(own).together == 4


# --- influence ---------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A classifier of the toy's images with a second derivative."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.one = nn.Parameter(torch.randn(64, 5, generator=draws, dtype=torch.float64) / 4)
        self.two = nn.Parameter(torch.randn(5, 2, generator=draws, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1).double() @ self.one).tanh() @ self.two


def moment(own: ClassTask, index: int, z: Tensor, earlier: int = 0) -> Moment:
    step = own.schedule.steps[index]
    clean, noise = own.prior.noise_schedule.clean_and_noise(z, own.prior.denoise(z, step.time, z), step.level)
    before = torch.randn(earlier, *SHAPE, generator=torch.Generator().manual_seed(9), dtype=z.dtype)
    return Moment(index, 10, step, 0.0, [0], z, clean, noise, clean, before)


def test_the_gradient_of_real_images_is_that_of_their_mean_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seven of the forty, at once in the place of three at a time."""
    monkeypatch.setattr(igd, "CHUNK", 3)
    own, network = task(tmp_path, "sample.method=igd", "sample.igd.real=7"), Small(0)
    images = own.images.images("train", 1)[torch.randperm(40, generator=own.draws("real"))[:7]]
    logits = network((images / 255 - 0.5) / 0.25)
    losses = logits.logsumexp(1) - logits[:, 1]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(losses.mean(), [*network.parameters()])])
    assert torch.allclose(igd.real_gradient(own, network), expected, rtol=1e-5)


def test_influence_is_that_of_finite_differences(tmp_path: Path) -> None:
    """Through the network's gradient, the decoder and the denoiser."""
    own = task(tmp_path, "sample.method=igd")
    networks = [Small(0), Small(1)]
    real = [igd.real_gradient(own, network) for network in networks]
    z = 0.3 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    at = moment(own, 4, z)
    step = at.step

    def distance(z: Tensor) -> float:
        answer = own.prior.denoise(z, step.time, z)
        pixels = (own.prior.noise_schedule.clean_and_noise(z, answer, step.level)[0] + 1) / 2
        total = 0.0
        for network, wanted in zip(networks, real, strict=True):
            gradient = igd.gradient_of_loss(network, own.images.normalise(pixels), 1, False)
            total += 1 - float(gradient @ wanted / gradient.norm() / wanted.norm())
        return total / 2

    found = igd.influence(own, at, networks, real)
    for index in range(64):
        there = torch.zeros(64, dtype=torch.float64)
        there[index] = 1e-5
        by_hand = (distance(z + there.view_as(z)) - distance(z - there.view_as(z))) / 2e-5
        assert float(found.flatten()[index]) == pytest.approx(by_hand, abs=1e-7, rel=1e-4)


def test_a_step_is_moved_by_influence_and_away_from_earlier_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(igd, "networks_of", lambda _: [Small(0)])
    z = 0.3 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def shift(index: int, earlier: int, *keys: str) -> Tensor | None:
        own = task(tmp_path, "sample.method=igd", *keys)
        guide = igd.igd(own).guide
        assert guide
        correction = guide(moment(own, index, z, earlier))
        return correction.shift if correction else None

    own = task(tmp_path)
    influence = shift(2, 0)
    assert influence is not None
    at = moment(own, 2, z)
    rms = float(influence.square().mean().sqrt())
    assert rms == pytest.approx(5 * 0.0015 * float(at.noise.square().mean().sqrt()) * at.step.level.noise)
    away = shift(2, 70, "sample.igd.scale=0", "sample.igd.deviation=2")
    leaf, others = z.clone().requires_grad_(), moment(own, 2, z, 70).earlier[-64:]
    nearest = functional.cosine_similarity(leaf.flatten(1), others.flatten(1)).max()
    (by_hand,) = torch.autograd.grad(nearest, leaf)
    assert away is not None
    assert torch.allclose(away, -2 * 64 / 4096 * by_hand)
    both = shift(2, 70, "sample.igd.deviation=2")
    assert both is not None
    assert torch.allclose(both, influence + away)
    # steps 9 to 6 of 9 … 0 are guided, as 45 to 30 of 50
    assert [shift(index, 0) is not None for index in range(10)] == [True] * 4 + [False] * 6
    none = igd.igd(task(tmp_path, "sample.method=igd", "sample.igd.scale=0", "sample.igd.deviation=0"))
    assert none == Approach()


# --- choices -----------------------------------------------------------------------------------------------


def test_right_and_most_or_least_confident() -> None:
    """Images 0 to 4 say class 1 with these shares; others follow those that are right, as in CaO2's code."""
    shares = torch.tensor([0.9, 0.6, 0.3, 0.8, 0.1])
    logits = torch.stack([(1 - shares).log(), shares.log()], 1)
    assert by_confidence(logits, 1, most=True).tolist() == [0, 3, 1, 4, 2]
    assert by_confidence(logits, 1, most=False).tolist() == [1, 3, 0, 2, 4]


def test_what_a_group_is_worth() -> None:
    """The published objective, with the centroids of other classes' real images."""
    angle = torch.tensor([0.0, 0.4, 1.2], dtype=torch.float64)
    groups = torch.stack([angle.cos(), angle.sin()], 1)
    real = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    for group, each in zip(worth_of_groups(groups[1:], real, 0, 0.4, 0.9), angle[1:].tolist(), strict=True):
        apart = math.log(1 - math.sin(each)) + math.log(1 + math.cos(each))
        assert float(group) == pytest.approx(0.9 * apart - 0.4 * math.log(1 - math.cos(each)))
    assert int(worth_of_groups(groups, real, 0, 0.4, 0.9).argmax()) == 0


class Pair(nn.Module):
    """A scorer whose two features are the first two pixels, which are its logits too."""

    classifier = nn.Identity()

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]


def drawn_at(pairs: list[tuple[float, float]]) -> Tensor:
    """Latents, which are images, of which the scorer makes these pairs of numbers, times two."""
    drawn = torch.zeros(len(pairs), *SHAPE)
    drawn.flatten(1)[:, :2] = torch.tensor(pairs)
    return drawn


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ld3m.sampling.judged.scoring_network", lambda _: Pair())


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize(("choice", "kept"), [("confident", [1, 4]), ("least-confident", [0, 3])])
def test_images_are_kept_by_what_the_scorer_says(choice: str, kept: list[int], tmp_path: Path) -> None:
    """They are of the second class if its number is the larger one, and the surer the more it is."""
    own = task(tmp_path, "sample.draws=3", f"sample.choose={choice}", count=2)
    drawn = drawn_at([(0, 0.1), (0, 0.9), (0.8, 0), (0, 0.3), (0, 0.5), (0.05, 0)])
    assert CHOICES[choice](own, drawn).images.tolist() == kept


@pytest.mark.usefixtures("scorer")
def test_the_group_near_its_class_and_far_from_the_other(tmp_path: Path) -> None:
    """Groups at 80, 40 and 0 degrees, real images around 0 (the first class) and around 90 (the second, wanted)."""
    own = task(tmp_path, "sample.draws=3", "sample.choose=subgroup", count=2)

    def around(degrees: float, length: float = 1) -> list[tuple[float, float]]:
        angles = [math.radians(degrees + by) for by in (-2, 2)]
        return [(length * math.cos(angle), length * math.sin(angle)) for angle in angles]

    own.images.scored = lambda measure, label: torch.tensor(around(90 * label, 7))  # type: ignore[method-assign]
    drawn = drawn_at([*around(80, 0.9), *around(40), *around(0, 0.5)])
    assert CHOICES["subgroup"](own, drawn).images.tolist() == [0, 1]


def test_the_group_with_the_nearest_moments(tmp_path: Path) -> None:
    own = task(tmp_path, "sample.draws=3", "sample.choose=moments")
    drawn = torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(0))
    drawn[4:8] = own.encodings()[:4]
    assert moments(own, drawn).images.tolist() == [4, 5, 6, 7]


# --- as commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        ("sample.method=ddoq",),
        (
            "sample.method=d3hr",
            "sample.d3hr.groups=3",
            "sample.d3hr.images=4",
            "sample.draws=2",
            "sample.choose=subgroup",
        ),
        ("sample.method=igd", "sample.igd.networks=scorer", "sample.draws=2", "sample.choose=least-confident"),
        ("sample.method=cgs", "sample.draws=2", "sample.choose=moments"),
    ],
    ids=["ddoq", "d3hr", "igd", "cgs"],
)
def test_a_run_is_sampled(
    keys: tuple[str, ...], recipe_file: Path, ld3m: Callable[..., Outcome], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    scorer = ("data.scorer.epochs=1", "data.scorer.width=8")
    outcome = ld3m("sample", recipe_file, "-o", run, "sample.steps=3", "prior.guidance=2", *scorer, *keys)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in (run / "images").iterdir()) == CLASSES
    found = weights.of_run(run, CLASSES)
    if "ddoq" in keys[0]:
        values = json.loads((run / weights.FILE).read_text())
        assert all(sum(of_class) == pytest.approx(2) for of_class in values.values())
        assert found is not None
    else:
        assert found is None
    assert ((run / "statistics").is_dir()) == ("d3hr" in keys[0])


def test_influence_of_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots of the first expert, at equal distances from its start on."""
    own = task(tmp_path, "sample.method=igd", "experts.epochs=10", "sample.igd.snapshots=4")
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        igd,
        "Draws",
        lambda *_: SimpleNamespace(
            check_networks=lambda: None,
            expert=lambda number, epoch: asked.append((number, epoch)),
            freeze_norms=lambda network, number: None,
        ),
    )
    assert len(igd.networks_of(own)) == 4
    assert asked == [(0, 0), (0, 2), (0, 5), (0, 8)]
