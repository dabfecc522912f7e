"""Ablations through the command line: cells, resuming, pooled figures, the table and the chart."""

import json
import os
import re
import shutil
import signal
import statistics
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, distilled, latents
from hypothesis import assume, given
from hypothesis import strategies as st
from processes import command_line, finish, spawn
from scipy.stats import ttest_rel

from ld3m.ablation.ablate import ablate
from ld3m.ablation.cells import Ablation
from ld3m.ablation.chart import draw
from ld3m.ablation.pareto import Point, frontier
from ld3m.ablation.table import markdown, pooled, seed_difference
from ld3m.evaluation import measure
from ld3m.files import cache_folder
from ld3m.runs.metrics import duration

QUICK = ["evaluate.epochs=1", "evaluate.lr=0.01", "distill.pictures=0", "distill.iterations=2"]


def axes(*given: str) -> list[str]:
    return [word for axis in given for word in ("--axis", axis)]


@pytest.fixture(scope="module")
def made(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, two skips, two distillation seeds, and random images beside them."""
    folder = tmp_path_factory.mktemp("ablations") / "made"
    wanted = ["prior.steps=1,2", "prior.skip=none,reference", "seed=0,1"]
    ablate(Ablation.of([str(recipe_file)], QUICK, wanted, folder, ["random"]), "ld3m ablate shapes")
    return folder


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ablation.json").read_text())


# --- cells -------------------------------------------------------------------------------------------------


def test_cells_are_the_product(ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path) -> None:
    """Two recipes, 2 × 3 values; folders say the values, and nothing is written."""
    other = tmp_path / "other.yaml"
    other.write_text(recipe_file.read_text())
    wanted = axes("prior.skip=none,paper", "distill.lr_latents=1e-3,0.5,2")
    outcome = ld3m("ablate", recipe_file, other, *wanted, "-o", "all", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [
        f"all/{stem}/distill.lr_latents={rate},prior.skip={skip}: {stem} prior.skip={skip} distill.lr_latents={rate}"
        for stem in ("shapes", "other")
        for skip in ("none", "paper")
        for rate in ("0.001", "0.5", "2.0")
    ]
    assert not (tmp_path / "all").exists()


def test_names_depend_on_values_alone(recipe_file: Path, tmp_path: Path) -> None:
    """Neither the order of axes nor how a value is written; lists, long values and slashes are safe and differ."""

    def names(*axes: str) -> list[str]:
        return [cell.subfolder for cell in Ablation.of([str(recipe_file)], [], axes, tmp_path).cells]

    assert names("prior.steps=5", "seed=3") == names("seed=3", "prior.steps=5") == ["shapes/prior.steps=5,seed=3"]
    assert names("distill.lr_latents=1e-3") == names("distill.lr_latents=0.001") == names("distill.lr_latents=1.0e-03")
    assert names() == ["shapes/default"]
    assert names("data.subset=[cross, square],[cross]") == [
        "shapes/data.subset=cross+square",
        "shapes/data.subset=cross",
    ]
    found = names(f"distill.options={{a: {'x/' * 90}1}},{{a: {'x/' * 90}2}}", "prior.source=fashion-mnist")
    assert len(set(found)) == 2
    assert all(re.fullmatch(r"shapes/[A-Za-z0-9._=,-]{1,240}", name) for name in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (axes("prior.stepz=1,2"), "--axis prior.stepz: unknown key; did you mean prior.steps?"),
        (axes("prior.steps=1,x", "seed=0,1"), "--axis prior.steps=x: 'x' is invalid"),
        (axes("prior.steps"), "--axis: 'prior.steps' is invalid: give KEY=VALUE,VALUE,… such as prior.steps=5,10,20"),
        (axes("prior.steps=1,,2"), "--axis: 'prior.steps=1,,2' is invalid"),
        (axes("prior.steps=1,2", "prior.steps=3"), "--axis: prior.steps is given twice"),
        (["prior.steps=4", *axes("prior.steps=1,2")], "--axis: prior.steps is given twice"),
        (axes("distill.lr_latents=1,1.0"), "--axis: two cells are the same (shapes distill.lr_latents=1.0)"),
        (["output=there"], "output: each cell has a folder of its own"),
        (["--against", "randm"], "--against: 'randm' is not known"),
        (["--arch", "convnut"], "evaluate.arch: 'convnut' is not known"),
        (["--split", "train"], "--split: 'train' is invalid: give test or validation"),
        (["--split", "validation"], "--split: there is no 'validation'; data.validation_share=0.1 would hold out"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_run(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    outcome = ld3m("ablate", recipe_file, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert said in outcome.err
    assert not list(tmp_path.iterdir())


def test_runs_of_other_overrides_are_errors_beforehand(
    ld3m: Callable[..., Outcome], recipe_file: Path, made: Path
) -> None:
    """The third cell's folder has a run of another learning rate; no cell is begun."""
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    outcome = ld3m("ablate", recipe_file, *axes("prior.steps=4,5,1", "prior.skip=none", "seed=0"), *QUICK,
                   "distill.lr_latents=0.7", "-o", made)  # fmt: skip
    assert outcome.code == 2
    assert outcome.err.endswith("(distill.lr_latents differ); give another --output, or remove that folder\n")
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == before


# --- figures -----------------------------------------------------------------------------------------------


def test_seeds_are_pooled_and_baselines_measured_once(made: Path) -> None:
    report = content(made)
    rows = report["rows"]
    assert (report["cells"], report["done"], report["failed"]) == (8, 8, [])
    assert report["axes"] == ["prior.steps", "prior.skip"]
    assert [(row["trained_on"], *row["settings"].values()) for row in rows] == [
        ("distilled", 1, "none"), ("distilled", 1, "reference"),
        ("distilled", 2, "none"), ("distilled", 2, "reference"), ("random",),
    ]  # fmt: skip
    for row in rows:
        figures = row["accuracies"]["convnet"]
        runs = [json.loads((made / run["folder"] / "evaluation.json").read_text())["results"] for run in row["runs"]]
        by_run = [found["accuracies"] for run in runs for found in run if found["trained_on"] == row["trained_on"]]
        assert figures["by_run"] == by_run
        networks = np.array(by_run)
        assert networks.shape == ((2, 2) if row["trained_on"] == "distilled" else (1, 2))
        assert figures["networks"] == networks.size
        assert figures["mean"] == pytest.approx(networks.mean(), abs=0.006)
        assert figures["std"] == pytest.approx(networks.std(), abs=0.006)
        if len(by_run) > 1:
            assert figures["std_of_runs"] == pytest.approx(networks.mean(1).std(), abs=0.006)
        assert figures["protocol"] == {"epochs": 1, "batch": 256, "lr": 0.01, "ema": 0.995, "augment": True}
        assert [run["seed"] for run in row["runs"]] == ([0, 1] if len(by_run) > 1 else [0])
    with_random = [path for path in made.glob("shapes/*/evaluation.json") if '"random"' in path.read_text()]
    assert [path.parent.name for path in with_random] == ["prior.skip=none,prior.steps=1,seed=0"]


def test_what_a_run_took_is_what_its_metrics_say(made: Path) -> None:
    for row in content(made)["rows"][:4]:
        for run in row["runs"]:
            lines = (made / run["folder"] / "metrics.jsonl").read_text().splitlines()
            metrics = [json.loads(line) for line in lines]
            laps = [sum(line["seconds"].values()) for line in metrics]
            assert run["seconds_per_iteration"] == pytest.approx(statistics.median(laps), abs=1e-5)
            assert run["seconds"] == pytest.approx(sum(laps), abs=0.006)
            assert run["loss"] == metrics[-1]["loss"]
            assert run["machine"]["torch"] == torch.__version__
        assert row["loss"] == pytest.approx(statistics.mean(run["loss"] for run in row["runs"]), rel=1e-5)


percent = st.floats(0, 100).map(lambda value: round(value, 2))


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(percent, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_pooled_figures_are_numpys(by_run: list[list[float]]) -> None:
    spent = {"loss": 1.0, "seconds": 2.0, "seconds_per_iteration": 0.5, "peak_memory": 8}
    same = {"trained_on": "distilled", "recipe": "r", "settings": {"k": [1]}, "images_per_class": 1, "images": 10}
    parts = [
        same | {"run": spent | {"seed": seed}, "results": [{"arch": "convnet", "accuracies": run}]}
        for seed, run in enumerate(by_run)
    ]
    (row,) = pooled(parts)
    figures = row["accuracies"]["convnet"]
    assert figures["mean"] == pytest.approx(np.mean(by_run), abs=0.0051)
    assert figures["std"] == pytest.approx(np.std(by_run), abs=0.0051)
    if len(by_run) > 1:
        assert figures["std_of_runs"] == pytest.approx(np.std(np.mean(by_run, axis=1)), abs=0.0051)
    assert [run["seed"] for run in row["runs"]] == list(range(len(by_run)))


def test_numbers_of_images_and_full_have_baselines_of_their_own(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path
) -> None:
    """Random images for each number of them, all images once; the chart has the first as points, the second across."""
    outcome = ld3m("ablate", recipe_file, *QUICK, *axes("distill.images_per_class=1,2"), "--against", "random,full",
                   "--arch", "convnet,alexnet", "--seeds", 1, "-o", "all", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report == content(tmp_path / "all")
    assert [(row["trained_on"], row["settings"], row["images"]) for row in report["rows"]] == [
        ("distilled", {"distill.images_per_class": 1}, 3),
        ("distilled", {"distill.images_per_class": 2}, 6),
        ("random", {"distill.images_per_class": 1}, 3),
        ("full", {}, 36),
        ("random", {"distill.images_per_class": 2}, 6),
    ]
    assert marks(report) == {"convnet, accuracy in %": 5, "alexnet, accuracy in %": 5, "Seconds per iteration": 0}


# --- resuming ----------------------------------------------------------------------------------------------


def stamps(folder: Path) -> dict[str, int]:
    names = ("latents.safetensors", "evaluation.json", "metrics.jsonl")
    return {str(path): path.stat().st_mtime_ns for name in names for path in folder.rglob(name)}


def test_the_same_command_makes_nothing_again(
    ld3m: Callable[..., Outcome], recipe_file: Path, made: Path, tmp_path: Path
) -> None:
    """Also if the axes come in another order; the rows are those of before, in that order."""
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    before, earlier = stamps(folder), content(made)["rows"]
    wanted = axes("prior.skip=none,reference", "seed=0,1", "prior.steps=1,2")
    assert ld3m("ablate", recipe_file, *QUICK, *wanted, "--against", "random", "-o", folder).code == 0
    assert stamps(folder) == before
    rows = content(folder)["rows"]
    assert [row["settings"] for row in rows[:2]] == [
        {"prior.skip": "none", "prior.steps": 1},
        {"prior.skip": "none", "prior.steps": 2},
    ]
    assert [rows[place] for place in (0, 2, 1, 3, 4)] == earlier


@pytest.mark.slow
def test_a_baseline_that_comes_later_trains_nothing_else(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["ablate", recipe_file, *QUICK, *axes("seed=0,1"), "--arch", "convnet,vit", "-o", tmp_path / "all"]
    assert ld3m(*command).code == 0
    (distilled,) = content(tmp_path / "all")["rows"]
    trained: list[str] = []
    train = measure.train
    monkeypatch.setattr(measure, "train", lambda arch, *given: trained.append(arch) or train(arch, *given))
    shutil.rmtree(cache_folder() / "baselines", ignore_errors=True)
    outcome = ld3m(*command, "--against", "random")
    assert outcome.code == 0, outcome.err
    assert sorted(trained) == ["convnet"] * 2 + ["vit"] * 2  # on the random images alone, which both cells share
    assert content(tmp_path / "all")["rows"][0] == distilled


@pytest.mark.gpu
def test_it_resumes_after_an_interrupt(ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path) -> None:
    """SIGTERM in the second of two cells; the first is left alone, the second resumes from its checkpoint."""
    few = [*QUICK, "distill.iterations=20", "data.subset=[cross]", "prior.steps=2", "distill.images_per_class=1"]
    wanted = ["ablate", recipe_file, *few, "--seeds", 1, "-o", "all", *axes("prior.skip=none,paper")]
    first, second = (tmp_path / "all" / "shapes" / f"prior.skip={skip}" for skip in ("none", "paper"))

    def interrupt() -> None:
        while not (second / "metrics.jsonl").is_file() or not (second / "metrics.jsonl").stat().st_size:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    outcome = ld3m(*wanted)
    watcher.join(60)
    assert outcome.code == 128 + signal.SIGTERM
    assert (content(tmp_path / "all")["done"], content(tmp_path / "all")["cells"]) == (1, 2)
    assert "Not finished: 1 of 2 cells are done." in (tmp_path / "all" / "ablation.md").read_text()
    assert not (second / "latents.safetensors").exists()
    before = stamps(first)
    outcome = ld3m(*wanted)
    assert outcome.code == 0, outcome.err
    assert "cell 2 of 2: shapes prior.skip=paper" in outcome.err
    assert stamps(first) == before
    iterations = [json.loads(line)["iteration"] for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert iterations == list(range(20))
    straight = distilled(recipe_file, tmp_path / "straight", *few, "prior.skip=paper")
    assert torch.equal(latents(second)["z"], latents(straight)["z"])


def test_a_cell_that_fails_does_not_stop_the_others(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path
) -> None:
    outcome = ld3m("ablate", recipe_file, *QUICK, "--seeds", 1, "-o", "all", *axes("distill.lr_latents=1e38,0.1"))
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("ld3m: shapes distill.lr_latents=1e+38: the loss or its gradient")
    report = content(tmp_path / "all")
    assert (report["done"], [row["settings"] for row in report["rows"]]) == (1, [{"distill.lr_latents": 0.1}])
    (place,) = (path.parent.relative_to(tmp_path / "all") for path in tmp_path.rglob("shapes/*1e*/recipe.yaml"))
    assert report["failed"][0]["folder"] == place.as_posix()
    assert "Failed: shapes distill.lr_latents=1e+38: the loss" in (tmp_path / "all" / "ablation.md").read_text()


@pytest.mark.slow
def test_two_processes_make_what_one_makes(ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path) -> None:
    """The same figures and latents; the second process prints nothing of its own."""
    wanted = ["ablate", recipe_file, *QUICK, "prior.micro_batch=2", *axes("prior.skip=none,paper"), "-o"]
    started = spawn(2, command_line, *wanted, tmp_path / "2", output=tmp_path / "said")
    assert ld3m(*wanted, tmp_path / "1").code == 0
    assert finish(started) == [0, 0]
    one, two = (content(tmp_path / name) for name in "12")
    for alone, shared in zip(one["rows"], two["rows"], strict=True):
        assert shared["accuracies"] == alone["accuracies"]
        assert shared["runs"][0]["machine"]["processes"] == 2
        place = shared["runs"][0]["folder"]
        assert torch.equal(latents(tmp_path / "2" / place)["z"], latents(tmp_path / "1" / place)["z"])
    first, second = ((tmp_path / "said" / f"{rank}.txt").read_text() for rank in range(2))
    assert "cell 2 of 2" in first
    assert "| set | prior.skip |" in first
    assert "cell" not in second
    assert "| set |" not in second


# --- the table and the chart -------------------------------------------------------------------------------


def cells(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, as lists of lines."""
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    return [[[entry.strip() for entry in line.strip("|").split("|")] for line in table] for table in tables]


def test_the_tables_numbers_are_those_of_the_json(made: Path) -> None:
    report = content(made)
    text = (made / "ablation.md").read_text()
    assert text == markdown(report)
    head, _, *lines = cells(text)[0]
    assert head == ["set", "prior.steps", "prior.skip", "distillation seeds", "convnet", "median s / iteration"]
    for line, row in zip(lines, report["rows"], strict=True):
        mean, std, networks = re.fullmatch(r"([\d.]+) ± ([\d.]+) \((\d+)\)", line[4]).groups()
        figures = row["accuracies"]["convnet"]
        assert (float(mean), float(std)) == (round(figures["mean"], 1), round(figures["std"], 1))
        assert int(networks) == figures["networks"]
        assert int(line[3]) == len(row["runs"])
        if row["trained_on"] == "distilled":
            assert line[:3] == ["shapes", *map(str, row["settings"].values())]
            assert float(line[5]) == pytest.approx(row["seconds_per_iteration"], rel=0.006)
        else:
            assert (line[:3], line[5]) == (["random", "", ""], "")
    assert "Networks of convnet: glad, but epochs 1, not 1000; " in text
    seconds = sum(run["seconds"] for row in report["rows"][:4] for run in row["runs"])
    assert f"Distilling took {duration(seconds)} in all." in text
    assert "Command: `ld3m ablate shapes`" in text


def test_the_best_of_several_tests_is_measured_if_it_is_missing_and_shown(
    ld3m: Callable[..., Outcome], recipe_file: Path
) -> None:
    given = ("ablate", recipe_file, *QUICK[1:], "evaluate.epochs=2", "evaluate.tests=hundredths", "-o", "one")
    assert ", best" not in ld3m(*given).out
    outcome = ld3m(*given, "--best")
    (row,) = content(Path("one"))["rows"]
    figures = row["accuracies"]["convnet"]
    (networks,), last = figures["best"]["by_run"], figures["by_run"][0]
    assert figures["best"]["mean"] == pytest.approx(np.mean(networks), abs=0.0051)
    assert all(best >= accuracy for best, accuracy in zip(networks, last, strict=True))
    assert f"(2), best {figures['best']['mean']:.1f} ± {figures['best']['std']:.1f} |" in outcome.out
    assert "Best: each network's highest accuracy of those after each hundredth of the epochs, chosen" in outcome.out
    assert ", best" not in ld3m(*given).out, "what was not asked for is not shown"


def test_every_row_is_compared_with_the_first(made: Path) -> None:
    rows = content(made)["rows"]
    head, _, *lines = cells((made / "ablation.md").read_text())[1]
    assert head == ["set", "prior.steps", "prior.skip", "convnet, against shapes 1 none"]
    names = [["shapes", *map(str, row["settings"].values())] for row in rows[1:4]]
    assert lines[:3] == [
        [*name, seed_difference(row, rows[0], "convnet")] for name, row in zip(names, rows[1:], strict=False)
    ]
    assert lines[3:] == [["random", "", "", ""]], "measured beside one distillation seed only"


def of_runs(means: dict[int, float]) -> dict[str, Any]:
    """A row of two networks a run, a point above and below its mean, by distillation seed."""
    by_run = [[mean - 1, mean + 1] for mean in means.values()]
    return {"runs": [{"seed": seed} for seed in means], "accuracies": {"convnet": {"by_run": by_run}}}


@given(st.lists(st.tuples(percent, percent), min_size=3, max_size=7))
def test_differences_are_scipys(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    assume(np.std(np.subtract(ours, theirs)) > 1e-6)  # there is no interval if all are the same
    said = seed_difference(of_runs(dict(enumerate(ours))), of_runs(dict(enumerate(theirs))), "convnet")
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    *found, count = re.fullmatch(r"(\S+) \[(\S+), (\S+)\] \((\d)\)", said).groups()
    wanted = [np.mean(np.subtract(ours, theirs)), max(-100, interval.low), min(100, interval.high)]
    assert [float(number) for number in found] == pytest.approx(wanted, abs=0.0501)
    assert int(count) == len(pairs)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({2: 33, 1: 21, 0: 12, 5: 99}, "+2.0 [-0.5, +4.5] (3)"),  # 2 ± t(0.975, 2) · 1 / √3 = 4.303 · 0.577
        ({0: 7, 1: 18}, "-2.5 (2)"),  # no interval for two
        ({0: 7, 1: 17, 2: 27}, "-3.0 (3)"),  # nor if all differ by the same
        ({2: 1}, ""),
        ({7: 1, 8: 2, 9: 3}, ""),
    ],
)
def test_seeds_are_paired_and_others_do_not_count(ours: dict[int, float], said: str) -> None:
    assert seed_difference(of_runs(ours), of_runs({0: 10, 1: 20, 2: 30}), "convnet") == said


def one_run(
    settings: dict[str, Any], how: dict[str, Any], accuracies: list[float], seed: int = 0, **more: Any
) -> dict[str, Any]:
    """What was measured in a run, as `pooled` takes it."""
    took = {"loss": 1.0, "seconds": 2.0, "seconds_per_iteration": 0.5, "peak_memory": 8, "machine": {}}
    result = {"arch": "convnet", "accuracies": accuracies, "tested_on": 1000, "protocol": how, **more}
    about = {"trained_on": more.get("trained_on", "distilled"), "recipe": "r", "images_per_class": 1, "images": 10}
    return about | {"settings": settings, "run": took | {"seed": seed, "folder": "f"}, "results": [result]}


def report_of(measurements: list[dict[str, Any]], *axes: str) -> dict[str, Any]:
    rest = {"split": "test", "failed": [], "done": len(measurements), "cells": len(measurements), "command": "ld3m"}
    return {"axes": list(axes), "rows": pooled(measurements), **rest}


def test_unlike_protocols_have_columns_of_their_own() -> None:
    """Also in the chart, and nothing is compared across them; all real images stand with those they belong to."""
    few, many = {"epochs": 5, "lr": 0.1, "augment": True}, {"epochs": 40, "lr": 0.1, "augment": True}
    runs = [
        one_run({"evaluate.epochs": how["epochs"], "prior.steps": steps}, how, [mean + steps + seed], seed)
        for how, mean in ((few, 20), (many, 60))
        for steps in (1, 2)
        for seed in (0, 1)
    ]
    full = one_run({"evaluate.epochs": 40}, many | {"epochs": 9}, [90], trained_on="full", asked=many)
    report = report_of([*runs, full], "evaluate.epochs", "prior.steps")
    found = [{name: (each["arch"], each["mean"]) for name, each in row["accuracies"].items()} for row in report["rows"]]
    assert found == [
        {"convnet, epochs 5": ("convnet", 21.5)},
        {"convnet, epochs 5": ("convnet", 22.5)},
        {"convnet, epochs 40": ("convnet", 61.5)},
        {"convnet, epochs 40": ("convnet", 62.5)},
        {"convnet, epochs 40": ("convnet", 90)},
    ]
    text = markdown(report)
    table, differences = cells(text)
    assert table[0][3:6] == ["distillation seeds", "convnet, epochs 5", "convnet, epochs 40"]
    assert [line[4:6] for line in table[2:]] == [
        ["21.5 ± 0.5 (2)", ""],
        ["22.5 ± 0.5 (2)", ""],
        ["", "61.5 ± 0.5 (2)"],
        ["", "62.5 ± 0.5 (2)"],
        ["", "90.0 (1)"],
    ]
    assert differences[0][3:] == ["convnet, epochs 5, against r 5 1", "convnet, epochs 40, against r 40 1"]
    assert [line[3:] for line in differences[2:]] == [["+1.0 (2)", ""], ["", ""], ["", "+1.0 (2)"], ["", ""]]
    assert marks(report) == {  # over prior.steps: no column has two values of evaluate.epochs
        "convnet, epochs 5, accuracy in %": 2,
        "convnet, epochs 40, accuracy in %": 3,
        "Seconds per iteration": 0,
    }
    assert "convnet, epochs 40 on full: glad, but epochs 9, not 1000; " in text


@pytest.mark.parametrize(
    ("ours", "theirs", "headings"),
    [
        ({}, {}, ["convnet"]),
        ({"protocol": {"lr": 0.1}}, {"protocol": {"lr": 0.01}}, ["convnet, lr 0.1", "convnet, lr 0.01"]),
        ({"tested_on": 500}, {"tested_on": 700}, ["convnet, tested on 500", "convnet, tested on 700"]),
        ({"archs": ["vit", "vgg11"]}, {"archs": ["vit"]}, ["convnet, over vgg11, vit", "convnet, over vit"]),
        ({"archs": ["vit", "vgg11"]}, {"archs": ["vgg11", "vit"]}, ["convnet"]),
        ({"asked": {"lr": "learnt"}}, {"asked": {"lr": "learnt"}, "protocol": {"lr": 0.03}}, ["convnet"]),
    ],
)
def test_what_shares_a_column(ours: dict[str, Any], theirs: dict[str, Any], headings: list[str]) -> None:
    """A mean over other networks, or accuracies of other images, do not; a rate that each run learnt does."""
    how = {"epochs": 5, "lr": 0.1}
    runs = [one_run({"k": k}, how, [50], **more) for k, more in enumerate((ours, theirs))]
    assert list(dict.fromkeys(name for row in report_of(runs, "k")["rows"] for name in row["accuracies"])) == headings


def test_networks_at_chance_and_few_test_images_are_said() -> None:
    text = markdown(report_of([one_run({"k": 1}, {"lr": 0.1}, [10, 60, 11], at_chance=[0, 2], tested_on=6)], "k"))
    said = (
        "convnet: networks at chance, which have not learnt: 2 of 3 on r, k 1; give more epochs, or a rate of its own"
    )
    assert f"{said}: `evaluate.lr={{convnet: …}}`." in text
    assert "Measured on 6 images: each is 16.7 points of accuracy." in text


RESULTS = Path(__file__).parent.parent / "recipes" / "results"
CHARTS = [path for path in sorted(RESULTS.glob("*.svg")) if "rows" in json.loads(path.with_suffix(".json").read_text())]
SVG = "{http://www.w3.org/2000/svg}"


def marks(report: dict[str, Any]) -> dict[str, int]:
    """How many rows each panel of lines shows."""
    found = {}
    for panel in ET.fromstring(draw(report)).iter(f"{SVG}g"):
        title = next(part.text for part in panel.iter(f"{SVG}text") if part.get("class") == "title")
        found[str(title)] = sum("mark" in (part.get("class") or "").split() for part in panel.iter())
    return found


def test_lines_over_a_numeric_axis(made: Path) -> None:
    """Five rows: two lines of two points and a line across; the points' heights are in the order of accuracies."""
    report = content(made)
    root = ET.fromstring((made / "ablation.svg").read_text())
    assert marks(report) == {"convnet, accuracy in %": 5, "Seconds per iteration": 0}
    dots = [part for part in root.iter(f"{SVG}circle") if "mark" in str(part.get("class")).split()]
    heights = {part.find(f"{SVG}title").text.partition(": ")[2]: float(part.get("cy")) for part in dots}
    rows = [row["accuracies"]["convnet"] for row in report["rows"][:4]]
    for one in rows:
        for other in rows:
            up = [heights[f"{f['mean']:.1f} ± {f['std']:.1f} ({f['networks']})"] for f in (one, other)]
            if one["mean"] > other["mean"]:
                assert up[0] < up[1]
    assert len(list(root.iter(f"{SVG}polyline"))) == 4, "two of accuracies, two of seconds"


def test_a_dot_a_row_without_a_numeric_axis(made: Path) -> None:
    report = content(made)
    report["rows"] = [row for row in report["rows"] if row["settings"].get("prior.steps") != 1]
    root = ET.fromstring(draw(report))
    found = [part for part in root.iter() if "mark" in (part.get("class") or "").split()]
    assert [part.find(f"{SVG}title").text.partition(":")[0] for part in found] == [
        "shapes, prior.steps 2, prior.skip none",
        "shapes, prior.steps 2, prior.skip reference",
        "random",
    ]
    assert not list(root.iter(f"{SVG}polyline"))


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RESULTS.glob("*.svg")) if path.stem != "gradient-norms"],
    ids=lambda path: path.stem,
)
def test_published_charts_are_those_of_their_json(path: Path) -> None:
    report = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert draw(report) == path.read_text(encoding="utf-8")


costs_and_accuracies = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(costs_and_accuracies)
def test_the_frontier_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    """A point is on it if none is as cheap and as good, and cheaper or better; equal points are there once."""
    points = [Point(str(index), cost, accuracy, 0, "") for index, (cost, accuracy) in enumerate(pairs)]
    expected = {
        (cost, accuracy)
        for cost, accuracy in pairs
        if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in pairs)
    }
    found = [(point.seconds, point.accuracy) for point in frontier(points)]
    assert found == sorted(expected)


def test_sets_that_were_sampled_stand_by_what_they_took_in_all() -> None:
    """Seconds per iteration say nothing of a set without iterations; random images cost nothing and lie across."""
    how = {"epochs": 5}
    took = {"plain": (31.0, None, 70.0), "guided": (90.0, None, 69.0), "learnt": (400.0, 5.0, 80.0)}
    runs = []
    for name, (seconds, each, accuracy) in took.items():
        run = one_run({}, how, [accuracy])
        run["recipe"] = name
        run["run"] |= {"seconds": seconds, "seconds_per_iteration": each}
        runs.append(run)
    report = report_of([*runs, one_run({}, how, [60.0], trained_on="random")])
    head, _, *lines = markdown(report).splitlines()
    assert head == "| set | convnet | median s / iteration | s in all |"
    assert [line.split(" | ")[2:] for line in lines[:3]] == [["", "31 |"], ["", "90 |"], ["5", "400 |"]]
    root = ET.fromstring(draw(report))
    titles = {
        part.find(f"{SVG}title").text for part in root.iter(f"{SVG}circle") if part.find(f"{SVG}title") is not None
    }
    assert {"plain: 70.0 (1), 31 s", "guided: 69.0 (1), 1 min 30 s", "learnt: 80.0 (1), 6 min 40 s"} <= titles
    (line,) = root.iter(f"{SVG}polyline")
    assert len(str(line.get("points")).split()) == 2, "the guided set is dearer and worse than the plain one"
    learnt = report_of([run for run in runs if run["recipe"] == "learnt"])
    assert "| s in all |" not in markdown(learnt)
