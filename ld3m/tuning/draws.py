"""What a search tries: the recipe as it is, values drawn of its axes, and once draws repeat, all combinations."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ld3m.errors import UserError
from ld3m.randomness import generator
from ld3m.tuning.axes import Axis, Settings, combinations, draw
from ld3m.tuning.halving import Note

if TYPE_CHECKING:
    from optuna.study import Study

SPREAD = 4
"""Values of a range, and of each entry of a list, that are spread before figures say where to look."""
SPREAD_OF = 16
"""Random values of which one is the farthest from all others."""
ATTEMPTS = 30
"""Draws before all combinations are gone through, if they can be counted: many are known, or not allowed."""


@dataclass(frozen=True)
class Draws:
    """The candidates of a search, which depend on its seed and on what has been measured, not on who draws."""

    axes: Sequence[Axis]
    """As `ordered` gives them."""
    base: Callable[[str], Any]
    """The values of keys of the recipe, for conditions and for the first candidate."""
    identify: Callable[[Settings], str]
    """What is the same for settings that make the same run; raises a UserError for those that make none."""
    seed: int
    say: Callable[[str], None]
    """Prints a line."""
    refused: set[str] = field(default_factory=set)
    """What was said of settings that make no run."""

    def next(self, notes: Sequence[Note], known: Collection[str]) -> dict[str, Any] | None:
        """A new trial's attributes, of a candidate that is unlike all known fingerprints; None if there is none."""
        number = len(notes)
        for settings, parameters in self._candidates(number, notes):
            if (fingerprint := self._fingerprint(settings)) is not None and fingerprint not in known:
                return {"number": number, "settings": settings, "parameters": parameters, "fingerprint": fingerprint}
        return None

    def distributions(self, parameters: Collection[str]) -> dict[str, Any]:
        """Of the axes that a trial has parameters of, by their names."""
        return {axis.name: axis.distribution for axis in self.axes if axis.name in parameters}

    def _candidates(self, number: int, notes: Sequence[Note]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
        """Candidates for a trial, the best guess first: the recipe as it is, draws, then all that there are."""
        if number == 0:
            yield {}, self._parameters_as_it_is()
        known = self._known(notes)
        for attempt in range(ATTEMPTS):
            yield draw(self.axes, self.base, partial(self._draw, known, (number, attempt)))
        yield from combinations(self.axes, self.base)

    def _known(self, notes: Sequence[Note]) -> "Study":
        """What the estimator goes by: each trial once, with what it got in its longest run."""
        import optuna
        from optuna.trial import TrialState, create_trial

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "running": TrialState.RUNNING}
        known = optuna.create_study(direction="maximize")
        for note in notes:
            if note.state in states:
                means = {rung: figure["mean"] for rung, figure in note.figures.items()}
                trial = create_trial(
                    state=states[note.state],
                    params=note.parameters,
                    distributions=self.distributions(note.parameters),
                    intermediate_values=means,
                    value=means[max(means)] if note.state == "complete" else None,
                )
                known.add_trial(trial)
        return known

    def _parameters_as_it_is(self) -> dict[str, Any]:
        """What would have to be drawn for the recipe as it is; what cannot be is left out."""
        axes = [axis for axis in self.axes if axis.applies(self.base)]
        drawn = {axis.name: axis.parameter(self.base(axis.key)) for axis in axes}
        return {name: value for name, value in drawn.items() if value is not None}

    def _draw(self, known: "Study", key: tuple[int, int], axis: Axis) -> Any:
        """A value of an axis, from a stream of its own: the same trials make the same draw.

        The first values are spread over the axis, as far from each other as the best of some random ones are; later
        ones are those of Optuna's estimator.

        Args:
            key: of the draw: the trial and the attempt.
        """
        from optuna.samplers import RandomSampler, TPESampler
        from optuna.trial import create_trial

        seed = int(torch.randint(2**31, (), generator=generator(self.seed, f"tune {axis.name}", *key)))
        tried = [trial.params[axis.name] for trial in known.trials if axis.name in trial.params]
        unborn = create_trial(value=0.0)
        unborn.number = len(known.trials)
        if len(tried) < SPREAD * (len(axis.values) if isinstance(axis.values, tuple) else 1):
            sampler = RandomSampler(seed)
            some = [sampler.sample_independent(known, unborn, axis.name, axis.distribution) for _ in range(SPREAD_OF)]
            return max(some, key=lambda value: axis.apart(value, tried))
        return TPESampler(n_startup_trials=0, seed=seed).sample_independent(known, unborn, axis.name, axis.distribution)

    def _fingerprint(self, settings: Settings) -> str | None:
        """What is the same for settings that make the same run; None for those that make none, which is said once."""
        try:
            return self.identify(settings)
        except UserError as error:
            if (line := error.lines[0]) not in self.refused:
                self.refused.add(line)
                self.say(f"not tried: {line}")
            return None
