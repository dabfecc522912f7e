"""Several processes: the result of one, bit for bit, and what happens where one of them dies."""

import functools
import json
import multiprocessing.connection
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import distilled, draw_shape, latents, make_prior, relative
from processes import command_line, finish, spawn

from ld3m.files import cache_folder
from ld3m.machine import heartbeat
from ld3m.machine.processes import Processes, watched_command

TEN = [f"class {number}" for number in range(10)]


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of ten classes, two images each, and a prior that knows them."""
    import numpy as np

    folder = tmp_path_factory.mktemp("ten")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for number, name in enumerate(TEN):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                image = draw_shape(["circle", "cross", "square"][number % 3], rng)
                image.rotate(number * 9).save(folder / "data" / split / name / f"{index}.png")
    make_prior(TEN).save(folder / "prior")
    recipe = folder / "ten.yaml"
    recipe.write_text(
        f"""
name: ten
data: {{source: {folder / "data"}, resolution: 16, channels: 1}}
prior: {{source: {folder / "prior"}, steps: 2, guidance: 1}}
reproducible: true
distill:
  {{images_per_class: 2, iterations: 2, real_batch: 8, checkpoint_every: 2, lr_latents: 0.1, lr_conditioning: 0.1}}
network: {{width: 8, depth: 2}}
experts: {{count: 3, epochs: 3, batch: 16, folder: {folder / "experts"}}}
"""
    )
    return recipe


OBJECTIVES = {
    "dm": [],
    "dc": ["distill.objective=dc", "distill.dc.outer=3", "distill.dc.inner=2"],
    "mtt": [
        "distill.objective=mtt",
        "distill.mtt.syn_steps=3",
        "distill.mtt.max_start_epoch=1",
        "distill.lr_latents=100",
        "distill.lr_conditioning=100",
    ],
    "lgm": ["distill.objective=lgm"],
}


def run(count: int, *arguments: object) -> None:
    assert finish(spawn(count, command_line, *arguments)) == [0] * count


@pytest.mark.parametrize("counts", [(3,), pytest.param((2, 4), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    "objective", ["dm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dc", "mtt", "lgm"))]
)
def test_any_number_of_processes_gives_the_result_of_one(
    objective: str, counts: tuple[int, ...], ten_classes: Path, tmp_path: Path
) -> None:
    """Shards of 10, 5 + 5, 4 + 3 + 3 and 3 + 3 + 2 + 2 classes; `reproducible` lets no batch mix classes."""
    if objective == "mtt":
        run(1, "experts", ten_classes)
    for count in (1, *counts):
        run(count, "distill", ten_classes, *OBJECTIVES[objective], "-o", tmp_path / str(count))
    alone = latents(tmp_path / "1")
    for count in counts:
        shared = latents(tmp_path / str(count))
        assert torch.equal(shared["z"], alone["z"])
        assert torch.equal(shared["c"], alone["c"])
        assert losses(tmp_path / str(count)) == losses(tmp_path / "1")


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["iteration"], row["loss"]) for row in rows]


@pytest.mark.slow
def test_micro_batches_that_mix_classes_round_otherwise(recipe_file: Path, tmp_path: Path) -> None:
    """Six images at a time on one process, four and two on two: to rounding, the same.

    Of float32 (6e-8) in a few iterations, by kernels that differ from one kind of CPU to another: 2.5e-6 of the
    largest value is the most that was seen.
    """
    for count in (1, 2):
        run(count, "distill", recipe_file, "prior.micro_batch=6", "-o", tmp_path / str(count))
    assert relative(latents(tmp_path / "2")["z"], latents(tmp_path / "1")["z"]) <= 1e-5


def test_more_processes_than_classes(recipe_file: Path, tmp_path: Path) -> None:
    """The idle process takes part in the talking and changes nothing."""
    for count in (1, 2):
        run(count, "distill", recipe_file, "data.subset=[cross]", "distill.iterations=3", "-o", tmp_path / str(count))
    assert torch.equal(latents(tmp_path / "2")["z"], latents(tmp_path / "1")["z"])


@pytest.mark.parametrize("counts", [(3,), pytest.param((2, 4), marks=pytest.mark.slow)], ids=str)
def test_evaluation_on_any_number_of_processes_is_that_of_one(
    counts: tuple[int, ...], recipe_file: Path, tmp_path: Path
) -> None:
    """Four networks: a process each at most, and one of three has two. Every operation changes their images."""
    changes = "{dsa: true, shuffle: 2, crop: [0.5, 1], flip: 0.5, jitter: [0.4, 0.4, 0.4], lighting: 0.1}"
    distilled(recipe_file, tmp_path / "1")
    for count in counts:
        shutil.copytree(tmp_path / "1", tmp_path / str(count))
    results = {}
    for count in (1, *counts):
        shutil.rmtree(cache_folder() / "baselines", ignore_errors=True)
        changed = (f"evaluate.augment={changes}", "evaluate.cutmix=1")
        run(count, "evaluate", tmp_path / str(count), "--against", "random", *changed)
        results[count] = json.loads((tmp_path / str(count) / "evaluation.json").read_text())["results"]
    assert len(results[1]) == 2
    assert all(results[count] == results[1] for count in counts)


@pytest.mark.parametrize("counts", [(4,), pytest.param((2, 3), marks=pytest.mark.slow)], ids=str)
def test_experts_of_any_number_of_processes_are_those_of_one(
    counts: tuple[int, ...], recipe_file: Path, tmp_path: Path
) -> None:
    """Three experts: on four processes one has none."""
    for count in (1, *counts):
        settings = ("experts.count=3", "experts.epochs=4", f"experts.folder={tmp_path / str(count)}")
        run(count, "experts", recipe_file, "distill.objective=mtt", *settings)
    alone = {path.name: path.read_bytes() for path in (tmp_path / "1").glob("*.safetensors")}
    assert len(alone) == 3
    for count in counts:
        assert {path.name: path.read_bytes() for path in (tmp_path / str(count)).glob("*.safetensors")} == alone


# --- killed ------------------------------------------------------------------------------------------------


def killed_in_a_write(rank: int, flushes: int, *arguments: object) -> None:
    """A command in which one process is killed before its n-th flush of a file or folder."""
    if int(os.environ.get("RANK", "0")) == rank:
        flush, left = os.fsync, iter(range(flushes, 0, -1))

        def fatal(handle: int) -> None:
            if next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(handle)

        os.fsync = fatal
    command_line(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kills", [2, 30])
def test_killed_at_random_moments_it_ends_where_an_undisturbed_run_ends(
    count: int, kills: int, recipe_file: Path, tmp_path: Path
) -> None:
    """SIGKILL of a process and then, as where a machine dies, of the other; half of the moments are within a write.

    A checkpoint is ten flushes: of three classes, the objective and the manifest, each a file and its folder.
    """
    iterations = f"distill.iterations={3 * kills + 10}"  # a kill comes three iterations after the last one at most
    recipe = ("distill", recipe_file, iterations, "distill.checkpoint_every=1", "prior.micro_batch=2")
    folder = tmp_path / "run"
    moments = random.Random(count)
    for number in range(kills):
        if number % 2:
            processes = spawn(count, killed_in_a_write, 0, moments.randint(1, 30), *recipe, "-o", folder)
            multiprocessing.connection.wait([process.sentinel for process in processes])
        else:
            before = newest(folder)
            processes = spawn(count, command_line, *recipe, "-o", folder)
            wait_for(lambda before=before: newest(folder) > before)  # type: ignore[misc]
            time.sleep(moments.uniform(0, 0.1))
        for process in processes[:: moments.choice([1, -1])]:
            process.kill()
        assert -signal.SIGKILL in finish(processes)
    assert not (folder / "latents.safetensors").exists()
    run(count, *recipe, "-o", folder)
    whole = distilled(recipe_file, tmp_path / "undisturbed", *recipe[2:])
    ended, undisturbed = latents(folder), latents(whole)
    assert all(torch.equal(ended[name], undisturbed[name]) for name in undisturbed)
    assert losses(folder) == losses(whole)
    assert len(list((folder / "checkpoints").iterdir())) == 2


# --- faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_others_stop_within_a_minute_and_name_the_dead(dead: int, recipe_file: Path, tmp_path: Path) -> None:
    recipe = ("distill", recipe_file, "distill.iterations=100000", "-o", tmp_path / "run")
    processes = spawn(2, command_line, *recipe, output=tmp_path)
    wait_for(lambda: newest(tmp_path / "run") >= 4)
    processes[dead].kill()
    died = time.monotonic()
    assert finish(processes, 60)[1 - dead] == 1
    assert time.monotonic() - died < 60
    said = (tmp_path / f"{1 - dead}.txt").read_text()
    assert f"ld3m: process {dead}" in said
    assert "the same command resumes" in said


@watched_command
def says_how_long_it_waits(processes: Processes) -> None:
    group = torch.distributed.distributed_c10d._get_default_group()
    print(group._get_backend(torch.device("cpu")).options._timeout.days)


def test_processes_wait_for_one_that_has_hours_more_to_do(tmp_path: Path) -> None:
    """By NCCL's own ten minutes the odd network of an evaluation on two GPUs would never be done."""
    assert finish(spawn(2, says_how_long_it_waits, output=tmp_path)) == [0, 0]
    assert int((tmp_path / "0.txt").read_text().split()[-1]) >= 7


