"""`python -m ld3m`, the same program as `ld3m`: what is around a command, so that a user never sees a traceback."""

import errno
import os
import re
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import Any

from ld3m.errors import UserError, one_line, visible
from ld3m.machine import streams

WAYS_ON = {
    errno.EACCES: "ask its owner for access, or read a copy and write to a folder of your own",
    errno.ENOSPC: "free some space; the same command resumes from what was saved",
    errno.EROFS: "write to another folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What to do about an error of the system, by its number."""

FULL = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Errors of a stream that takes nothing more; those of our files are UserErrors already."""


def main() -> None:
    """Runs the command line; whatever goes wrong is a line on stderr.

    Exit codes: 2 for a user's mistake, 128 + its number for a signal, 1 for everything else. `LD3M_DEBUG=1` prints the
    traceback too.
    """
    streams.prepare()
    code = 0
    failure: Exception | None = None
    try:
        code = _command()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        failure = error
    failure = failure or streams.lost_output()
    code, lines = _about(failure) if failure else (code, ())
    with suppress(OSError):
        if lines:
            _say(lines)
        if failure and os.environ.get("LD3M_DEBUG", "0") not in ("", "0"):
            traceback.print_exception(failure)
    sys.exit(code)


def _command() -> int:
    """Reads the command line and does what it says; returns the exit code."""
    _set_progress_bars()
    from ld3m.cli import app

    # prog_name: under python -m too, so that completion works there. Standing alone, typer prints mistakes as boxes.
    return app(prog_name="ld3m", standalone_mode=False) or 0


def _say(lines: tuple[str, ...]) -> None:
    """Prints what went wrong: once, if several processes of a launch have the same to say."""
    from ld3m.machine.launcher import speaks_first, traceback_follows

    if not speaks_first(lines):
        return
    for line in lines:
        print(f"ld3m: {visible(line)}", file=sys.stderr)
    if traceback_follows():
        print("ld3m: the traceback below is accelerate launch's own, which --quiet leaves out", file=sys.stderr)


def _set_progress_bars() -> None:
    """Draws bars that go to a log rarely, as a log keeps every state of them; checks tqdm's variables.

    Only the command line decides this: a notebook is no terminal either, but shows bars live. It uses tqdm's own
    variables, which tqdm reads when it is imported: users can set them too, bars of other libraries obey, and whoever
    draws a bar need not know.
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith("TQDM_")}
    for name in [name for name, value in variables.items() if not value]:
        del os.environ[name]  # to tqdm an empty one is a value
    if given := [f"{name}={value}" for name, value in variables.items() if value]:
        try:
            import tqdm  # noqa: F401
        except (ValueError, TypeError) as error:
            raise UserError(f"{', '.join(given)}: tqdm cannot use this ({one_line(error)}); unset it") from None
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
        os.environ.setdefault("TQDM_MAXINTERVAL", "60")


def _about(error: Exception) -> tuple[int, tuple[str, ...]]:
    """The exit code for a command that failed, and what to say."""
    if isinstance(error, UserError):
        return 2, error.lines
    if format_message := getattr(error, "format_message", None):  # typer's, of the command line
        return 2, _usage(format_message(), getattr(error, "ctx", None))
    if isinstance(error, OSError) and error.filename is not None:
        way_on = WAYS_ON.get(error.errno or 0, "see to it and repeat the command")
        return 2, (f"{str(error.filename)[:200]}: {error.strerror or one_line(error)}; {way_on}",)
    if isinstance(error, BrokenPipeError):  # `| head`
        return 1, ()
    if isinstance(error, OSError) and error.errno in FULL:
        return 1, (
            f"cannot print or write ({error.strerror}), so the output is incomplete; repeat it to somewhere else",
        )
    if "torch" in sys.modules:
        from ld3m.machine.environment import misfit
        from ld3m.machine.out_of_memory import ran_out

        if advice := misfit(error):
            return 1, (advice,)
        if ran_out(error):
            reason = one_line(error)
            return 1, (f"memory ran out ({reason}); ld3m plan RECIPE says how much is needed, and what takes less",)
    from ld3m.machine.hub import is_of_the_network

    if is_of_the_network(error):
        return 1, (f"a connection failed ({one_line(error)}); repeat the command once the network is back",)
    return 1, (f"unexpected error ({one_line(error)}); {_report(error)}",)


def _usage(message: str, context: Any) -> tuple[str, ...]:
    """A mistake in the command line as one line; none for a command without any argument, which prints its help."""
    if message.startswith(("Usage:", "\n", " ")) or not message:
        return ()
    message = re.sub(r"^Invalid value for '(.*?)'", r"\1", " ".join(message.split()).rstrip("."))
    message = re.sub(r"\. (Did you mean .*\?)$", lambda hint: f" ({hint[1].lower()})", message)
    command = context.command_path if context else "ld3m"
    return (f"{message[0].lower()}{message[1:]}; {command} --help shows what it takes",)


def _report(error: Exception) -> str:
    """Writes a traceback to a file, without secrets, and says where it is."""
    from ld3m import __version__
    from ld3m.machine.environment import without_secrets

    text = "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(".txt", "ld3m-error-")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
            file.write(without_secrets(f"ld3m {__version__}: {' '.join(sys.argv[1:])}\n\n{text}"))
    except OSError:
        return "LD3M_DEBUG=1 prints where; please report it with that and the output of ld3m env"
    return f"please report it with {path} and the output of ld3m env"


if __name__ == "__main__":
    main()
