"""Values of the keys that a comparison varies: read from a command line, found in a recipe, written for people."""

import json
from collections.abc import Sequence
from typing import Any

from ld3m.errors import UserError
from ld3m.recipe import Recipe
from ld3m.recipe.files import load


def split_values(listed: str) -> list[str]:
    """V1,V2,… as values; commas in brackets or braces do not separate."""
    values, depth = [""], 0
    for letter in listed:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a key of a resolved recipe, as JSON has it.

    Raises:
        KeyError: if it has no such key.
    """
    value: Any = recipe.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


def value_text(value: Any) -> str:
    """A value of an axis for people: strings without quotes, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def load_varied(name: str, overrides: Sequence[str], chosen: Sequence[tuple[str, str]]) -> Recipe:
    """A recipe with values of axes, by their keys, on top of its overrides.

    Raises:
        UserError: as `load` does; what that says of an override that is an axis's, it says of the axis.
    """
    try:
        return load(Recipe, name, [*overrides, *map("=".join, chosen)])
    except UserError as error:
        raise UserError(*(_blaming_axes(line, chosen) for line in error.lines)) from None


def _blaming_axes(line: str, chosen: Sequence[tuple[str, str]]) -> str:
    for key, value in chosen:
        override = f"override {key}={value}: "
        if line.startswith(override):
            text = line.removeprefix(override)
            return f"--axis {key}: {text}" if text.startswith("unknown key") else f"--axis {key}={value}: {text}"
    return line
