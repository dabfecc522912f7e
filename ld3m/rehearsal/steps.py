"""Steps that are tried one after the other on all processes: what came of each, how long it took, and its memory."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

from ld3m.errors import UserError, one_line
from ld3m.machine import memory
from ld3m.machine.processes import Processes

PASSED, FAILED, WARNING, NOT_TRIED = "passed", "failed", "warning", "not tried"
HEAD = f"{'step':<20} {'result':<10} {'seconds':>8} {'peak GiB':>9}"


class Row(NamedTuple):
    """A step."""

    step: str
    result: str
    """`PASSED`, `FAILED`, `WARNING` or `NOT_TRIED`."""
    lines: Sequence[str]
    """What was seen, or why it failed."""
    seconds: float = 0.0
    peak: int = 0
    """The most memory that a process used, in bytes: of its GPU, else of its own."""

    def text(self) -> str:
        """The row of the table; further lines stand below the first."""
        figures = f"{self.seconds:>8,.1f} {self.peak / 2**30:>9,.2f}" if self.peak else " " * 18
        head = f"{self.step:<20} {self.result:<10} {figures}  "
        first, *others = self.lines or ("",)
        return "\n".join([f"{head}{first}".rstrip(), *(" " * len(HEAD) + f"  {line}" for line in others)])


@dataclass
class Steps:
    """Those that were tried so far."""

    processes: Processes
    out: TextIO = field(default_factory=lambda: sys.stdout)
    """Where the table goes, row by row; what the steps print there themselves is left out."""
    rows: list[Row] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    """Of this process, or what was reported by another."""

    def add(self, row: Row) -> None:
        """Adds a row, which the main process prints at once."""
        if self.processes.is_main_process:
            print(row.text() if self.rows else f"{HEAD}\n{row.text()}", file=self.out, flush=True)
        self.rows.append(row)

    def skip(self, step: str, why: str) -> None:
        """Says that a step is not tried."""
        self.add(Row(step, NOT_TRIED, [why]))

    def alone(self, step: str, action: Callable[[], str], everywhere: bool = True) -> bool:
        """Tries what waits for no other process, on all of them or on the main one; whether it passed on all."""
        began, error, text = time.perf_counter(), None, ""
        memory.forget_peak(self.processes.device)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                text = action() if everywhere or self.processes.is_main_process else ""
        except Exception as caught:
            error = caught
        return self._end(step, began, text, self.processes.gather([_lines(error)]), error)

    def together(self, step: str, action: Callable[[], str]) -> bool:
        """Tries what the processes do together; whether it passed.

        Raises:
            Exception: if it failed and there are others, which may wait for this process: all end then.
        """
        began = time.perf_counter()
        memory.forget_peak(self.processes.device)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                text = action()
        except Exception as error:
            if self.processes.num_processes > 1:
                self.add(Row(step, FAILED, _lines(error), time.perf_counter() - began))
                raise
            return self._end(step, began, "", [_lines(error)], error)
        return self._end(step, began, text, [()], None)

    def _end(
        self, step: str, began: float, text: str, failures: Sequence[Sequence[str]], error: Exception | None
    ) -> bool:
        """Adds the row of a step that has ended on all processes."""
        peak = max(self.processes.gather([memory.peak(self.processes.device)]))
        lines = list(dict.fromkeys(line for lines in failures for line in lines))
        if lines:
            self.errors.append(error or UserError(*lines))
        result = FAILED if lines else PASSED
        self.add(Row(step, result, lines or [text], time.perf_counter() - began, peak))
        return not lines


def _lines(error: Exception | None) -> Sequence[str]:
    """What a row says of an error."""
    if error is None:
        return ()
    return error.lines if isinstance(error, UserError) else (one_line(error),)
