"""What `ld3m status` says of runs that are finished, killed and under way, and the lock by which it knows."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, distilled, latents
from processes import command_line, finish, spawn

from ld3m.machine import lock
from ld3m.recipe import Recipe
from ld3m.recipe.files import load, to_yaml
from ld3m.reporting.status import read, text
from ld3m.runs.metrics import duration

LONG = ("distill.iterations=100000", "distill.checkpoint_every=5")


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}}")]


def wait_for_rows(folder: Path, count: int) -> None:
    for _ in range(6000):
        if len(rows(folder)) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{folder} did not log {count} iterations")


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilled(recipe_file, tmp_path_factory.mktemp("runs") / "done", "distill.iterations=6")


@pytest.fixture
def running(recipe_file: Path, tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """A run in a process of its own that has logged six iterations, and goes on."""
    folder = tmp_path / "runs" / "busy"
    (process,) = processes = spawn(1, command_line, "distill", recipe_file, *LONG, "-o", folder)
    try:
        wait_for_rows(folder, 6)
        yield folder, process
    finally:
        process.kill()
        finish(processes)


def test_a_finished_run(finished: Path, ld3m: Callable[..., Outcome]) -> None:
    said = json.loads(ld3m("status", finished, "--json").out)
    first, *_, last = rows(finished)
    assert (said["state"], said["iteration"], said["iterations"], said["checkpoint"]) == ("finished", 6, 6, 6)
    assert (said["loss_first"], said["loss"]) == (first["loss"], last["loss"])
    assert (said["grad_z"], said["grad_c"]) == (last["grad_z"], last["grad_c"])
    seconds = sorted(sum(row["seconds"].values()) for row in rows(finished))
    assert said["iterations_per_second"] == pytest.approx(2 / (seconds[2] + seconds[3]))  # the median of six
    assert said["seconds_left"] is None
    assert said["peak_memory"] == last["peak_memory"] >= first["peak_memory"] > 10_000_000
    assert f"{last['peak_memory'] / 2**30:.2f} GiB" in ld3m("status", finished).out
    assert said["objective"] == "dm"
    assert said["prior"].endswith("skip reference, 3 steps")
    assert said["evaluation"] == []
    assert said["look_at"] == ["images", "grid.png", "real.png", "evolution.gif", "evolution", "metrics.jsonl"]
    lines = ld3m("status", finished).out.splitlines()
    assert lines[0] == f"{finished}: finished, iteration 6 of 6 (100 %)"
    assert f"{first['loss']:.5g} → {last['loss']:.5g}" in lines[1]
    assert not any("to resume" in line or "time left" in line for line in lines)


def test_pixels_have_no_prior_that_is_named(tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(load(Recipe, "digits", ["prior.source=pixels"])))
    assert re.search(r"^  prior +none: pixels$", ld3m("status", tmp_path).out, re.M)


def test_status_writes_nothing(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "fetched", ignore=shutil.ignore_patterns(lock.LOCK))
    before = sorted(folder.rglob("*"))
    assert read(folder).state == "finished"
    assert sorted(folder.rglob("*")) == before


def test_evaluation_figures(finished: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    folder = shutil.copytree(finished, tmp_path / "evaluated")
    assert ld3m("evaluate", folder).code == 0
    (row,) = json.loads((folder / "evaluation.json").read_text())["results"]
    (said,) = json.loads(ld3m("status", folder, "--json").out)["evaluation"]
    keys = ("trained_on", "arch", "split", "mean", "std")
    how = {key: row["protocol"][key] for key in ("epochs", "batch", "lr", "ema", "augment")}
    assert said == {key: row[key] for key in keys} | how | {"seeds": 2, "has_learnt": "at_chance" not in row}
    chance = ", has not learnt" if "at_chance" in row else ""
    expected = f"{row['mean']:.2f} ± {row['std']:.2f} %, 2 seeds{chance}"
    line = next(line for line in ld3m("status", folder).out.splitlines() if "accuracy" in line)
    assert line.split("  ", 2)[1] == "accuracy, distilled convnet (test, epochs 3, lr 0.001)"
    assert line.endswith(expected)


def test_a_running_run(running: tuple[Path, Any], ld3m: Callable[..., Outcome]) -> None:
    """The newest below runs/ without being named; its numbers are of one of its logged iterations."""
    folder, process = running
    before = len(rows(folder))
    said = json.loads(ld3m("status", "--json").out)
    os.kill(process.pid, signal.SIGSTOP)  # so that nothing more is logged
    assert said["run"] == "runs/busy"
    assert said["state"] == "running"
    assert before <= said["iteration"] <= len(rows(folder))
    row = rows(folder)[said["iteration"] - 1]
    assert (said["loss"], said["grad_z"], said["grad_c"]) == (row["loss"], row["grad_z"], row["grad_c"])
    assert said["seconds_left"] == pytest.approx((100000 - said["iteration"]) / said["iterations_per_second"])
    assert said["seconds_since_logged"] < 30
    shown = ld3m("status", folder).out
    assert f"{folder}: running, iteration {len(rows(folder)):,} of 100,000 (0 %)" in shown
    assert "time left" in shown
    assert "to resume" not in shown


def test_a_killed_run_can_go_on(
    running: tuple[Path, Any], recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    folder, process = running
    process.kill()
    process.join()
    said = json.loads(ld3m("status", folder, "--json").out)
    assert said["state"] == "stopped"
    assert said["iteration"] == len(rows(folder))
    assert 0 < said["checkpoint"] <= said["iteration"]
    assert said["checkpoint"] % 5 == 0
    told = next(line for line in ld3m("status", folder).out.splitlines() if "to resume" in line)
    assert told.endswith(f"resumes from iteration {said['checkpoint']}")
    given = told.partition(", or ")[2].partition(", resumes")[0].split()
    more = f"distill.iterations={said['iteration'] + 2}"
    assert ld3m(*given[1:], more, "distill.pictures=0").code == 0  # the command that it tells
    assert len(rows(folder)) == said["iteration"] + 2
    assert read(folder).state == "finished"


def test_a_run_that_may_have_more_iterations_is_stopped(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "more")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("iterations: 6", "iterations: 9"))
    status = read(folder)
    assert (status.state, status.iteration, status.iterations) == ("stopped", 6, 9)


def test_a_run_that_has_logged_nothing_and_one_whose_last_line_was_cut(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "begun")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])
    assert read(folder).loss == rows(finished)[-2]["loss"]
    assert "damaged" not in text(read(folder))
    for name in ("checkpoints", "images"):
        shutil.rmtree(folder / name)
    for name in ("latents.safetensors", "metrics.jsonl"):
        (folder / name).unlink()
    status = read(folder)
    assert (status.state, status.iteration, status.loss, status.iterations_per_second) == ("stopped", 0, None, None)
    assert "resumes from the beginning" in text(status)


def test_the_rate_is_that_of_recent_iterations(finished: Path, tmp_path: Path) -> None:
    """Ten slow ones, twenty at half a second of which one waited for the disk."""
    folder = shutil.copytree(finished, tmp_path / "slow")
    row = rows(finished)[0]
    parts = [{"render": 9.0}] * 10 + [{"render": 0.25, "pull_back": 0.25}] * 19 + [{"render": 60.0}]
    lines = [json.dumps({**row, "iteration": number, "seconds": seconds}) for number, seconds in enumerate(parts)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    assert read(folder).iterations_per_second == 2


def test_a_damaged_evaluation_is_one_line(finished: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    """What is added to must be readable."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "evaluation.json").write_bytes(b"{")
    outcome = ld3m("evaluate", folder)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert f"{folder / 'evaluation.json'} is damaged" in outcome.err


def test_what_can_be_read_is_shown_beside_what_cannot(
    finished: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("latents.safetensors", "evaluation.json", "checkpoints/000006/class-0001.safetensors"):
        (folder / name).write_bytes(b"{")
    outcome = ld3m("status", folder)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"{folder}: stopped, iteration 6 of 6 (100 %)"
    assert any(line.split() == ["objective", "dm"] for line in lines)
    assert "  checkpoint      iteration 4 (the newest is damaged)" in lines
    assert any(line.endswith("resumes from iteration 4") for line in lines)
    unread = [line.removeprefix("  not shown: ") for line in lines if line.startswith("  not shown: ")]
    parts = ["latents.safetensors is damaged", "class-0001.safetensors is damaged", "evaluation.json is damaged"]
    assert [part in line for part, line in zip(parts, unread, strict=True)] == [True] * 3
    assert json.loads(ld3m("status", folder, "--json").out)["unread"] == unread


def test_the_newest_run_is_the_one_written_to_last(
    finished: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    for age, name in enumerate(("new", "old")):
        folder = shutil.copytree(finished, tmp_path / "runs" / name)
        for path in folder.iterdir():
            os.utime(path, (1e9 - age, 1e9 - age))
    assert json.loads(ld3m("status", "--json").out)["run"] == "runs/new"
    os.utime(tmp_path / "runs" / "old" / "metrics.jsonl")
    assert json.loads(ld3m("status", "--json").out)["run"] == "runs/old"


def test_mistakes_are_one_line(finished: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "recipe.yaml").write_text("name: [")
    cases = {
        (): "RUN: there is no run below runs/",
        ("nowhere",): "RUN: nowhere is not a run (it has no recipe.yaml)",
        (finished, finished): "RUN: give one run, not 2",
        (broken,): f"{broken}/recipe.yaml: cannot be read as YAML: expected",
    }
    for arguments, told in cases.items():
        done = ld3m("status", *arguments)
        assert done.code == 2
        assert told in done.err
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0.4 s"),
        (41.96, "42 s"),
        (59.6, "59.6 s"),
        (59.96, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (18720, "5 h 12 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- the lock ----------------------------------------------------------------------------------------------


def test_a_second_command_on_one_folder_is_refused(
    running: tuple[Path, Any], recipe_file: Path, ld3m: Callable[..., Outcome]
) -> None:
    """Also one that would replace it; the first goes on unharmed."""
    folder, process = running
    for more in ((), ("--no-resume",)):
        done = ld3m("distill", recipe_file, *LONG, "-o", folder, *more)
        assert done.code == 2
        assert f"output: another process is at work in {folder}" in done.err
        assert len([line for line in done.err.splitlines() if line.startswith("ld3m:")]) == 1
    wait_for_rows(folder, len(rows(folder)) + 3)
    assert process.is_alive()
    assert [row["iteration"] for row in rows(folder)] == list(range(len(rows(folder))))


@pytest.mark.slow
def test_experts_and_ablations_claim_their_folders_too(
    recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """Each is refused while another command is at work there; experts, also in a folder that holds something else."""
    cases = {
        "experts": ("experts", recipe_file, f"experts.folder={tmp_path / 'experts'}", "experts.count=1"),
        "output": ("ablate", recipe_file, "--axis", "prior.steps=1,2", "-o", tmp_path / "output"),
    }
    for name, arguments in cases.items():
        (tmp_path / name).mkdir()
        with lock.claim(tmp_path / name):
            outcome = ld3m(*arguments)
        (line,) = (line for line in outcome.err.splitlines() if line.startswith("ld3m:"))
        key = {"experts": "experts.folder"}.get(name, name)
        assert line.startswith(f"ld3m: {key}: another process is at work in {tmp_path / name}; wait until it ends, or")
        assert [path.name for path in (tmp_path / name).iterdir()] == [lock.LOCK]
    (tmp_path / "experts" / "thesis.txt").write_text("all of it")
    assert "is not empty and not a folder of experts" in ld3m(*cases["experts"]).err


@pytest.mark.slow
def test_all_processes_of_a_second_launch_end(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with lock.claim(folder):
        codes = finish(spawn(2, command_line, "distill", recipe_file, "-o", folder, output=tmp_path / "said"), 90)
    assert codes[0] == 2
    assert codes[1] != 0
    said = [(tmp_path / "said" / f"{rank}.txt").read_text() for rank in range(2)]
    assert all(f"output: another process is at work in {folder}" in words for words in said)
    assert list(folder.iterdir()) == [folder / lock.LOCK]


def test_a_folder_with_nothing_but_a_lock_can_be_used(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    """Such as a command leaves that was killed before it wrote anything."""
    (tmp_path / lock.LOCK).touch()
    folder = distilled(recipe_file, tmp_path, "distill.iterations=6")
    assert latents(folder)["z"].equal(latents(finished)["z"])


def test_a_foreign_folder_gets_no_lock(recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    assert "is not empty and not a run" in ld3m("distill", recipe_file, "-o", tmp_path / "mine").err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_lock_that_may_not_be_looked_at(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's: whether the run runs is unknown, and a finished one is finished all the same."""

    def refuse(self: object, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    assert lock.is_held(finished) is None
    assert read(finished).state == "finished"
    with (
        pytest.raises(lock.UserError, match=r"^output: cannot lock .*\.lock \(Permission denied\)"),
        lock.claim(finished),
    ):
        pass
