"""The lock of a run folder: one command at a time works in it, and others can see that one does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ld3m.errors import UserError

LOCK = ".lock"
"""Its file; empty, and left there. The system lets go of it when the process that holds it ends, however it ends."""
PATIENCE = 2.0
"""Seconds to wait for it: who only looks whether it is free holds it for a moment."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a run's folder.

    Raises:
        UserError: where another process is at work in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(
            f"output: another process is at work in {folder}; ld3m status {folder} says how far it is. "
            "Wait for its end, or give another --output"
        ) from None
    except OSError as error:
        raise UserError(f"output: cannot lock {folder / LOCK} ({error.strerror}); give another --output") from None
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool | None:
    """Whether a process is at work in a run's folder; None where the system does not let us see it."""
    if not (folder / LOCK).exists():  # made by an older version, or on its way from elsewhere: nothing is written here
        return False
    try:
        with FileLock(folder / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # another user's, or on a disk that is only read
        return None
