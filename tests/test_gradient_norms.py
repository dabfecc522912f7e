"""The paper's Table 1 on the packaged prior: without the skip Z's gradient vanishes with the number of steps."""

import importlib.util
from pathlib import Path

import pytest

from ld3m import data
from ld3m import prior as priors
from ld3m.recipe import Recipe, load


@pytest.fixture(scope="module")
def norms() -> dict[str, list[float]]:
    """Norms at S = 10 and S = 50 by skip, from the benchmark's own function."""
    path = Path(__file__).parent / "benchmarks" / "gradient_norms.py"
    spec = importlib.util.spec_from_file_location("gradient_norms", path)
    assert spec
    assert spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.DRAWS = 2
    recipe = load(Recipe, "quickstart", ["distill.real_batch=16", "network.width=16"])
    images = data.prepare(recipe.data, progress=False)
    prior = priors.load(recipe.prior)
    return {
        skip: [benchmark.gradient_norm(recipe, images, prior, skip, steps) for steps in (10, 50)]
        for skip in ("none", "paper", "reference")
    }


def test_without_the_skip_the_gradient_vanishes(norms: dict[str, list[float]]) -> None:
    """Table 1: from S = 10 to 50 the norm falls to 13.9/58.1 = 0.24 of itself."""
    assert norms["none"][1] < 0.5 * norms["none"][0]


@pytest.mark.parametrize("skip", ["paper", "reference"])
def test_with_the_skip_it_does_not(norms: dict[str, list[float]], skip: str) -> None:
    assert norms[skip][1] > 0.7 * norms[skip][0]
