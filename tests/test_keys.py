"""The list of all keys: complete, described, quick to make, and the same as recipes/KEYS.md."""

import subprocess
import sys
from typing import Any

import pytest
from keys import PAGE

from ld3m.recipe import Recipe
from ld3m.recipe.keys import described, keys, markdown
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
        "evaluate.lr": ("number or learnt", "> 0, ≤ 1,000,000,000", ""),
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
