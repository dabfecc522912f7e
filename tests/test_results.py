"""The published results: what the pages say is what was measured."""

import json
import statistics
from pathlib import Path

import pytest
from results import BLOCK, PAGES, RESULTS, filled

from ld3m.recipe_file import find

REPORTS = sorted(RESULTS.glob("*.json"))
ABLATIONS = [path for path in REPORTS if "rows" in json.loads(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_tables_are_those_of_their_json(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text  # python tests/results.py writes them anew


def test_every_result_is_shown_once() -> None:
    blocks = [block[1] for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    shown = [name for names in blocks for name in names.split()]
    assert shown.count("recipes/results/*.json") == 1
    shown.remove("recipes/results/*.json")
    assert sorted(shown) == [f"recipes/results/{path.name}" for path in REPORTS]


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
