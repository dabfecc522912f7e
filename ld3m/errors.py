"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in what the user gave; `lines` say what is wrong and what would be right.

    The command line prints each line on stderr and exits with code 2, without a traceback.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def one_line(error: Exception) -> str:
    """A foreign error as a part of one of our lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
