"""The work on a question: what its stages share, such as the time that is left, the recipes, and what is printed."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

from ld3m.automatic.budget import enough
from ld3m.automatic.candidates import Candidate
from ld3m.automatic.look import Look
from ld3m.automatic.question import PILOTS, Kept, Question, State
from ld3m.data.prepared import ImageSet
from ld3m.distillation.loop import distill
from ld3m.evaluation.effort import Cost, costs_of
from ld3m.evaluation.protocols import full_ema
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.runs import metrics
from ld3m.runs.folder import iterations_saved

NARROWER = 3
"""How many times as fast the matching network is as the one that measures, which is twice as wide."""
REAL_SHARE = 0.15
"""Of a distillation's time that may go into the features of real images."""
LARGEST_BATCH, SMALLEST_BATCH = 500, 16
"""Real images of each class that a matching network is shown."""
EMA = 0.985, 300
"""Decay of the average of a network's weights, and the epochs that it is for."""
SCORER_EPOCHS = 3
"""Of the network by which herding chooses, for many images; the recipes' own."""
Value = TypeVar("Value")


@dataclass
class Work:
    """The work on a question, under way."""

    processes: Processes
    question: Question
    found: Look
    options: Sequence[Candidate]
    """What is worth a pilot, the most promising first."""
    kept: Kept
    began: float
    """When this call began, by the monotonic clock."""
    before: float = field(init=False)
    """Seconds spent by earlier calls."""

    def __post_init__(self) -> None:
        self.before = self.state.spent

    @property
    def state(self) -> State:
        """How far it is."""
        return self.kept.state

    @property
    def total(self) -> float:
        """Seconds in all."""
        return 60 * self.question.minutes

    def spent(self) -> float:
        """Seconds so far, over all calls; the same on all processes."""
        return self.agreed(self.before + time.monotonic() - self.began)

    def agreed(self, value: Value) -> Value:
        """The main process's value, on all."""
        return self.processes.gather([value])[0]

    def save(self) -> None:
        """Writes how far it is."""
        self.state.spent = max(self.state.spent, self.before + time.monotonic() - self.began)
        self.kept.save()

    def say(self, line: str) -> None:
        """Prints a line, once; standard output is for the table."""
        if self.processes.is_main_process:
            print(f"auto: {line}", file=sys.stderr, flush=True)

    @property
    def log(self) -> Path:
        """What is printed of pilots."""
        return self.question.folder / PILOTS / f"log-{self.processes.process_index}.txt"

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Sends what is printed to the log."""
        with self.log.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            yield

    def recipe(self, number: int, iterations: int, seconds: float, pool: int, folder: Path | None = None) -> Recipe:
        """A candidate's recipe.

        Args:
            seconds: that they may take, by which the real images of an iteration go.
            pool: matching networks.
            folder: of the run; None: that of the result.
        """
        found, state = self.found, self.state
        cost = Cost(*(state.cost or (0.0, 0.0)))
        features = pool * len(found.classes) * cost.test / NARROWER  # seconds for a real image of each class
        batch = int(min(LARGEST_BATCH, max(SMALLEST_BATCH, REAL_SHARE * seconds / features if features else 0)))
        given = [] if state.range is None else [f"data.range={state.range}"]
        changes = [
            *data_overrides(found),
            *given,
            f"distill.iterations={iterations}",
            f"distill.dm.pool={pool}",
            f"distill.real_batch={batch}",
            *self.options[number].overrides,
        ]
        return self.question.recipe(changes, folder)

    def distil(self, recipe: Recipe, seconds: float) -> Recipe:
        """Distils without a look at a test image, for so many seconds at most.

        Returns:
            The recipe with the iterations that were made, by which the run in its folder is finished.
        """
        distill(without_test(recipe), seconds=seconds)
        self.processes.wait_for_everyone()
        done = self.agreed(iterations_saved(recipe.folder) or recipe.distill.iterations)
        made = recipe.changed({"distill.iterations": done})
        with self.quiet():
            distill(without_test(made))  # renders the images, unless all iterations are made
        return made

    def cost(self, images: ImageSet, recipe: Recipe) -> Cost:
        """What an image takes in training and testing the networks of a recipe's `evaluate`, by some short tries."""
        each = costs_of(recipe.evaluate, self.seen(recipe), images, self.processes.device).values()
        return self.agreed(Cost(*map(sum, zip(*each, strict=True))))

    def seen(self, recipe: Recipe) -> int:
        """Images of a recipe's set, as networks see them."""
        return recipe.distill.latents_per_class * len(self.found.classes)


def data_overrides(found: Look) -> list[str]:
    """What a look says of the recipe."""
    share = [] if found.test_share is None else [f"data.test_share={found.test_share}"]
    scorer = f"data.scorer.epochs={enough(sum(found.counts), SCORER_EPOCHS)}"  # of few images herding would be weak
    return [f"data.resolution={found.resolution}", f"data.channels={found.channels}", scorer, *share]


def without_test(recipe: Recipe) -> Recipe:
    """The recipe of the same run, which leaves the source's test images unread."""
    return recipe.changed({"data.read_test": False})


def measured(recipe: Recipe, epochs: int, seeds: int, full_epochs: int = 0) -> Recipe:
    """The recipe with networks of so many epochs, the average of whose weights covers the same share of them."""
    wanted = {"epochs": epochs, "ema": full_ema(*EMA, epochs), "seeds": seeds, "batch": 64}
    wanted |= {"full_epochs": full_epochs} if full_epochs else {}
    return recipe.changed({"evaluate": recipe.evaluate.changed(wanted)})


def seconds_of_one(folder: Path, pool: int) -> float:
    """Seconds of an iteration of a run, once all matching networks have seen their real images; 0 if none is logged."""
    seconds = [metrics.seconds(row) for row in metrics.read(folder).rows]
    return median(seconds[pool:] or seconds or [0.0])
