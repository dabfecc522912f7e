"""Locks: the claim on a folder, in which one command at a time works, and those of what is made in the cache."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ld3m.errors import UserError, one_line
from ld3m.files import TEMPORARY, writable

LOCK = ".lock"
"""The lock's file; empty, and left behind. The system releases the lock when the process that holds it ends."""
TIMEOUT = 2.0
"""Seconds to wait for the lock: `is_held` takes it for a moment."""
PATIENCE = 10.0
"""Seconds after which `hold` says that it waits."""
SOON = 1.0
"""The same if it knows for what."""
LOCKLESS = (OSError, NotImplementedError)
"""What filelock raises on disks without locks, and where a lock's file cannot be made."""
CACHE_WITH_LOCKS = "set LD3M_CACHE to a folder of your own on a disk with file locks, such as a local one"


@contextmanager
def claim(
    folder: Path,
    mark: str | None = None,
    kind: str = "",
    key: str = "output",
    instead: str = "give another --output",
) -> Iterator[None]:
    """Makes a folder and keeps other commands out of it until the context ends; call it on one process.

    Args:
        mark: a file that every folder of this kind holds; None if the folder may hold anything.
        kind: what such a folder is, for the error: "a run".
        key: of the recipe or of the command line that gave the folder; errors begin with it.
        instead: what to give instead; errors end with it.

    Raises:
        UserError: if the folder cannot be written to, is not empty and of another kind, or another process works in it.
    """
    writable(folder, instead)
    if mark:
        check_kind(folder, mark, kind, key, instead)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=TIMEOUT)
    except Timeout:
        status = f"ld3m status {folder} shows its progress; " if (folder / "recipe.yaml").is_file() else ""
        raise UserError(
            f"{key}: another process is at work in {folder}; {status}wait until it ends, or {instead}"
        ) from None
    except LOCKLESS as error:
        raise UserError(f"{key}: cannot lock {folder / LOCK} ({_reason(error)}); {instead}") from None
    try:
        yield
    finally:
        lock.release()


def check_kind(folder: Path, mark: str, kind: str, key: str = "output", instead: str = "give another --output") -> None:
    """Checks that a folder is missing, empty or of a kind; the arguments are those of `claim`.

    Raises:
        UserError: if it is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}: {folder} is no folder; {instead}")
    if folder.exists() and not (folder / mark).is_file() and any(not _is_left(path.name) for path in folder.iterdir()):
        raise UserError(f"{key}: {folder} is not empty and not {kind}; {instead}")


@contextmanager
def hold(path: Path, wait: bool = True, doing: str | None = None, instead: str = CACHE_WITH_LOCKS) -> Iterator[bool]:
    """Holds the lock of something that is shared until the context ends; yields whether it does.

    Args:
        path: the lock's file, in a folder that is there; empty, and left behind.
        wait: for another process that holds it, and say so; if not, False is yielded instead.
        doing: what the process that holds it does: "fetches cin256-v2". If given, who waits says so after a second, as
            it takes long, and otherwise after ten.
        instead: what to do if the disk has no locks; by default, what to do about the cache.

    Raises:
        UserError: if the disk has no locks, or does not let us lock.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=(SOON if doing else PATIENCE) if wait else 0)
        except Timeout:
            if wait:
                print(f"waiting for another process, which {doing or f'holds {path}'}", file=sys.stderr, flush=True)
                lock.acquire()
    except LOCKLESS as error:
        raise UserError(f"cannot lock {path} ({_reason(error)}); {instead}") from None
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _is_left(name: str) -> bool:
    """Whether a file is the lock, or what a process that was killed left of one that it was writing."""
    return name == LOCK or TEMPORARY.fullmatch(name) is not None


def is_held(folder: Path) -> bool | None:
    """Whether a process is at work in a folder; None if the system does not let us see it."""
    if not (folder / LOCK).exists():  # made by an older version, or copied from elsewhere: nothing is written here
        return False
    try:
        with FileLock(folder / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except LOCKLESS:  # another user's, or on a read-only disk
        return None
