"""Is one set better than another: differences of accuracy, paired by seed, with an interval and a p-value.

Networks of the same seed start from the same weights and see images in the same order, so differences between them vary
less than the accuracies do.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ld3m.evaluation.cross_architecture import Column, column, headings
from ld3m.evaluation.rows import Row, augmented, by_protocol

CONFIDENCE = 0.95
"""Level of the intervals."""
LEAST_PAIRS = 3
"""Pairs that an interval and a p-value need: of two, the interval is 12.7 standard errors wide to each side."""
TOO_FEW_PAIRS = "fewer than three pairs"
"""Why a difference has neither."""
LARGEST = 100.0
"""Accuracies are from 0 to 100, so that no interval of a difference goes further."""
LEAST_SPREAD = 1e-9
"""Differences that vary by less are the same: what remains is rounding."""


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, its confidence interval, and the p-value that the true mean is 0."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    """Two-sided. None, as the interval is, for fewer than `LEAST_PAIRS` pairs or if all differences are the same."""


def paired(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> Paired:
    """Student's paired t-test of `ours` − `theirs`, which assumes that the differences are normally distributed.

    Args:
        ours: [n] accuracies in percent, one per seed.
        theirs: [n], of the same seeds in the same order.

    Raises:
        ValueError: if their lengths differ, or are 0.
    """
    from scipy.special import stdtr, stdtrit  # not all that reads evaluation.json needs it

    values = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(values)
    if len(values) < LEAST_PAIRS or statistics.stdev(values) < LEAST_SPREAD:
        return Paired(mean, None, None, None)
    error, freedom = statistics.stdev(values) / math.sqrt(len(values)), len(values) - 1
    margin = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(mean) / error))
    return Paired(mean, max(-LARGEST, mean - margin), min(LARGEST, mean + margin), p)


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The distilled images against each other set that was measured in the same way.

    Args:
        rows: results and cross-architecture means, as in `evaluation.json`.

    Returns:
        A row for each protocol, other set and architecture (or mean of architectures): `mean`, `low` and `high` in
        points of accuracy, distilled − other; `p`; and the `differences`, one per seed that both have. `low`, `high`
        and `p` are None as `Paired` has them.
    """
    compared = []
    for group in by_protocol(rows):
        names = headings([row for row in group if "arch" in row])
        ours = {_heading(row, names): row for row in group if row["trained_on"] == "distilled"}
        for row in group:
            heading = _heading(row, names)
            if heading in ours and row["trained_on"] != "distilled":
                compared.append(_difference(ours[heading], row, heading))
    return compared


def _heading(row: Row, names: Mapping[Column, str]) -> str:
    return str(row["column"]) if "column" in row else names[column(row)]


def _difference(ours: Row, theirs: Row, heading: str) -> dict[str, Any]:
    pairs = list(zip(ours["accuracies"], theirs["accuracies"], strict=False))
    test = paired([one for one, _ in pairs], [other for _, other in pairs])
    return {
        "trained_on": ours["trained_on"],
        "against": theirs["trained_on"],
        "arch": heading,
        "split": ours["split"],
        "augment": augmented(ours),
        "protocol": ours["protocol"],
        "mean": round(test.mean, 2),
        "low": None if test.low is None else round(test.low, 2),
        "high": None if test.high is None else round(test.high, 2),
        "p": test.p,
        "differences": [round(one - other, 2) for one, other in pairs],
    }
