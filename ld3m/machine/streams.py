"""Standard output and error: there whoever starts us, able to take any text, and known to be full if they are."""

import codecs
import io
import os
import sys
from contextlib import suppress

PLAIN = {
    "→": "->", "±": "+-", "−": "-", "–": "-", "×": "x", "·": "*", "…": "...", "≥": ">=", "≤": "<=", "²": "^2",
    "“": '"', "”": '"', "’": "'",
}  # fmt: skip
"""What is printed for characters that a stream's encoding lacks, such as latin-1 or a Windows pipe's cp1252."""


def prepare() -> None:
    """Makes the streams fit for what commands print; call it before anything is printed.

    Streams that are closed (`>&-`, a service without a console) become the null device: else the next file that is
    opened would take their place. A character that an encoding lacks is spelt with those that it has.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(handle)
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until we end
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    codecs.register_error("ld3m", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's are not
            stream.reconfigure(errors="ld3m")


def lost_output() -> OSError | None:
    """Why standard output could not take what was printed, if so; what is left of it is dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again as it ends
        return error
    return None


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of Python's codecs."""
    if isinstance(error, UnicodeEncodeError) and (spelt := PLAIN.get(error.object[error.start])):
        return spelt, error.start + 1
    if isinstance(error, UnicodeEncodeError):
        error.end = error.start + 1  # the next may have a spelling
    return codecs.backslashreplace_errors(error)
