"""Core-sets: selections against brute force, k-means against its definition, what a recipe keeps and starts from."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from processes import command_line, finish, spawn

from ld3m import objectives, priors
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection import coresets, scorer
from ld3m.data.selection.coresets import SELECTIONS, open_kept, score
from ld3m.distillation.loop import checkpoint_or_start, distill
from ld3m.distillation.setup import Setup
from ld3m.errors import UserError
from ld3m.evaluation import evaluate
from ld3m.images.ranges import bytes_to_signed, bytes_to_unit
from ld3m.machine.processes import Processes
from ld3m.randomness import generator
from ld3m.recipe import DistilledDataRecipe, Recipe, SamplerRecipe
from ld3m.recipe.files import load
from ld3m.recipe.values import STARTS
from ld3m.sampling.kmeans import kmeans

CPU = torch.device("cpu")
FEATURES = hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.integers(-20, 20))
SCORER = ["data.scorer.epochs=2", "data.scorer.width=8"]


# --- selections --------------------------------------------------------------------------------------------


def mean_error(features: np.ndarray, chosen: list[int]) -> float:
    return float(np.linalg.norm(features[chosen].mean(0) - features.mean(0)))


def radius(features: np.ndarray, chosen: list[int]) -> float:
    """How far the worst covered point is from the nearest chosen one."""
    return max(min(float(np.linalg.norm(point - features[centre])) for centre in chosen) for point in features)


def test_herding_takes_what_brings_the_mean_nearest() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5))
    chosen: list[int] = []
    for _ in range(15):
        rest = [index for index in range(40) if index not in chosen]
        chosen.append(min(rest, key=lambda index: mean_error(features, [*chosen, index])))
    assert coresets.herding(torch.from_numpy(features), 15).tolist() == chosen
    drawn = [mean_error(features, list(np.random.default_rng(seed).permutation(40)[:15])) for seed in range(200)]
    assert mean_error(features, chosen) < min(drawn), "nearer than 200 random selections of as many"


def test_k_center_takes_what_is_farthest() -> None:
    features = np.random.default_rng(1).normal(size=(40, 5))
    chosen = [int(np.linalg.norm(features - features.mean(0), axis=1).argmin())]
    for _ in range(14):
        gaps = [min(np.linalg.norm(point - features[centre]) for centre in chosen) for point in features]
        chosen.append(int(np.argmax(gaps)))
    assert coresets.k_center(torch.from_numpy(features), 15).tolist() == chosen


@given(FEATURES)
@settings(max_examples=60)
def test_k_center_covers_within_twice_the_least_radius(features: np.ndarray) -> None:
    """Gonzalez's bound, 1985; the least by trying all."""
    for count in range(1, len(features) + 1):
        least = min(radius(features, list(tried)) for tried in itertools.combinations(range(len(features)), count))
        assert radius(features, coresets.k_center(torch.from_numpy(features), count).tolist()) <= 2 * least + 1e-9


@given(FEATURES, st.sampled_from(sorted(SELECTIONS)))
@settings(max_examples=100)
def test_fewer_are_a_beginning_of_more_and_none_is_taken_twice(features: np.ndarray, name: str) -> None:
    """Equal images included; more than there are is all of them."""
    measure, selection = SELECTIONS[name]
    values = torch.from_numpy(features if measure == "features" else features[:, 0])
    whole = selection(values, len(features) + 3).tolist()
    assert sorted(whole) == list(range(len(features)))
    for count in range(1, len(features)):
        assert selection(values, count).tolist() == whole[:count]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_easy_and_hard_complement_each_other(losses: list[int], drawn: st.DataObject) -> None:
    count = drawn.draw(st.integers(0, len(losses)))
    values = torch.tensor(losses, dtype=torch.float32)
    low, high = coresets.easy(values, count).tolist(), coresets.hard(values, len(losses) - count).tolist()
    assert sorted(low + high) == list(range(len(losses)))
    assert [losses[index] for index in low + high[::-1]] == sorted(losses)


def test_the_recipe_knows_every_selection() -> None:
    assert set(get_args(DistilledDataRecipe.model_fields["keep_order"].annotation)) == {"random", *SELECTIONS}
    assert set(STARTS) == {"real", "noise", "prototype", "sample", *SELECTIONS}
    assert set(evaluate.BASELINES) == {"random", "full", "rded", *SELECTIONS}


# --- k-means -----------------------------------------------------------------------------------------------


def spread(points: torch.Tensor, centres: torch.Tensor) -> float:
    """The objective: the sum of squared distances to the nearest centre."""
    return float(torch.cdist(points.double(), centres.double()).min(1).values.square().sum())


