"""Which differences hold: pairs of sets, paired by seed, corrected for how many pairs there are.

The correction is Bonferroni's: of m comparisons each has an interval of level 1 − 0.05 / m and a p-value times m, so
that all intervals hold together with 95 % confidence, and a difference holds exactly if its interval leaves out 0.
Holm's has somewhat smaller p-values, but no intervals that go with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from ld3m.comparison.sets import Measured
from ld3m.evaluation.differences import CONFIDENCE, paired
from ld3m.evaluation.rows import Row


def interval(accuracies: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of accuracies in percent; None as `paired` has it."""
    test = paired(accuracies, [0.0] * len(accuracies))
    return None if test.low is None or test.high is None else (max(0.0, test.low), test.high)


def pairwise(sets: Sequence[Measured], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The differences of all pairs of distilled sets, and of each from the baselines that go with it.

    Args:
        sets: in the order in which they are named.
        rows: their results, one for each set and architecture.

    Returns:
        A row per architecture and pair: `set`, `against`, `arch`; `mean`, `low` and `high` in points, set − against;
        `p`, corrected; `holds`; and the `differences`, one per seed that both have. `low`, `high`, `p` and `holds` are
        None if `paired` has no interval.
    """
    pairs = list(_pairs(sets, rows))
    tests = sum(paired(pair.ours, pair.theirs).p is not None for pair in pairs)
    return [_difference(pair, max(1, tests)) for pair in pairs]


class _Pair(NamedTuple):
    arch: str
    name: str
    against: str
    ours: Sequence[float]
    """Accuracies of the seeds that both have."""
    theirs: Sequence[float]


def _pairs(sets: Sequence[Measured], rows: Sequence[Row]) -> Iterator[_Pair]:
    measured: dict[str, Mapping[str, Sequence[float]]] = {}
    for row in rows:
        measured[row["arch"]] = {**measured.get(row["arch"], {}), row["trained_on"]: row["accuracies"]}
    for arch, accuracies in measured.items():
        for one, other in combinations(sets, 2):
            if one.goes_with(other):
                ours, theirs = accuracies[one.trained_on], accuracies[other.trained_on]
                seeds = min(len(ours), len(theirs))
                yield _Pair(arch, one.name, other.name, ours[:seeds], theirs[:seeds])


def _difference(pair: _Pair, tests: int) -> dict[str, Any]:
    test = paired(pair.ours, pair.theirs, 1 - (1 - CONFIDENCE) / tests)
    p = None if test.p is None else min(1.0, test.p * tests)
    return {
        "set": pair.name,
        "against": pair.against,
        "arch": pair.arch,
        "mean": round(test.mean, 2),
        "low": None if test.low is None else round(test.low, 2),
        "high": None if test.high is None else round(test.high, 2),
        "p": p,
        "holds": None if p is None else p < 1 - CONFIDENCE,
        "differences": [round(one - other, 2) for one, other in zip(pair.ours, pair.theirs, strict=True)],
    }
