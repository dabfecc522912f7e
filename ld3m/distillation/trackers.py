"""Trackers: a run's numbers and pictures in TensorBoard, trackio, Weights & Biases and others, through Accelerate's."""

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from ld3m.errors import UserError, one_line
from ld3m.files import write_text
from ld3m.reading import read_text
from ld3m.recipe import Recipe
from ld3m.recipe.files import to_yaml

PROJECT = "ld3m"
"""The project, or experiment, in which a tracker files all our runs."""
PACKAGES = {"comet_ml": "comet-ml"}
"""What to install for a tracker whose package has another name."""


def check(names: Sequence[str]) -> None:
    """That there are such trackers here; Accelerate leaves those out that are not, without a word.

    Raises:
        UserError: naming those that are known, or the package to install.
    """
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"log_with: {name!r} is not known; known are {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name in LoggerType.list() and name not in installed:  # others are registered, with what they need
            package = PACKAGES.get(name, name)
            raise UserError(f"log_with: {name!r} needs the package {package}: pip install {package}")


@dataclass(frozen=True)
class Trackers:
    """Those of a run that are at work; none on any process but the main one."""

    at_work: list[GeneralTracker]

    def log(self, row: dict[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl at its iteration, and `iterations_per_second` of such iterations."""
        numbers = {key: value for key, value in row.items() if key not in ("iteration", "seconds")}
        numbers |= {f"seconds/{part}": seconds for part, seconds in row["seconds"].items()}
        if total := sum(row["seconds"].values()):
            numbers["iterations_per_second"] = 1 / total
        self._send(lambda tracker: tracker.log(numbers, step=row["iteration"]))

    def draw(self, iteration: int, picture: Image.Image) -> None:
        """A picture of the images that an iteration began with; trackers without images go without."""
        self._send(lambda tracker: _draw(tracker, iteration, picture))

    def finish(self) -> None:
        """Ends them all, so that what they have is written or sent."""
        self._send(lambda tracker: tracker.finish())

    def _send(self, message: Callable[[GeneralTracker], None]) -> None:
        """Tells each tracker something; one that fails is left out from then on, as hours of work are not its own."""
        for tracker in list(self.at_work):
            try:
                message(tracker)
            except Exception as error:
                self.at_work.remove(tracker)
                why = one_line(error)
                print(f"ld3m: log_with: {tracker.name} fails and gets no more of this run ({why})", file=sys.stderr)


@contextmanager
def started(recipe: Recipe, first: int, main: bool) -> Iterator[Trackers]:
    """The trackers of `log_with`, at work until the context is left, however it is left.

    Those that write files do so in `<run>/logs`; trackio and MLflow have places of their own. A run that resumes
    continues the same log of TensorBoard, Weights & Biases, trackio and DVCLive; others begin another one. After a
    signal no iteration is done twice. After a kill or an error those since the last checkpoint are, with the same loss
    and other seconds: TensorBoard drops their first occurrence, Weights & Biases their second, and trackio shows both.

    Args:
        recipe: of the run, which the trackers get too.
        main: whether this is the main process; the others track nothing.

    Raises:
        UserError: if a tracker cannot be started.
    """
    trackers = Trackers([])
    try:
        for name in recipe.log_with if main else ():
            try:
                trackers.at_work.append(_start(name, recipe, first))
            except Exception as error:
                raise UserError(f"log_with: {name} cannot be started ({one_line(error)})") from None
        yield trackers
    finally:
        trackers.finish()


def _start(name: str, recipe: Recipe, first: int) -> GeneralTracker:
    logs = recipe.folder / "logs"
    kind = LOGGER_TYPE_TO_CLASS[name]
    folder = [str(logs)] if kind.requires_logging_directory else []
    tracker: GeneralTracker = kind(PROJECT, *folder, **_settings(name, recipe, first, _identity(logs)))
    tracker.start()
    if name == "tensorboard":  # what Accelerate would write is another log for each start, without a curve
        tracker.log({"recipe": "\n".join(f"    {line}" for line in to_yaml(recipe).splitlines())}, step=first)
    else:
        tracker.store_init_configuration(recipe.model_dump(mode="json"))
    return tracker


def _identity(logs: Path) -> str:
    """What distinguishes this run from others of its name; kept with its logs, so that resuming does not change it."""
    path, advice = logs / "id", "remove it, and the run gets another log"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:8])
    identity = read_text(path, advice).strip()
    if not identity.isalnum():
        raise UserError(f"{path} is damaged (no identity of a log); {advice}")
    return identity


def _settings(name: str, recipe: Recipe, first: int, identity: str) -> dict[str, Any]:
    """What makes a tracker go on with this run, or call a new one by its name."""
    logs = recipe.folder / "logs"
    known: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": first} if first else {},
        "wandb": {"name": recipe.name, "id": identity, "resume": "allow", "dir": str(logs)},
        "trackio": {"name": f"{recipe.name}-{identity}", "resume": "allow"},
        "mlflow": {"run_name": recipe.name},
        "dvclive": {"dir": str(logs / "dvclive"), "resume": first > 0},
    }
    return known.get(name, {})


def _draw(tracker: GeneralTracker, iteration: int, picture: Image.Image) -> None:
    """Each takes images in another form."""
    if tracker.name == "tensorboard":
        pixels = np.atleast_3d(np.asarray(picture))[None]
        tracker.log_images({"images": pixels}, step=iteration, dataformats="NHWC")
    elif tracker.name == "trackio":  # knows images, although Accelerate's wrapper does not
        import trackio

        tracker.log({"images": trackio.Image(picture)}, step=iteration)
    elif tracker.name in ("aim", "clearml"):
        tracker.log_images({"images": picture}, step=iteration)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({"images": [picture]}, step=iteration)
