"""Paired differences over seeds: by hand, as published, by their laws, and between runs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, distilled
from hypothesis import given
from hypothesis import strategies as st

from ld3m.data.selection import testing
from ld3m.evaluation.differences import differences, paired
from ld3m.evaluation.tables import accuracy_table, difference_caption, difference_text
from ld3m.reporting.report import report


def test_the_test_by_hand() -> None:
    """Differences 1, 2, 3: t = 2√3. Of 2 degrees of freedom p and the quantile q = 0.975 are closed.

    These are 1 − t/√(t² + 2) and (2q − 1)/√(2q(1 − q)).
    """
    test = paired([51, 62, 43], [50, 60, 40])
    t, quantile = 2 * math.sqrt(3), 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert test.mean == 2
    assert test.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert (test.low, test.high) == pytest.approx((2 - quantile / math.sqrt(3), 2 + quantile / math.sqrt(3)))


def test_the_test_as_published() -> None:
    """Student's sleep data (Biometrika, 1908), as R prints t.test(…, paired = TRUE) of its `sleep`."""
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    two = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    test = paired(one, two)
    assert test.mean == pytest.approx(-1.58)
    assert test.p == pytest.approx(0.002833, abs=5e-7)
    assert (test.low, test.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


accuracies = st.floats(0, 100).map(lambda value: round(value, 2))
pairs = st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=8)


@given(pairs, st.integers(-50, 50))
def test_swapping_turns_the_sign_and_a_constant_changes_nothing(values: list[tuple[float, float]], by: int) -> None:
    one, other = ([pair[place] for pair in values] for place in (0, 1))
    test, turned = paired(one, other), paired(other, one)
    moved = paired([value + by for value in one], [value + by for value in other])
    assert (test.p is None) == (turned.p is None) == (moved.p is None)
    assert turned.mean == pytest.approx(-test.mean)
    assert moved.mean == pytest.approx(test.mean, abs=1e-9)
    if test.p is not None and test.low is not None and test.high is not None:
        assert turned.p == pytest.approx(test.p)
        assert (turned.low, turned.high) == pytest.approx((-test.high, -test.low))
        assert (moved.low, moved.high) == pytest.approx((test.low, test.high), abs=1e-7)
        assert (test.p < 0.05) == (test.low > 0 or test.high < 0) or test.p == pytest.approx(0.05)


def row(
    name: str, seeds: list[float], arch: str = "convnet", epochs: int = 1000, augment: bool = True
) -> dict[str, Any]:
    """A result as evaluation.json has it."""
    about = {"trained_on": name, "arch": arch, "split": "test", "tested_on": 100}
    return about | {"accuracies": seeds, "protocol": {"epochs": epochs, "augment": augment}}


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_pairs_have_no_interval(count: int) -> None:
    test = paired([50.0, 60.0][:count], [45.0, 54.0][:count])
    assert (test.low, test.high, test.p) == (None, None, None)
    (found,) = differences([row("distilled", [50.0, 60.0][:count]), row("random", [45.0, 54.0][:count])])
    assert (found["mean"], found["low"], found["high"], found["p"]) == ([5, 5.5][count - 1], None, None, None)
    assert difference_text(found) == f"+{[5, 5.5][count - 1]:.1f}  no interval: fewer than three pairs"
    assert difference_caption([found]) == ", paired by seed"


def test_three_pairs_have_an_interval_but_equal_differences_none() -> None:
    (three,) = differences([row("distilled", [51.0, 62.0, 43.0]), row("random", [50.0, 60.0, 40.0])])
    assert difference_text(three) == "+2.0  [-0.5, +4.5]  p = 0.074 (3)"  # as in the test by hand
    assert "95 % interval" in difference_caption([three])
    assert three["differences"] == [1, 2, 3], "seed by seed"
    (same,) = differences([row("distilled", [50.1, 60.1, 70.1]), row("random", [45.0, 55.0, 65.0])])
    assert (same["mean"], same["low"], same["p"]) == (5.1, None, None)
    assert difference_text(same) == "+5.1  no interval: the same for all 3 seeds"


