"""Results of sets side by side: what they share of how networks were trained, and what is to be said of the rest."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.comparison.sets import PREFIX, Measured
from ld3m.comparison.significance import interval
from ld3m.evaluation.blocks import blocks
from ld3m.evaluation.rows import Row

CELL = ("mean", "std", "accuracies", "best", "at_chance")
"""What the table needs of a result."""


def with_accuracies(sets: Sequence[Measured], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What is known of each set, and its `accuracies` by architecture, each with the `interval` of its mean."""
    found = []
    for each in sets:
        own = [row for row in rows if row["trained_on"] == each.trained_on]
        cells = {
            row["arch"]: {key: row[key] for key in CELL if key in row} | {"interval": interval(row["accuracies"])}
            for row in own
        }
        found.append({**each.dump(), "accuracies": cells})
    return found


def shared_protocol(rows: Sequence[Row]) -> dict[str, Any]:
    """The details of training that all results share."""
    return {key: values[0] for key, values in _details(rows).items() if _is_one(values)}


def varying(rows: Sequence[Row]) -> list[str]:
    """A line for each detail of training that is not the same for all results, such as one that goes by their number.

    For example "epochs: 2000 (a, random), 1500 (b)".
    """
    lines = []
    for key, values in _details(rows).items():
        if key == "changed" or _is_one(values):
            continue
        by_arch = _by(values, [row["arch"] for row in rows])
        by_set = _by(values, [row["trained_on"].removeprefix(PREFIX) for row in rows])
        both = _by(values, [f"{row['arch']} on {row['trained_on'].removeprefix(PREFIX)}" for row in rows])
        values_text = ", ".join(f"{value} ({', '.join(names)})" for value, names in (by_arch or by_set or both).items())
        lines.append(f"{key}: {values_text}.")
    return lines


def _details(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The value of each detail in every row; None where it has none."""
    keys = dict.fromkeys(key for row in rows for key in row["protocol"])
    return {key: [row["protocol"].get(key) for row in rows] for key in keys}


def _is_one(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _by(values: Sequence[Any], names: Sequence[str]) -> Mapping[str, list[str]]:
    """Names by value, as text; nothing if a name has two values."""
    found: dict[str, str] = {}
    for value, name in zip(values, names, strict=True):
        text = json.dumps(value, ensure_ascii=False)
        if found.setdefault(name, text) != text:
            return {}
    return {text: [name for name in found if found[name] == text] for text in dict.fromkeys(found.values())}


def same_content(rows: Sequence[Row]) -> list[str]:
    """A line for each set whose images and labels are those of one before it."""
    first: dict[str, str] = {}
    found = []
    for name, content in {row["trained_on"]: row["content"] for row in rows}.items():
        if content in first:
            found.append(f"{name.removeprefix(PREFIX)} has the same images as {first[content].removeprefix(PREFIX)}.")
        first.setdefault(content, name)
    return found


def general_notes(rows: Sequence[Row], caveat: str) -> list[str]:
    """What the tables of `ld3m evaluate` say below: networks at chance, few test images, a split that is not usual."""
    notes = [note for block in blocks({"results": rows, "caveat": caveat}) for note in block.notes]
    return [f"{note.replace(PREFIX, '')}." for note in dict.fromkeys(notes)]
