"""Distillation through the command line: the run folder, resuming, failures."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import CLASSES, Outcome, command, distilled, latents, noted
from PIL import Image, ImageOps
from processes import command_line, finish, spawn

from ld3m.errors import UserError
from ld3m.images.grids import shown


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 iterations on one process."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    return distilled(recipe_file, folder, "distill.iterations=16", "distill.checkpoint_every=7")


def test_run_folder_holds_what_it_promises(finished: Path) -> None:
    tensors = latents(finished)
    assert tensors["z"].shape == (6, 3, 8, 8)
    assert tensors["z"].dtype == torch.float32
    assert tensors["c"].shape == (6, 1, 16)
    assert tensors["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert noted(finished)["iteration"] == 16
    assert noted(finished)["classes"] == CLASSES
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(16))
    assert all(row["grad_z"] > 0 and row["grad_c"] > 0 for row in rows)
    assert set(rows[0]["seconds"]) == {"render", "objective", "pull_back", "optimiser"}
    peaks = [row["peak_memory"] for row in rows]
    # Linux counts pages by core and adds these counts up now and then, so that its peak may fall by some of them.
    assert all(after > before - 2**20 for before, after in pairwise(peaks))
    assert 2**24 < peaks[-1] < 2**36


def test_pictures_show_the_images_on_their_way(finished: Path) -> None:
    frames = sorted(finished.glob("evolution/*.png"))
    assert [int(path.stem) for path in frames] == [*range(16), 16]  # 20 pictures at most, and the result
    sheets = [np.asarray(Image.open(path)) for path in frames]
    images = [np.asarray(Image.open(finished / "images" / name / f"{i}.png")) for name in CLASSES for i in range(2)]
    assert np.array_equal(sheets[-1], np.vstack([np.hstack(images[place : place + 2]) for place in (0, 2, 4)]))
    assert not np.array_equal(sheets[0], sheets[-1])
    margin = Image.open(finished / "grid.png").width - 2 * (96 + 3)  # six times 16 pixels, and a gap after each
    assert 40 < margin < 80, "room for the longest name, triangle or circle"
    assert Image.open(finished / "grid.png").height == 3 + 3 * (96 + 3)
    with Image.open(finished / "evolution.gif") as animation:
        assert animation.n_frames == len(frames)


def test_real_images_lie_beside_them(finished: Path, shapes: Path) -> None:
    """The first two of each class, as they were prepared."""
    sheet = np.asarray(Image.open(finished / "real.png"))
    paths = [path for name in CLASSES for path in sorted((shapes / "train" / name).iterdir())[:2]]
    images = [np.asarray(ImageOps.fit(Image.open(path), (16, 16), Image.Resampling.BICUBIC)) for path in paths]
    assert np.array_equal(sheet, np.vstack([np.hstack(images[place : place + 2]) for place in (0, 2, 4)]))


@pytest.mark.parametrize(
    ("classes", "each", "seen"),
    [(10, 1, (10, 1)), (10, 50, (10, 10)), (3, 2, (3, 2)), (100, 10, (100, 1)), (1000, 50, (100, 1)), (37, 7, (37, 2))],
)
def test_pictures_show_a_hundred_images_at_most(classes: int, each: int, seen: tuple[int, int]) -> None:
    assert shown(classes, each) == seen


def test_images_are_what_the_latents_render_to(finished: Path, prior_folder: Path) -> None:
    """With the noise that the metadata names, to half a level of a pixel."""
    from ld3m import priors
    from ld3m.randomness import generator
    from ld3m.recipe import SamplerRecipe
    from ld3m.sampling import Schedule, render

    prior = priors.load(SamplerRecipe(source=str(prior_folder)))
    tensors = latents(finished)
    moment, seed = noted(finished)["noise_iteration"], noted(finished)["seed"]
    keys = [(label, image) for label in range(3) for image in range(2)]
    noise = torch.stack([torch.randn(3, 8, 8, generator=generator(seed, "noise", moment, *key)) for key in keys])
    schedule = Schedule.of(prior.noise_schedule, 3, "reference", 3.0)
    pixels, _ = render(prior, schedule, tensors["z"], tensors["c"], noise)
    for (label, image), rendered in zip(keys, pixels[:, 0], strict=True):
        saved = np.asarray(Image.open(finished / "images" / CLASSES[label] / f"{image}.png")) / 255
        assert np.abs(saved - rendered.numpy()).max() <= 0.5 / 255 + 1e-5


@pytest.mark.gpu
def test_loss_falls(finished: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.gpu
@pytest.mark.slow
def test_the_saved_recipe_gives_the_same_result(finished: Path, tmp_path: Path) -> None:
    distilled(finished / "recipe.yaml", tmp_path / "again")
    again, before = latents(tmp_path / "again"), latents(finished)
    assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGUSR1))],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    finished: Path, recipe_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ("distill", recipe_file, "distill.iterations=16", "--output", tmp_path / "run")
    processes = spawn(1, command_line, *arguments, output=tmp_path)
    wait_for_rows(tmp_path / "run", 1)
    os.kill(processes[0].pid, number)
    assert finish(processes, 60) == [128 + number]
    assert "the same command resumes" in (tmp_path / "0.txt").read_text()
    distilled(recipe_file, tmp_path / "run", "distill.iterations=16")
    assert torch.equal(latents(tmp_path / "run")["z"], latents(finished)["z"])


def test_a_signal_is_heard_between_logged_iterations(recipe_file: Path, tmp_path: Path) -> None:
    seldom = ("distill.iterations=2000", "distill.log_every=1000", "distill.checkpoint_every=1000")
    arguments = ("distill", recipe_file, *seldom, "--output", tmp_path / "run")
    processes = spawn(1, command_line, *arguments, output=tmp_path)
    printed = tmp_path / "0.txt"
    while not (printed.exists() and re.search(r" [1-9]\d*/2000", printed.read_text())):  # the bar of an iteration
        assert processes[0].is_alive(), printed.read_text()
        time.sleep(0.1)
    os.kill(processes[0].pid, signal.SIGINT)
    assert finish(processes, 60) == [128 + signal.SIGINT]
    assert int(printed.read_text().split("saved after iteration ")[1].split(";")[0]) < 1000


def wait_for_rows(folder: Path, count: int) -> None:
    metrics = folder / "metrics.jsonl"
    for _ in range(2400):
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{metrics} did not get {count} lines")


def newest(folder: Path) -> str | None:
    manifests = sorted((folder / "checkpoints").glob("*/manifest.json"))
    return manifests[-1].parent.name if manifests else None


def test_a_damaged_checkpoint_is_passed_over(
    finished: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = distilled(recipe_file, tmp_path / "run", "distill.iterations=8")
    last = folder / "checkpoints" / "000008" / "class-0001.safetensors"
    last.write_bytes(last.read_bytes()[:-8])
    distilled(recipe_file, folder, "distill.iterations=16")
    assert "000008/class-0001.safetensors is damaged" in capsys.readouterr().out
    assert torch.equal(latents(folder)["z"], latents(finished)["z"])


def test_checkpoints_from_when_the_run_was_further_do_not_push_out_newer_ones(
    recipe_file: Path, tmp_path: Path
) -> None:
    """One that was never whole, of a process that was killed, and one that was damaged."""
    few = ("distill.iterations=6", "distill.checkpoint_every=2")
    folder = distilled(recipe_file, tmp_path / "run", *few) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["000004", "000006"]
    (folder / "000006" / "class-0001.safetensors").write_bytes(b"")
    shutil.copytree(folder / "000006", folder / "000020")
    (folder / "000020" / "manifest.json").unlink()
    (folder.parent / "latents.safetensors").unlink()
    distilled(recipe_file, tmp_path / "run", *few, "distill.checkpoint_every=1")
    assert sorted(path.name for path in folder.iterdir()) == ["000005", "000006"]


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_that_was_copied_without_it(
    finished: Path, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = distilled(recipe_file, tmp_path / "begun", "distill.iterations=8")
    shutil.copytree(begun / "checkpoints" / "000008", tmp_path / "backup" / "best")
    more = ("distill", recipe_file, "distill.iterations=16", "--resume")
    outcome = ld3m(*more, tmp_path / "backup" / "best", "-o", tmp_path / "copy")
    assert outcome.code == 0, outcome.err
    assert torch.equal(latents(tmp_path / "copy")["z"], latents(finished)["z"])
    refused = ld3m(*more, tmp_path / "backup" / "best", "prior.skip=none", "-o", tmp_path / "other")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is of another recipe" in refused.err
    monkeypatch.chdir(begun / "checkpoints")
    assert ld3m(*more, "000008").code == 0
    assert torch.equal(latents(begun)["z"], latents(finished)["z"])


@pytest.mark.gpu
def test_a_run_goes_on_from_a_checkpoint_in_its_folder_or_in_another(
    finished: Path, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    begun = distilled(recipe_file, tmp_path / "begun", "distill.iterations=8", "distill.checkpoint_every=3")
    more = ("distill", recipe_file, "distill.iterations=16", "--resume")
    assert ld3m(*more, begun / "checkpoints" / "000006", "-o", tmp_path / "copy").code == 0
    assert ld3m(*more, begun / "checkpoints" / "000006").code == 0
    for folder in (tmp_path / "copy", begun):
        assert torch.equal(latents(folder)["z"], latents(finished)["z"])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["iteration"] for row in rows] == list(range(16))


def test_what_no_run_goes_on_from(finished: Path, recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    cases = {
        ("--resume", "nowhere"): "--resume: nowhere is no checkpoint and no run with one",
        ("--resume", finished, "prior.skip=none"): "is of another recipe",
        ("--resume", finished, "-o", finished.parent / "other"): "distill.iterations: 4, but",
        ("--resume", finished, "--no-resume"): "--resume and --no-resume are mutually exclusive",
    }
    for arguments, told in cases.items():
        outcome = ld3m("distill", recipe_file, *arguments)
        assert outcome.code == 2
        assert told in outcome.err
        assert len(outcome.err.splitlines()) == 1


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"not finite at iteration \d+.*distill\.lr_latents"):
        distilled(recipe_file, folder, "distill.lr_latents=1.0e+30", "distill.iterations=9")
    assert not (folder / "latents.safetensors").exists()
    kept = folder / "checkpoints" / str(newest(folder))
    for path in kept.glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(path).values())


def test_fixed_noise_is_that_of_iteration_0(recipe_file: Path, tmp_path: Path) -> None:
    folder = distilled(recipe_file, tmp_path / "run", "prior.noise=fixed")
    assert noted(folder)["noise_iteration"] == 0


@pytest.mark.parametrize(("learn", "moved", "still"), [("latents", "z", "c"), ("conditioning", "c", "z")])
def test_learning_one_of_the_two_leaves_the_other_alone(
    recipe_file: Path, tmp_path: Path, learn: str, moved: str, still: str
) -> None:
    before, after = (
        latents(distilled(recipe_file, tmp_path / str(n), f"distill.learn={learn}", f"distill.iterations={n}"))
        for n in (0, 2)
    )
    assert torch.equal(before[still], after[still])
    assert not torch.equal(before[moved], after[moved])


def test_dry_run_prints_the_resolved_recipe_and_writes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    arguments = command("distill", recipe_file, "distill.iterations=7", "--dry-run")
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    resolved = yaml.safe_load(done.stdout)
    assert resolved["distill"]["iterations"] == 7
    assert resolved["distill"]["momentum"] == 0.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_log_has_a_line_of_the_bar_each_half_minute(recipe_file: Path, tmp_path: Path) -> None:
    """A terminal has ten a second, over each other; here a run of seconds has its first and its last."""
    more = command("distill", recipe_file, "distill.iterations=40", "distill.log_every=1", "-o", tmp_path / "run")
    began = time.monotonic()
    said = subprocess.run(more, check=True, capture_output=True, text=True, timeout=120).stderr
    states = [state for state in re.split(r"[\r\n]", said) if state.startswith("shapes:")]
    assert "40/40" in states[-1]
    assert "loss=" in states[-1]
    assert len(states) <= 2 + (time.monotonic() - began) // 30


# --- folders that cannot be written to ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_read_only_run_is_one_line_and_its_checkpoint_stays_intact(recipe_file: Path, tmp_path: Path) -> None:
    folder = distilled(recipe_file, tmp_path / "run", "distill.iterations=2")
    everything = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in everything}
    for path in everything:
        path.chmod(modes[path] & ~0o222)
    more = as_anyone(command("distill", recipe_file, "distill.iterations=4", "-o", folder))
    told = subprocess.run(more, capture_output=True, text=True, timeout=120)
    for path in everything:
        path.chmod(modes[path])
    assert told.returncode == 2
    assert told.stderr.strip().splitlines()[-1] == f"ld3m: cannot write to {folder}; give another --output"
    straight = distilled(recipe_file, tmp_path / "straight")
    assert torch.equal(latents(distilled(recipe_file, folder))["z"], latents(straight)["z"])


def as_anyone(arguments: list[str]) -> list[str]:
    """A command to which files say no, also where root runs the tests."""
    if os.geteuid():
        return arguments
    if not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and setpriv, which would change that, is not here")
    fewer = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={fewer}", f"--inh-caps={fewer}", *arguments]