def test_kmeans_finds_the_means_of_separate_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = [rng.normal(loc=30 * place, size=(size, 4)) for place, size in enumerate((5, 40, 17))]
    points = torch.from_numpy(np.concatenate(clusters).astype(np.float32))
    for seed in range(5):
        centres = kmeans(points, 3, generator(seed, "k-means"))
        expected = torch.tensor(np.stack([cluster.mean(0) for cluster in clusters]), dtype=torch.float32)
        torch.testing.assert_close(centres[centres[:, 0].argsort()], expected, rtol=0, atol=1e-4)


def test_starts_are_drawn_by_squared_distances() -> None:
    """k-means++ of 0, 1 and 3: 0 and 1 are the pair with probability (1/10 + 1/5)/3, by distances (1/4 + 1/3)/3."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = [sorted(kmeans(points, 2, generator(seed, "k-means"), 0).flatten().tolist()) for seed in range(600)]
    assert pairs.count([0, 1]) / 600 == pytest.approx(0.1, abs=0.04)  # 3.3 standard errors


def test_one_centre_is_the_mean() -> None:
    points = torch.randn(20, 6, generator=generator(0, "points"))
    torch.testing.assert_close(kmeans(points, 1, generator(0, "k-means"))[0], points.mean(0))


def test_each_iteration_brings_the_centres_nearer_until_each_is_the_mean_of_its_points() -> None:
    points = torch.randn(200, 3, generator=generator(0, "points"), dtype=torch.float64)
    spreads = [spread(points, kmeans(points, 8, generator(0, "k-means"), iterations)) for iterations in range(40)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(spreads))
    centres = kmeans(points, 8, generator(0, "k-means"))
    nearest = torch.cdist(points, centres).argmin(1)
    means = torch.stack([points[nearest == place].mean(0) for place in range(8)])
    torch.testing.assert_close(centres, means)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 3)), st.data())
def test_kmeans_of_few_or_equal_points(values: np.ndarray, drawn: st.DataObject) -> None:
    points = torch.from_numpy(values)
    count = drawn.draw(st.integers(1, len(points)))
    centres = kmeans(points, count, generator(0, "k-means"))
    assert torch.equal(centres, kmeans(points, count, generator(0, "k-means")))
    assert centres.isfinite().all()
    if count >= len(points.unique(dim=0)):
        assert spread(points, centres) == 0


# --- scores ------------------------------------------------------------------------------------------------


@pytest.fixture
def own_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without scores."""
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))


def scored(recipe_file: Path, *overrides: str) -> tuple[ImageSet, Recipe, Path]:
    recipe = load(Recipe, str(recipe_file), [*SCORER, *overrides])
    images = prepare(recipe.data, progress=False)
    return images, recipe, score(images, recipe.data.scorer, CPU)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_scores_are_the_networks_and_the_same_each_time(recipe_file: Path, own_scores: None) -> None:
    images, recipe, folder = scored(recipe_file)
    network = scorer.build("convnet", 8, images, seed=0)
    network.load_state_dict(safetensors.torch.load_file(folder / "scorer.safetensors"))
    for label in range(3):
        stored = safetensors.torch.load_file(folder / f"{label}.safetensors")
        inputs = images.normalise(bytes_to_unit(images.images("train", label)))
        with torch.no_grad():
            losses = -network(inputs).log_softmax(1)[:, label]
            torch.testing.assert_close(stored["losses"], losses)
            torch.testing.assert_close(stored["features"], network.embed(inputs))
    before = contents(folder)
    shutil.rmtree(folder)
    assert contents(score(images, recipe.data.scorer, CPU)) == before


