"""DD-Ranking's scores against the package's own, and what the command line makes of them."""

import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, distilled
from hypothesis import given
from hypothesis import strategies as st

from ld3m.data.selection import testing
from ld3m.evaluation import measure
from ld3m.evaluation.scores import augmentation_robust, label_robust, scores
from ld3m.evaluation.tables import accuracy_table
from ld3m.evaluation.training import train
from ld3m.reporting.report import report

FULL, DISTILLED, RANDOM = [87.0, 88.0, 86.0], [70.0, 71.0, 68.5], [52.0, 50.0, 55.0]
PLAIN_DISTILLED, PLAIN_RANDOM = [66.0, 65.5, 67.0], [49.0, 51.0, 50.0]
# What ddranking 0.2.0 makes of these, as shares: compute_metrics of LabelRobustScoreHard, by lrs_lambda, and of
# AugmentationRobustScore, by ars_lambda, with the accuracies in the place of its training.
LRS = {0.5: (0.26970902528073915, 0.007014902111128184), 0.25: (0.23428881102259333, 0.003649066252188309)}
ARS = {0.5: (0.34697298731026943, 0.005638542381091838), 0.25: (0.3452729149420655, 0.0026661171460980095)}
HLR, IOR, GAIN_UNAUGMENTED = 17.166666666666666, 17.499999999999996, 16.16666666666667


