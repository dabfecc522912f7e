"""How much a search tries, and how long its runs are: the options of `ld3m tune` and of `ld3m.tune`, defined once."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from ld3m.errors import UserError

TRIALS = 20
"""Trials if neither their number nor minutes are given."""


@dataclass(frozen=True)
class Budget:
    """What each field means is its help on the command line.

    Raises:
        UserError: for a number that is out of range.
    """

    trials: Annotated[
        int | None, Option(metavar="N", min=1, help=f"Candidates; by default {TRIALS}, or as --minutes allows.")
    ] = None
    minutes: Annotated[
        float | None, Option(metavar="M", help="The time of this command; no run begins that would not end in it.")
    ] = None
    rungs: Annotated[int, Option(metavar="N", min=1, max=10, help="Lengths of runs; 1: all are of full length.")] = 3
    eta: Annotated[
        int, Option(metavar="N", min=2, help="One of N trials is promoted to runs that are N times as long.")
    ] = 3
    close: Annotated[
        float,
        Option(
            metavar="POINTS",
            min=0,
            help="How near to the best a candidate gets more distillations; not less than one held-out image weighs.",
        ),
    ] = 1.0
    distillations: Annotated[
        int, Option(metavar="N", min=1, help="Distillation seeds of candidates that are close.")
    ] = 3
    final: Annotated[
        bool,
        Option(
            "--final",
            help="At the end distil the best five times from all training images, and measure it once on test images.",
        ),
    ] = False

    def __post_init__(self) -> None:
        bounds = {"--trials": self.trials, "--rungs": self.rungs, "--distillations": self.distillations}
        wrong = [f"{name}: {n} is too few; give 1 or more" for name, n in bounds.items() if n is not None and n < 1]
        if wrong:
            raise UserError(*wrong)
        if not self.close >= 0:
            raise UserError(f"--close: {self.close:g} is invalid; give 0 or more points")
        if self.eta < 2:
            raise UserError(f"--eta: {self.eta} is invalid; give 2 or more, or --rungs 1 for full runs alone")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise UserError(f"--minutes: {self.minutes:g} is invalid; give more than 0")

    @property
    def wanted(self) -> int | None:
        """Trials to make; None: as many as the minutes are enough for."""
        return TRIALS if self.trials is None and self.minutes is None else self.trials
