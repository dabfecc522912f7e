"""What is asked of `ld3m auto`, and how far the answer is: the state that a killed command resumes from."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ld3m.data.layouts.listing import exists
from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.reading import read_json
from ld3m.recipe import Recipe
from ld3m.recipe.files import load

BASE = "own-images"
"""The shipped recipe that all candidates change."""
PRIOR = "prior.source="
ON_CORRUPT = "data.on_corrupt="
OURS = (
    "name", "output", "distill.images_per_class", "data.source", "data.read_test",
    "distill.iterations", "distill.schedule",
    "evaluate.seeds", "evaluate.epochs", "evaluate.full_epochs", "evaluate.ema", "evaluate.batch",
)  # fmt: skip
"""Keys that are options of the command, or that it decides by the time."""
STATE = "auto.json"
PILOTS = "pilots"
"""Folder of the pilots' runs, and of what they print, in the run's."""


@dataclass(frozen=True)
class Question:
    """Own images, and how good a set is wanted in what time."""

    source: str
    """As `data.source`."""
    images_per_class: int
    minutes: float = 15.0
    overrides: tuple[str, ...] = ()
    """`KEY=VALUE` of the recipe, which stand; `prior.source=…` names a prior to try as well."""
    output: Path | None = None
    """The run folder; None: `runs/auto-<name of the source>`."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.minutes <= 10**5:
            raise UserError(f"--minutes: {self.minutes:g} is invalid; give 0.05 to 100,000 minutes")
        given = [override.partition("=")[0] for override in self.overrides]
        if refused := [key for key in given if key in OURS]:
            options = {"output": "--output", "data.source": "SOURCE", "distill.images_per_class": "--images-per-class"}
            instead = options.get(refused[0])
            raise UserError(
                f"override {refused[0]}: "
                + (f"give it as {instead}" if instead else "ld3m auto decides it by --minutes; leave it out")
            )

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output or Path("runs", self.name)

    @property
    def name(self) -> str:
        """The name of the run."""
        path = Path(self.source)
        last = path.resolve().name if exists(self.source) else re.split(r"[/\\:]", self.source)[-1]
        return f"auto-{re.sub(r'[^A-Za-z0-9._-]+', '-', last)}"[:100]

    @property
    def own_priors(self) -> list[str]:
        """The priors that the user names."""
        return [each.removeprefix(PRIOR) for each in self.overrides if each.startswith(PRIOR)]

    @property
    def standing(self) -> list[str]:
        """The overrides that all candidates have."""
        return [each for each in self.overrides if not each.startswith(PRIOR)]

    def recipe(self, changes: Sequence[str] = (), folder: Path | None = None) -> Recipe:
        """The recipe with some changes; what the user set stands.

        Args:
            folder: of the run; None: that of the result.
        """
        own = [
            f"name={self.name}",
            f"data.source={json.dumps(self.source, ensure_ascii=False)}",
            f"distill.images_per_class={self.images_per_class}",
            "evaluate.arch=[convnet]",
            f"output={json.dumps(str(folder or self.folder), ensure_ascii=False)}",
        ]
        return load(Recipe, BASE, [*own, *changes, *self.standing])

    @property
    def asked(self) -> dict[str, Any]:
        """What a folder's earlier answer must have been asked, too; a file found broken late may be skipped."""
        overrides = [each for each in self.overrides if not each.startswith(ON_CORRUPT)]
        return {"source": self.source, "images_per_class": self.images_per_class, "overrides": overrides}


class Pilot(BaseModel):
    """A pilot that is done."""

    candidate: int
    """Its number in the list of candidates."""
    longer: bool
    """Whether it is one of the second round."""
    accuracy: float | None
    """In % of the held-out images; None if it failed."""
    iterations: int = 0
    iteration: float = 0.0
    """Seconds of one."""


class State(BaseModel):
    """How far it is."""

    asked: dict[str, Any]
    spent: float = Field(0.0, ge=0)
    """Seconds so far."""
    prepared: float = 0.0
    """Seconds that the images took to prepare."""
    range: list[float] | None = None
    """The values that become black and white, of images of more than 8 bits; found in the training images."""
    cost: tuple[float, float] | None = None
    """Of an image in training and in testing, when pilots were planned."""
    bracket: tuple[int, float] | None = None
    pilots: list[Pilot] = []
    chosen: int | None = None
    """The number of the candidate that is distilled."""
    distilling_since: float | None = None
    """Seconds spent when the result's distillation began."""
    iterations: int | None = None
    """Of the result, once it is made."""
    measurement: tuple[int, int, int] | None = None
    """Sets, epochs and networks of each, which measure the result."""
    full_epochs: int | None = None
    """Over all real images; 0 if there is no time for that."""
    finished: bool = False

    def best(self, longer: bool | None = None) -> list[Pilot]:
        """The pilots that succeeded, the best first; candidates with a longer one go before the others."""
        done = [each for each in self.pilots if each.accuracy is not None and longer in (None, each.longer)]
        return sorted(done, key=lambda each: (not each.longer, -(each.accuracy or 0.0), each.candidate))

    def promoted(self, count: int, kinds: Sequence[str]) -> list[Pilot]:
        """The pilots of the first round whose candidates get longer ones.

        The best of each kind come first, in the order of their accuracies: kinds learn at paces of their own, and a
        short pilot is for the fastest, not for the best.

        Args:
            count: of longer pilots.
            kinds: of all candidates, by their numbers.
        """
        done, leading = self.best(longer=False), dict[str, Pilot]()
        for each in done:
            leading.setdefault(kinds[each.candidate], each)
        first = list(leading.values())
        return [*first, *(each for each in done if each not in first)][:count]


@dataclass
class Kept:
    """The state in its file, written by one process."""

    path: Path
    state: State
    is_main: bool

    @classmethod
    def of(cls, question: Question, is_main: bool) -> "Kept":
        """The state in the question's folder; a new one if there is none, or one of a question without any run.

        Raises:
            UserError: if it is damaged, or of another question.
        """
        path = question.folder / STATE
        if not path.exists():
            return cls(path, State(asked=question.asked), is_main)
        state = read_json(path, State, "give another --output")
        if differing := [key for key, value in question.asked.items() if state.asked.get(key) != value]:
            if state.chosen is None and not any(path.is_dir() for path in (question.folder / PILOTS).glob("*")):
                return cls(path, State(asked=question.asked), is_main)  # it failed before its first pilot
            raise UserError(
                f"--output: {question.folder} answers another question ({', '.join(differing)} differ); "
                "give another --output"
            )
        return cls(path, state, is_main)

    def save(self) -> None:
        """Writes the state."""
        if self.is_main:
            write_json(self.path, self.state.model_dump())
