"""What a launch leaves on the screen: one line of whoever fails first, under whichever launcher; and its exit code."""

import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import accelerate.commands.config.config_args as configuration
import accelerate.commands.launch as accelerate_launch
import psutil
import pytest
import torch
from conftest import Outcome
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ld3m.machine import launcher

LINE = "data.root: data/imagenet is not there; give the folder of ImageNet"


@pytest.fixture
def error_files(tmp_path: Path) -> list[Path]:
    """Where torch's launcher looks for what each of two processes says of its failure."""
    files = [tmp_path / "attempt_0" / str(rank) / "error.json" for rank in (0, 1)]
    for file in files:
        file.parent.mkdir(parents=True)
    return files


def test_of_processes_with_the_same_to_say_one_speaks_and_torch_shows_its_line_last(
    error_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoke = []
    for file, lines in ((error_files[1], [LINE]), (error_files[0], [LINE]), (error_files[0], ["process 0: another"])):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        spoke.append(launcher.speaks_first(lines))
        error_files[0].unlink(missing_ok=True)
    assert spoke == [True, False, True]
    failures = {rank: ProcessFailure(rank, 100 + rank, 2, str(file)) for rank, file in enumerate(error_files)}
    banner = str(ChildFailedError("ld3m", failures)).splitlines()
    assert banner[-2] == f"  traceback : ld3m: {LINE}"


def test_without_torchs_launcher_every_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    assert [launcher.speaks_first([LINE]) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("words", [("keys", "seed"), ("recipes",), ("distill", "quickstart", "--dry-run")])
def test_what_processes_do_not_share_is_done_by_the_first(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, ld3m: Callable[..., Outcome]
) -> None:
    said = []
    for launched, rank in (("", "1"), ("error.json", "0"), ("error.json", "1")):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", launched)
        monkeypatch.setenv("RANK", rank)
        said.append(ld3m(*words))
    assert said[0] == said[1]
    assert said[0].out
    assert said[2] == Outcome(0, "", "")


@pytest.mark.parametrize(
    ("parent", "follows"),
    [
        ("/env/bin/python /env/bin/accelerate launch -m ld3m distill x", True),
        ("python -m accelerate.commands.launch --config_file a.yaml -m ld3m distill x", True),
        ("/env/bin/python /env/bin/accelerate-launch -m ld3m distill x", True),
        ("/env/bin/accelerate launch --quiet -m ld3m distill x", False),
        ("/env/bin/python /env/bin/ld3m launch distill x", False),
        ("bash train.sh", False),
    ],
)
def test_a_line_announces_the_traceback_of_a_launcher_that_is_not_quiet(
    parent: str, follows: bool, monkeypatch: pytest.MonkeyPatch, ld3m: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(psutil.Process, "parent", lambda _: Namespace(cmdline=parent.split))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    first, *others = ld3m("distill", "missing").err.splitlines()
    assert first.startswith("ld3m: missing: ")
    assert others == ["ld3m: the traceback below is accelerate launch's own, which --quiet leaves out"] * follows


# --- ld3m launch -------------------------------------------------------------------------------------------


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[BaseException | None]:
    """What becomes of launches, in which no process starts; each leaves its options in `started`."""
    outcomes: list[BaseException | None] = []

    def start(options: Namespace) -> None:
        started.append(options)
        if outcomes and (error := outcomes.pop()):
            raise error

    monkeypatch.setattr(configuration, "default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(accelerate_launch, "launch_command", start)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    started.clear()
    return outcomes


started: list[Namespace] = []


def test_defaults_are_the_gpus_of_the_machine(
    outcomes: list[BaseException | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launcher.launch(["distill", "quickstart", "--dry-run"]) == 0
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    assert launcher.launch(["distill", "quickstart"]) == 0
    assert launcher.launch(["--gpu_ids", "0,3", "-m", "ld3m", "distill", "quickstart"]) == 0
    assert launcher.launch(["--cpu", "--num_processes", "2", "distill", "quickstart"]) == 0
    found = [(each.num_processes, each.multi_gpu, each.use_cpu) for each in started]
    assert found == [(1, False, True), (8, True, False), (2, True, False), (2, True, True)]
    assert all(each.module and each.training_script == "ld3m" for each in started)
    assert started[0].training_script_args == ["distill", "quickstart", "--dry-run"]
    assert {tuple(each.training_script_args) for each in started[1:]} == {("distill", "quickstart")}


def failed(*codes: int) -> ChildFailedError:
    return ChildFailedError("ld3m", {rank: ProcessFailure(rank, 1, code, "") for rank, code in enumerate(codes)})


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (subprocess.CalledProcessError(2, ["ld3m"]), 2, ""),
        (failed(-signal.SIGTERM, 2), 2, ""),
        (failed(138, 138), 138, ""),
        (failed(-signal.SIGTERM, -signal.SIGKILL), 137, "ld3m: process 1 was ended by SIGKILL, most likely since the"),
        (subprocess.CalledProcessError(-11, ["ld3m"]), 139, "ld3m: the process was ended by SIGSEGV; the same command"),
    ],
)
def test_the_exit_code_is_the_commands(
    error: Exception,
    code: int,
    line: str,
    outcomes: list[BaseException | None],
    ld3m: Callable[..., Outcome],
) -> None:
    outcomes.append(error)
    outcome = ld3m("launch", "distill", "quickstart")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(line)
    assert outcome.err.count("\n") == bool(line)


def test_what_cannot_be_launched_is_a_line(outcomes: list[BaseException | None], ld3m: Callable[..., Outcome]) -> None:
    for words, line in (
        ([], "launch: no command; give one of ld3m, as in ld3m launch distill quickstart"),
        (
            ["--config_file", "none.yaml", "distill"],
            "--config_file: none.yaml is not there; launch/ has some, or leave",
        ),
        (["--num_processes", "many", "distill"], "launch: argument --num_processes"),
        (["--fast", "distill"], "launch: unrecognized arguments: --fast; accelerate launch --help lists its options"),
    ):
        code, out, err = ld3m("launch", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"ld3m: {line}")
    outcomes.append(ValueError("two\nlines"))
    assert ld3m("launch", "distill", "x") == Outcome(
        2, "", "ld3m: the launch cannot be set up (ValueError: two lines); use a configuration of launch/\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX' signals")
def test_signals_for_the_launcher_alone_are_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    received: list[int] = []
    monkeypatch.setattr(psutil.Process, "children", lambda _: [Namespace(send_signal=received.append)])
    monkeypatch.setattr(configuration, "default_config_file", str(tmp_path / "none.yaml"))

    def start(_: Namespace) -> None:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        raise subprocess.CalledProcessError(138, ["ld3m"])

    monkeypatch.setattr(accelerate_launch, "launch_command", start)
    before = signal.getsignal(signal.SIGINT)
    assert launcher.launch(["distill", "quickstart"]) == 138
    assert received == [signal.SIGUSR1, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before
