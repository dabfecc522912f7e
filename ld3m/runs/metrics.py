"""metrics.jsonl: one JSON object per logged iteration, written line by line and read by one rule.

A last line that is still being written does not count. Any other line that is not a row, as `Logged` says, is damaged:
it is skipped, and counted. Reading does not import torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ld3m.errors import UserError
from ld3m.files import append_line, write_text

FILE = "metrics.jsonl"
COMMON = ("iteration", "loss", "grad_z", "grad_c", "peak_memory", "seconds")
"""Keys that the rows of every objective have; all others are numbers that an objective learns."""

Row = Mapping[str, Any]


class Logged(BaseModel, extra="allow", allow_inf_nan=False):
    """The numbers of a row; older versions did not write all of them."""

    __pydantic_extra__: dict[str, float]
    iteration: int = Field(ge=0)
    loss: float
    grad_z: float | None = None
    grad_c: float | None = None
    peak_memory: int | None = None
    seconds: dict[str, float] = {}


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
    """The metrics of a run's folder; none if it has not logged anything yet.

    Raises:
        UserError: if the file cannot be read at all.
    """
    path = folder / FILE
    if not path.exists():
        return Metrics([], 0)
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); move it away to continue without it") from None
    logged = Metrics([], 0)
    *lines, last = text.split("\n")
    damaged = sum(not _take(line, logged) for line in lines if line)
    _take(last, logged)  # it may be whole but for its line break
    return Metrics(logged.rows, damaged)


def _take(line: str, logged: Metrics) -> bool:
    """Adds a line to the rows if it is one, of a later iteration than those before."""
    try:
        row = json.loads(line)
        is_next = Logged.model_validate(row, strict=True).iteration >= logged.iterations
    except (ValueError, RecursionError):
        return False
    if is_next:
        logged.rows.append(row)
    return is_next


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


def duration(seconds: float) -> str:
    """Seconds in the units that people use: 0.42 s, 42 s, 3 min 20 s, 5 h 12 min, 2 d 4 h."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s"
