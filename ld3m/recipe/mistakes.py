"""What is wrong with a recipe, one line per mistake: the key, the value, what would be right, and its origin."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ld3m.recipe.keys import keys

KeyPath = tuple[str, ...]
"""A key's name and those of the sections it is in, from the outside."""

MOST_SHOWN = 200
"""The most characters of a value or name that a message repeats."""


@dataclass(frozen=True)
class Mistake:
    """One mistake in the content of a recipe."""

    key: str
    """With its sections and dots; empty for one of the whole recipe."""
    text: str
    """What is wrong with it, and what would be right."""


@dataclass(frozen=True)
class Origins:
    """Where the content of a recipe came from: files and overrides."""

    path: Path
    """The recipe's own file."""
    files: Mapping[KeyPath, Path]
    """The file that each key and section came from, which differs with `extends`."""
    overrides: Mapping[KeyPath, str]
    """Overrides as the user typed them, by their keys."""

    def line(self, mistake: Mistake, without_overrides: Callable[[], list[Mistake]]) -> str:
        """The line about a mistake, which begins with the override or else with the file that made it.

        Args:
            without_overrides: the mistakes that the files alone make. One that they do not make is the overrides',
                also if it names a key of a file that does not fit them.
        """
        whole = f"{mistake.key}: {mistake.text}" if mistake.key else mistake.text
        path = tuple(mistake.key.split("."))
        for key, override in self.overrides.items():
            if path[: len(key)] == key or key[: len(path)] == path:
                return f"override {shown(override)}: {mistake.text if path == key else whole}"
        if self.overrides and mistake not in (alone := without_overrides()):
            named = [override for key, override in self.overrides.items() if ".".join(key) in mistake.text]
            if culprits := named or ([] if alone else list(self.overrides.values())):
                return f"override {shown(' '.join(culprits))}: {whole}"
        within = [path[:length] for length in range(len(path), 0, -1)]
        file = next((self.files[part] for part in within if part in self.files), self.path)
        return f"{file}: {whole}"


def validation_mistakes(kind: type[BaseModel], content: Any) -> list[Mistake]:
    """All that pydantic and our validators find wrong with a recipe's content."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        return [_explained(kind, each) for each in error.errors()]
    return []


def _explained(kind: type[BaseModel], error: Any) -> Mistake:
    """One of pydantic's errors in our words."""
    key, value, message = ".".join(map(str, error["loc"])), error["input"], error["msg"]
    match error["type"]:
        case "extra_forbidden":
            return Mistake(key, f"unknown key; {_right_key(kind, key)}")
        case "missing":
            return Mistake(key, "is missing")
        case "model_type":
            return Mistake(
                key, f"{shown(repr(value))} is invalid: give a section with some of {', '.join(_names(kind, key))}"
            )
        case "value_error":  # one of ours; that of a whole section names the key below it
            text = message.removeprefix("Value error, ")
            if key not in keys(kind):
                below, _, text = text.partition(": ")
                key = f"{key}.{below}" if key else below
            return Mistake(key, text)
    return Mistake(key, f"{shown(repr(value))} is invalid: {message[0].lower()}{message[1:]}")


def shown(text: str) -> str:
    """A text as a message repeats it: cut if it is long."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _right_key(kind: type[BaseModel], key: str) -> str:
    """The nearest key of the same section, or keys of that name in others, or all that the section has."""
    section, dot, last = key.rpartition(".")
    known = _names(kind, section)
    near = [f"{section}{dot}{name}" for name in difflib.get_close_matches(last, known, n=1)]
    right = near or [name for name in keys(kind, sections=True) if name.rpartition(".")[2] == last]
    return f"did you mean {' or '.join(right)}?" if right else f"known are {', '.join(known)}"


def _names(kind: type[BaseModel], section: str) -> list[str]:
    """The keys and sections that are directly in a section."""
    split = [name.rpartition(".") for name in keys(kind, sections=True)]
    return [last for before, _, last in split if before == section]
