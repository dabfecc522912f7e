"""The command line itself: how a command is resumed, started again, and refused."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, command

from ld3m import __version__
from ld3m.machine import streams


def test_version(ld3m: Callable[..., Outcome]) -> None:
    assert ld3m("--version") == Outcome(0, f"ld3m {__version__}\n", "")


@pytest.mark.parametrize("command", ["experts", "train-prior", "train-teacher"])
def test_resuming_is_the_default_of_commands_that_resume_from_their_own_folder_only(
    command: str, ld3m: Callable[..., Outcome], tmp_path: Path
) -> None:
    line = "ld3m: --resume: resuming is the default, so leave it out; --no-resume starts again\n"
    for more in ([], ["runs/other"], ["--no-resume"]):
        assert ld3m(command, "quickstart", "--resume", *more) == Outcome(2, "", line)
    assert not any(tmp_path.iterdir())


def test_resume_and_no_resume(ld3m: Callable[..., Outcome], recipe_file: Path) -> None:
    outcome = ld3m("distill", recipe_file, "--resume", "runs/shapes", "--no-resume")
    assert outcome == Outcome(2, "", "ld3m: --resume and --no-resume are mutually exclusive; leave one out\n")


@pytest.mark.parametrize("command", ["distill", "experts", "train-prior"])
def test_no_resume_means_one_thing(command: str, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "3000")
    lines = [" ".join(line.strip("│ ").split()) for line in ld3m(command, "--help").out.splitlines()]
    (line,) = [line for line in lines if line.startswith("--no-resume")]
    assert line.endswith("Start again and replace what is in the folder; by default it is resumed.")
    assert any(line.startswith("--resume PATH") for line in lines) == (command == "distill")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("distil quickstart", "no such command 'distil' (did you mean 'distill'?); ld3m --help shows what it takes"),
        ("distill", "missing argument 'RECIPE'; ld3m distill --help shows what it takes"),
        ("distill quickstart --iterations 3", "no such option: --iterations; ld3m distill --help shows what it takes"),
        ("plan quickstart --device", "option '--device' requires an argument; ld3m --help shows what it takes"),
        ("evaluate --seeds many", "--seeds: "),
        ("--fast", "no such option: --fast; ld3m --help shows what it takes"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line(words: str, line: str, ld3m: Callable[..., Outcome]) -> None:
    code, out, err = ld3m(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"ld3m: {line}")
    assert err.count("\n") == 1


def test_no_command_at_all_is_the_help(ld3m: Callable[..., Outcome]) -> None:
    code, out, err = ld3m()
    assert (code, err) == (2, "")
    assert "distill" in out


# --- whatever goes wrong is a line -------------------------------------------------------------------------


@pytest.fixture
def failing(ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a command that meets an error nobody expected."""
    from ld3m.machine import environment

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(error: BaseException, *arguments: str) -> Outcome:
        def fail() -> str:
            raise error

        monkeypatch.setattr(environment, "report", fail)
        return ld3m("env", *arguments)

    return run


def test_an_unexpected_error_is_a_line_and_a_file(failing: Callable[..., Outcome], tmp_path: Path) -> None:
    code, out, err = failing(KeyError("hf_secret"))
    (report,) = tmp_path.glob("ld3m-error-*.txt")
    assert (code, out) == (1, "")
    assert err == (
        f"ld3m: unexpected error (KeyError: 'hf_secret'); please report it with {report} and the output of ld3m env\n"
    )
    text = report.read_text()
    assert text.startswith(f"ld3m {__version__}: env\n\nTraceback (most recent call last):")
    assert text.endswith("KeyError: '(a token)'\n")


def test_a_traceback_is_printed_on_request(failing: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD3M_DEBUG", "1")
    lines = failing(KeyError("x")).err.splitlines()
    assert lines[0].startswith("ld3m: unexpected error (KeyError: 'x')")
    assert lines[1] == "Traceback (most recent call last):"
    monkeypatch.setenv("LD3M_DEBUG", "0")
    assert "Traceback" not in failing(KeyError("x")).err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "runs/a"), 2, "ld3m: runs/a: Permission denied; ask its owner for"),
        (OSError(28, "No space left on device", "a"), 2, "ld3m: a: No space left on device; free some space"),
        (OSError(36, "File name too long", "a" * 300), 2, "ld3m: aaaaaaaaaaaa"),
        (OSError(28, "No space left on device"), 1, "ld3m: cannot print or write (No space left on device)"),
        (MemoryError(), 1, "ld3m: memory ran out (MemoryError: ); ld3m plan RECIPE says"),
        (ConnectionResetError(104, "reset"), 1, "ld3m: a connection failed (ConnectionResetError: [Errno 104] reset)"),
        (
            UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"),
            1,
            "ld3m: unexpected error (UnicodeDecodeError: 'utf-8",
        ),
        (
            RuntimeError("Failed to import diffusers: operator torchvision::nms does not exist"),
            1,
            "ld3m: torchvision ",
        ),
        (RecursionError("too deep"), 1, "ld3m: unexpected error (RecursionError: too deep)"),
    ],
)
def test_errors_of_the_machine_say_what_to_do(
    failing: Callable[..., Outcome], error: Exception, code: int, line: str
) -> None:
    outcome = failing(error)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(line)
    assert outcome.err.count("\n") == 1


def test_a_reader_that_leaves_early_and_ctrl_c_need_no_line(failing: Callable[..., Outcome]) -> None:
    assert failing(BrokenPipeError(32, "Broken pipe")) == Outcome(1, "", "")
    assert failing(KeyboardInterrupt()).code == 130


def test_streams_of_other_encodings_take_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe on Windows is cp1252, which has ± but no →; names on disk may be no text at all."""
    shown = {}
    for encoding in ("latin-1", "cp1252", "utf-8"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        streams.prepare()
        print("1 → 2 ± 3 猫 caf\udce9", end="", flush=True)
        shown[encoding] = written.getvalue().decode(encoding)
    plain = "1 -> 2 ± 3 \\u732b caf\\udce9"
    assert shown == {"latin-1": plain, "cp1252": plain, "utf-8": "1 → 2 ± 3 猫 caf\\udce9"}


def test_closed_streams_are_the_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    streams.prepare()
    print("nobody", file=sys.stderr)
    assert (sys.stdout.name, sys.stderr.name) == (os.devnull, os.devnull)
    assert streams.lost_output() is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_output_is_said() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = subprocess.run(command("--version"), stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1
    assert process.stderr.startswith("ld3m: cannot print or write (No space left on device), so the output is")


def test_a_variable_of_the_progress_bars_that_is_no_number() -> None:
    environment = os.environ | {"TQDM_MININTERVAL": "x"}
    process = subprocess.run(command("--version"), capture_output=True, text=True, env=environment)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("ld3m: ")
    assert "TQDM_MININTERVAL=x" in process.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("distill", "quickstart", "-o", "caf\udce9"),
        ("train-prior", "prior-digits", "-o", "caf\udce9"),
        ("ablate", "quickstart", "--axis", "seed=0,1", "-o", "caf\udce9"),
        ("distill", "quickstart", "output=caf\udce9"),
    ],
)
def test_an_output_that_is_not_utf_8(ld3m: Callable[..., Outcome], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """safetensors cannot open it; found here after the first checkpoint."""
    code, out, err = ld3m(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'caf\\udce9'" in err
    assert err.endswith("it is not UTF-8, and safetensors opens no file of such a name; rename it\n")
    assert not any(tmp_path.iterdir())
