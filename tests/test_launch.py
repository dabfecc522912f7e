"""Launches: Accelerate's with and without a configuration, and Slurm's, with stand-ins for its commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import distilled, latents

LAUNCH = Path(__file__).parent.parent / "launch"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]

SRUN = f"""#!{sys.executable}
# Starts as many tasks as the job has, passes signals on to them, and ends with the largest exit code, as srun does.
import os, signal, subprocess, sys

tasks = [
    subprocess.Popen(sys.argv[1:], env=os.environ | {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda received, _: [task.send_signal(received) for task in tasks])
with open("srun.pid", "w") as file:
    file.write(str(os.getpid()))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo 127.0.0.1
[ "$1" = requeue ] && echo "$2" >> requeued
exit 0
"""


def slurm(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """launch/slurm.sh as the batch script of a job of two tasks on one node."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    python = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (commands / name).write_text(content)
        (commands / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NTASKS": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    script = ["bash", str(LAUNCH / "slurm.sh"), *map(str, arguments)]
    return subprocess.Popen(script, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Slurm runs on POSIX")
@pytest.mark.slow
def test_a_job_of_slurm_that_is_preempted_is_queued_again_and_goes_on(recipe_file: Path, tmp_path: Path) -> None:
    recipe = ("distill", recipe_file, "distill.iterations=20", "prior.micro_batch=2", "-o", "run")
    job = slurm(tmp_path, *recipe)
    until = time.monotonic() + 180
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    out, _ = job.communicate(timeout=180)
    assert job.returncode == 128 + signal.SIGUSR1
    assert "saved after iteration" in out
    assert (tmp_path / "requeued").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "run" / "latents.safetensors").exists()

    distilled(recipe_file, tmp_path / "run", *recipe[2:4])  # the same command, which is what the queue starts
    alone = distilled(recipe_file, tmp_path / "alone", "distill.iterations=20", "prior.micro_batch=2")
    assert torch.equal(latents(tmp_path / "run")["z"], latents(alone)["z"])


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(folder / "hf")}  # no default configuration of the user's
    return subprocess.run(
        [*ACCELERATE, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_accelerate_launch_without_a_configuration_just_works(recipe_file: Path, tmp_path: Path) -> None:
    outcome = run(tmp_path, "-m", "ld3m", "distill", recipe_file, "distill.iterations=1", "-o", "run")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["iteration"] == 0


@pytest.mark.slow
def test_two_processes_asked_for_and_one_started(recipe_file: Path, tmp_path: Path) -> None:
    """What Accelerate makes of --cpu, and of MULTI_CPU in a file."""
    (tmp_path / "cpu.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 1\n"
        "num_processes: 2\nmachine_rank: 0\nmixed_precision: 'no'\n"
    )
    told = {
        ("--cpu", "--num_processes", "2"): "--num_processes 2, but accelerate launch started one process",
        ("--config_file", "cpu.yaml"): "cpu.yaml says num_processes: 2, but accelerate launch started one process",
    }
    for setting, expected in told.items():
        outcome = run(tmp_path, *setting, "-m", "ld3m", "distill", recipe_file, "-o", "run")
        assert outcome.returncode != 0
        line, note = [line for line in outcome.stderr.splitlines() if line.startswith("ld3m: ")]
        assert expected in line
        assert note == "ld3m: the traceback below is accelerate launch's own, which --quiet leaves out"
        assert not (tmp_path / "run").exists()


def test_a_mistake_of_several_processes_is_one_line_and_the_last(recipe_file: Path, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    launch = [sys.executable, "-m", "ld3m", "launch", "--num_processes", "2", "distill", str(recipe_file)]
    outcome = subprocess.run(
        [*launch, "data.source=photos"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("ld3m: data.source: 'photos' is not there; give a folder")
    assert outcome.stderr.count("\n") == 1
