"""The signals of people and of batch systems: collected or turned into an exit, instead of killing a command."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Ctrl-C, a batch system's end, and its warning before the end."""
TIME = 1
"""What `collected` has once its time is over: less than any of these, which come first."""


@contextmanager
def collected(seconds: float | None = None) -> Iterator[list[int]]:
    """Collects the numbers of signals, for a command that stops at a moment of its own; a second of a kind kills.

    Args:
        seconds: after which `TIME` is collected too.
    """
    received: list[int] = []
    timer = threading.Timer(max(0.0, seconds or 0.0), received.append, [TIME])
    timer.daemon = True
    with _handled(received.append):
        if seconds is not None:
            timer.start()
        try:
            yield received
        finally:
            timer.cancel()


@contextmanager
def exiting() -> Iterator[None]:
    """Turns a signal into SystemExit with 128 + its number, so that what is open is closed."""

    def leave(number: int) -> None:
        raise SystemExit(128 + number)

    with _handled(leave):
        yield


@contextmanager
def _handled(react: Callable[[int], None]) -> Iterator[None]:
    def handle(number: int, frame: object) -> None:
        signal.signal(number, before[number])
        react(number)

    if threading.current_thread() is not threading.main_thread():  # the only one that Python lets handle them
        yield
        return
    before = {int(number): signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
