"""metrics.jsonl: one JSON object per logged iteration, written line by line and read by one rule.

A last line that is still being written does not count. Any other line that is not a JSON object with an `iteration` is
damaged: it is skipped, and counted. Reading does not import torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ld3m.files import append_line, write_text

FILE = "metrics.jsonl"
COMMON = ("iteration", "loss", "grad_z", "grad_c", "peak_memory", "seconds")
"""Keys that the rows of every objective have; all others are numbers that an objective learns."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metrics:
    """What a run has logged so far."""

    rows: list[dict[str, Any]]
    """By iteration: loss, gradient norms, peak memory in bytes, seconds by part, and what the objective learns."""
    damaged: int
    """Lines that were skipped."""

    @property
    def iterations(self) -> int:
        """Iterations done, as far as they are logged."""
        return self.rows[-1]["iteration"] + 1 if self.rows else 0


def read(folder: Path) -> Metrics:
    """The metrics of a run's folder; none if it has not logged anything yet."""
    path = folder / FILE
    if not path.is_file():
        return Metrics([], 0)
    rows, damaged = [], 0
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in filter(None, lines):
        if row := _row(line):
            rows.append(row)
        else:
            damaged += 1
    if row := _row(last):  # whole but for its line break
        rows.append(row)
    return Metrics(rows, damaged)


def _row(line: str) -> dict[str, Any] | None:
    """A line as a row, or None if it is not one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None


def append(folder: Path, row: Row) -> None:
    """Adds a row."""
    append_line(folder / FILE, json.dumps(row))


def cut(folder: Path, iteration: int) -> None:
    """Drops the rows of an iteration and those after it, which are done again, and all damaged lines."""
    if (folder / FILE).is_file():
        kept = [row for row in read(folder).rows if row["iteration"] < iteration]
        write_text(folder / FILE, "".join(f"{json.dumps(row)}\n" for row in kept))


def seconds(row: Row) -> float:
    """Seconds of an iteration: of all its parts that are logged, which leaves out what is saved and drawn."""
    return float(sum(row.get("seconds", {}).values()))
