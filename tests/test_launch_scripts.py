"""The scripts that do everything from a recipe to the push, with stand-ins for the commands; one of them for real."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"

LD3M = """#!/usr/bin/env bash
case " $* " in
  *" --dry-run "*) printf 'name: mine\\noutput: null\\nprior:\\n  source: %s\\n' "${SOURCE:-cin256-v2}" ;;
  *) echo "ld3m $*" >> calls ;;
esac
[[ " $* " != *" ${FAIL:-nothing} "* ]] || { echo "ld3m: a mistake" >&2 && exit 2; }
"""
SBATCH = """#!/usr/bin/env bash
echo "sbatch $*" >> calls
grep -c sbatch calls
"""


def script(folder: Path, name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs one in a folder, with stand-ins that note how they were called."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for command, content in (
        ("ld3m", LD3M),
        ("sbatch", SBATCH),
        ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
    ):
        (commands / command).write_text(content)
        (commands / command).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    (folder / "calls").unlink(missing_ok=True)
    return subprocess.run(
        ["bash", str(LAUNCH / name), *map(str, arguments)],
        cwd=folder,
        env=clean | {"PATH": f"{commands}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().replace(f"{LAUNCH}/", "").splitlines()


def test_one_gpu_does_all_of_it_but_the_push(tmp_path: Path) -> None:
    outcome = script(tmp_path, "one-gpu.sh", "imagenet256", "data.root=x")
    assert outcome.returncode == 0, outcome.stderr
    assert calls(tmp_path) == [
        "ld3m priors get cin256-v2",
        "ld3m distill imagenet256 data.root=x --rehearse",
        "ld3m distill imagenet256 data.root=x",
        "ld3m evaluate runs/mine --against random",
    ]
    assert outcome.stderr.endswith("not pushed; to share it: ld3m push-to-hub runs/mine --to USER/NAME\n")


def test_eight_gpus_push_a_run_that_had_begun(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    outcome = script(tmp_path, "eight-gpus.sh", "mine.yaml", "--to", "me/x", SOURCE="priors/mine", GPUS="4")
    assert outcome.returncode == 0, outcome.stderr
    assert calls(tmp_path) == [
        "ld3m launch --num_processes 4 distill mine.yaml",
        "ld3m launch --num_processes 4 evaluate runs/mine --against random",
        "ld3m push-to-hub runs/mine --to me/x",
    ]


def test_slurm_queues_each_step_behind_the_one_before(tmp_path: Path) -> None:
    outcome = script(tmp_path, "slurm.sh", "mine.yaml", "seed=1", "--to", "me/x")
    assert outcome.returncode == 0, outcome.stderr
    behind = "sbatch --parsable --dependency=afterok:{} --kill-on-invalid-dep=yes "
    assert calls(tmp_path) == [
        "ld3m priors get cin256-v2",
        "sbatch --parsable slurm.sh distill mine.yaml seed=1 --rehearse",
        behind.format(1) + "slurm.sh distill mine.yaml seed=1",
        behind.format(2) + "slurm.sh evaluate runs/mine --against random",
        behind.format(3) + "--nodes=1 --ntasks-per-node=1 --gpus-per-node=1 slurm.sh push-to-hub runs/mine --to me/x",
    ]
    assert outcome.stdout.splitlines()[-1] == "job 4: ld3m push-to-hub runs/mine --to me/x"


@pytest.mark.parametrize("step", ["--dry-run", "priors", "--rehearse", "evaluate"])
def test_a_step_that_fails_is_the_last(step: str, tmp_path: Path) -> None:
    outcome = script(tmp_path, "one-gpu.sh", "imagenet256", FAIL=step)
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1] == "ld3m: a mistake"
    assert step == "--dry-run" or step in calls(tmp_path)[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give RECIPE [KEY=VALUE …] [--to USER/NAME]"),
        (["mine", "--to"], "--to: give USER/NAME"),
        (["mine", "--push"], "--push: give RECIPE [KEY=VALUE …] [--to USER/NAME]"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, tmp_path: Path) -> None:
    outcome = script(tmp_path, "eight-gpus.sh", *arguments)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (2, "", f"ld3m: {line}\n")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    names = [f"{name}.sh" for name in ("one-gpu", "eight-gpus", "slurm", "steps")]
    subprocess.run(["shellcheck", "-x", *(f"launch/{name}" for name in names)], cwd=LAUNCH.parent, check=True)


@pytest.mark.slow
def test_all_of_it_for_real_and_again(recipe_file: Path, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in (("ld3m", " -m ld3m"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
        (commands / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"}
    command = ["bash", str(LAUNCH / "one-gpu.sh"), str(recipe_file), "output=run"]
    for _ in range(2):
        outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert outcome.returncode == 0, outcome.stderr
    assert "finished" in outcome.stdout + outcome.stderr
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {row["trained_on"] for row in report["results"]} == {"distilled", "random"}
