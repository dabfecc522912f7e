"""Which process of a launch this is, by the launcher's variables alone: known before the processes have met."""

import os
import sys


def is_first_process() -> bool:
    """Whether this is the only process, or the one of RANK 0; an empty RANK counts as none."""
    return os.environ.get("RANK", "").strip() in ("", "0")


def say_once(line: str) -> None:
    """Prints a line to standard error, on the first process."""
    if is_first_process():
        print(line, file=sys.stderr)
