"""What came of a search: candidates from best to worst, how the best was told from the next, and by what."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ld3m.errors import UserError
from ld3m.evaluation.differences import paired
from ld3m.tuning.axes import Axis
from ld3m.tuning.halving import Figure, Note
from ld3m.tuning.trials import Trials

FINAL = 5
"""Distillations of the best that are measured on test images."""
MOST_CLOSE = 4
"""Candidates that get more distillations at a time."""
FEWEST = 10
"""Trials with a value of an axis, below which nothing is said of it."""
ROUNDING = 1e-3
"""Points by which means differ that are the same but for rounding."""


@dataclass(frozen=True)
class Candidate:
    """Settings that were measured."""

    number: int
    """Of its trial; 0 is the recipe as it is."""
    settings: dict[str, str]
    """Values of keys, as a command line has them."""
    rung: int
    """The longest run that it had, from 0."""
    figures: Sequence[Figure]
    """Of runs of that length, one per distillation seed."""
    seconds: float
    """Of all its runs."""

    @property
    def diverged(self) -> bool:
        """Whether the loss of one of these runs was not finite."""
        return any("failed" in figure for figure in self.figures)

    @property
    def by_seed(self) -> list[float]:
        """Accuracy in % on held-out images of each distillation, the mean over its networks."""
        return [float(figure["mean"]) for figure in self.figures]

    @property
    def mean(self) -> float:
        """Accuracy in % on held-out images, over distillations."""
        return statistics.fmean(self.by_seed)

    @property
    def overrides(self) -> list[str]:
        """The settings, as a command line takes them."""
        return [f"{key}={value}" for key, value in self.settings.items()]

    @property
    def name(self) -> str:
        """For people."""
        return f"trial {self.number} ({' '.join(self.overrides) or 'the recipe as it is'})"


@dataclass(frozen=True)
class Outcome:
    """What `tune` returns."""

    ranked: list[Candidate]
    """The best first."""
    decision: str
    """How the best was told from the next."""
    report: Mapping[str, Any]
    """What tune.json holds."""
    is_main: bool
    """Whether this process is the one to print."""

    @property
    def best(self) -> Candidate:
        """The best.

        Raises:
            UserError: if nothing was measured.
        """
        if sound(self.ranked):
            return self.ranked[0]
        why = [f"trial {trial['trial']}: {trial['why']}" for trial in self.report["trials"] if "why" in trial]
        why += [f"{each.name} diverged: {_reason(each)}" for each in self.ranked]
        if why:
            raise UserError(f"no trial could be measured: {why[0]}")
        raise UserError("--minutes: no run ended in time; give more, or fewer iterations and epochs")


def ranked(trials: Trials) -> list[Candidate]:
    """All that was measured, the best first: by the length of the run, then by accuracy; what diverged is last."""
    candidates = []
    for note in trials.notes():
        if note.state == "failed" or not note.figures:
            continue
        rung = max(note.figures)
        more, seed = list[Figure](), 1
        while figure := trials.figure(job(note.number, rung, seed)):
            more, seed = [*more, figure], seed + 1
        seconds = sum(figure["seconds"] for figure in (*note.figures.values(), *more))
        candidates.append(Candidate(note.number, note.settings, rung, [note.figures[rung], *more], seconds))
    return sorted(candidates, key=lambda each: (each.diverged, -each.rung, -each.mean, each.number))


def sound(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that did not diverge."""
    return [each for each in candidates if not each.diverged]


def _reason(candidate: Candidate) -> str:
    """Why a candidate diverged."""
    return next(str(figure["failed"]) for figure in candidate.figures if "failed" in figure)


def job(number: int, rung: int, seed: int) -> str:
    """The name of a candidate's run with another seed."""
    return f"{number}-rung{rung}-seed{seed}"


def final_job(number: int, seed: int) -> str:
    """The name of a run of the best that is measured on test images."""
    return f"final-{number}-seed{seed}"


def nearness(best: Candidate, points: float) -> float:
    """How near to the best a candidate is close to it: so many points, or what one held-out image weighs if more."""
    tested_on = min((figure["tested_on"] for figure in best.figures if "tested_on" in figure), default=None)
    return max(points, 100 / tested_on if tested_on else 0.0)


def close(candidates: Sequence[Candidate], points: float) -> list[Candidate]:
    """The best and those that are close to it (`nearness`), after runs of the same length; none if it is alone."""
    if not (candidates := sound(candidates)):
        return []
    best = candidates[0]
    limit = nearness(best, points) + ROUNDING
    near = [each for each in candidates if each.rung == best.rung and best.mean - each.mean <= limit]
    return near[:MOST_CLOSE] if len(near) > 1 else []


def decision(candidates: Sequence[Candidate], points: float) -> str:
    """How the best was told from the next, in a sentence."""
    if not (candidates := sound(candidates)):
        return "nothing was measured"
    best, *others = candidates
    if not others or others[0].rung < best.rung:
        return f"{best.name} is the only one that had so long a run"
    second = others[0]
    seeds = min(len(best.figures), len(second.figures))
    test = paired(best.by_seed[:seeds], second.by_seed[:seeds])
    lead = f"{best.name} is {best.mean - second.mean:.2f} points ahead of {second.name}"
    if seeds == 1:
        if best.mean - second.mean > (limit := nearness(best, points)) + ROUNDING:
            return f"{lead}, more than the {limit:.3g} within which candidates get more distillations"
        return f"{lead}, by one distillation; they are not told apart"
    if test.low is None or test.high is None:
        return f"{lead}, over {seeds} distillations, too few for an interval; they are not told apart"
    verdict = "they are told apart" if test.low > 0 else "they are not told apart, and the higher mean is taken"
    return f"{lead}, 95 % interval [{test.low:+.2f}, {test.high:+.2f}] over {seeds} distillations: {verdict}"


def importances(axes: Sequence[Axis], notes: Sequence[Note]) -> dict[str, float]:
    """The share of each axis, by its name, from the accuracies of the first rung, which all trials have.

    Optuna's PED-ANOVA (Watanabe et al., IJCAI 2023) compares the values of the best tenth of the trials with those of
    all. An axis with conditions is judged by the trials that have it. Left out are axes of fewer than `FEWEST` trials,
    and those of which so many trials tie for the best that the two are the same.
    """
    found = {}
    for axis in axes:
        having = [note for note in notes if axis.name in note.parameters and 0 in note.figures]
        if len(having) < FEWEST or len({note.parameters[axis.name] for note in having}) < 2:
            continue
        import optuna  # here, as it takes a second
        from optuna.importance import PedAnovaImportanceEvaluator
        from optuna.trial import create_trial

        study = optuna.create_study(direction="maximize")
        for note in having:
            drawn, distribution = {axis.name: note.parameters[axis.name]}, {axis.name: axis.distribution}
            study.add_trial(create_trial(params=drawn, distributions=distribution, value=note.figures[0]["mean"]))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # which it gives if the best are all
            try:
                found[axis.name] = PedAnovaImportanceEvaluator().evaluate(study, params=[axis.name])[axis.name]
            except UserWarning:
                continue
    total = sum(found.values())
    if not total or not math.isfinite(total):
        return {}
    return {name: round(value / total, 4) for name, value in sorted(found.items(), key=lambda each: -each[1])}
