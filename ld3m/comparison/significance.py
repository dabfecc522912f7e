"""Which differences hold: every pair of sets, paired by seed, corrected for how many pairs there are.

The correction is Bonferroni's: of m comparisons each has an interval of level 1 − 0.05 / m and a p-value times m, so
that all intervals hold together with 95 % confidence, and a difference holds exactly if its interval leaves out 0.
Holm's has somewhat smaller p-values, but no intervals that go with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from ld3m.evaluation.comparison import CONFIDENCE, paired
from ld3m.evaluation.rows import Row

Measured = tuple[str, Mapping[str, Row]]
"""The name of a set, and its results by their column."""


def interval(accuracies: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of accuracies in percent; None as `comparison.paired` has it."""
    test = paired(accuracies, [0.0] * len(accuracies))
    return None if test.low is None or test.high is None else (max(0.0, test.low), test.high)


def pairwise(tables: Sequence[Sequence[Measured]]) -> list[list[dict[str, Any]]]:
    """The differences of all pairs of sets within each table, corrected for the number of tests in all tables.

    Args:
        tables: sets that were measured in the same way, in the order in which they are to be named.

    Returns:
        For each table a row per column and pair: `set`, `against`, `arch`; `mean`, `low` and `high` in points, set −
        against; `p`, corrected; `holds`; and the `differences`, one per seed that both have. All but the mean are None
        if `comparison.paired` has no interval.
    """
    pairs = [list(_pairs(table)) for table in tables]
    tests = sum(paired(pair.ours, pair.theirs).p is not None for table in pairs for pair in table)
    return [[_difference(pair, max(1, tests)) for pair in table] for table in pairs]


class _Pair(NamedTuple):
    arch: str
    name: str
    against: str
    ours: Sequence[float]
    """Accuracies of the seeds that both have."""
    theirs: Sequence[float]


def _pairs(table: Sequence[Measured]) -> Iterator[_Pair]:
    for arch in dict.fromkeys(arch for _, cells in table for arch in cells):
        here = [(name, cells[arch]["accuracies"]) for name, cells in table if arch in cells]
        for (name, ours), (against, theirs) in combinations(here, 2):
            seeds = min(len(ours), len(theirs))
            yield _Pair(arch, name, against, ours[:seeds], theirs[:seeds])


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
