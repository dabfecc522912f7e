"""The one exception that means: the user can mend this."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


class UserError(Exception):
    """A mistake in what the user gave; `lines` say what is wrong and what would be right.

    The command line prints each line on stderr and exits with code 2, without a traceback.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@contextmanager
def sound(file: object, instead: str) -> Iterator[None]:
    """Within it a file is read; one that is not what it should be is the user's to mend.

    Args:
        file: its path, after the key that it is from where there is one.
        instead: what to do, which ends the error.

    Raises:
        UserError: for whatever parsing the file, or taking from it what must be in it, raises.
    """
    try:
        yield
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); {instead}") from None


def one_line(error: Exception) -> str:
    """A foreign error as a part of one of our lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