def shares(ours: list[float], theirs: list[float]) -> list[float]:
    return [(a - b) / 100 for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("weight", LRS)
def test_the_scores_are_those_of_the_package(weight: float) -> None:
    lacks, gains = shares(FULL, DISTILLED), shares(DISTILLED, RANDOM)
    values = [label_robust(*pair, weight) for pair in zip(lacks, gains, strict=True)]
    assert (statistics.fmean(values), statistics.pstdev(values)) == pytest.approx(LRS[weight], abs=1e-12)
    plain = shares(PLAIN_DISTILLED, PLAIN_RANDOM)
    values = [augmentation_robust(*pair, weight) for pair in zip(gains, plain, strict=True)]
    assert (statistics.fmean(values), statistics.pstdev(values)) == pytest.approx(ARS[weight], abs=1e-12)


def test_the_ends_of_the_scale() -> None:
    """Package, same functions: 0 for accuracies (1, 0, 1) of full, distilled, random; 0.26894… if all are equal."""
    assert label_robust(1.0, -1.0) == 0
    assert label_robust(0.0, 0.0) == pytest.approx(0.26894142136999516, abs=1e-15)
    assert augmentation_robust(1.0, 1.0) == 1


points = st.floats(-1, 1)


@given(points, points, points)
def test_scores_rise_with_what_is_good(hlr: float, ior: float, other: float) -> None:
    low, high = sorted((ior, other))
    assert 0 <= label_robust(hlr, low) <= label_robust(hlr, high) <= 1
    assert label_robust(high, ior) <= label_robust(low, ior)
    assert 0 <= augmentation_robust(low, hlr) <= augmentation_robust(high, hlr) <= 1
    assert augmentation_robust(hlr, ior) == pytest.approx(augmentation_robust(ior, hlr))


def row(trained_on: str, accuracies: list[float], augment: bool = True, **protocol: object) -> dict[str, Any]:
    """A result as evaluation.json has it."""
    usual = {"epochs": 1000, "ema": 0.995, "lr": 0.001, "augment": augment}
    return {
        "trained_on": trained_on,
        "arch": "convnet",
        "split": "test",
        "accuracies": accuracies,
        "images": 10,
        "tested_on": 100,
        "protocol": usual | protocol,
    }


MEASURED = [
    row("distilled", DISTILLED),
    row("random", RANDOM),
    row("full", FULL, epochs=20, ema=0.778313),
    row("distilled", PLAIN_DISTILLED, augment=False),
    row("random", PLAIN_RANDOM, augment=False),
]


def test_scores_of_rows_are_means_over_seeds_as_the_package_has_them() -> None:
    lrs, ars = scores(MEASURED)
    assert (lrs["score"], ars["score"]) == ("LRS", "ARS")
    assert (lrs["mean"], lrs["std"]) == pytest.approx(LRS[0.5], abs=5e-5)
    assert (ars["mean"], ars["std"]) == pytest.approx(ARS[0.5], abs=5e-5)
    assert (lrs["hlr"], lrs["ior"]) == pytest.approx((HLR, IOR), abs=5e-3)
    assert (ars["gain"], ars["gain_unaugmented"]) == pytest.approx((IOR, GAIN_UNAUGMENTED), abs=5e-3)


@pytest.mark.parametrize(
    ("without", "instead", "left"),
    [
        (0, None, []),
        (2, None, ["ARS"]),
        (2, row("full", FULL, epochs=20, batch=7), ["ARS"]),
        (3, None, ["LRS"]),
        (4, row("random", PLAIN_RANDOM, augment=False, epochs=7), ["LRS"]),
        (1, row("random", RANDOM, epochs=300), []),
    ],
)
def test_a_score_needs_all_its_figures_measured_alike(
    without: int, instead: dict[str, Any] | None, left: list[str]
) -> None:
    rows = [each for place, each in enumerate(MEASURED) if place != without] + ([instead] if instead else [])
    assert [score["score"] for score in scores(rows)] == left


def test_scores_through_the_command_line_train_baselines_once_for_all_runs(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run's distilled images are trained on with and without augmentation; its baselines are known."""
    trained: list[tuple[int, bool, int]] = []

    def noted(arch: str, pixels: torch.Tensor, *rest: Any) -> torch.nn.Module:
        how = rest[2]
        trained.append((len(pixels), bool(how.augment), how.epochs))
        return train(arch, pixels, *rest)

    monkeypatch.setattr(measure, "train", noted)
    monkeypatch.setattr(testing, "at_chance", lambda *_: False)  # after four epochs some are
    one = distilled(recipe_file, tmp_path / "one")
    other = distilled(recipe_file, tmp_path / "other", "distill.iterations=1")
    options = ("--scores", "--json", "evaluate.epochs=4", "evaluate.full_epochs=2", "evaluate.ema=0.81")
    reports = []
    for folder in (one, other):
        outcome = ld3m("evaluate", folder, *options)
        assert outcome.code == 0, outcome.err
        reports.append(json.loads(outcome.out))
    few, plain = [(6, True, 4)] * 2, [(6, False, 4)] * 2
    assert sorted(trained) == sorted([*few, *plain, *few, *plain, (36, True, 2), (36, True, 2), *few, *plain])

    results = {(r["trained_on"], r["protocol"]["augment"]): r for r in reports[0]["results"]}
    again = {(r["trained_on"], r["protocol"]["augment"]): r for r in reports[1]["results"]}
    assert len(results) == 5
    for key in (("random", True), ("random", False), ("full", True)):
        assert results[key] == again[key]
    of_full = results["full", True]["protocol"]
    assert of_full["epochs"] == 2
    assert of_full["ema"] == pytest.approx(0.81**2)  # half the epochs, each of which counts for two
    assert "full_epochs" not in of_full
    lrs, ars = reports[0]["scores"]
    names = ("distilled", "random", "full")
    by_hand = [
        (math.exp(((d - r) - (f - d)) / 200) - math.exp(-1)) / (math.e - math.exp(-1))
        for d, r, f in zip(*(results[name, True]["accuracies"] for name in names), strict=True)
    ]
    assert lrs["values"] == pytest.approx(by_hand, abs=1e-4)
    assert lrs["hlr"] == pytest.approx(results["full", True]["mean"] - results["distilled", True]["mean"], abs=0.02)
    assert ars["gain_unaugmented"] == pytest.approx(
        results["distilled", False]["mean"] - results["random", False]["mean"], abs=0.02
    )
    assert json.loads((one / "evaluation.json").read_text())["scores"] == [lrs, ars]
    printed = f"{lrs['mean']:.3f} ± {lrs['std']:.3f} (2)  HLR {lrs['hlr']:+.1f}, IOR {lrs['ior']:+.1f}"
    assert printed in accuracy_table(reports[0])
    page = report(one).read_text()
    assert f"{ars['mean']:.3f} ± {ars['std']:.3f} (2)  gain over random {ars['gain']:+.1f}" in page
    assert "without augmentation" in page


def test_baselines_of_another_seed_are_others(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = distilled(recipe_file, tmp_path / "one", "distill.iterations=0")
    other = Path(shutil.copytree(one, tmp_path / "other"))
    trained: list[str] = []
    monkeypatch.setattr(measure, "train", lambda *given: trained.append(str(given[4])) or train(*given))
    options = ("--against", "random", "evaluate.epochs=1", "evaluate.lr=0.0123", "--seeds", "1")  # by no other test
    for folder, seed, networks in ((one, 0, 2), (other, 0, 1), (other, 1, 2), (other, 1, 0)):
        trained.clear()
        assert ld3m("evaluate", folder, *options, f"seed={seed}").code == 0
        assert len(trained) == networks
