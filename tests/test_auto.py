"""`ld3m auto`: the look at own images, what is worth a pilot, how the time is split, and an answer from end to end."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import CLASSES, Outcome, distilled, latents
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ld3m.automatic import budget
from ld3m.automatic.answer import answer, look, plan_lines, worth_trying
from ld3m.automatic.budget import bracket, ends, full_epochs, measurement, pilot_units, second_round
from ld3m.automatic.candidates import candidates
from ld3m.automatic.look import Look
from ld3m.automatic.question import Kept, Pilot, Question, State
from ld3m.automatic.work import Work, measured, seconds_of_one
from ld3m.data.examples import Example, Source
from ld3m.data.sources import SOURCES
from ld3m.distillation.loop import distill
from ld3m.errors import UserError
from ld3m.evaluation.effort import Cost
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs.folder import iterations_saved

SECONDS = st.floats(0, 1e5, allow_nan=False)
COSTS = st.builds(Cost, st.floats(1e-7, 1), st.floats(1e-7, 1))
SIZES = st.lists(st.integers(1, 10**4), min_size=1, max_size=3)


def write_images(folder: Path, mode: str, size: tuple[int, int], count: int, classes: int = 2) -> Path:
    """Images of random pixels, by class, without splits."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
            Image.fromarray(pixels, "RGBA").convert(mode).save(folder / f"class{label}" / f"{index}.png")
    return folder


# --- the time ----------------------------------------------------------------------------------------------


@given(SECONDS, st.floats(1e-3, 1e4), st.integers(1, 20), st.floats(0, 10))
def test_pilots_fit_into_their_time(seconds: float, least: float, count: int, loading: float) -> None:
    chosen = bracket(seconds, least, count, loading)
    assert 1 <= chosen.tried <= count
    if chosen.tried > 1:
        rounds = [chosen.seconds] * chosen.tried + [budget.LONGER * chosen.seconds] * chosen.again
        assert sum(rounds) + loading * len(rounds) <= seconds * (1 + 1e-9)
        assert chosen.seconds >= least
    else:
        assert count == 1 or (seconds - 2 * loading) / 2 < least  # two would not fit either


@given(SECONDS, SECONDS, st.floats(1e-3, 1e4), st.integers(1, 20))
def test_more_time_never_tries_fewer(seconds: float, more: float, least: float, count: int) -> None:
    assert bracket(seconds, least, count).tried <= bracket(seconds + more, least, count).tried


def test_the_second_round_is_a_third_of_the_first() -> None:
    assert [second_round(count) for count in (1, 2, 3, 6, 7, 9)] == [0, 0, 2, 2, 3, 3]
    assert [pilot_units(count) for count in (1, 2, 3, 6, 9)] == [0, 2, 9, 12, 18]


def test_stages_follow_each_other_and_end_with_the_time() -> None:
    assert ends(900) == pytest.approx({"pilots": 270, "distilling": 576, "measuring": 900})


@given(
    SECONDS, COSTS, st.lists(st.integers(1, 10**4), min_size=1, max_size=3), st.integers(1, 10**5), st.integers(1, 4)
)
def test_networks_fit_into_their_time(
    seconds: float, cost: Cost, sizes: list[int], tested: int, processes: int
) -> None:
    """Dealt like cards, the process that has most takes no longer, unless not even one epoch of the result fits."""
    planned = measurement(seconds, cost, sizes, tested, processes)
    networks = [
        cost.seconds(size, planned.epochs, tested) for _ in range(planned.seeds) for size in sizes[: planned.sets]
    ]
    longest = max(sum(networks[first::processes]) for first in range(processes))
    assert longest <= seconds * (1 + 1e-6) or (planned.sets, planned.epochs, planned.seeds) == (1, 1, 1)
    assert planned.epochs <= budget.MOST_EPOCHS
    assert planned.epochs >= budget.FEWEST_EPOCHS or planned.sets == 1


@given(SECONDS, SECONDS, COSTS, st.integers(1, 10**4), st.integers(1, 10**5))
def test_more_time_never_measures_less(seconds: float, more: float, cost: Cost, size: int, tested: int) -> None:
    less, longer = (measurement(each, cost, [size, size], tested) for each in (seconds, seconds + more))
    assert less.sets <= longer.sets
    if less.sets == longer.sets:
        assert less.epochs <= longer.epochs


