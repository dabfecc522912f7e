"""`ld3m distill --rehearse`: every step on a small scale, what fails is found, and nothing of it is left behind."""

import io
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import Outcome, command, latents, launcher

import ld3m
from ld3m.data.first_images import FirstImagesRecipe
from ld3m.data.prepared import prepare
from ld3m.distillation.loop import distill
from ld3m.errors import UserError
from ld3m.machine import lock
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.rehearsal import rehearse as room
from ld3m.rehearsal import stand_in
from ld3m.rehearsal.folder import PREFIX
from ld3m.rehearsal.forecast import distilling, size_text
from ld3m.rehearsal.rehearse import Rehearsal, rehearse
from ld3m.rehearsal.steps import FAILED, NOT_TRIED, PASSED, WARNING, Steps
from ld3m.runs.folder import checkpoint_folders, has_result

NO_PRIOR = ("prior.source=pixels", "prior.steps=0")
"""Overrides for what is quick."""
AFTER = ("distil", "evaluate", "report", "push-to-hub")
"""Steps that are not tried without those before."""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working folder, and an empty one of the system's for temporary files."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def left(tmp_path: Path) -> list[str]:
    """What is in these folders."""
    return sorted(
        str(path.relative_to(tmp_path)) for part in ("here", "temporary") for path in (tmp_path / part).rglob("*")
    )


def rehearsal(recipe_file: Path, *overrides: str) -> Rehearsal:
    return rehearse(load(Recipe, str(recipe_file), list(overrides)))


def outcomes(done: Rehearsal) -> dict[str, str]:
    return {row.step: row.result for row in done.rows}


def why(done: Rehearsal, step: str) -> str:
    """What the row of a step says."""
    return "\n".join(next(row.lines for row in done.rows if row.step == step))


# --- what passes -------------------------------------------------------------------------------------------


def test_everything_passes_and_nothing_is_left(
    recipe_file: Path, ld3m: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "here")
    outcome = ld3m("distill", recipe_file, "--rehearse", "distill.iterations=30", "log_with=[tensorboard]")
    assert outcome.code == 0, outcome.err
    head, *rows = outcome.out.splitlines()
    assert head.split() == ["step", "result", "seconds", "peak", "GiB"]
    whole = rows.index("the whole will take")
    found = {row[:20].strip(): row[21:31].strip() for row in rows[:whole]}
    passed = (
        "recipe",
        "output",
        "weights",
        "prior",
        "data",
        "images",
        "distil",
        "resume",
        "evaluate convnet",
        "report",
        "disk",
    )
    assert found == {**dict.fromkeys((*passed, "push-to-hub"), PASSED), "login": WARNING}
    assert "tensorboard: installed, and sent nothing" in outcome.out
    assert "30 iterations of" in rows[whole + 1]
    assert "2 networks, 3 epochs of 6 images, tested on 18" in rows[whole + 2]
    assert rows[-1].startswith("rehearsal: all passed; the whole will take about ")
    assert rows[-1].endswith(f"; start it by ld3m distill {recipe_file} distill.iterations=30 'log_with=[tensorboard]'")
    assert left(tmp_path) == []


