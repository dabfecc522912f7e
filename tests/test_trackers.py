"""Trackers, for real and offline: what they recorded is what metrics.jsonl and evolution/ say."""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from conftest import Outcome, command, distilled
from PIL import Image
from processes import command_line, finish, spawn

from ld3m.distillation import trackers
from ld3m.errors import UserError
from ld3m.images.grids import frames
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, load

PARTS = ("render", "objective", "pull_back", "optimiser")
NUMBERS = {"loss", "grad_z", "grad_c", "peak_memory", *(f"seconds/{part}" for part in PARTS)}


def expected(folder: Path) -> list[dict[str, float]]:
    """The numbers of metrics.jsonl as a tracker gets them."""
    rows = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        seconds = row.pop("seconds")
        del row["iteration"]
        row |= {f"seconds/{part}": value for part, value in seconds.items()}
        rows.append({**row, "iterations_per_second": 1 / sum(seconds.values())})
    return rows


def picture(path: Path | BytesIO) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


# --- TensorBoard -------------------------------------------------------------------------------------------


def events(folder: Path) -> Any:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "logs" / "ld3m"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def check_events(folder: Path, iterations: int) -> None:
    found, rows = events(folder), expected(folder)
    assert len(rows) == iterations
    assert set(found.Tags()["scalars"]) == NUMBERS | {"iterations_per_second"}
    for name in found.Tags()["scalars"]:
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == list(range(iterations))
        assert [scalar.value for scalar in scalars] == [float(np.float32(row[name])) for row in rows]
    drawn = {image.step: picture(BytesIO(image.encoded_image_string)) for image in found.Images("images")}
    assert list(drawn) == list(frames(folder))
    for iteration, path in frames(folder).items():
        assert np.array_equal(drawn[iteration], picture(path))


