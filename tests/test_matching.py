"""Gradient and trajectory matching through the command line: loops, experts, resuming, processes."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import Outcome, distilled, latents, launch, noted, relative

from ld3m import objectives
from ld3m.data.prepared import prepare
from ld3m.errors import UserError
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.processes import Processes
from ld3m.networks.flat import weights_of
from ld3m.objectives.draws import Draws
from ld3m.objectives.experts import Trajectories, experts_of
from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.recipe.files import load

DC = ("distill.objective=dc", "distill.images_per_class=2", "distill.dc.outer=3", "distill.dc.inner=2")
MTT = (
    "distill.objective=mtt",
    "distill.images_per_class=2",
    "distill.mtt.syn_steps=4",
    "distill.mtt.batch_syn=4",
    "distill.mtt.lr_step_size=1.0e-4",
    "distill.lr_latents=10",
    "distill.lr_conditioning=10",
    "distill.checkpoint_every=1",
)
CPU = Processes(torch.device("cpu"))


@pytest.fixture(scope="module")
def experts(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Three experts of five epochs, by the command; gives the overrides that name them."""
    from ld3m.objectives.train_experts import train_experts

    folder = tmp_path_factory.mktemp("experts") / "shapes"
    settings = ("experts.count=3", "experts.epochs=5", "experts.batch=8", f"experts.folder={folder}")
    train_experts(load(Recipe, str(recipe_file), [*settings]))
    return settings


def trajectories(recipe_file: Path, *overrides: str) -> Trajectories:
    recipe = load(Recipe, str(recipe_file), list(overrides))
    return Trajectories(experts_of(recipe), prepare(recipe.data, progress=False), 0)


def snapshots(recipe_file: Path, settings: tuple[str, ...], expert: int) -> torch.Tensor:
    path = trajectories(recipe_file, *settings).path(expert)
    return safetensors.torch.load_file(path)["weights"]


# --- recipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "loops"), [(1, (1, 1)), (10, (10, 50)), (50, (50, 10)), (12, (10, 50))])
def test_loops_by_images_per_class_are_the_literatures(recipe_file: Path, count: int, loops: tuple[int, int]) -> None:
    dc = load(Recipe, str(recipe_file), [f"distill.images_per_class={count}"]).distill.dc
    assert (dc.outer, dc.inner) == loops


def test_learning_rates_are_the_objectives_unless_given(tmp_path: Path, recipe_file: Path) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text(recipe_file.read_text().replace(", lr_latents: 0.1, lr_conditioning: 0.1", ""))
    for objective, rate in (("dm", 1.0), ("dc", 0.1), ("mtt", 1000.0)):
        distill = load(Recipe, str(plain), [f"distill.objective={objective}", "distill.lr_conditioning=7"]).distill
        assert (distill.lr_latents, distill.lr_conditioning) == (rate, 7)


# --- gradient matching -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matched(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven iterations of gradient matching, which end within an outer loop."""
    return distilled(recipe_file, tmp_path_factory.mktemp("runs") / "dc", *DC, "distill.iterations=7")


@pytest.mark.gpu
def test_dc_goes_on_within_an_outer_loop_bit_for_bit(matched: Path, recipe_file: Path, tmp_path: Path) -> None:
    distilled(recipe_file, tmp_path / "run", *DC, "distill.iterations=5")
    distilled(recipe_file, tmp_path / "run", *DC, "distill.iterations=7")
    assert torch.equal(latents(tmp_path / "run")["z"], latents(matched)["z"])


