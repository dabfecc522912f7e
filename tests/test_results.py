"""The published results: what the pages say is what was measured."""

import json
import re
import statistics
import subprocess
from pathlib import Path

import pytest
from results import BLOCK, PAGES, RESULTS, filled

from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, find, load

SCRIPT = RESULTS.parent.parent / "launch" / "results.sh"
ONLY_SAYS = """
ablate() { echo "$1 ld3m ablate ${*:2} --output ablations/$1"; }
ld3m() { :; }
chart() { :; }
stack() { :; }
cifar10-parts() { :; }
"""
"""In the place of the script's own functions."""
REPORTS = sorted(RESULTS.glob("*.json"))
ABLATIONS = [path for path in REPORTS if "rows" in json.loads(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_tables_are_those_of_their_json(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text  # python tests/results.py writes them anew


def test_every_result_is_shown() -> None:
    blocks = [block[1] for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    shown = {name for names in blocks for name in names.split()}
    assert shown == {"recipes/results/*.json", *(f"recipes/results/{path.name}" for path in REPORTS)}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_figures_are_those_of_the_networks(path: Path) -> None:
    """Means and deviations computed anew from each network's accuracy; and the recipes are there to run again."""
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["done"] == report["cells"]
    assert report["command"].startswith("ld3m ablate ")
    for row in report["rows"]:
        for figures in row["accuracies"].values():
            networks = [accuracy for run in figures["by_run"] for accuracy in run]
            assert figures["networks"] == len(networks)
            assert figures["mean"] == pytest.approx(statistics.fmean(networks), abs=0.006)
            assert figures["std"] == pytest.approx(statistics.pstdev(networks), abs=0.006)
    words = report["command"].split()[2:]
    recipes = words[: next((place for place, word in enumerate(words) if "=" in word or word[0] == "-"), len(words))]
    assert recipes
    assert {row["recipe"] for row in report["rows"]} <= {find(name).stem for name in recipes}


@pytest.mark.parametrize(
    ("recipe", "name", "axis"),
    [("fashion-mnist-ipc1", "one", ["distill.factor=4"]), ("fashion-mnist-ipc10", "ten", [])],
)
def test_the_recipes_of_the_best_sets_are_what_was_measured(recipe: str, name: str, axis: list[str]) -> None:
    command = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["command"]
    overrides = [
        word for word in command.split() if re.fullmatch(r"(distill|evaluate)\.\S+=\S+", word) and "," not in word
    ]
    measured, shipped = load(Recipe, "baselines/pixels", [*overrides, *axis]), load(Recipe, recipe)
    assert digest(shipped) == digest(measured)
    how = {"arch", "seeds"}
    assert shipped.evaluate.model_dump(exclude=how) == measured.evaluate.model_dump(exclude=how)


def test_the_script_makes_every_ablation_by_its_command() -> None:
    """All that launch/results.sh would run, word by word, though overrides may stand in another order."""
    text = SCRIPT.read_text(encoding="utf-8")
    defined, _, end = text[text.index("seeds=(") :].partition("(($#))")
    names = re.search(r"set -- (.*?)\nfor name", end, re.DOTALL)[1].replace("\\\n", " ").split()
    elsewhere = {"quickstart", "scores", "precision", "gradient-norms"}
    calls = "\n".join(name for name in names if name not in elsewhere)
    said = subprocess.run(
        ["bash", "-euc", defined + ONLY_SAYS + calls], capture_output=True, text=True, check=True
    ).stdout
    made = dict(line.split(" ", 1) for line in said.splitlines())
    commands = {path.stem: json.loads(path.read_text(encoding="utf-8"))["command"] for path in ABLATIONS}
    assert {name: sorted(made[name].split()) for name in made} == {
        name: sorted(command.split()) for name, command in commands.items()
    }