def test_a_large_set_is_rehearsed_with_a_sample(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if preparing them took longer than ten minutes; 8 images of a class go into an iteration, and 2 to spare."""
    monkeypatch.setattr(room, "LONG", -1.0)
    done = ld3m.rehearse(recipe_file, *NO_PRIOR)
    assert done.seconds > 0
    assert why(done, "images").startswith("A SAMPLE, the first 10 training images of each class; ")
    assert left(tmp_path) == []


@pytest.mark.slow
def test_no_iterations_are_no_resume(recipe_file: Path, tmp_path: Path) -> None:
    done = rehearsal(recipe_file, "distill.iterations=0", *NO_PRIOR)
    assert done.errors == []
    assert why(done, "resume") == "not needed by a run without iterations"
    assert left(tmp_path) == []


def test_the_first_of_each_class(shapes: Path, recipe_file: Path, tmp_path: Path) -> None:
    recipe = load(Recipe, str(recipe_file))
    sample = FirstImagesRecipe(**recipe.data.model_dump(), first={"train": 3, "test": 2}, cache=tmp_path / "sample")
    few, every = prepare(sample, progress=False), prepare(recipe.data, progress=False)
    assert few.counts == {"train": [3] * 3, "test": [2] * 3}
    assert few.classes == every.classes
    for label in range(3):
        assert few.images("train", label).equal(every.images("train", label)[:3])
    assert few.folder.parent == tmp_path / "sample"
    stored = recipe.model_copy(update={"data": sample}).model_dump()
    assert stored == recipe.model_dump()  # what a run notes of itself is the recipe


def test_a_run_that_is_left_resumes_to_the_same_bits(recipe_file: Path, tmp_path: Path) -> None:
    straight, halved = (
        load(Recipe, str(recipe_file), [*NO_PRIOR, f"output={tmp_path / name}"]) for name in ("one", "two")
    )
    distill(straight)
    distill(halved, until=2)
    assert [path.name for path in checkpoint_folders(halved.folder)] == ["000002"]
    assert not has_result(halved.folder)
    distill(halved)
    expected, found = latents(straight.folder), latents(halved.folder)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


# --- what fails --------------------------------------------------------------------------------------------


def test_mistakes_beside_the_distillation_are_found_together(
    recipe_file: Path, ld3m: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that does not take 18 pixels, a tracker that is not installed, a page that fails, a forbidden name."""
    monkeypatch.chdir(tmp_path / "here")

    def fail(folder: Path) -> Path:
        raise UserError(f"{folder.name}: no page today")

    monkeypatch.setattr(room, "report", fail)
    wrong = ("data.resolution=18", "evaluate.arch=[vit,convnet]", "log_with=[aim]", "hub.repo_id=me/a b")
    outcome = ld3m("distill", recipe_file, "--rehearse", *wrong, *NO_PRIOR)
    assert outcome.code == 2
    starts = (
        "data.resolution: 18 is no multiple of 16",
        "log_with: 'aim' needs",
        "run: no page today",
        "hub.repo_id: 'me/a b' is not",
    )
    lines = [line for line in outcome.err.splitlines() if line.startswith("ld3m: ")]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"ld3m: {start}")
    assert outcome.out.splitlines()[-1] == "rehearsal: 3 steps failed"
    assert "evaluate convnet     passed" in outcome.out
    assert left(tmp_path) == []


@pytest.fixture
def without_null_class(tmp_path: Path, prior_folder: Path) -> Path:
    """The prior with as many rows in its class table as it has classes."""
    folder = Path(shutil.copytree(prior_folder, tmp_path / "prior"))
    path = folder / "class_embedder" / "model.safetensors"
    ((name, table),) = safetensors.torch.load_file(path).items()
    safetensors.torch.save_file({name: table[:-1]}, path)
    config = folder / "class_embedder" / "config.json"
    config.write_text(config.read_text().replace('"null_class": true', '"null_class": false'))
    return folder


def test_a_prior_without_a_null_class(recipe_file: Path, without_null_class: Path, tmp_path: Path) -> None:
    done = rehearsal(recipe_file, f"prior.source={without_null_class}")
    assert outcomes(done) == {
        **dict.fromkeys(("recipe", "output", "weights", "data"), PASSED),
        "prior": FAILED,
        **dict.fromkeys(AFTER, NOT_TRIED),
    }
    assert "has no null class to guide away from; set prior.guidance=1" in why(done, "prior")
    with pytest.raises(UserError, match=r"^prior\.guidance: 3, but "):
        done.raise_if_failed()
    assert left(tmp_path) == []


def test_experts_that_are_not_there(recipe_file: Path) -> None:
    done = rehearsal(recipe_file, "distill.objective=mtt", "experts.count=3", *NO_PRIOR)
    expected = "experts.folder: experts/shapes has 0 of experts.count = 3 experts; make them with ld3m experts"
    assert why(done, "experts").startswith(expected)
    assert outcomes(done)["distil"] == NOT_TRIED