def test_the_inner_loop_learns_the_synthetic_images(recipe_file: Path) -> None:
    """After enough epochs the network knows their classes; a fresh one does not."""
    recipe = load(Recipe, str(recipe_file), [*DC, "distill.dc.inner=200", "distill.dc.lr_network=0.1"])
    images = prepare(recipe.data, progress=False)
    objective: Any = objectives.build(recipe, images, range(3), CPU)
    pixels = torch.stack([bytes_to_unit(images.images("train", label)[:2]) for label in range(3)])
    labels = torch.arange(3).repeat_interleave(2)

    def loss() -> float:
        with torch.no_grad():
            logits = objective.network(images.normalise(pixels.flatten(0, 1)))
        return torch.nn.functional.cross_entropy(logits, labels).item()

    objective.match(0, pixels)
    fresh = loss()
    objective.match(1, pixels)
    assert loss() < 0.3 < fresh
    objective.match(3, pixels)
    assert loss() > 0.3, "a new outer loop has a new network"


def test_the_inner_loop_is_plain_sgd(recipe_file: Path) -> None:
    """Three epochs in one batch each, at the rate of Zhao et al.'s code, 0.01, on images as networks see them."""
    recipe = load(Recipe, str(recipe_file), [*DC, "distill.dc.inner=3", "distill.dc.augment=false"])
    images = prepare(recipe.data, progress=False)
    objective: Any = objectives.build(recipe, images, range(3), CPU)
    pixels = torch.rand(3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    objective.match(0, pixels)
    network = copy.deepcopy(objective.network)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        logits = network((pixels.flatten(0, 1) - images.mean) / images.std)
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
        optimiser.step()
    objective.match(1, pixels)
    assert relative(weights_of(objective.network), weights_of(network)) <= 1e-5


def test_batch_norm_is_frozen_on_real_statistics(recipe_file: Path) -> None:
    recipe = load(Recipe, str(recipe_file), [*DC, "network.norm=batch"])
    images = prepare(recipe.data, progress=False)
    objective: Any = objectives.build(recipe, images, range(3), CPU)
    losses, gradient = objective.match(0, torch.rand(3, 2, 1, 16, 16))
    assert losses.isfinite().all()
    assert gradient.abs().amax((1, 2, 3, 4)).min() > 0
    convolution, norm = objective.network.features[:2]
    # 16 images of each class are wanted; the shapes have 12, so that all of them count.
    seen = convolution(images.normalise(bytes_to_unit(images.everything("train")[0])))
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4)
    assert not norm.training


# --- experts -----------------------------------------------------------------------------------------------


def test_snapshots_are_copies_of_their_own(recipe_file: Path, experts: tuple[str, ...]) -> None:
    """Every epoch's differ, as they do not where a snapshot aliases the live weights."""
    for expert in range(3):
        weights = snapshots(recipe_file, experts, expert)
        assert weights.shape[0] == 6
        assert all(not torch.equal(weights[epoch], weights[epoch + 1]) for epoch in range(5))
    assert not torch.equal(snapshots(recipe_file, experts, 0)[0], snapshots(recipe_file, experts, 1)[0])


@pytest.mark.parametrize("augmented", [False, True])
def test_an_expert_is_trained_by_plain_sgd(recipe_file: Path, tmp_path: Path, augmented: bool) -> None:
    """Against torch.optim.SGD on the whole training set in one batch; each image augmented by its own numbers."""
    from ld3m import networks
    from ld3m.objectives.train_experts import train_experts

    folder = f"experts.folder={tmp_path / 'e'}"
    settings = ["experts.count=1", "experts.epochs=4", f"experts.augment={augmented}", folder]
    recipe = load(Recipe, str(recipe_file), settings)
    train_experts(recipe)
    images = prepare(recipe.data, progress=False)
    shape = networks.Shape(1, 16, 3)
    network = networks.build("convnet", shape, recipe.network, generator(recipe.seed, "expert", 0))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    pixels, labels = images.everything("train")
    for epoch in range(4):
        draws = generator(recipe.seed, "expert epoch", 0, epoch)
        order = torch.randperm(36, generator=draws)
        shown = images.normalise(bytes_to_unit(pixels[order]))
        if augmented:
            shown = augment.draw(draws, 16, 36)(shown)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(shown), labels[order]).backward()
        optimiser.step()
    expected = torch.nn.utils.parameters_to_vector(network.parameters())
    assert relative(snapshots(recipe_file, tuple(settings), 0)[-1], expected.detach()) <= 1e-5


