"""Folders of the cache that are made once, by one process, of what is costly to compute from real images."""

import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ld3m.data.layouts.listing import exists
from ld3m.errors import UserError
from ld3m.files import ANOTHER_CACHE, writable, write_folder
from ld3m.machine.lock import hold

T = TypeVar("T")
REMOVE = "remove the folder, and the same command makes it again"
"""The end of errors of what is damaged in such a folder."""


def cached(folder: Path, read: Callable[[], T], fill: Callable[[Path], None], what: str) -> T:
    """What a folder holds; it is made if it is not there, and again, with a line that says so, if it is damaged.

    If several processes want the same folder, one makes it and the others wait.

    Args:
        read: gives what it holds, or raises a UserError that ends with `REMOVE`.
        fill: writes it.
        what: it holds, in the plural.
    """
    if exists(str(folder)):
        with suppress(UserError):
            return read()
    writable(folder.parent, ANOTHER_CACHE)
    with hold(folder.with_suffix(".lock")):
        if folder.exists():
            try:
                return read()
            except UserError as error:
                print(f"{str(error).removesuffix(f'; {REMOVE}')}; the {what} are made again", file=sys.stderr)
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        write_folder(folder, fill)
        return read()
