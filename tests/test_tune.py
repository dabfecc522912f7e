"""Searches: axes, successive halving, resuming, workers that share a folder, and that test images are left alone."""

import dataclasses
import inspect
import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import command_line, finish, spawn
from scipy.stats import t as student

import ld3m as package
from ld3m.data.examples import Example, Source
from ld3m.data.prepared import prepare
from ld3m.data.sources import SOURCES
from ld3m.errors import DivergedError, UserError
from ld3m.machine.processes import Processes, apart, watched_command
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, load
from ld3m.recipe.objectives import LEARNING_RATES
from ld3m.tuning.axes import Range, combinations, draw, ordered, parse_axis
from ld3m.tuning.draws import Draws
from ld3m.tuning.halving import Figure, Halving, Note
from ld3m.tuning.options import Budget
from ld3m.tuning.outlook import forecast
from ld3m.tuning.ready import ready_axes
from ld3m.tuning.results import Candidate, close, decision, importances, ranked
from ld3m.tuning.results import Outcome as Results
from ld3m.tuning.search import Search
from ld3m.tuning.trials import Trials
from ld3m.tuning.tune import Tuning
from ld3m.tuning.worker import Worker, measured

# --- axes --------------------------------------------------------------------------------------------------

words = st.text("ab/_-19", min_size=1, max_size=6).map("w".__add__)
positive = st.integers(1, 10**6).map(lambda number: number / 1000)


@given(st.lists(words, min_size=1, max_size=4, unique=True), st.lists(words, min_size=1, max_size=3, unique=True))
def test_lists_and_conditions_come_back(values: list[str], needed: list[str]) -> None:
    """However the arrow is written."""
    plain = parse_axis(f"prior.source={','.join(values)}")
    assert (plain.key, plain.values, plain.when) == ("prior.source", tuple(values), ())
    for arrow in (":", "->", " → "):
        axis = parse_axis(f"a.b={','.join(needed)}{arrow}prior.source={','.join(values)}")
        assert (axis.key, axis.values, axis.when) == ("prior.source", tuple(values), (("a.b", tuple(needed)),))
        assert parse_axis(axis.name + "=" + ",".join(values)) == axis
    assert plain.applies({}.get)
    assert [axis.applies({"a.b": value}.get) for value in (*needed, "!")] == [True] * len(needed) + [False]


@given(positive, positive, st.sampled_from(["", ":log", ":linear"]))
def test_ranges_are_logarithmic_from_a_factor_of_ten_on(low: float, high: float, scale: str) -> None:
    if low >= high:
        with pytest.raises(UserError, match="the low end comes first" if low > high else "both ends are the same"):
            parse_axis(f"distill.lr_latents={low}..{high}{scale}")
        return
    axis = parse_axis(f"distill.lr_latents={low}..{high}{scale}")
    expected = {":log": True, ":linear": False}.get(scale, high / low >= 10 - 1e-12)
    assert axis.values == Range(low, high, expected, integer=False)
    assert float(axis.text(math.pi * low)) == pytest.approx(math.pi * low, rel=5e-3)  # three digits


