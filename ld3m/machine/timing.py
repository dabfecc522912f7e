"""The time of the parts of an iteration, under names that torch.profiler shows too."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch.profiler import record_function

ITERATION = "iteration"
"""The range of a whole iteration."""


class Clock:
    """Seconds of the parts of an iteration, which follow each other without gaps.

    Only if the clock is to be exact, or a profile is taken, is a GPU waited for at the end of a part, so that its work
    is counted in the part that asked for it.
    """

    def __init__(self, device: torch.device, exact: bool) -> None:
        self.device = device
        self.exact = exact
        self.seconds: dict[str, float] = {}
        """Seconds of the parts that have ended; the sum if a part comes twice."""
        self._whole = record_function(ITERATION)
        self._part: tuple[str, float, record_function] | None = None

    def __enter__(self) -> "Clock":
        self._whole.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        self._whole.__exit__(kind, error, trace)

    def begin(self, part: str) -> None:
        """Ends the part before and begins another."""
        self._end()
        named = record_function(part)
        named.__enter__()
        self._part = part, time.perf_counter(), named

    def _end(self) -> None:
        if self._part is None:
            return
        if self.device.type == "cuda" and (self.exact or torch.autograd._profiler_enabled()):
            torch.cuda.synchronize(self.device)
        part, began, named = self._part
        self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - began, 4)
        named.__exit__(None, None, None)
        self._part = None


@contextmanager
def span(part: str) -> Iterator[None]:
    """Names what is done inside a part, for a profile; it costs next to nothing if none is taken."""
    with record_function(part):
        _wait()
        yield
        _wait()


def _wait() -> None:
    """Lets a GPU finish, so that its work is counted in the right part; only while a profile is taken."""
    if torch.autograd._profiler_enabled() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