def with_little_patience(command: Callable[[Processes], None]) -> None:
    heartbeat.INTERVAL, heartbeat.SILENCE, heartbeat.PATIENCE = 0.05, 1.5, 0.1
    watched_command(command)()
    print("ended")


def one_ends_late(processes: Processes, late: int) -> None:
    time.sleep(2.5 * (processes.process_index == late))


@pytest.mark.parametrize("late", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_who_is_done_waits_for_the_other(late: int, tmp_path: Path) -> None:
    """Process 0 takes with it the store where they meet, and one that shows no life is taken for dead."""
    processes = spawn(2, with_little_patience, functools.partial(one_ends_late, late=late), output=tmp_path)
    assert finish(processes) == [0, 0]
    assert all((tmp_path / f"{rank}.txt").read_text().endswith("ended\n") for rank in (0, 1))


def one_gets_a_signal(processes: Processes) -> None:
    if processes.process_index == 1:
        raise SystemExit(128 + signal.SIGTERM)
    time.sleep(100)


def test_a_signal_to_one_process_ends_the_other_too(tmp_path: Path) -> None:
    assert finish(spawn(2, with_little_patience, one_gets_a_signal, output=tmp_path), 60) == [1, 143]
    assert "process 1 of 2" in (tmp_path / "0.txt").read_text()


def full_disk(rank: int, *arguments: object) -> None:
    """A command in which one process may write no file of more than 1,000 bytes once it has a checkpoint."""
    if int(os.environ.get("RANK", "0")) == rank:
        replace = Path.replace

        def then_full(path: Path, target: Path) -> Path:
            if target.name == "manifest.json":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            return replace(path, target)

        Path.replace = then_full  # type: ignore[method-assign]
    command_line(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_is_one_line_and_loses_nothing(count: int, recipe_file: Path, tmp_path: Path) -> None:
    recipe = ("distill", recipe_file, "distill.iterations=6", "prior.micro_batch=2")
    codes = finish(spawn(count, full_disk, 0, *recipe, "-o", tmp_path / "run", output=tmp_path))
    assert codes == [2, 1][:count]
    (line,) = [line for line in (tmp_path / "0.txt").read_text().splitlines() if line.startswith("ld3m: ")]
    assert "cannot write" in line
    assert "File too large" in line
    if count == 2:
        assert "process 0 of 2 on" in (tmp_path / "1.txt").read_text()
    assert newest(tmp_path / "run") == 2
    run(count, *recipe, "-o", tmp_path / "run")
    undisturbed = distilled(recipe_file, tmp_path / "undisturbed", *recipe[2:])
    assert torch.equal(latents(tmp_path / "run")["z"], latents(undisturbed)["z"])


@pytest.mark.slow
def test_prepared_images_that_vanish_are_prepared_again(recipe_file: Path, tmp_path: Path) -> None:
    def here(iterations: int, folder: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
            run(1, "distill", recipe_file, f"distill.iterations={iterations}", "-o", tmp_path / folder)

    here(2, "run")
    (vanished,) = (tmp_path / "cache").glob("data/*/train/1.safetensors")
    vanished.unlink()
    here(4, "run")
    here(4, "undisturbed")
    assert torch.equal(latents(tmp_path / "run")["z"], latents(tmp_path / "undisturbed")["z"])


@pytest.mark.slow
def test_clock_host_and_locale_do_not_matter(recipe_file: Path, tmp_path: Path) -> None:
    odd = r"""
import itertools, socket, sys, time
ticks = itertools.count(4e9, -1000)
time.time = lambda: next(ticks)
socket.gethostname = lambda: "h\u00f6st"
from ld3m.__main__ import main
main()
"""
    environment = {"LC_ALL": "POSIX", "TZ": "Pacific/Kiritimati"}
    arguments = ("distill", recipe_file, "-o", tmp_path / "grün")
    subprocess.run([sys.executable, "-c", odd, *map(str, arguments)], env=os.environ | environment, check=True)
    plain = distilled(recipe_file, tmp_path / "plain")
    assert torch.equal(latents(tmp_path / "grün")["z"], latents(plain)["z"])


def newest(folder: Path) -> int:
    return max((int(path.parent.name) for path in folder.glob("checkpoints/*/manifest.json")), default=0)


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)