def test_tensorboard_has_the_numbers_and_the_pictures(
    recipe_file: Path, ld3m: Callable[..., Outcome], tmp_path: Path
) -> None:
    done = ld3m("distill", recipe_file, "log_with=tensorboard", "-o", tmp_path / "run")
    assert done.code == 0
    check_events(tmp_path / "run", 4)
    texts = events(tmp_path / "run").Tensors("recipe/text_summary")
    assert b"objective: dm" in texts[0].tensor_proto.string_val[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_log_of_tensorboard(recipe_file: Path, tmp_path: Path) -> None:
    """Killed two or more iterations after its last checkpoint, it does these again; TensorBoard shows them once."""
    folder = tmp_path / "run"
    arguments = ("distill", recipe_file, "log_with=tensorboard", "distill.iterations=40", "-o", folder)
    processes = spawn(1, command_line, *arguments, "distill.checkpoint_every=9")
    wait_for(lambda: len(expected_so_far(folder)) % 9 > 2 and len(expected_so_far(folder)) > 9)
    processes[0].kill()
    finish(processes)
    repeated = int(sorted((folder / "checkpoints").glob("*/manifest.json"))[-1].parent.name)
    assert 0 < repeated < len(expected_so_far(folder))
    distilled(recipe_file, folder, "log_with=tensorboard", "distill.iterations=40")
    check_events(folder, 40)


def expected_so_far(folder: Path) -> list[str]:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().splitlines() if metrics.is_file() else []


def wait_for(there: Callable[[], bool]) -> None:
    for _ in range(6000):
        if there():
            return
        time.sleep(0.01)
    raise TimeoutError


def test_a_run_begun_anew_has_a_log_of_its_own(recipe_file: Path, ld3m: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = distilled(recipe_file, tmp_path / "run", "log_with=tensorboard", "distill.iterations=6")
    before = (folder / "logs" / "id").read_text()
    arguments = ("distill", recipe_file, "log_with=tensorboard", "distill.iterations=3", "-o", folder)
    assert ld3m(*arguments, "--no-resume").code == 0
    check_events(folder, 3)
    assert (folder / "logs" / "id").read_text() != before


def test_only_the_main_process_tracks(recipe_file: Path, tmp_path: Path) -> None:
    arguments = ("distill", recipe_file, "log_with=tensorboard", "-o", tmp_path / "run")
    assert finish(spawn(2, command_line, *arguments)) == [0, 0]
    assert len(list((tmp_path / "run" / "logs" / "ld3m").glob("events.*"))) == 1
    check_events(tmp_path / "run", 4)


def test_other_processes_start_no_tracker(recipe_file: Path, tmp_path: Path, notes: "type[Notes]") -> None:
    """Whatever the tracker thinks of them: some of Accelerate's run on any process."""
    recipe = load(Recipe, str(recipe_file), ["log_with=notes", f"output={tmp_path}"])
    with trackers.started(recipe, 0, main=False) as tracked:
        tracked.log({"iteration": 0, "loss": 1.0, "seconds": {"render": 1.0}})
    assert notes.told == []


# --- trackio -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trackio_has_the_numbers_and_the_pictures(recipe_file: Path, tmp_path: Path) -> None:
    """Begun and gone on with, in a process of its own: trackio decides on import where it keeps things."""
    folder, place = tmp_path / "run", tmp_path / "trackio"
    environment = {**os.environ, "TRACKIO_DIR": str(place), "HF_HUB_OFFLINE": "1"}
    for iterations in (3, 5):
        arguments = ("distill", recipe_file, "log_with=[trackio]", f"distill.iterations={iterations}", "-o", folder)
        subprocess.run(command(*arguments), check=True, env=environment, timeout=300)
    with sqlite3.connect(place / "ld3m.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = [json.loads(text) for (text,) in database.execute("select config from configs")]
    name = f"shapes-{(folder / 'logs' / 'id').read_text()}"
    assert {run for run, _, _ in rows} == {name}
    logged = [(step, json.loads(metrics)) for _, step, metrics in rows]
    numbers = [(step, metrics) for step, metrics in logged if "images" not in metrics]
    assert numbers == list(enumerate(expected(folder)))
    images = [(step, metrics["images"]) for step, metrics in logged if "images" in metrics]
    assert [step for step, _ in images] == [0, 1, 2, 3, 3, 4, 5]  # 3: the first result, and where it went on
    assert {step for step, _ in images} == set(frames(folder))
    for step, image in images[-3:]:
        assert np.array_equal(picture(place / "media" / image["file_path"]), picture(frames(folder)[step]))
    assert configs[0]["distill"]["objective"] == "dm"


# --- what any tracker meets --------------------------------------------------------------------------------


class Notes(GeneralTracker):
    """A tracker of another package, which notes what it is told and fails where it is asked to."""

    name = "notes"
    requires_logging_directory = False
    told: ClassVar[list[str]] = []
    fails_at: ClassVar[str] = ""

    def __init__(self, run_name: str) -> None:
        super().__init__()

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._note("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note(f"recipe {values['name']}")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._note(f"log {step}")

    def finish(self) -> None:
        self._note("finish")

    def _note(self, what: str) -> None:
        self.told.append(what)
        if what == self.fails_at:
            raise ConnectionError("the server is away")
        if what == "log 2" and self.fails_at == "signal":
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def notes() -> Iterator[type[Notes]]:
    Notes.told, Notes.fails_at = [], ""
    LOGGER_TYPE_TO_CLASS["notes"] = Notes  # what register_tracker_class does, which only new versions have
    yield Notes
    del LOGGER_TYPE_TO_CLASS["notes"]


def test_trackers_end_with_the_run(recipe_file: Path, tmp_path: Path, notes: type[Notes]) -> None:
    distilled(recipe_file, tmp_path / "run", "log_with=notes", "distill.log_every=2")
    assert notes.told == ["start", "recipe shapes", "log 1", "log 3", "finish"]


def test_trackers_end_with_a_signal(
    recipe_file: Path, tmp_path: Path, notes: type[Notes], ld3m: Callable[..., Outcome]
) -> None:
    notes.fails_at = "signal"
    done = ld3m("distill", recipe_file, "log_with=notes", "distill.iterations=50", "-o", tmp_path / "run")
    assert done.code == 128 + signal.SIGTERM
    assert notes.told[-1] == "finish"
    assert notes.told.count("finish") == 1


def test_trackers_end_with_an_error(
    recipe_file: Path, tmp_path: Path, notes: type[Notes], ld3m: Callable[..., Outcome]
) -> None:
    wild = ("log_with=notes", "distill.lr_latents=1.0e+30", "distill.iterations=9")
    assert ld3m("distill", recipe_file, *wild, "-o", tmp_path / "run").code == 2
    assert notes.told[-1] == "finish"


def test_a_tracker_that_fails_on_the_way_does_not_end_the_run(
    recipe_file: Path, tmp_path: Path, notes: type[Notes], ld3m: Callable[..., Outcome]
) -> None:
    notes.fails_at = "log 1"
    done = ld3m("distill", recipe_file, "log_with=[notes, tensorboard]", "-o", tmp_path / "run")
    assert done.code == 0
    assert "log_with: notes fails and gets no more of this run (ConnectionError: the server is away)" in done.err
    assert notes.told[-1] == "log 1"
    check_events(tmp_path / "run", 4)


def test_a_tracker_that_cannot_start_is_told(
    recipe_file: Path, tmp_path: Path, notes: type[Notes], ld3m: Callable[..., Outcome]
) -> None:
    notes.fails_at = "start"
    done = ld3m("distill", recipe_file, "log_with=notes", "-o", tmp_path / "run")
    assert done.code == 2
    assert "log_with: notes cannot be started (ConnectionError: the server is away)" in done.err


def test_what_is_not_there_is_told_before_data_is_read(recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    missing = next((name for name in ("swanlab", "dvclive", "clearml") if not importlib.util.find_spec(name)), None)
    cases = {"tensorbord": "log_with: 'tensorbord' is not known; known are aim, comet_ml"}
    if missing:
        cases[missing] = f"log_with: '{missing}' needs the package {missing}: pip install {missing}"
    for name, told in cases.items():
        done = ld3m("distill", recipe_file, f"log_with=[{name}]", "data.test_share=0.345", "-o", "run")
        assert done.code == 2
        assert told in done.err
        assert len(done.err.splitlines()) == 1
        assert not Path("run").exists()


def test_a_package_of_another_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(UserError, match=r"^log_with: 'comet_ml' needs the package comet-ml: pip install comet-ml$"):
        trackers.check(["comet_ml"])


def test_trackers_do_not_make_another_run(recipe_file: Path) -> None:
    recipes = [load(Recipe, str(recipe_file), [f"log_with={value}"]) for value in ("[]", "wandb", "[wandb, trackio]")]
    assert [recipe.log_with for recipe in recipes] == [[], ["wandb"], ["wandb", "trackio"]]
    assert len({digest(recipe) for recipe in recipes}) == 1


@pytest.mark.slow
def test_the_terminal_tells_where_to_look_and_how_far_it_is(recipe_file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("distill", recipe_file, "-o", tmp_path / "a run"), check=True, capture_output=True, text=True
    )
    first, data, *_, after = done.stdout.splitlines()
    folder = tmp_path / "a run"
    assert data.endswith("/shapes0: 3 classes, 36 training images (12 in each) of 16 × 16 pixels in 1 channel")
    assert after == f"next: ld3m evaluate '{folder}' --against random; ld3m report '{folder}'"
    assert first == f"{folder}: grid.png shows the images on their way, ld3m status '{folder}' says how far it is"
    bar = done.stderr.replace("\r", "\n")
    for part in ("4/4", "loss=", "it/s", "<00:00"):
        assert part in bar
