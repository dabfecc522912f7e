"""Workers of a search: each takes trials, new ones and those worth a longer run, until the budget is spent."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ld3m.errors import DivergedError, UserError
from ld3m.machine.lock import hold
from ld3m.tuning.halving import Figure, Halving
from ld3m.tuning.trials import NO_LOCKS, Taken, Trials

POLL = 0.2
"""Seconds between looks at what other workers are at."""
MOST_FAILURES = 3
"""Trials in a row of a worker after which it is not the trials' fault."""


class Measure(Protocol):
    """Makes a run and measures it."""

    def __call__(self, number: int, settings: Mapping[str, str], rung: int, seed: int) -> Figure:
        """What a candidate gets.

        Args:
            rung: how long the run is, from 0.
            seed: the distillation seed, counted from the recipe's.

        Raises:
            DivergedError: if its loss is not finite, which is the settings' fault.
            UserError: for all else.
        """
        ...


@dataclass
class Worker:
    """One process of a search."""

    trials: Trials
    measure: Measure
    rungs: int
    eta: int
    say: Callable[[str], None]
    noted: Callable[[], object] = lambda: None
    """Called when the journal has a new figure."""
    until: float = float("inf")
    """The time (`time.monotonic`) after which no run ends, as far as can be foretold."""
    stopped: bool = field(default=False, init=False)
    """Whether the time is spent."""

    def search(self, limit: int | None) -> None:
        """Makes new trials and longer runs of the best, until all are made or the time is spent.

        Args:
            limit: trials in all; None: as many as there is time for.

        Raises:
            UserError: if several trials in a row cannot be measured.
        """
        self._work(limit, 0)

    def end(self) -> None:
        """Makes what longer runs are left to do, so that at least one trial gets to the end."""
        self._work(0, 1)

    def _work(self, limit: int | None, least: int) -> None:
        failures = 0
        while (highest := self._reach()) >= 0:
            with self.trials.take(limit, Halving(self.rungs, self.eta, highest, least)) as taken:
                if taken:
                    try:
                        self._run(taken)
                        failures = 0
                    except UserError as error:
                        failures += 1
                        self.trials.fail(taken, str(error))
                        self.say(f"trial {taken.number}: failed: {error}")
                        if failures == MOST_FAILURES:
                            raise UserError(*(f"trial {taken.number}: {line}" for line in error.lines)) from None
                    continue
            if not self.trials.others_are_at_work():
                return
            time.sleep(POLL)

    def _run(self, taken: Taken) -> None:
        """The next run of a trial, one rung above its last."""
        rung = len(taken.figures)
        if rung < self.rungs:  # else its worker died after its last run
            figure = measured(partial(self.measure, taken.number, taken.settings, rung, 0))
            self.trials.record(taken, rung, figure)
        if rung >= self.rungs - 1:
            self.trials.complete(taken)
        else:
            self.trials.pause(taken)
        self.noted()

    def _reach(self) -> int:
        """The highest rung of which a run would end in time; -1 if there is none, and then the time is spent."""
        left = self.until - time.monotonic()
        reached = max((rung for rung in range(self.rungs) if self.expected(rung) <= left), default=-1)
        self.stopped = reached < 0
        return reached

    def expected(self, rung: int) -> float:
        """Seconds that a run takes, by those that were made; 0 if there is none yet."""
        by_rung: dict[int, list[float]] = {}
        for note in self.trials.notes():
            for at, figure in note.figures.items():
                by_rung.setdefault(at, []).append(figure["seconds"])
        for at in range(rung, -1, -1):
            if at in by_rung:
                return statistics.fmean(by_rung[at]) * self.eta ** (rung - at)
        return 0.0

    def share(self, jobs: Mapping[str, Callable[[], Figure]], rung: int) -> None:
        """Makes other runs together with all workers, until all are made or the time is spent.

        Args:
            jobs: what makes each run, by its name; the same for all workers.
        """
        left = [name for name in jobs if self.trials.figure(name) is None]
        while left and not self.stopped:
            for name in list(left):
                with hold(self.trials.lock(name), wait=False, instead=NO_LOCKS) as ours:
                    if self.trials.figure(name) is None:
                        if not ours:
                            continue
                        if self._reach() < rung:
                            self.stopped = True
                            return
                        self.trials.keep(name, measured(jobs[name]))
                        self.noted()
                left.remove(name)
            if left:
                time.sleep(POLL)


def measured(run: Callable[[], Figure]) -> Figure:
    """What a run gets; nothing, and why, if its loss is not finite."""
    began = time.monotonic()
    try:
        return run()
    except DivergedError as error:
        return {"mean": 0.0, "failed": str(error), "seconds": round(time.monotonic() - began, 2)}