def test_a_long_name_is_apart_from_its_figures() -> None:
    long = "run with-a-name-that-is-longer-than-the-column-is-wide"
    rows = [each | {"mean": 50.0, "std": 0.0, "images": 10} for each in (row("distilled", [50.0]), row(long, [45.0]))]
    compared = differences(rows)
    text = accuracy_table({"results": rows, "cross_architecture": [], "differences": compared, "scores": []})
    assert f"distilled − {long}, convnet, test split  +5.0  no interval: fewer than three pairs\n" in text


def test_only_what_was_measured_alike_is_compared() -> None:
    ours = row("distilled", [50.0, 52.0])
    assert differences([ours, row("random", [40.0, 41.0], epochs=300)]) == []
    (common,) = differences([ours, row("random", [40.0, 41.0, 99.0])])
    assert common["differences"] == [10.0, 11.0]
    assert differences([ours, row("random", [40.0, 41.0], augment=False)]) == []
    assert differences([ours, row("random", [40.0, 41.0], arch="vit")]) == []
    (full,) = differences([ours, row("full", [80.0, 81.0], epochs=20)])
    assert (full["against"], full["mean"], full["differences"]) == ("full", -29.5, [-30.0, -29.0])


def test_the_command_line_compares_seed_by_seed(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each architecture, and for the mean over those that it was not matched in."""
    monkeypatch.setattr(testing, "at_chance", lambda *_: False)  # after one epoch they are
    folder = distilled(recipe_file, tmp_path / "run")
    options = ("--arch", "resnet18,alexnet", "--against", "random", "evaluate.epochs=1", "--json")
    outcome = ld3m("evaluate", folder, *options)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    by_set = {(r["trained_on"], r["arch"]): r["accuracies"] for r in found["results"]}
    crossed = {(r["trained_on"], "mean without convnet"): r["accuracies"] for r in found["cross_architecture"]}
    assert [r["arch"] for r in found["differences"]] == ["resnet18", "alexnet", "mean without convnet"]
    printed, page = accuracy_table(found), report(folder).read_text()
    for each in found["differences"]:
        ours, theirs = ((by_set | crossed)[name, each["arch"]] for name in ("distilled", "random"))
        test = paired(ours, theirs)
        assert (each["mean"], each["p"]) == pytest.approx((test.mean, test.p), abs=0.01)
        assert f"distilled − random, {each['arch']}, test split" in printed
        assert difference_text(each) in printed
        assert difference_text(each) in page


def test_a_run_against_another_is_that_one_against_it_turned(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path
) -> None:
    one = distilled(recipe_file, tmp_path / "one")
    other = distilled(recipe_file, tmp_path / "other", "distill.iterations=1", "distill.images_per_class=1")
    rows = []
    for ours, theirs in ((one, other), (other, one)):
        outcome = ld3m("evaluate", ours, "--against", theirs, "--seeds", "3", "--json")
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)
        assert [row["images"] for row in found["results"]] == [6 if ours == one else 3, 6 if theirs == one else 3]
        assert found["results"][1]["trained_on"] == f"run {theirs.name}"
        assert str(tmp_path) not in (ours / "evaluation.json").read_text()
        rows += found["differences"]
    assert [row["against"] for row in rows] == ["run other", "run one"]
    assert rows[0]["differences"] == [-value for value in rows[1]["differences"]]
    assert rows[0]["mean"] == -rows[1]["mean"]
    assert rows[0]["p"] == pytest.approx(rows[1]["p"])


def test_what_cannot_be_compared_is_one_line(ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path) -> None:
    one = distilled(recipe_file, tmp_path / "one", "distill.iterations=0")
    other = distilled(recipe_file, tmp_path / "other", "distill.iterations=0", "data.subset=[circle, cross]")
    outcome = ld3m("evaluate", one, "--against", other)
    assert outcome.code == 2
    expected = f"--against: {other} has data.subset=['circle', 'cross'], not None; give a run of the same data"
    assert outcome.err == f"ld3m: {expected}\n"
    outcome = ld3m("evaluate", one, "--against", "random,runs/none")
    assert outcome.code == 2
    assert outcome.err.startswith("ld3m: --against: 'runs/none' is not known; known are random, ")
    assert outcome.err.count("\n") == 1