def test_the_scorer_is_trained_on_what_networks_see(recipe_file: Path, own_scores: None) -> None:
    """Two epochs of AdamW over all training images, normalised, in one batch each, at a rate of one cycle."""
    images, _, folder = scored(recipe_file, "data.scorer.seed=3")
    network = scorer.build("convnet", 8, images, seed=3)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=2)
    pixels, labels = images.everything("train")
    for epoch in range(2):
        order = torch.randperm(36, generator=generator(3, "classifier order", epoch))
        logits = network((pixels[order] / 255 - images.mean) / images.std)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels[order]).backward()
        optimiser.step()
        schedule.step()
    for name, tensor in safetensors.torch.load_file(folder / "scorer.safetensors").items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_scores_are_made_once(recipe_file: Path, own_scores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of another seed, share or start finds them; other settings of the scorer do not."""
    _, _, folder = scored(recipe_file)

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(scorer, "train", fail)
    assert scored(recipe_file, "seed=5", "data.keep=0.5", "data.keep_order=hard", "distill.init=herding")[2] == folder
    for other in ("data.scorer.epochs=3", "data.scorer.width=4", "data.scorer.seed=1", "data.subset=[cross, circle]"):
        with pytest.raises(AssertionError, match="trained again"):
            scored(recipe_file, other)


def test_a_given_network_is_not_trained(recipe_file: Path, own_scores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, trained = scored(recipe_file)
    monkeypatch.delattr(scorer, "train")
    _, _, given_ = scored(recipe_file, f"data.scorer.source={trained / 'scorer.safetensors'}", "data.scorer.seed=9")
    assert given_ != trained
    assert {n: c for n, c in contents(given_).items() if n[0].isdigit()} == {
        n: c for n, c in contents(trained).items() if n[0].isdigit()
    }


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "1.safetensors").write_bytes(b""), "1.safetensors is empty"),
        (lambda folder: (folder / "1.safetensors").write_bytes(b"no scores"), "1.safetensors is damaged"),
        (lambda folder: (folder / "1.safetensors").unlink(), "1.safetensors is missing"),
        (lambda folder: shutil.copy(folder / "scorer.safetensors", folder / "1.safetensors"), "has the tensors"),
        (
            lambda folder: safetensors.torch.save_file(
                {"losses": torch.zeros(11), "features": torch.zeros(11, 4)}, folder / "1.safetensors"
            ),
            "is 11 x 4 of torch.float32, not 12 x any of torch.float32",
        ),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("a file")), "cannot read"),
        (lambda folder: flip_last_byte(folder / "1.safetensors"), "it has another digest than it says"),
    ],
)
def test_damaged_scores_are_made_again_and_said(
    damage: Callable[[Path], object],
    message: str,
    recipe_file: Path,
    own_scores: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scorer, "train", lambda network, *_: network.eval())
    folder = scored(recipe_file)[2]
    before = contents(folder)
    damage(folder)
    capsys.readouterr()
    assert contents(scored(recipe_file)[2]) == before
    said = [line for line in capsys.readouterr().err.splitlines() if "made again" in line]
    assert len(said) == 1
    assert message in said[0]
    assert said[0].endswith("; the scores are made again")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"pickle", "is damaged"), (None, "is missing"), ("folder", "is a folder")],
)
def test_weights_of_the_user_that_cannot_be_read(
    content: object, message: str, recipe_file: Path, own_scores: None, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(
        UserError, match=rf"^data.scorer.source: {path} {message}.*; give a safetensors file of weights$"
    ):
        scored(recipe_file, f"data.scorer.source={path}")


# --- what is kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", *SELECTIONS])
def test_a_share_of_each_class_is_kept_and_nothing_else_changes(recipe_file: Path, order: str) -> None:
    recipe = load(Recipe, str(recipe_file), [*SCORER, "seed=3", "data.keep=0.6", f"data.keep_order={order}"])
    prepared = prepare(recipe.data, progress=False)
    kept = open_kept(prepared, recipe.data, recipe.seed, [], CPU)
    assert kept.counts == {"train": [7, 7, 7], "test": [6, 6, 6]}  # round(0.6 · 12)
    assert torch.equal(kept.mean, prepared.mean)
    assert torch.equal(kept.images("test", 1), prepared.images("test", 1))
    for label in range(3):
        images, whole = kept.images("train", label), prepared.images("train", label)
        places = [int((whole == image).flatten(1).all(1).nonzero()) for image in images]
        assert places == sorted(set(places)), "real images, in their order"
        if order == "random":
            drawn = torch.randperm(12, generator=generator(3, "keep", label))[:7]
            assert places == sorted(drawn.tolist()), "others for each seed and class"
            continue
        assert kept.scores
        values = safetensors.torch.load_file(kept.scores / f"{label}.safetensors")[SELECTIONS[order][0]]
        assert set(places) == set(SELECTIONS[order][1](values, 7).tolist())
        # a selection among the kept looks at the kept
        assert torch.equal(kept.select(order, label, 3, generator(0, "")), SELECTIONS[order][1](values[places], 3))
    images, labels = kept.everything("train")
    assert len(images) == len(labels) == 21


def test_at_least_one_image_is_kept(recipe_file: Path) -> None:
    recipe = load(Recipe, str(recipe_file), ["data.keep=0.01", "data.keep_order=random"])
    kept = open_kept(prepare(recipe.data, progress=False), recipe.data, 0, [], CPU)
    assert kept.counts["train"] == [1, 1, 1]


def test_keeping_all_maps_the_prepared_images_and_trains_nothing(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(scorer, "train")
    recipe = load(Recipe, str(recipe_file), ["data.scorer.seed=77"])
    prepared = prepare(recipe.data, progress=False)
    whole = open_kept(prepared, recipe.data, recipe.seed, ["real", "noise", "prototype", "random"], CPU)
    assert whole.counts == prepared.counts
    assert torch.equal(whole.images("train", 2), prepared.images("train", 2))
    assert prepared.folder == prepare(load(Recipe, str(recipe_file), ["data.keep=0.5"]).data).folder


# --- where Z starts ----------------------------------------------------------------------------------------


def start(recipe_file: Path, folder: Path, *overrides: str) -> torch.Tensor:
    """Z [classes, images per class, channels, height, width] of a run of no iterations."""
    options = [*SCORER, "distill.iterations=0", "distill.images_per_class=3", f"output={folder}", *overrides]
    made = distill(load(Recipe, str(recipe_file), options))
    return safetensors.torch.load_file(made / "latents.safetensors")["z"].unflatten(0, (3, 3))


@pytest.mark.parametrize("keep", ["1", "0.5"])
@pytest.mark.parametrize("init", sorted(SELECTIONS))
def test_z_starts_as_encodings_of_the_selected_images(
    recipe_file: Path, prior_folder: Path, tmp_path: Path, init: str, keep: str
) -> None:
    z = start(recipe_file, tmp_path / "run", f"distill.init={init}", f"data.keep={keep}")
    recipe = load(Recipe, str(recipe_file), [*SCORER, f"data.keep={keep}"])
    kept = open_kept(prepare(recipe.data, progress=False), recipe.data, recipe.seed, [init], CPU)
    prior = priors.load(SamplerRecipe(source=str(prior_folder)))
    for label in range(3):
        images = kept.images("train", label)[kept.select(init, label, 3, generator(0, ""))]
        with torch.no_grad():
            torch.testing.assert_close(z[label], prior.encode(bytes_to_signed(images)), rtol=1e-5, atol=1e-5)


def test_prototypes_are_centres_of_the_encodings(recipe_file: Path, prior_folder: Path, tmp_path: Path) -> None:
    z = start(recipe_file, tmp_path / "run", "distill.init=prototype", "prior.micro_batch=5")
    recipe = load(Recipe, str(recipe_file))
    prior = priors.load(SamplerRecipe(source=str(prior_folder)))
    for label in range(3):
        with torch.no_grad():
            encodings = prior.encode(bytes_to_signed(prepare(recipe.data).images("train", label))).flatten(1)
        nearest = torch.cdist(encodings, z[label].flatten(1)).argmin(1)
        means = torch.stack([encodings[nearest == place].mean(0) for place in range(3)])
        torch.testing.assert_close(z[label].flatten(1), means, rtol=1e-4, atol=1e-5)


def test_a_run_matches_what_is_kept(recipe_file: Path, tmp_path: Path) -> None:
    """The loss of the first iteration is that of the objective on the core-set, not on all images."""
    losses = []
    for keep in ("0.5", "1"):
        options = [*SCORER, "distill.init=noise", "distill.iterations=1", f"data.keep={keep}"]
        run = distill(load(Recipe, str(recipe_file), [*options, f"output={tmp_path / keep}"]))
        losses.append(json.loads((run / "metrics.jsonl").read_text())["loss"])
    recipe = load(Recipe, str(recipe_file), [*options, "data.keep=0.5", f"output={tmp_path / 'none'}"])
    kept = open_kept(prepare(recipe.data, progress=False), recipe.data, recipe.seed, [], CPU)
    setup = Setup.load(Processes(CPU), recipe)
    _, learnt = checkpoint_or_start(setup)
    pixels, _ = setup.synthetic.render(learnt.z, learnt.c, 0)
    expected = objectives.build(recipe, kept, [0, 1, 2], Processes(CPU)).match(0, pixels)[0].sum()
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_two_processes_distil_from_the_same_core_set(recipe_file: Path, tmp_path: Path, own_scores: None) -> None:
    """One of them trains the scorer, with an empty cache, and the other waits for it."""
    options = [*SCORER, "data.keep=0.6", "data.keep_order=herding", "distill.init=k-center", "distill.iterations=2"]
    arguments = ("distill", recipe_file, *options, "-o", tmp_path / "two")
    assert finish(spawn(2, command_line, *arguments, output=tmp_path)) == [0, 0]
    printed = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert printed.count("training the scorer of real images:   0%") == 1
    distill(load(Recipe, str(recipe_file), [*options, f"output={tmp_path / 'one'}"]))
    two, one = (safetensors.torch.load_file(tmp_path / name / "latents.safetensors") for name in ("two", "one"))
    torch.testing.assert_close(two["z"], one["z"], rtol=1e-5, atol=1e-5)
