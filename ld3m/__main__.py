"""`python -m ld3m`, the same program as `ld3m`."""

import os
import sys

from ld3m.cli import app
from ld3m.errors import UserError


def main() -> None:
    """Runs the command line. Each of a user's mistakes becomes one line on stderr; the exit code is then 2."""
    # A log keeps every state of a progress bar, so bars that go to one are drawn rarely. Only the command line decides
    # this: a notebook is no terminal either, but shows bars live. It uses tqdm's own variables, which tqdm reads when
    # it is imported: users can set them too, bars of other libraries obey, and whoever draws a bar need not know.
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("TQDM_MAXINTERVAL", "60")
    try:
        app(prog_name="ld3m")  # under python -m too, so that completion works there
    except UserError as error:
        for line in error.lines:
            print(f"ld3m: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
