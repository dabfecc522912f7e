"""The list of all keys: complete, described, quick to make, and the same as recipes/KEYS.md."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome
from keys import PAGE

from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.recipe.keys import commented, described, keys, markdown
from ld3m.recipe.prior import PriorRecipe


def test_the_page_of_keys_is_made_of_their_docstrings() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run python tests/keys.py"


@pytest.mark.parametrize("kind", [Recipe, PriorRecipe])
def test_every_key_says_what_it_is(kind: Any) -> None:
    listed = described(kind)
    assert [key.name for key in listed if not key.text.endswith(".")] == []
    assert [key.name for key in listed] == keys(kind)
    assert len(keys(kind)) > 30
    assert {name for name in keys(kind, sections=True) if "." not in name} == set(kind.model_fields)


def test_a_key_has_type_range_and_default() -> None:
    by_name = {key.name: key for key in described(Recipe)}
    rows = {
        "name": ("text", "", None),
        "distill.momentum": ("number", "≥ 0, < 1", "0.5"),
        "prior.skip": ("paper, reference, none", "", "reference"),
        "prior.micro_batch": ("integer or auto", "≥ 1, ≤ 1,000,000", "64"),
        "evaluate.lr": ("number or learnt or mapping", "> 0, ≤ 1,000,000,000", ""),
        "evaluate.arch": ("list of text", "", "[convnet]"),
        "hub.private": ("true or false", "", "false"),
    }
    assert {name: (key.type, key.range, key.default) for name, key in by_name.items() if name in rows} == rows


def test_listing_keys_does_not_load_torch() -> None:
    """Shell completion lists them at every key press."""
    code = "import sys; from ld3m.recipe.keys import keys, Recipe; print(len(keys(Recipe)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, loaded = done.stdout.split()
    assert (int(count), loaded) == (len(keys(Recipe)), "False")


@pytest.mark.parametrize("kind", [Recipe, PriorRecipe])
def test_every_count_and_rate_has_an_end(kind: Any) -> None:
    """A number that no machine can hold is refused before anything is tried with it."""
    numbers = [key for key in described(kind) if "integer" in key.type or "number" in key.type]
    assert len(numbers) > 10
    assert [key.name for key in numbers if "≤" not in key.range and "<" not in key.range] == []


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("prior.skip", ["prior.skip"]),
        ("SKIP", ["prior.skip"]),  # of names alone, although other texts have the word
        ("prior.*step", ["prior.steps", "prior.keep_graph_steps"]),
        ("multi-formation", ["distill.factor"]),  # in no name, so in what is said
        ("codes", ["autoencoder.codes"]),  # of the other kind of recipe
    ],
)
def test_keys_are_found_by_name_and_else_by_meaning(
    ld3m: Callable[..., Outcome], pattern: str, names: list[str]
) -> None:
    code, out, err = ld3m("keys", pattern)
    assert (code, err) == (0, "")
    assert [line.split("  (")[0] for line in out.splitlines() if line[:1].islower()] == names


def test_a_key_is_explained(ld3m: Callable[..., Outcome]) -> None:
    assert ld3m("keys", "distill.momentum").out == (
        "Keys of ld3m distill and most other commands:\n\n"
        "distill.momentum  (number, ≥ 0, < 1; default 0.5)\n"
        "    Momentum of SGD and LARS, or the first of Adam's two decay rates.\n"
    )
    assert (
        "\nprior.source  (text; must be given)\n    A known name: cin256-v2, ffhq256"
        in ld3m("keys", "prior.source").out
    )
    assert ld3m("keys", "prior.sorce") == Outcome(
        2, "", "ld3m: 'prior.sorce' is in no key and no explanation; prior.source is near\n"
    )


def test_recipes_are_listed_with_what_they_are(ld3m: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("# My own. Nobody else's.\nextends: quickstart\nname: mine\n")
    code, out, _ = ld3m("recipes")
    assert code == 0
    lines = out.splitlines()
    assert "  mine                    My own." in lines
    assert (
        "  baselines/paper         Z and c with the decaying skip of the paper's Eq. 7; the noise is drawn once, as in"
        in lines
    )
    assert lines.index("Recipes of ld3m train-prior NAME:") < min(
        index for index, line in enumerate(lines) if line.startswith("  prior-")
    )


@pytest.mark.parametrize(("kind", "name"), [(Recipe, "quickstart"), (PriorRecipe, "prior-digits")])
def test_an_explained_recipe_is_the_recipe(kind: Any, name: str, tmp_path: Path) -> None:
    recipe = load(kind, name, ["output=a # no comment"])
    (tmp_path / "explained.yaml").write_text(text := commented(recipe))
    assert load(kind, str(tmp_path / "explained.yaml")) == recipe
    assert "\n# Seed of every random draw; " in text
    assert max(map(len, text.splitlines())) <= 120