@pytest.mark.parametrize("way", ["stacked", pytest.param("two processes", marks=pytest.mark.slow), "interrupted"])
def test_experts_are_the_same_however_they_are_trained(
    recipe_file: Path, experts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    from ld3m.objectives import train_experts as command

    again = (*experts[:-1], f"experts.folder={tmp_path / 'again'}")
    if way == "two processes":
        launch("experts", recipe_file, *again)
    else:
        stacked = ["experts.together=2"] if way == "stacked" else []
        recipe = load(Recipe, str(recipe_file), [*again, *stacked])
        if way == "interrupted":
            step, done = command.sgd_step, 0

            def until_the_third_epoch_of_the_second(*arguments: object) -> torch.Tensor:
                nonlocal done
                done += 1
                if done > (5 + 2) * 5:
                    raise KeyboardInterrupt
                return step(*arguments)  # type: ignore[arg-type]

            monkeypatch.setattr(command, "sgd_step", until_the_third_epoch_of_the_second)
            with pytest.raises(KeyboardInterrupt):
                command.train_experts(recipe)
            partial = safetensors.torch.load_file(trajectories(recipe_file, *again).partial(1))
            assert len(partial["weights"]) == 3
            monkeypatch.setattr(command, "sgd_step", step)
        command.train_experts(recipe)
    for expert in range(3):
        one, other = (snapshots(recipe_file, settings, expert) for settings in (experts, again))
        assert torch.equal(one, other) if way == "interrupted" else relative(one, other) <= 1e-5


def test_half_precision_takes_half_the_disk(recipe_file: Path, experts: tuple[str, ...], tmp_path: Path) -> None:
    from ld3m.objectives.train_experts import train_experts

    half = (*experts[:-1], f"experts.folder={tmp_path / 'half'}", "experts.dtype=float16", "experts.count=1")
    train_experts(load(Recipe, str(recipe_file), list(half)))
    one, other = (trajectories(recipe_file, *settings).path(0) for settings in (experts, half))
    assert other.stat().st_size / one.stat().st_size == pytest.approx(0.5, abs=0.02)
    assert relative(snapshots(recipe_file, half, 0).float(), snapshots(recipe_file, experts, 0)) <= 1e-3


def test_disk_use_is_told_before_training(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts of 16 snapshots in 4 bytes: two blocks of width 8, each a convolution and a norm, and a classifier."""
    parameters = (9 + 1 + 2) * 8 + (9 * 8 + 1 + 2) * 8 + (8 * 16 + 1) * 3
    monkeypatch.setattr(Trajectories, "bytes_free", lambda self, resume: 1_000_000)
    outcome = ld3m("experts", recipe_file, "experts.count=100000", f"experts.folder={tmp_path / 'experts'}")
    assert outcome.code == 2
    assert f"{100_000 * 16 * parameters * 4 / 1e6:,.1f} MB" in outcome.err
    assert "float16" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_experts_are_not_removed_where_there_is_no_room_for_others(
    ld3m: Callable[..., Outcome], recipe_file: Path, experts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: the three experts there are may make way for three others, not for four."""
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("ld3m.objectives.experts.shutil.disk_usage", lambda place: usage)
    before = trajectories(recipe_file, *experts)
    index = (before.folder / "index.json").read_text()
    assert before.bytes_free(resume=True) == 0
    assert before.bytes_free(resume=False) == sum(before.path(expert).stat().st_size for expert in range(3))
    outcome = ld3m("experts", recipe_file, *experts, "experts.count=4", "experts.lr=0.5", "--no-resume")
    assert outcome.code == 2
    assert "experts.count" in outcome.err
    assert (before.folder / "index.json").read_text() == index
    assert all(before.path(expert).is_file() for expert in range(3))


def test_matching_in_experts_draws_their_snapshots(recipe_file: Path, experts: tuple[str, ...]) -> None:
    """Every network is one snapshot, bit for bit; all 3 × 6 come, each about as often as the others."""
    recipe = load(Recipe, str(recipe_file), [*experts, "distill.networks=experts"])
    images = prepare(recipe.data, progress=False)
    every = torch.cat([snapshots(recipe_file, experts, expert) for expert in range(3)])
    draws = objectives.draws_of(recipe, images, CPU)
    counts = torch.zeros(len(every))
    for number in range(360):
        drawn = weights_of(draws.network(number))
        (place,) = (every == drawn).all(1).nonzero()[:1]
        counts[place] += 1
    expected = 360 / 18
    assert ((counts - expected).square() / expected).sum() < 40.8  # χ² of 17 degrees of freedom, p = 0.001


@pytest.mark.parametrize("objective", ["dm", pytest.param("dc", marks=pytest.mark.slow)])
def test_runs_that_match_in_experts(
    ld3m: Callable[..., Outcome], recipe_file: Path, experts: tuple[str, ...], tmp_path: Path, objective: str
) -> None:
    options = (*experts, f"distill.objective={objective}", "distill.iterations=2")
    random = latents(distilled(recipe_file, tmp_path / "random", *options))
    trained = latents(distilled(recipe_file, tmp_path / "trained", *options, "distill.networks=experts"))
    assert relative(trained["z"], random["z"]) > 1e-4
    outcome = ld3m("plan", recipe_file, *options, "distill.networks=experts", "experts.folder=nowhere", "--json")
    assert outcome.code == 0, outcome.err
    sizes = [path.stat().st_size for path in Path(experts[-1].partition("=")[2]).glob("expert-*")]
    assert json.loads(outcome.out)["experts_bytes"] == pytest.approx(
        sum(sizes), rel=0.03
    )  # digests count among so few weights


# --- moments of features -----------------------------------------------------------------------------------


def test_a_run_by_moments_goes_another_way(recipe_file: Path, tmp_path: Path) -> None:
    options = ("distill.images_per_class=2", "distill.iterations=1")
    published = distilled(recipe_file, tmp_path / "mean", *options)
    both = distilled(recipe_file, tmp_path / "moments", *options, "distill.dm.match=moments")
    assert relative(latents(both)["z"], latents(published)["z"]) > 1e-4


def test_moments_of_one_image_are_refused(ld3m: Callable[..., Outcome], recipe_file: Path) -> None:
    one = ("distill.dm.match=moments", "distill.images_per_class=1", "--dry-run")
    outcome = ld3m("distill", recipe_file, *one)
    assert outcome.code == 2
    assert "override distill.dm.match=moments: moments takes the standard deviation" in outcome.err
    assert "distill.factor=2" in outcome.err
    assert ld3m("distill", recipe_file, *one, "distill.factor=2").code == 0
    assert ld3m("distill", recipe_file, *one, "distill.objective=dc").code == 0


# --- a pool of networks ------------------------------------------------------------------------------------


def test_a_network_of_a_pool_comes_back_with_its_real_images(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(Recipe, str(recipe_file), ["distill.dm.pool=3"])
    images = prepare(recipe.data, progress=False)
    pooled = objectives.build(recipe, images, range(3), CPU)
    drawn: list[tuple[int, int]] = []
    real = Draws.real

    def counted(draws: Draws, images: torch.Tensor, number: int, label: int) -> torch.Tensor:
        drawn.append((number, label))
        return real(draws, images, number, label)

    monkeypatch.setattr(Draws, "real", counted)
    numbers = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 1, 1, 16, 16, generator=numbers) for _ in range(2))
    answers = [pooled.match(iteration, first) for iteration in range(3)]
    fresh = objectives.build(load(Recipe, str(recipe_file), []), images, range(3), CPU)
    for iteration, (losses, gradient) in enumerate(answers):  # as without a pool, until all had their turn
        expected = fresh.match(iteration, first)
        assert torch.equal(losses, expected[0])
        assert torch.equal(gradient, expected[1])
    drawn.clear()
    for iteration in (3, 4, 5, 8):  # the second round, and a place in the third
        losses, gradient = pooled.match(iteration, second)
        expected = fresh.match(iteration % 3, second)
        assert torch.equal(losses, expected[0])
        assert torch.equal(gradient, expected[1])
    assert drawn == [(number, label) for number in (0, 1, 2, 2) for label in range(3)], (
        "by the objective without a pool"
    )


@pytest.mark.slow
@pytest.mark.gpu
def test_a_run_with_a_pool_goes_on_bit_for_bit(recipe_file: Path, tmp_path: Path) -> None:
    options = ("distill.dm.pool=2", "distill.checkpoint_every=1")
    whole = distilled(recipe_file, tmp_path / "whole", *options, "distill.iterations=5")
    distilled(recipe_file, tmp_path / "parts", *options, "distill.iterations=3")
    distilled(recipe_file, tmp_path / "parts", *options, "distill.iterations=5")
    assert torch.equal(latents(whole)["z"], latents(tmp_path / "parts")["z"])


# --- trajectory matching -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def followed(recipe_file: Path, experts: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six iterations of trajectory matching."""
    return distilled(recipe_file, tmp_path_factory.mktemp("runs") / "mtt", *MTT, *experts, "distill.iterations=6")


@pytest.mark.gpu
def test_mtt_goes_on_bit_for_bit(followed: Path, recipe_file: Path, experts: tuple[str, ...], tmp_path: Path) -> None:
    distilled(recipe_file, tmp_path / "run", *MTT, *experts, "distill.iterations=3")
    distilled(recipe_file, tmp_path / "run", *MTT, *experts, "distill.iterations=6")
    assert torch.equal(latents(tmp_path / "run")["z"], latents(followed)["z"])
    last = [(folder / "metrics.jsonl").read_text().splitlines()[-1] for folder in (followed, tmp_path / "run")]
    assert json.loads(last[0])["step_size"] == json.loads(last[1])["step_size"]


def test_a_student_starts_where_experts_were_and_learns_its_step_size(
    recipe_file: Path, experts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At epochs 0 to 2 of each of three, about as often; its target is two epochs on. A slope of −1 makes the step size
    grow by SGD of momentum 0.5: by 1e-4 Σ 2 (1 − 2⁻ᵏ).
    """
    recipe = load(Recipe, str(recipe_file), [*MTT, *experts])
    images = prepare(recipe.data, progress=False)
    every = torch.stack([snapshots(recipe_file, experts, expert) for expert in range(3)])
    pixels = torch.rand(3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(3, 6)

    def noted(
        student: Any, start: torch.Tensor, target: torch.Tensor, step_size: Any, batches: Any, show: Any, *rest: Any
    ) -> tuple[torch.Tensor, ...]:
        ((expert, epoch),) = (every == start).all(2).nonzero().tolist()
        counts[expert, epoch] += 1
        assert torch.equal(target, every[expert, epoch + 2])
        assert [len(batch) for batch in batches] == [2, 4, 2, 4]
        whole = augment.draw(generator(recipe.seed, "augmentation", int(counts.sum()) - 1, 1), 16, 4)
        some, shown = torch.tensor([3, 1]), rest[0][batches[1][[3, 1]]]
        assert torch.equal(show(1, some, shown), whole.of(some)((shown - images.mean) / images.std))
        return torch.tensor(3.0), torch.zeros_like(rest[0]), torch.tensor(-1.0)

    monkeypatch.setattr("ld3m.objectives.mtt.match_trajectory", noted)
    objective = objectives.build(recipe, images, range(3), CPU)
    for iteration in range(90):
        losses, _ = objective.match(iteration, pixels)
        assert losses.tolist() == [1, 1, 1], "of all classes together, shared out"
    assert not counts[:, 3:].any()
    assert ((counts[:, :3] - 10).square() / 10).sum() < 26.1  # χ² of 8 degrees of freedom, p = 0.001
    assert objective.learnt()["step_size"] == pytest.approx(0.01 + 1e-4 * (180 - 2), rel=1e-4)


def test_the_learnt_step_size_is_saved_and_evaluated_with(ld3m: Callable[..., Outcome], followed: Path) -> None:
    step_size = noted(followed)["learnt"]["step_size"]
    assert step_size != 0.01
    outcome = ld3m("evaluate", followed, "--arch", "convnet", "evaluate.lr=learnt", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["results"][0]["protocol"]["lr"] == step_size


@pytest.mark.parametrize("rate", [1e6, -1e6])
def test_the_step_size_stays_positive_whatever_its_slope(
    recipe_file: Path, experts: tuple[str, ...], rate: float
) -> None:
    """It moves by a factor of two at most; a slope that is not finite leaves it alone."""
    recipe = load(Recipe, str(recipe_file), [*MTT, *experts])
    recipe.distill.mtt.__dict__["lr_step_size"] = rate  # a negative one turns the slope round
    images = prepare(recipe.data, progress=False)
    objective: Any = objectives.build(recipe, images, range(3), CPU)
    pixels = torch.rand(3, 2, 1, 16, 16)
    for iteration in range(4):
        before = objective.step_size
        objective.match(iteration, pixels)
        assert objective.step_size / before in (0.5, 2.0)
    before = objective.step_size
    loss, _ = objective.match(4, pixels * math.nan)
    assert loss.isnan().all()
    assert objective.step_size == before


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["experts.folder=nowhere"], ["nowhere has 0 of experts.count = 3 experts", "ld3m experts"]),
        (["experts.count=4"], ["has 3 of experts.count = 4 experts", "ld3m experts"]),
        (["network.width=4"], ["experts.folder", "network.width 8, this recipe 4"]),
        (
            ["data.subset=[cross, square]"],
            ["classes circle, cross, square, this recipe cross, square"],
        ),
        (["network.depth=3"], ["experts.folder", "network.depth 2, this recipe 3"]),
        (["distill.mtt.expert_epochs=4"], ["override experts.epochs=5: 5", "is 6"]),
        (["distill.mtt.expert_epochs=4", "experts.epochs=6"], ["have 5 epochs", "is 6"]),
    ],
)
def test_experts_that_do_not_fit_are_refused(
    ld3m: Callable[..., Outcome],
    recipe_file: Path,
    experts: tuple[str, ...],
    tmp_path: Path,
    overrides: list[str],
    parts: list[str],
) -> None:
    outcome = ld3m("distill", recipe_file, *MTT, *experts, *overrides)
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert all(part in outcome.err for part in parts), outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["experts.folder=nowhere"], ["nowhere has 0 of experts.count = 3 experts", "ld3m experts"]),
        (["experts.epochs=6"], ["have 5 epochs, but experts.epochs is 6"]),
        (["distill.objective=mtt"], ["distill.networks", "for dm, dc and lgm"]),
    ],
)
def test_experts_to_match_in_that_are_not_there(
    ld3m: Callable[..., Outcome], recipe_file: Path, experts: tuple[str, ...], overrides: list[str], parts: list[str]
) -> None:
    outcome = ld3m("distill", recipe_file, *experts, "distill.networks=experts", *overrides)
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert all(part in outcome.err for part in parts), outcome.err


def test_experts_trained_otherwise_are_not_mixed(
    ld3m: Callable[..., Outcome], recipe_file: Path, experts: tuple[str, ...]
) -> None:
    outcome = ld3m("experts", recipe_file, *experts, "experts.lr=0.5")
    assert outcome.code == 2
    assert "experts.lr differ" in outcome.err


def test_a_learnt_rate_that_no_one_learnt(ld3m: Callable[..., Outcome], matched: Path) -> None:
    outcome = ld3m("evaluate", matched, "evaluate.lr=learnt")
    assert outcome.code == 2
    assert "evaluate.lr" in outcome.err
    assert "learnt no step size" in outcome.err


WHOLE = torch.arange(30.0).view(3, 10)
BAD_EXPERTS: dict[str, bytes | dict[str, torch.Tensor]] = {
    "is empty": b"",
    "is damaged": b"garbage, not tensors",
    "weights of shape [30]": {"weights": WHOLE.flatten()},
    "weights of shape [2, 10]": {"weights": WHOLE[:2].clone()},
    "weights of type I64": {"weights": WHOLE.long()},
    "weigths": {"weigths": WHOLE},
    "not finite": {"weights": WHOLE * torch.nan},
}


@pytest.mark.parametrize("why", BAD_EXPERTS)
def test_a_damaged_expert_is_one_line_and_a_partial_one_is_made_again(
    why: str, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load(Recipe, str(recipe_file), ["experts.count=1", "experts.epochs=2", f"experts.folder={tmp_path}"])
    kept = Trajectories(experts_of(recipe), prepare(recipe.data, progress=False), 10)
    with kept.claim(resume=True):  # writes the index
        pass
    content = BAD_EXPERTS[why]
    for path in (kept.path(0), kept.partial(0)):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            safetensors.torch.save_file(content, path)
    begin = kept.weights if why == "not finite" else kept.require  # which reads headers alone
    arguments: tuple[Any, ...] = (0, 1) if why == "not finite" else (1, 2, "mtt")
    with pytest.raises(UserError) as error:
        begin(*arguments)
    (line,) = error.value.lines
    assert f"experts.folder: {kept.path(0)}" in line
    assert line.endswith("; remove it, and ld3m experts makes it again")
    if "weigths" not in why:
        assert why in line
    if "[2, 10]" not in why:  # two of three rows are a partial expert
        assert kept.progress(0) is None


def test_a_flipped_bit_in_an_expert_is_noticed(recipe_file: Path, tmp_path: Path) -> None:
    """In the snapshot that is read; those of an older version, which have no digests, are read as they are."""
    recipe = load(Recipe, str(recipe_file), ["experts.count=1", "experts.epochs=2", f"experts.folder={tmp_path}"])
    kept = Trajectories(experts_of(recipe), prepare(recipe.data, progress=False), 10)
    kept.save(0, WHOLE[:2].clone())
    kept.save(1, WHOLE.clone())
    assert torch.equal(kept.progress(0), WHOLE[:2])
    assert [kept.weights(1, epoch).tolist() for epoch in range(3)] == WHOLE.tolist()
    for path in (kept.partial(0), kept.path(1)):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1  # of the last snapshot
        path.write_bytes(bytes(content))
    assert kept.progress(0) is None
    assert torch.equal(kept.weights(1, 0), WHOLE[0])
    with pytest.raises(
        UserError, match=r"weights after epoch 2 have another digest than it says\); remove it, and ld3m"
    ):
        kept.weights(1, 2)
    safetensors.torch.save_file({"weights": WHOLE}, kept.path(1), {"format": "ld3m-experts-1"})
    assert torch.equal(kept.weights(1, 2), WHOLE[2])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is empty"),
        ("[]", "is damaged"),
        ('{"format": 1, "about": {}, "training": {"epochs": 2}}', "format: "),
        ('{"format": "ld3m-experts-1", "training": {"epochs": 2}}', "about: "),
        ('{"format": "ld3m-experts-1", "about": {}, "training": {"epochs": "two"}}', "training.epochs: "),
    ],
)
def test_a_damaged_index_of_experts_is_one_line(content: str, why: str, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(why)) as error:
        trajectories(recipe_file, f"experts.folder={tmp_path}").require(1, 2, "mtt")
    (line,) = error.value.lines
    assert line.startswith(f"experts.folder: {tmp_path / 'index.json'}")
    assert line.endswith("; ld3m experts with --no-resume trains the experts again")
