"""The temporary folder of a rehearsal: on the disk of the run's folder, and gone afterwards."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ld3m.machine import lock
from ld3m.machine.processes import Processes

PREFIX = ".ld3m-rehearsal-"
"""How its name begins."""


def nearest(folder: Path) -> Path:
    """The folder in which a folder lies or would lie, or the first above that is there."""
    return next(path for path in folder.absolute().parents if path.is_dir())


@contextmanager
def temporary(place: Path, processes: Processes) -> Iterator[tuple[Path, str | None]]:
    """A folder of all processes that is removed at the end, however the context is left.

    Args:
        place: the folder that it is made in, if possible.

    Yields:
        The folder, and why it is among the system's temporary ones instead; None if it is not.
    """
    found: list[Any] = []
    with ExitStack() as entered:
        if processes.is_main_process:
            why_not = None
            try:
                folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            except OSError as error:
                folder, why_not = Path(tempfile.mkdtemp(prefix=PREFIX)), error.strerror
            entered.callback(shutil.rmtree, folder, ignore_errors=True)
            entered.enter_context(lock.claim(folder))
            _remove_abandoned(folder.parent)
            found = [(folder, why_not)]
        ((folder, why_not),) = processes.gather(found)
        if not processes.is_main_process:  # the main one may be ended by another's failure
            entered.callback(_remove_after_failure, folder)
        yield folder, why_not


def _remove_after_failure(folder: Path) -> None:
    if sys.exc_info()[0]:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    """Removes the folders of rehearsals that were killed."""
    for folder in place.glob(f"{PREFIX}*"):
        if (folder / lock.LOCK).exists() and lock.is_held(folder) is False:
            shutil.rmtree(folder, ignore_errors=True)
