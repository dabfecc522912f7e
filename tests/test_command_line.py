"""The command line itself: how a command is resumed, started again, and refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

from ld3m import __version__


def test_version(ld3m: Callable[..., Outcome]) -> None:
    assert ld3m("--version") == Outcome(0, f"ld3m {__version__}\n", "")


@pytest.mark.parametrize("command", ["experts", "train-prior"])
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