@given(SECONDS, COSTS, st.integers(1, 10**6), st.integers(1, 10**5))
def test_all_real_images_fit_or_are_left_out(seconds: float, cost: Cost, images: int, tested: int) -> None:
    epochs = full_epochs(seconds, cost, images, tested)
    assert epochs == 0 or budget.FEWEST_FULL <= epochs <= max(budget.MOST_FULL, min(300, 10_000 // images))
    assert epochs == 0 or cost.seconds(images, epochs, tested) <= seconds * (1 + 1e-9)


# --- the look ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size", "channels", "resolution", "said"),
    [
        ("L", (8, 8), 1, 8, "grey (L)"),
        ("RGB", (28, 28), 3, 32, "colour (RGB)"),
        ("RGBA", (40, 24), 3, 24, "what is transparent becomes white"),
        ("LA", (5, 9), 1, 8, "grey (LA)"),
        ("1", (300, 200), 1, 64, "data.resolution=128 is finer"),
        ("RGB", (96, 96), 3, 64, "data.resolution=96 is finer"),
    ],
)
def test_size_and_colour_are_seen(
    tmp_path: Path, mode: str, size: tuple[int, int], channels: int, resolution: int, said: str
) -> None:
    question = Question(str(write_images(tmp_path / "photos", mode, size, 6)), 1)
    found = look(question, "cpu")
    assert (found.channels, found.resolution, found.counts, found.tested) == (channels, resolution, [4, 4], 4)
    lines = " ".join(plan_lines(question, found, worth_trying(question, found)))
    assert said in lines
    assert "no test split: 25% of each class is held out" in lines
    assert ("the centre is cropped" in lines) == (size[0] != size[1])


def test_grey_images_stored_in_colour_are_grey(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", "L", (16, 16), 6)
    for path in folder.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    assert look(Question(str(folder), 1), "cpu").channels == 1
    assert look(Question(str(folder), 1, overrides=("data.channels=3", "data.resolution=24")), "cpu").channels == 3


def test_colours_that_transparency_hides_do_not_count(tmp_path: Path) -> None:
    """They are laid on white when images are prepared."""
    folder = write_images(tmp_path / "photos", "L", (16, 16), 6)
    for path in folder.rglob("*.png"):
        hidden = Image.new("RGBA", (16, 16), (200, 30, 30, 0))
        hidden.paste(Image.open(path).convert("RGBA").crop((0, 0, 8, 16)))
        hidden.save(path)
    found = look(Question(str(folder), 1), "cpu")
    assert found.channels == 1
    assert "grey (RGBA): data.channels=1; what is transparent becomes white" in found.lines


@pytest.mark.parametrize(
    ("classes", "count", "wanted", "message"),
    [
        (1, 6, 1, "one class only"),
        (2, 2, 1, r"--images-per-class: 1, but class 'class0' has 0 training images .* give it more images"),
        (2, 6, 9, r"--images-per-class: 9, but class 'class0' has 3 training images .* give 3 or fewer, .* or leave"),
    ],
)
def test_too_few_images_are_named(tmp_path: Path, classes: int, count: int, wanted: int, message: str) -> None:
    folder = write_images(tmp_path / "photos", "L", (8, 8), count, classes)
    with pytest.raises(UserError, match=message):
        look(Question(str(folder), wanted), "cpu")


@pytest.mark.parametrize(("each", "share"), [(150, 0.25), (500, 0.2), (5000, 0.1)])
def test_small_sources_hold_out_more_for_testing(monkeypatch: pytest.MonkeyPatch, each: int, share: float) -> None:
    """A tenth of 300 photographs would be 30, on which one more or less is three points."""
    examples = [Example(str(index), index % 2, lambda: Image.new("L", (8, 8))) for index in range(2 * each)]
    monkeypatch.setitem(SOURCES, "photos", lambda recipe: Source(["a", "b"], {"train": examples}, ""))
    assert look(Question("photos", 1), "cpu").test_share == share
    assert look(Question("photos", 1, overrides=("data.test_share=0.4",)), "cpu").tested == 2 * round(0.4 * each)


# --- what is worth a pilot ---------------------------------------------------------------------------------


def seen(resolution: int, channels: int, each: int = 1000) -> Look:
    return Look(["a", "b"], [each, each], resolution, channels, 200, None, [])


@pytest.mark.parametrize(
    ("found", "wanted", "source", "first", "priors"),
    [
        (seen(32, 1), 10, "fashion-mnist", ("distill.factor=2", "distill.lr_latents=3"), {"fashion-mnist"}),
        (seen(32, 1), 1, "fashion-mnist-small", ("distill.factor=4", "distill.lr_latents=1.2"), {"fashion-mnist"}),
        (seen(64, 3), 10, "fashion-mnist", ("distill.factor=2", "distill.lr_latents=3"), set()),
        (seen(8, 1), 1, "digits", ("distill.objective=dc", "distill.lr_latents=0.1"), {"digits"}),
        (seen(64, 3), 10, "photos", ("distill.factor=2", "distill.lr_latents=3"), set()),
        (seen(64, 3, each=30), 10, "photos", ("distill.factor=1", "distill.lr_latents=0.75"), set()),
        (seen(64, 3, each=4), 1, "photos", ("distill.factor=1", "distill.lr_latents=0.075"), set()),
    ],
)
def test_the_most_promising_comes_first(
    found: Look, wanted: int, source: str, first: tuple[str, str], priors: set[str]
) -> None:
    """Factor and rate of recipes/fashion-mnist-ipc10.yaml where they fit; a packaged prior for its own images alone."""
    options = candidates(found, wanted, source)
    assert set(first) <= set(options[0].overrides)
    named = {each.removeprefix("prior.source=") for option in options for each in option.overrides if "source" in each}
    assert named == {"pixels", *priors}
    assert all(option.why for option in options)
    assert len({option.name for option in options}) == len(options)
    assert any("distill.objective=dc" in option.overrides for option in options) == (wanted == 1)


def test_candidates_have_the_rates_of_their_latents() -> None:
    """0.075 for each latent of a class, its triple and its third for the best factor; one image has no deviation."""
    found = []
    for option in candidates(seen(32, 1), 1, "fashion-mnist"):
        own = dict(each.split("=", 1) for each in option.overrides)
        keys = ("prior.source", "prior.steps", "distill.factor", "distill.lr_latents", "distill.dm.match")
        found.append(tuple(own.get(key) for key in keys))
    assert found == [
        ("pixels", None, "4", "1.2", "moments"),
        ("pixels", None, "1", "0.1", None),
        ("pixels", None, "4", "3.6", "moments"),
        ("pixels", None, "2", "0.3", "moments"),
        ("fashion-mnist", "0", "4", "1.2", "moments"),
        ("fashion-mnist", "5", "1", "0.075", "mean"),
        ("pixels", None, "4", "0.4", "moments"),
        ("pixels", None, "1", "0.075", "mean"),
    ]


def test_pilots_are_measured_on_two_thousand_images() -> None:
    """Between a fiftieth and a fifth of the training images, of which the smallest class has the rest."""
    found = Look(["a", "b"], [10_000, 4_000], 32, 1, 200, None, [])
    assert (found.validation_share, found.fewest, found.smallest) == (0.143, 4_000 - 572, "b")
    assert [seen(32, 1, each).validation_share for each in (100, 10_000, 10**6)] == [0.2, 0.1, 0.02]


def test_a_pilots_recipe_goes_by_its_seconds(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 % of ten seconds are for what ten networks, three times as fast as the measured one, make of real images."""
    question = Question(str(shapes), 2, output=tmp_path / "mine")
    found = look(question, "cpu")
    kept = Kept.of(question, True)
    kept.state.cost = (0.01, 0.001)
    work = Work(Processes(torch.device("cpu")), question, found, worth_trying(question, found), kept, 0.0)
    recipe = work.recipe(0, 100, 10.0, 10)
    assert recipe.distill.real_batch == int(0.15 * 10 / (10 * 3 * 0.001 / 3)) == 150
    assert [work.recipe(0, 100, seconds, 10).distill.real_batch for seconds in (0.1, 1e4)] == [16, 500]
    evaluated = measured(recipe, 60, 2).evaluate
    assert (evaluated.epochs, evaluated.seeds, evaluated.batch) == (60, 2, 64)
    assert evaluated.ema == pytest.approx(0.985**5, abs=1e-6), "over the same share of 60 epochs as 0.985 is of 300"
    rows = [5.0, 5.0, 5.0, 1.0, 2.0, 3.0]  # networks see their real images first
    monkeypatch.setattr("ld3m.automatic.work.metrics.read", lambda _: SimpleNamespace(rows=rows))
    monkeypatch.setattr("ld3m.automatic.work.metrics.seconds", lambda row: row)
    assert [seconds_of_one(tmp_path, pool) for pool in (3, 6)] == [2, 4]


def test_what_the_user_sets_stands(shapes: Path, prior_folder: Path) -> None:
    """Rates are not varied if one is given; a prior that is named is tried, and must be there."""
    own = ("distill.lr_latents=0.5", "distill.factor=1", f"prior.source={prior_folder}")
    question = Question(str(shapes), 2, overrides=own)
    found = look(question, "cpu")
    options = worth_trying(question, found)
    recipes = [question.recipe(option.overrides) for option in options]
    assert {recipe.distill.lr_latents for recipe in recipes} == {0.5}
    assert [(recipe.prior.source, recipe.prior.steps) for recipe in recipes] == [
        ("pixels", 0),
        (str(prior_folder), 0),
        (str(prior_folder), 5),
    ]
    with pytest.raises(UserError, match=r"prior\.source"):
        worth_trying(Question(str(shapes), 2, overrides=("prior.source=nowhere",)), found)


def test_what_the_command_decides_is_not_set_twice() -> None:
    with pytest.raises(UserError, match=r"override distill\.images_per_class: give it as --images-per-class"):
        Question("photos", 1, overrides=("distill.images_per_class=2",))
    with pytest.raises(UserError, match=r"override distill\.iterations: ld3m auto decides it by --minutes"):
        Question("photos", 1, overrides=("distill.iterations=2",))
    with pytest.raises(UserError, match=r"override evaluate\.epochs: ld3m auto decides it"):
        Question("photos", 1, overrides=("evaluate.epochs=2",))
    with pytest.raises(UserError, match=r"--minutes: -1 is invalid"):
        Question("photos", 1, minutes=-1)


def test_longer_pilots_go_before_others() -> None:
    pilots = [
        Pilot(candidate=number, longer=longer, accuracy=accuracy)
        for number, longer, accuracy in ((0, False, 70), (1, False, 90), (2, False, None), (0, True, 80))
    ]
    state = State(asked={}, pilots=pilots)
    assert [(each.candidate, each.longer) for each in state.best()] == [(0, True), (1, False), (0, False)]
    assert [each.candidate for each in state.best(longer=False)] == [1, 0]


def test_the_best_of_each_kind_goes_on() -> None:
    """A kind that learns slowly is behind in a short pilot, whatever it reaches later."""
    pilots = [Pilot(candidate=number, longer=False, accuracy=each) for number, each in enumerate((50, 80, 70, None))]
    state = State(asked={}, pilots=pilots)
    kinds = ["gradients", "pixels", "pixels", "chain"]
    assert [each.candidate for each in state.promoted(2, kinds)] == [1, 0]
    assert [each.candidate for each in state.promoted(3, kinds)] == [1, 0, 2]
    assert [each.candidate for each in state.promoted(1, kinds)] == [1]
    options = candidates(seen(32, 1), 1, "fashion-mnist")
    assert len({option.kind for option in options}) == 4, "pixels, their gradients, autoencoder, chain"


def test_a_folder_keeps_one_question(tmp_path: Path) -> None:
    Kept.of(Question("photos", 1, output=tmp_path), True).save()
    assert Kept.of(Question("photos", 1, 30, output=tmp_path), True).state.asked["images_per_class"] == 1
    two = Question("photos", 2, output=tmp_path)
    assert Kept.of(two, True).state.asked["images_per_class"] == 2, "nothing has been made of the first"
    (tmp_path / "pilots/1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"answers another question \(images_per_class differ\); give another --output"):
        Kept.of(two, True)
    skipping = Question("photos", 1, overrides=("data.on_corrupt=skip",), output=tmp_path)
    assert Kept.of(skipping, True).state.asked["images_per_class"] == 1, "a broken file was found late"


def test_classes_too_small_for_several_in_one_are_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", "L", (16, 16), 12)
    for path in sorted((folder / "class1").iterdir())[4:]:
        path.unlink()
    question = Question(str(folder), 1)
    found = look(question, "cpu")
    lines = plan_lines(question, found, worth_trying(question, found))
    assert "not tried: 4 and 16 in one, which take 4 images of each class or more; 'class1' has 2 in a pilot" in lines


def test_a_run_ends_by_its_time_and_resumes(recipe_file: Path, tmp_path: Path) -> None:
    """At least one iteration is made; the rest gives what a run at once gives."""
    recipe = load(Recipe, str(recipe_file), [f"output={tmp_path / 'parts'}"])
    distill(recipe, seconds=0.0)
    assert 1 <= (iterations_saved(recipe.folder) or 0) < recipe.distill.iterations
    assert not (recipe.folder / "latents.safetensors").exists()
    distill(recipe, seconds=600.0)
    whole = distilled(recipe_file, tmp_path / "whole")
    assert all(torch.equal(value, latents(whole)[name]) for name, value in latents(recipe.folder).items())


# --- from end to end ---------------------------------------------------------------------------------------


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A source called "counting", and the names of the images that were read of it, in order."""
    rng, reads = np.random.default_rng(0), list[str]()

    def read(name: str, pixels: np.ndarray) -> Image.Image:
        reads.append(name)
        return Image.fromarray(pixels)

    def examples(split: str, count: int) -> list[Example]:
        made = []
        for index in range(count):
            pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8) + 100 * np.uint8(index % 2)
            made.append(Example(f"{split}/{index}", index % 2, partial(read, f"{split}/{index}", pixels)))
        return made

    splits = {"train": examples("train", 24), "test": examples("test", 8)}
    monkeypatch.setitem(SOURCES, "counting", lambda recipe: Source(["dark", "light"], splits, "counting"))
    return reads


def asked_little(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Question:
    """A whole answer, small by its limits and not by its time."""
    own = ("network.width=8", "distill.lr_latents=0.1", "distill.objective=dm")  # whole images, and four in one
    question = Question("counting", 1, 60, own, folder)
    monkeypatch.setattr("ld3m.automatic.budget.second_round", lambda count: 1)
    for name, limit in {
        "pilots.MOST_ITERATIONS": 2,
        "pilots.MOST_EPOCHS": 1,
        "pilots.MOST_NETWORKS": 1,
        "answer.LIMIT": 3,
        "budget.MOST_EPOCHS": 50,
        "budget.MOST_SEEDS": 1,
        "budget.MANY": 1,
    }.items():
        monkeypatch.setattr(f"ld3m.automatic.{name}", limit)
    return question


def test_no_test_image_is_read_before_the_end(
    counting: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops before it measures, as at a broken one, and is resumed."""
    question = asked_little(tmp_path / "mine", monkeypatch)

    def stop(*given: object) -> None:
        raise UserError("data.source: cannot read test/0")

    with monkeypatch.context() as patched:
        patched.setattr("ld3m.automatic.answer._measure", stop)
        with pytest.raises(UserError, match="cannot read test/0"):
            answer(question)
    assert "what is done is kept: once this is mended, the same command resumes" in capsys.readouterr().err
    assert {name.partition("/")[0] for name in counting} == {"train"}
    state = json.loads((tmp_path / "mine/auto.json").read_text())
    assert [pilot["longer"] for pilot in state["pilots"]] == [False, False, True]
    first, second, longer = state["pilots"]
    best = max((first, second), key=lambda pilot: (pilot["accuracy"], -pilot["candidate"]))
    assert longer["candidate"] == state["chosen"] == best["candidate"]

    evaluation, is_main = answer(question)
    assert is_main
    assert "pilot of" not in capsys.readouterr().err
    assert any(name.startswith("test") for name in counting)
    counts = {row["trained_on"]: len(row["accuracies"]) for row in evaluation["results"]}
    assert counts == {"distilled": 1, "random": 1, "herding": 1, "full": 1}
    assert {row["split"] for row in evaluation["results"]} == {"test"}
    for name in ("images", "recipe.yaml", "auto.yaml", "latents.safetensors", "report.html", "hub/README.md"):
        assert (tmp_path / "mine" / name).exists()
    again, _ = answer(question)
    assert again == evaluation
    assert "is finished; give another --output" in capsys.readouterr().err
    recipe = yaml.safe_load((tmp_path / "mine/auto.yaml").read_text())
    assert recipe["distill"]["iterations"] == 3
    assert set(counting[: counting.index("test/0")]) == {f"train/{index}" for index in range(24)}


def test_late_pilots_go_rather_than_longer_ones(
    counting: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first takes 700 of 1,080 seconds: the second would end after 438, when the longer one is to begin."""
    question = asked_little(tmp_path / "mine", monkeypatch)
    monkeypatch.setattr(Work, "spent", lambda self: 700.0 if self.state.pilots else 0.0)

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ld3m.automatic.answer._distil", stop)
    with pytest.raises(KeyboardInterrupt):
        answer(question)
    state = json.loads((tmp_path / "mine/auto.json").read_text())
    assert [(pilot["candidate"], pilot["longer"]) for pilot in state["pilots"]] == [(0, False), (0, True)]
    assert state["chosen"] == 0
    assert "no time left for a pilot of" in capsys.readouterr().err


def test_the_command_says_what_it_would_try(ld3m: Callable[..., Outcome], shapes: Path) -> None:
    said = ld3m("auto", shapes, "--images-per-class", 2, "--minutes", 10, "--dry-run").out
    assert f"{shapes}: 3 classes ({', '.join(CLASSES)}), 36 training images, 12 in each" in said
    assert "time: 10 min 0 s in all: at most 3 min 0 s for pilots" in said
    assert not Path("runs").exists()
