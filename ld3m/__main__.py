"""`python -m ld3m`, the same program as `ld3m`."""

import os
import sys

from ld3m.cli import app
from ld3m.errors import UserError


def main() -> None:
    """Runs the command line; a user's mistake becomes one line each on stderr and exit code 2."""
    if not sys.stderr.isatty():  # a log keeps every state of a progress bar; tqdm reads this as it is imported
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("TQDM_MAXINTERVAL", "60")
    try:
        app()
    except UserError as error:
        for line in error.lines:
            print(f"ld3m: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
