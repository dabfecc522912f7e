"""The one exception that means: the user can fix this."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError


class UserError(Exception):
    """A mistake in what the user gave; `lines` say what is wrong and what would be right.

    The command line prints each line on stderr and exits with code 2, without a traceback.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class DivergedError(UserError):
    """A loss that is not finite, which other settings would mend."""


@contextmanager
def user_error_if_damaged(file: object, advice: str) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read inside it into a UserError: "FILE is damaged (…); ADVICE".

    Args:
        file: its path, preceded by the key that it comes from if there is one.
        advice: what to do about it, which ends the error.

    Raises:
        UserError: for whatever parsing the file, or taking from it what must be in it, raises.
    """
    try:
        yield
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); {advice}") from None


def some(names: Sequence[str], most: int = 5) -> str:
    """As many names as a line has room for, and … for the rest."""
    return ", ".join([*names[:most], *["…"] * (len(names) > most)])


def classes_text(names: Sequence[str]) -> str:
    """Classes for a message: "class 'cat'", or "classes 'cat', 'dog'"."""
    return f"class{'es' * (len(names) > 1)} {some([repr(name) for name in names])}"


def shortened(value: Any) -> str:
    """A value for a message; a thousand classes do not fit into one line."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def counted(count: int, noun: str) -> str:
    """A number of things: "1 image", "1,200 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def span(counts: Sequence[int]) -> str:
    """From the least to the largest: "3 to 1,200", or "12" if all are the same."""
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


@contextmanager
def blamed_on(key: str) -> Iterator[None]:
    """Has the lines of a UserError begin with the option that gave a prior, in the place of its usual key."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"{key}: {line.removeprefix('prior.source: ')}" for line in error.lines)) from None


def one_line(error: Exception) -> str:
    """A foreign error as a part of one of our lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def visible(text: str) -> str:
    """A line with its control characters spelt out: names of files may break lines, or colour a terminal."""
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) == "Cc" else letter for letter in text)