def test_a_class_without_test_images(recipe_file: Path, shapes: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(shapes, tmp_path / "images"))
    for path in (images / "test" / "cross").iterdir():
        path.unlink()
    done = rehearsal(recipe_file, f"data.source={images}", *NO_PRIOR)
    assert "class 'cross' has too few images" in why(done, "data")
    assert outcomes(done) == {
        **dict.fromkeys(("recipe", "output", "weights", "prior"), PASSED),
        "data": FAILED,
        **dict.fromkeys(AFTER, NOT_TRIED),
    }


def test_data_that_is_not_there(recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    outcome = ld3m("distill", recipe_file, "--rehearse", "data.source=nowhere", *NO_PRIOR)
    assert outcome.code == 2
    assert [line for line in outcome.err.splitlines() if line.startswith("ld3m: ")] == [
        line for line in ld3m("distill", recipe_file, "data.source=nowhere", *NO_PRIOR).err.splitlines() if line
    ]


def test_configurations_alone_get_random_weights(
    recipe_file: Path, prior_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(prior_folder, tmp_path / "prior"))
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    done = rehearsal(recipe_file, f"prior.source={folder}")
    assert done.errors == []
    assert why(done, "weights") == f"RANDOM, as those of {folder} are not here: the folder has configurations alone"
    assert done.conclusion("ld3m distill mine").startswith(
        "rehearsal: all passed with RANDOM weights; the whole will take"
    )
    assert left(tmp_path) == []


def test_nothing_large_is_fetched(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known prior's sizes are drawn; of one on the Hub, not even those are here. No network is asked for either."""
    drawn: list[str] = []
    monkeypatch.setattr(stand_in, "random_copy", lambda source, folder: drawn.append(source))
    done = rehearsal(recipe_file, "prior.source=cin256-v2", "data.channels=3", "data.source=nowhere")
    assert why(done, "weights").endswith("are not here: ld3m priors get cin256-v2 gets them, 1.8 GB")
    assert drawn == ["cin256-v2"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "here")
    done = rehearsal(recipe_file, "prior.source=hub:me/prior@v1", "data.source=nowhere")
    assert why(done, "weights").startswith("prior.source: hub:me/prior@v1 is not on this machine")
    assert "hf download me/prior --revision v1" in why(done, "weights")


def test_a_disk_without_room(recipe_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(load(Recipe, str(recipe_file)).data, progress=False)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 999_000, 1000))
    done = rehearsal(recipe_file, *NO_PRIOR)
    assert why(done, "images").startswith("output: the run takes ")
    assert "1.0 kB are free in " in why(done, "images")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_an_output_that_cannot_be_written(recipe_file: Path, tmp_path: Path) -> None:
    done = rehearsal(recipe_file, "output=/proc/run", "data.source=nowhere", *NO_PRIOR)
    assert why(done, "output").startswith("output: cannot write to /proc (")
    (tmp_path / "file").write_text("")
    done = rehearsal(recipe_file, f"output={tmp_path / 'file' / 'run'}", "data.source=nowhere", *NO_PRIOR)
    assert why(done, "output") == f"output: {tmp_path / 'file'} is no folder; give another --output"
    assert left(tmp_path) == []


def test_what_the_output_holds(recipe_file: Path, tmp_path: Path) -> None:
    """A run at which another process is at work, and something that is no run."""
    run = tmp_path / "run"
    elsewhere = (f"output={run}", "data.source=nowhere", *NO_PRIOR)
    with lock.claim(run):
        assert "another process is at work" in why(rehearsal(recipe_file, *elsewhere), "output")
    (run / "mine.txt").write_text("")
    assert "is not empty and not a run" in why(rehearsal(recipe_file, *elsewhere), "output")
    assert sorted(path.name for path in run.iterdir()) == [".lock", "mine.txt"]


def test_an_error_that_is_nobodys_mistake() -> None:
    """It is a row, and the command ends with it, whatever else failed."""
    out = io.StringIO()
    steps = Steps(Processes(torch.device("cpu")), out)

    def fail() -> str:
        raise RuntimeError("a\nbug")

    assert not steps.alone("first", fail)
    assert not steps.together("second", fail)
    assert steps.alone("third", lambda: "fine")
    _, *rows = out.getvalue().splitlines()
    assert [(row.split()[:2], row[52:]) for row in rows] == [
        (["first", FAILED], "RuntimeError: a bug"),
        (["second", FAILED], "RuntimeError: a bug"),
        (["third", PASSED], "fine"),
    ]
    done = Rehearsal(steps.rows, 0.0, [UserError("mine"), *steps.errors], is_main=True, processes=1, random=False)
    assert done.conclusion("") == "rehearsal: 2 steps failed"
    with pytest.raises(RuntimeError, match="bug"):
        done.raise_if_failed()


@pytest.mark.parametrize("options", [("--profile",), ("--dry-run",), ("--resume", "x"), ("--profile", "--dry-run")])
def test_options_that_do_not_go_together(recipe_file: Path, ld3m: Callable[..., Outcome], options: tuple[str]) -> None:
    outcome = ld3m("distill", recipe_file, "--rehearse", *options)
    names = " and ".join(name for name in options if name.startswith("--"))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"ld3m: --rehearse: is for a run from its start, and exits after it; leave out {names}\n"


# --- what is left ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_rehearsal_leaves_nothing(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)
    monkeypatch.setattr(room, "check_inputs", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as stopped:
        rehearsal(recipe_file)
    assert stopped.value.code == 128 + number
    assert left(tmp_path) == []


def test_what_killed_rehearsals_left_is_removed(recipe_file: Path, tmp_path: Path) -> None:
    killed, alive = (tmp_path / "here" / f"{PREFIX}{name}" for name in ("killed", "alive"))
    with lock.claim(killed):
        pass
    with lock.claim(alive):
        rehearsal(recipe_file, "data.source=nowhere", *NO_PRIOR)
        assert left(tmp_path) == [f"here/{PREFIX}alive", f"here/{PREFIX}alive/.lock"]


@pytest.mark.slow
def test_two_processes_rehearse_together(recipe_file: Path, tmp_path: Path) -> None:
    asked = [*launcher("cpu2"), "-m", "ld3m", "distill", str(recipe_file), "--rehearse"]
    done = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=600)
    assert "2 networks of 2 epochs, tested on 18 images" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("; start it by the same launch without --rehearse")
    failing = subprocess.run([*asked, "data.subset=[circle,nix]"], capture_output=True, text=True, timeout=600)
    assert failing.returncode != 0
    (line,) = [line for line in failing.stderr.splitlines() if line.startswith("ld3m: ")]
    assert line.startswith("ld3m: data.subset: 'nix' is not a class")
    assert left(tmp_path) == []


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(recipe_file: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command("distill", recipe_file, "--rehearse"), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    while not process.stdout.readline().startswith("images"):  # distillation is next
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert left(tmp_path) == []


# --- what the whole will take ------------------------------------------------------------------------------


def test_a_forecast_by_hand(recipe_file: Path) -> None:
    """Ten seconds of the last command, four of them an iteration; two more of the first; a checkpoint every two."""
    recipe = load(Recipe, str(recipe_file), ["distill.iterations=101"])
    rows = [{"seconds": {"render": 1.0, "objective": 5.0}}, {"seconds": {"render": 1.0, "objective": 3.0}}]
    assert distilling(recipe, rows, 10.0, 0.5, 0).seconds == (10 - 4) + (6 - 4) + 101 * 4 + 51 * 0.5
    resumed = distilling(recipe, rows, 10.0, 0.5, 91)
    assert resumed.seconds == 6 + 2 + 10 * 4 + 5 * 0.5
    assert resumed.text.startswith("10 of 101 iterations of 4 s, 8 s for the start and the end")


def test_sizes_as_people_write_them() -> None:
    sizes = (1, 12_345, 1_234_567, 123_456_789, 1_234_567_890, 65_432_000_000)
    assert [size_text(size) for size in sizes] == ["0.0 kB", "12 kB", "1.2 MB", "123 MB", "1.2 GB", "65 GB"]