def test_integers_are_those_of_the_key() -> None:
    """`prior.steps` is an integer, a rate written in whole numbers is none."""
    steps, rate = parse_axis("prior.steps=1..10"), parse_axis("distill.lr_latents=5..500")
    assert steps.values == Range(1, 10, log=True, integer=True)
    assert (steps.options, rate.options) == (range(1, 11), None)
    assert (steps.text(7), rate.text(123.456)) == ("7", "123")
    assert rate.values == Range(5, 500, log=True, integer=False)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("prior.steps", "--axis: 'prior.steps' is invalid: give KEY=A,B,… or KEY=LOW..HIGH"),
        ("prior.steps=1,,2", "--axis: 'prior.steps=1,,2' is invalid"),
        ("prior.steps=2,2", "--axis prior.steps=2,2: 2 is given twice"),
        ("prior.steps=5..1", "--axis prior.steps=5..1: the low end comes first; give prior.steps=1..5"),
        ("prior.steps=1.5..3", "--axis prior.steps=1.5..3: prior.steps is an integer"),
        ("distill.lr_latents=0..3:log", "a logarithmic range begins above 0"),
        ("distill.lr_latents=1..1e999", "its ends must be finite numbers"),
        ("seed=0,1", "--axis seed: a seed is no setting"),
        ("evaluate.arch=convnet,vit", "--axis evaluate.arch: all candidates must be measured in one way"),
        ("data.source=a,b", "--axis data.source: all candidates must be measured on the same images"),
        ("prior.skip=,:distill.lr_latents=1..2", "is invalid"),
    ],
)
def test_a_wrong_axis_is_named(option: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_axis(option)
    assert said in str(caught.value)


def test_values_are_apart_by_their_scale() -> None:
    """By the factor between them if it is logarithmic; of a list, by how seldom one was tried."""
    far, near = parse_axis("distill.lr_latents=0.01..100"), parse_axis("distill.momentum=0..0.9")
    assert far.apart(1.0, [0.01, 10.0]) == pytest.approx(math.log(10))
    assert near.apart(0.5, [0.1, 0.8]) == pytest.approx(0.3)
    assert near.apart(0.5, []) == 0
    assert [parse_axis("a=u,v,w").apart(value, ["u", "v", "u"]) for value in "uvw"] == [-2, -1, 0]


SKIPS = [  # the conditional ones first, which need what comes later
    "prior.skip=paper:distill.lr_latents=5..500",
    "prior.skip=none,reference:distill.lr_latents=0.03..3",
    "prior.skip=none,paper,reference",
]


def test_an_axis_is_drawn_where_its_condition_holds() -> None:
    axes = ordered(list(map(parse_axis, SKIPS)))
    assert [axis.key for axis in axes] == ["prior.skip", "distill.lr_latents", "distill.lr_latents"]
    for skip, end, rate in (("paper", 1, "500"), ("none", 0, "0.03"), ("reference", 0, "0.03")):
        settings, parameters = draw(axes, {}.get, lambda axis, skip=skip, end=end: (  # type: ignore[misc]
            skip if axis.key == "prior.skip" else (axis.values.low, axis.values.high)[end]))  # fmt: skip
        assert settings == {"prior.skip": skip, "distill.lr_latents": rate}
        assert len(parameters) == 2
    assert list(combinations(axes, {}.get)) == []  # numbers without number
    counted = ordered([parse_axis("a=1,2"), parse_axis("a=2:b=x,y"), parse_axis("b=y:c=7,8,9")])
    found = [settings for settings, _ in combinations(counted, {"b": "y"}.get)]
    assert [len(settings) for settings in found] == [2] * 3 + [2] + [3] * 3  # a=1 leaves b as it is, which is y
    both = [parse_axis("a=1,2:b=1,2"), parse_axis("a=2,3:b=3,4"), parse_axis("a=2,3")]
    with pytest.raises(UserError, match="--axis a=2,3:b: another axis of b holds too with a=2 b=1"):
        list(combinations(ordered(both), {}.get))
    with pytest.raises(UserError, match="depend on each other"):
        ordered([parse_axis("a=1:b=1,2"), parse_axis("b=1:a=1,2")])


RATES = {
    "reference": {"distill.lr_latents": (0.03, 3), "distill.lr_conditioning": (0.03, 3)},
    "none": {"distill.lr_latents": (0.3, 100), "distill.lr_conditioning": (0.02, 2)},
    "paper": {"distill.lr_latents": (5, 2000), "distill.lr_conditioning": (0.1, 500)},
}
"""Around the rates that were the best by skip, in recipes/results/README.md, for `dm` and one image per class."""


@pytest.mark.parametrize("name", ["rates", "all"])
def test_ready_axes_fit_each_objective_skip_and_prior(name: str) -> None:
    """All ends of all ranges are recipes; the published rates of the objectives are inside; ten images widen them."""
    for objective, rate in LEARNING_RATES.items():
        for prior in (["prior.source=pixels"], ["prior.steps=0"], ["prior.skip=none"], ["prior.skip=paper"]):
            given_ = [f"distill.objective={objective}", "distill.images_per_class=10", *prior]
            options = ready_axes(name, recipe := load(Recipe, "baselines/base", given_))
            axes = [parse_axis(option) for option in options]
            for axis in axes:
                conditions = [f"{key}={values[0]}" for key, values in axis.when]
                for end in axis.ends if objective == "dm" and prior != ["prior.steps=0"] else ():
                    load(Recipe, "baselines/base", [*given_, *conditions, f"{axis.key}={end}"])
            skip = prior[0].removeprefix("prior.skip=")
            for key, (low, high) in RATES.get(skip, RATES["reference"]).items():
                own = [axis for axis in axes if axis.key == key]
                fitting = [axis for axis in own if axis.applies(lambda key, recipe=recipe: _value(recipe, key))]  # type: ignore[misc]
                if key == "distill.lr_conditioning" and not fitting:
                    assert recipe.distill.learn == "latents"
                    continue
                (values,) = [axis.values for axis in fitting]
                assert isinstance(values, Range)
                assert (values.low, values.high) == pytest.approx((low * rate, high * rate * 10))
    sixteen_in_one = ready_axes("all", load(Recipe, "fashion-mnist-ipc1"))  # one image has no deviation to match
    assert {"distill.factor=2,4", "distill.factor=2,4:distill.dm.match=mean,moments"} <= set(sixteen_in_one)
    with pytest.raises(UserError, match="--axes: 'rate' is not known; known are rates, all"):
        ready_axes("rate", recipe)


def _value(recipe: Recipe, key: str) -> Any:
    value: Any = recipe.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


# --- trials, by a made-up accuracy ---------------------------------------------------------------------------

BASE = {"prior.skip": "none", "distill.lr_latents": 0.1}
BEST = {"none": (70, 0.3), "reference": (71, 0.3), "paper": (75, 100)}
"""Of each skip: the accuracy at the best rate, and that rate."""


class MadeUp:
    """An accuracy that falls by eight points per factor of ten from the best rate, less in short runs."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.runs: list[tuple[int, int, int]] = []
        self.stop_at = stop_at

    def __call__(self, number: int, settings: Mapping[str, str], rung: int, seed: int) -> Figure:
        if len(self.runs) == self.stop_at:
            raise SystemExit(143)
        self.runs.append((number, rung, seed))
        values = BASE | settings
        top, rate = BEST[str(values["prior.skip"])]
        return {"mean": top - 8 * abs(math.log10(float(values["distill.lr_latents"]) / rate)) + rung, "seconds": 1.0}


def trials_in(folder: Path, options: list[str] = SKIPS, base: Mapping[str, Any] = BASE, seed: int = 0) -> Trials:
    axes = ordered(list(map(parse_axis, options)))
    return Trials(folder, Draws(axes, base.get, lambda settings: json.dumps(base | settings), seed, print), {"a": 1})


def worker(trials: Trials, measure: Any, **changes: Any) -> Worker:
    return Worker(**{"trials": trials, "measure": measure, "rungs": 3, "eta": 3, "say": print} | changes)


def told(trials: Trials) -> list[tuple[Any, ...]]:
    return [(note.number, note.settings, note.state, note.figures) for note in trials.notes()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trials, MadeUp]:
    """Eighteen trials, searched to their end."""
    trials, measure = trials_in(tmp_path_factory.mktemp("searched")), MadeUp()
    one = worker(trials, measure)
    one.search(18)
    one.end()
    return trials, measure


def test_the_known_optimum_is_found(searched: tuple[Trials, MadeUp]) -> None:
    """Within a factor of two of the best rate of the best skip, which is four to five points above the others."""
    best = ranked(searched[0])[0]
    assert best.settings["prior.skip"] == "paper"
    assert 50 < float(best.settings["distill.lr_latents"]) < 200
    assert best.rung == 2


def drawn_after(values: list[float], accuracies: list[float], seed: int) -> float:
    """What is tried of a rate from 0.01 to 100 after some values and what they got."""
    axis = parse_axis("distill.lr_latents=0.01..100")
    notes = [
        Note(number, {}, {axis.name: value}, {0: {"mean": mean, "seconds": 1.0}}, "complete")
        for number, (value, mean) in enumerate(zip(values, accuracies, strict=True))
    ]
    tried = Draws([axis], {"distill.lr_latents": 1.0}.get, json.dumps, seed, print).next(notes, ())
    assert tried is not None
    return float(tried["parameters"][axis.name])


@pytest.mark.parametrize("seed", range(4))
def test_the_first_values_are_spread(seed: int) -> None:
    """Each two more than half a decade from each other, of four; random ones of four are half as far."""
    values = [drawn_after([], [], seed)]
    assert values == [1.0], "the recipe as it is"
    for _ in range(3):
        values.append(drawn_after(values, [50.0] * len(values), seed))
    logarithms = sorted(map(math.log10, values))
    assert min(b - a for a, b in pairwise(logarithms)) > 0.5


def test_later_values_are_near_the_best() -> None:
    """Of accuracies that fall by ten points per decade from a rate of 10 on; the worst is three decades away."""
    values = np.logspace(-2, 2, 24).tolist()
    accuracies = [80 - 10 * abs(math.log10(value) - 1) for value in values]
    away = [abs(math.log10(drawn_after(values, accuracies, seed)) - 1) for seed in range(8)]
    assert np.mean(away) < 0.75


def test_the_best_third_of_a_rung_is_promoted(searched: tuple[Trials, MadeUp]) -> None:
    """At the end each rung's best third has been promoted; whoever was promoted was in it when that was decided."""
    trials, measure = searched
    notes = {note.number: note for note in trials.notes()}
    assert Counter(measure.runs).most_common(1)[0][1] == 1  # no run is made twice
    for rung in (0, 1):
        measured = [note for note in notes.values() if rung in note.figures and note.number]
        measured.sort(key=lambda note: -note.figures[rung]["mean"])
        assert all(rung + 1 in note.figures for note in measured[: len(measured) // 3])
    met: dict[int, dict[int, float]] = {0: {}, 1: {}, 2: {}}
    for number, rung, _ in measure.runs:
        if not number:  # the recipe as it is has all rungs, beside the best
            continue
        if rung:
            better = sum(mean > met[rung - 1][number] for mean in met[rung - 1].values())
            assert better < max(1, len(met[rung - 1]) // 3)
        met[rung][number] = notes[number].figures[rung]["mean"]
    assert (len(notes), len(met[0])) == (18, 17)
    assert notes[0].settings == {}
    assert set(notes[0].figures) == {0, 1, 2}


def test_a_search_that_is_killed_resumes_as_if_it_had_not_been(searched: tuple[Trials, MadeUp], tmp_path: Path) -> None:
    """At any run; every run that ended is kept, also if the last line of the journal was torn."""
    total = 0
    for stop in (0, 1, 9):
        killed = MadeUp(stop_at=stop)
        with pytest.raises(SystemExit):
            worker(trials_in(tmp_path), killed).search(18)
        total += stop
        with (tmp_path / "journal.jsonl").open("a") as journal:
            journal.write('{"op_code":')
    rest = MadeUp()
    trials = trials_in(tmp_path)
    last = worker(trials, rest)
    last.search(18)
    last.end()
    assert told(trials) == told(searched[0])
    assert len(rest.runs) + total == len(searched[1].runs)


def test_workers_take_different_trials(tmp_path: Path) -> None:
    """Two that share a folder, at once; a trial whose worker has gone is taken up with what it had."""
    here, there, halving = trials_in(tmp_path), trials_in(tmp_path), Halving(3, 3, 2, 0)
    with here.take(2, halving) as one:
        assert there.others_are_at_work()
        with there.take(2, halving) as other:
            assert one is not None
            assert other is not None
            assert (one.number, other.number) == (0, 1)
            assert other.settings not in ({}, one.settings)
            with here.take(2, halving) as third:
                assert third is None
            here.record(one, 0, {"mean": 50.0, "seconds": 1.0})
    assert not there.others_are_at_work()
    with there.take(2, halving) as again:
        assert again is not None
        assert (again.number, again.figures) == (0, {0: {"mean": 50.0, "seconds": 1.0}})


def test_every_combination_is_tried_once(tmp_path: Path) -> None:
    """Five, of which one is the recipe as it is and one is not allowed; then there are no more."""
    lines: list[str] = []

    def identify(settings: Mapping[str, str]) -> str:
        values = {"a": "1", "b": "2"} | settings
        if values == {"a": "3", "b": "2"}:
            raise UserError("a: 3 does not go with b=2")
        return json.dumps(values)

    axes = ordered([parse_axis("a=1,2,3"), parse_axis("b=2,4")])
    trials = Trials(tmp_path, Draws(axes, {"a": 1, "b": 2}.get, identify, 0, lines.append), {})
    worker(trials, lambda *_: {"mean": 1.0, "seconds": 0.0}, rungs=1).search(None)
    found = [{"a": "1", "b": "2"} | note.settings for note in trials.notes()]
    assert sorted(found, key=str) == sorted(
        [{"a": a, "b": b} for a in "123" for b in "24" if (a, b) != ("3", "2")], key=str
    )
    assert trials.exhausted
    assert lines == ["not tried: a: 3 does not go with b=2"]


def test_minutes_end_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a second, three and nine: none begins that would end after twenty; the same search continues."""
    now = count()
    clock = {"at": 0.0}
    monkeypatch.setattr("ld3m.tuning.worker.time.monotonic", lambda: clock["at"])

    def measure(number: int, settings: Mapping[str, str], rung: int, seed: int) -> Figure:
        clock["at"] += 3.0**rung
        return {"mean": float(next(now)), "seconds": 3.0**rung}

    trials = trials_in(tmp_path)
    one = worker(trials, measure, until=20.0)
    one.search(None)
    assert one.stopped
    assert 19.0 < clock["at"] <= 20.0
    clock["at"] = 0.0
    worker(trials_in(tmp_path), measure, until=5.0).search(None)
    assert 4.0 < clock["at"] <= 5.0


def test_a_diverged_trial_is_the_worst_and_other_failures_are_not_counted(tmp_path: Path) -> None:
    lines: list[str] = []

    def measure(number: int, settings: Mapping[str, str], rung: int, seed: int) -> Figure:
        if number == 1:
            raise DivergedError("the loss is not finite")
        if number in (2, 3) or number > 7:
            raise UserError("memory ran out")
        return {"mean": 50.0 + number, "seconds": 1.0}

    trials = trials_in(tmp_path)
    worker(trials, measure, rungs=1, say=lines.append).search(6)
    notes = trials.notes()
    assert [note.state for note in notes] == ["complete"] * 2 + ["failed"] * 2 + ["complete"] * 4
    assert notes[1].figures[0]["mean"] == 0
    assert [candidate.number for candidate in ranked(trials)] == [7, 6, 5, 4, 0, 1]
    assert lines == ["trial 2: failed: memory ran out", "trial 3: failed: memory ran out"]
    with pytest.raises(UserError, match="trial 10: memory ran out"):  # three in a row
        worker(trials, measure, rungs=1, say=lines.append).search(20)


def test_what_diverges_in_a_long_run_is_not_the_best(tmp_path: Path) -> None:
    """However far it got; if all do, that is the mistake that is reported."""

    def measure(number: int, settings: Mapping[str, str], rung: int, seed: int) -> Figure:
        if number == 1 and rung:
            raise DivergedError("the loss is not finite")
        return {"mean": 50.0 + 10 * (number == 1) - rung, "seconds": 1.0}

    trials = trials_in(tmp_path)
    with trials.take(2, Halving(2, 2, 1, 0)) as taken:
        assert taken
        trials.record(taken, 0, measure(0, {}, 0, 0))
        trials.pause(taken)
    with trials.take(2, Halving(1, 2, 0, 0)) as taken:
        assert taken
        trials.record(taken, 0, measure(1, {}, 0, 0))
        trials.record(taken, 1, measured(partial(measure, 1, {}, 1, 0)))
        trials.complete(taken)
    found = ranked(trials)
    assert [(each.number, each.diverged) for each in found] == [(0, False), (1, True)]
    assert decision(found, 1.0).startswith("trial 0 (the recipe as it is) is the only one")
    assert close(found, 100.0) == []
    with pytest.raises(UserError, match=r"no trial could be measured: trial 1 .* diverged: the loss is not finite"):
        _ = Results(found[1:], "", {"trials": []}, is_main=True).best


# --- results -----------------------------------------------------------------------------------------------


def candidate(number: int, *means: float, rung: int = 2) -> Candidate:
    return Candidate(number, {"a": str(number)}, rung, [{"mean": mean, "seconds": 1.0} for mean in means], 1.0)


def test_candidates_are_ranked_by_length_and_by_the_mean_of_their_distillations() -> None:
    """A short run's accuracy is no longer one's, and one lucky distillation is not the mean of two."""
    notes = [
        Note(0, {}, {}, {0: {"mean": 99.0, "seconds": 1.0}}, "pruned"),
        Note(1, {}, {}, {0: {"mean": 50.0, "seconds": 1.0}, 1: {"mean": 75.0, "seconds": 3.0}}, "complete"),
        Note(2, {}, {}, {0: {"mean": 60.0, "seconds": 1.0}, 1: {"mean": 70.0, "seconds": 3.0}}, "complete"),
        Note(3, {}, {}, {}, "failed"),
    ]
    more = {"1-rung1-seed1": {"mean": 61.0, "seconds": 4.0}, "2-rung1-seed1": {"mean": 69.0, "seconds": 4.0}}
    trials: Any = SimpleNamespace(notes=lambda: notes, figure=more.get)
    found = [(each.number, each.by_seed, each.mean, each.seconds) for each in ranked(trials)]
    assert found == [(2, [70, 69], 69.5, 8), (1, [75, 61], 68, 8), (0, [99], 99, 1)]


def test_four_at_a_time_are_close() -> None:
    """A point away is within a point; shorter runs are not compared."""
    found = [candidate(number, 70.0 - 0.25 * number) for number in range(6)]
    assert [each.number for each in close(found, 1)] == [0, 1, 2, 3]
    assert [each.number for each in close([found[0], found[4], candidate(7, 69.0, rung=1)], 1)] == [0, 4]
    assert close([found[0], found[5]], 1) == []


def test_what_is_close_gets_more_distillations_and_the_interval_decides() -> None:
    """Student's interval of paired differences, by its formula; a fourth of the second has no counterpart."""
    ours, theirs = [70.0, 72.0, 71.0], [69.0, 70.5, 70.4]
    best, second, low = candidate(1, *ours), candidate(2, *theirs), candidate(3, 99.0, rung=1)
    assert close([best, second, low], 1.5) == [best, second]
    assert close([best, second, low], 0.5) == []
    differences = np.array(ours) - theirs
    margin = student.ppf(0.975, 2) * differences.std(ddof=1) / 3**0.5
    low_end, high_end = differences.mean() - margin, differences.mean() + margin
    assert decision([best, second, low], 1) == (
        f"trial 1 (a=1) is {differences.mean():.2f} points ahead of trial 2 (a=2), 95 % interval "
        f"[{low_end:+.2f}, {high_end:+.2f}] over 3 distillations: they are not told apart, and the higher mean is taken"
    )
    fourth = decision([best, candidate(2, *theirs, 70.0)], 1)
    assert f"interval [{low_end:+.2f}, {high_end:+.2f}] over 3 distillations" in fourth
    told_apart = decision([candidate(1, 70.0, 71.0, 72.0), candidate(2, 60.0, 61.1, 62.0)], 1)
    assert told_apart.endswith("they are told apart")
    assert "more than the 1 within which" in decision([candidate(1, 70.0), candidate(2, 60.0)], 1)


def test_one_image_does_not_tell_candidates_apart() -> None:
    """On 40 images they are a step of 2.5 points apart, or two."""

    def on_40(number: int, right: int) -> Candidate:
        return Candidate(number, {}, 2, [{"mean": 100 * right / 40, "seconds": 1.0, "tested_on": 40}], 1.0)

    best, one_less, two_less = on_40(1, 35), on_40(2, 34), on_40(3, 33)
    assert close([best, one_less, two_less], 1.0) == [best, one_less]
    assert decision([best, one_less], 1.0).endswith("by one distillation; they are not told apart")
    assert "more than the 2.5 within which" in decision([best, two_less], 1.0)
    assert close([best, one_less, two_less], 6.0) == [best, one_less, two_less]


def test_what_matters_is_what_the_accuracy_depends_on() -> None:
    axes = [parse_axis("a=0.0..1.0"), parse_axis("b=0.0..1.0"), parse_axis("b=2:c=1,2")]
    draws = np.random.default_rng(0)
    values = [(draws.permutation(40) / 40).tolist() for _ in "ab"]  # the best have a high a, the worst a low b
    notes = [
        Note(
            number, {}, {"a": a, "b": b}, {0: {"mean": 50 + 40 * (a >= 0.9) - 45 * (b < 0.1), "seconds": 1.0}}, "pruned"
        )
        for number, (a, b) in enumerate(zip(*values, strict=True))
    ]
    shares = importances(axes, notes)
    assert shares["a"] > 0.7
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert "b=2:c" not in shares  # nothing had it
    assert importances(axes, notes[:5]) == {}
    tied = [Note(note.number, {}, note.parameters, {0: {"mean": 15.0, "seconds": 1.0}}, "pruned") for note in notes]
    assert importances(axes, tied) == {}  # and Optuna's warning is not printed


# --- images that are not read --------------------------------------------------------------------------------


class Counting:
    """A source of two classes of noise, bright and dark, that counts how often images of each split are read."""

    def __init__(self) -> None:
        self.reads = Counter[str]()

    def __call__(self, recipe: Any) -> Source:
        splits = {"train": 10, "test": 4}
        return Source(
            classes=["dark", "bright"],
            splits={
                split: [self.example(split, label, index) for label in range(2) for index in range(size)]
                for split, size in splits.items()
            },
            identity="counting",
        )

    def example(self, split: str, label: int, index: int) -> Example:
        def read() -> Image.Image:
            self.reads[split] += 1
            values = np.random.default_rng([label, index, len(split)]).integers(0, 100, (8, 8)) + 150 * label
            return Image.fromarray(values.astype(np.uint8))

        return Example(f"{split}/{label}/{index}", label, read)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    source = Counting()
    monkeypatch.setitem(SOURCES, "counting", source)
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    content = {
        "name": "counted",
        "data": {"source": "counting", "resolution": 8, "channels": 1},
        "prior": {"source": "pixels"},
        "distill": {"iterations": 2, "real_batch": 4},
        "network": {"width": 4, "depth": 1},
        "evaluate": {"arch": ["convnet"], "seeds": 1, "epochs": 2, "lr": 0.01},
    }
    (tmp_path / "counted.yaml").write_text(yaml.safe_dump(content))
    return source


def test_images_for_tests_are_neither_read_nor_held_out_again(counting: Counting, tmp_path: Path) -> None:
    """The training images are those of a recipe that reads them, which is the same run, too."""
    overrides = ["data.validation_share=0.2"]
    with_test, without = (
        load(Recipe, str(tmp_path / "counted.yaml"), [*overrides, f"data.read_test={value}"])
        for value in ("true", "false")
    )
    left_alone = prepare(without.data, progress=False)
    assert counting.reads == {"train": 20}
    assert (left_alone.counts, left_alone.judging) == ({"train": [8, 8], "validation": [2, 2]}, "validation")
    images = prepare(with_test.data, progress=False)
    assert (counting.reads["test"], images.judging) == (8, "test")
    assert images.fingerprints == left_alone.fingerprints
    assert torch.equal(images.images("validation", 1), left_alone.images("validation", 1))
    assert digest(with_test) == digest(without)
    with pytest.raises(
        UserError, match=r"data.read_test: false leaves nothing to measure on; give data.validation_share"
    ):
        _ = prepare(load(Recipe, str(tmp_path / "counted.yaml"), ["data.read_test=false"]).data, progress=False).judging


def test_a_search_reads_no_test_image_before_its_end(
    ld3m: Callable[..., Outcome], counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line: trials, table, chart, a recipe that runs; resumed with --final, which reads them."""
    options = ["counted.yaml", "--axis", "distill.lr_latents=0.1..10", "--axis", "distill.optimiser=sgd,adam",
               "--rungs", "2", "--eta", "2", "--close", "100", "--distillations", "2", "-o", "found"]  # fmt: skip
    outcome = ld3m("tune", *options, "--trials", "2")
    assert outcome.code == 0, outcome.err
    assert counting.reads["test"] == 0
    first = json.loads((tmp_path / "found/tune.json").read_text())
    assert first["rungs"] == [0.5, 1]
    assert first["held_out"] == ["data.validation_share=0.1", "data.read_test=false"]
    assert [[run["iterations"] for run in trial["runs"]] for trial in first["trials"]] in ([[1, 2], [1]], [[1, 2]] * 2)
    runs = sorted(path.parent.name for path in (tmp_path / "found/trials/0000").glob("*/evaluation.json"))
    assert runs[:2] == ["rung-1-seed-0", "rung-2-seed-0"]
    for run in (tmp_path / "found/trials").glob("*/*"):
        assert {row["split"] for row in json.loads((run / "evaluation.json").read_text())["results"]} == {"validation"}
    said = [line for line in outcome.err.splitlines() if "rung 1 of 2" in line]
    assert said[0] == "trial 0, rung 1 of 2: the recipe as it is"
    assert (
        "estimate, by a few iterations and steps: runs of the 2 rungs take about " in outcome.err.partition(said[0])[0]
    ), "at the start"
    assert "after 1 iteration, in" in said[1]
    few = "easured on 2 images: each is 50.0 points of accuracy; data.validation_share holds out more"
    assert few in outcome.err
    assert few in (tmp_path / "found/tune.md").read_text()
    assert "no test image is read" in outcome.err
    assert "(data.validation_share; set by tune, as the recipe has none)" in outcome.err

    for room in ("tune", "table"):
        monkeypatch.setattr(f"ld3m.tuning.{room}.FINAL", 2)  # five take long
    outcome = ld3m("tune", *options, "--trials", "3", "--final")
    assert outcome.code == 0, outcome.err
    assert "resumed: 2 trials" in outcome.err
    assert re.search(r"^runs of the 2 rungs take about .*; 1 trial ", outcome.err, re.M), (
        "what is left, by the runs that are made"
    )
    assert counting.reads["test"] == 8
    report = json.loads((tmp_path / "found/tune.json").read_text())
    assert [trial["runs"][0] for trial in report["trials"][:2]] == [trial["runs"][0] for trial in first["trials"]]
    assert len(report["trials"]) == 3
    assert [figure["seed"] for figure in report["final"]] == [0, 1]
    accuracies = [value for figure in report["final"] for value in figure["accuracies"]["convnet"]]
    row = f"convnet {np.mean(accuracies):.1f} ± {np.std(accuracies):.1f} (2)"
    assert row in (tmp_path / "found/tune.md").read_text()
    assert row in outcome.out
    ET.fromstring((tmp_path / "found/tune.svg").read_text())
    best = report["ranked"][0]
    recipe = load(Recipe, str(tmp_path / "found/best.yaml"))
    assert (recipe.name, recipe.data.read_test, recipe.data.validation_share) == ("counted-tuned", True, 0)
    assert recipe.distill.lr_latents == float(best["settings"].get("distill.lr_latents", 1))
    assert (recipe.distill.iterations, recipe.evaluate.epochs) == (2, 2)
    assert ld3m("distill", "found/best.yaml").code == 0

    outcome = ld3m("tune", *options, "--trials", "3", "distill.real_batch=5")
    assert outcome.code == 2
    assert "output: found holds another search (distill.real_batch differ); give another --output" in outcome.err


def test_the_same_from_python(counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = package.tune("counted.yaml", axis=["distill.momentum=0,0.5"], output="mine", trials=5, rungs=1, close=0)
    assert sorted(candidate.overrides for candidate in found.ranked) == [[], ["distill.momentum=0"]]
    assert found.best.mean == found.report["ranked"][0]["mean"]
    assert counting.reads["test"] == 0
    options = {field.name: field.default for field in dataclasses.fields(Budget)}
    given = inspect.signature(package.tune).parameters
    assert {name: given[name].default for name in options} == options
    with pytest.raises(UserError, match="--trials: -1 is too few"):
        package.tune("counted.yaml", axis=["distill.momentum=0,0.5"], trials=-1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--axis: give one or more, such as distill.lr_latents=0.03..3, or --axes rates"),
        (["--axes", "some"], "--axes: 'some' is not known; known are rates, all"),
        (["--axis", "prior.stepz=1,2"], "--axis prior.stepz: unknown key; did you mean prior.steps?"),
        (["--axis", "distill.optimiser=sgd,adan"], "--axis distill.optimiser=adan:"),
        (["--axis", "distill.momentum=0.5..1"], "--axis distill.momentum=1:"),
        (["--axis", "distill.momentum=0.1,0.2", "distill.momentum=0"], "--axis: distill.momentum is an override too"),
        (["--axes", "rates", "output=there"], "output: each run has a folder of its own"),
        (["--axes", "rates", "--minutes", "0"], "--minutes: 0 is invalid"),
        (["--axes", "rates", "data.read_test=true"], "data.read_test: is false until the end"),
        (["--axes", "rates", "--arch", "convnut"], "evaluate.arch: 'convnut' is not known"),
        (
            ["--axis", "prior.skip=paper:distill.lr_latents=5..500"],
            "--axis prior.skip=paper:distill.lr_latents: no candidate has prior.skip=paper (the recipe has reference)",
        ),
        (
            ["--axis", "prior.guidance=1..5", "--axis", "prior.guidance=3:distill.momentum=0,0.5"],
            "--axis prior.guidance=3:distill.momentum: no candidate has prior.guidance=3; give",
        ),
        (["--axis", "sample.method=plain,d4m"], "--axis sample.method: has no effect, as distill.init is real; give"),
        (
            ["--axis", "distill.dc.match=rows,orthogonal"],
            "--axis distill.dc.match: has no effect, as distill.objective is",
        ),
        (
            ["--axis", "prior.skip=none,paper", "prior.steps=0"],
            "--axis prior.skip: has no effect, as prior.steps is 0;",
        ),
        (
            ["--axis", "prior.skip=none,paper", "prior.source=pixels"],
            "--axis prior.skip: has no effect, as prior.source",
        ),
        (["--axis", "distill.lr_conditioning=1..9", "distill.learn=latents"], "distill.learn is latents; give"),
        (["--axis", "distill.checkpoint_every=1,5"], "--axis distill.checkpoint_every: no accuracy depends on it"),
        (["--axis", "hub.private=true,false"], "--axis hub.private: no accuracy depends on it; leave it out"),
        (["--axes", "rates", "distill.init=sample", "distill.iterations=0"], "--axes rates: distill.iterations is 0"),
        (["--axes", "rates", "--rungs", "9"], "--rungs: 9, but 2 of them would be as short as the one before; give 7"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_run(
    ld3m: Callable[..., Outcome], tmp_path: Path, arguments: list[str], said: str
) -> None:
    outcome = ld3m("tune", "digits", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_it_will_take(ld3m: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = ld3m("tune", "digits", "--axis", "distill.lr_latents=0.1..10", "--minutes", "3", "--dry-run")
    full = load(Recipe, "digits")
    assert outcome.code == 0, outcome.err
    assert "trials for 3 minutes" in outcome.out
    assert "axis distill.lr_latents=0.1..10 (logarithmic)" in outcome.out
    assert f"rungs: {round(full.distill.iterations / 9)} iterations and" in outcome.out
    assert not (tmp_path / "tunings").exists()


@pytest.mark.parametrize(
    ("budget", "made", "said"),
    [  # a third of the trials gets each longer run: 20 × (10 + 30/3 + 90/9) / 2 s; four twice more; five
        (Budget(trials=20, final=True), 0, "; 20 trials about 5 min 0 s (21 min 40 s if all went to the end); further "
         "distillations up to 6 min 0 s; then 3 min 45 s for the final 5"),
        (Budget(trials=20, distillations=1), 19, "; 1 trial about 30 s (2 min 10 s if all went to the end)"),
        (Budget(trials=20, distillations=1), 20, ""),
        (Budget(minutes=10), 5, ", so that there is time for about 28 trials"),
        (Budget(minutes=1), 0, ", so that there is time for about 3 trials; none of full length: that takes more than "
         "--minutes 1"),
    ],
)  # fmt: skip
def test_what_a_search_will_take(tmp_path: Path, budget: Budget, made: int, said: str) -> None:
    search = Search.of("digits", [], ["distill.momentum=0,0.9"], folder=tmp_path, budget=budget)
    assert (
        forecast(search, [10, 30, 90], made, processes=2)
        == f"runs of the 3 rungs take about 10 s, 30 s and 1 min 30 s{said}"
    )


def test_a_short_run_has_its_part_of_everything(tmp_path: Path) -> None:
    """A ninth of the iterations and epochs, and an average of weights over the same part of a training."""
    overrides = ["distill.iterations=90", "evaluate.epochs=180", "evaluate.ema=0.99", "data.validation_share=0.2"]
    search = Search.of("digits", overrides, ["distill.momentum=0,0.9"], folder=tmp_path)
    short, full = search.run(3, {"distill.momentum": "0.9"}, 0, 1), search.run(3, {"distill.momentum": "0.9"}, 2, 1)
    assert (short.distill.iterations, short.evaluate.epochs, short.evaluate.ema) == (10, 20, round(0.99**9, 6))
    assert (full.distill.iterations, full.evaluate.epochs, full.evaluate.ema) == (90, 180, 0.99)
    assert (short.seed, short.distill.momentum) == (1, 0.9)
    assert (short.data.validation_share, short.data.read_test) == (0.2, False)
    assert search.held_out == ["data.read_test=false"]
    assert short.folder == tmp_path / "trials/0003/rung-1-seed-1"


def test_all_networks_count_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over architectures, whatever the seeds of each; its runs are measured on held-out images alone."""
    rows = {"convnet": [60.0, 70.0, 80.0], "resnet18": [10.0, 20.0]}
    asked: list[str] = []

    def row(recipe: Recipe, trained_on: str, arch: str, split: str) -> dict[str, Any]:
        asked.append(split)
        return {"accuracies": rows[arch], "tested_on": 100}

    monkeypatch.setattr("ld3m.tuning.search.check_inputs", lambda _: None)  # which builds networks
    monkeypatch.setattr("ld3m.tuning.tune.make", lambda *_: None)
    monkeypatch.setattr("ld3m.tuning.tune.result", row)
    monkeypatch.setattr("ld3m.tuning.tune.cost", lambda _: {"seconds": 3.0})
    search = Search.of(
        "digits",
        ["evaluate.arch=[convnet,resnet18]"],
        ["distill.momentum=0,0.9"],
        folder=tmp_path,
    )
    figure = Tuning(Processes(torch.device("cpu")), search, "").measure(1, {"distill.momentum": "0"}, 2, 0)
    assert (figure["mean"], figure["accuracies"], figure["seconds"]) == (42.5, rows, 3)
    assert set(asked) == {"validation"}


def test_a_command_apart_is_each_processs_own() -> None:
    @watched_command
    def who(processes: Processes) -> tuple[int, int]:
        return processes.process_index, processes.num_processes

    with apart(Processes(torch.device("cpu"), 1, 2)):
        assert who() == (0, 1)


@pytest.mark.slow
def test_processes_of_a_launch_share_the_trials(tmp_path: Path) -> None:
    """Each run is made once, by one of two processes, and both make some."""
    options = ["tune", "digits", "prior.source=pixels", "distill.iterations=2", "evaluate.epochs=2", "--axes", "rates",
               "--trials", "6", "--rungs", "1", "--distillations", "1", "-o", tmp_path / "both"]  # fmt: skip
    assert finish(spawn(2, command_line, *options, output=tmp_path / "said")) == [0, 0]
    report = json.loads((tmp_path / "both/tune.json").read_text())
    assert [trial["state"] for trial in report["trials"]] == ["complete"] * 6
    said = [(tmp_path / f"said/{rank}.txt").read_text() for rank in range(2)]
    made = [re.findall(r"^process \d: (trial \d), .* in [\d.]+ s$", text, re.M) for text in said]
    assert sorted([*made[0], *made[1]]) == [f"trial {number}" for number in range(6)]
    assert all(made)
