"""Is one set better than another: differences of accuracy, paired by seed, with an interval and a p-value.

Networks of the same seed start from the same weights and see images in the same order, so differences between them vary
less than the accuracies do.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ld3m.evaluation.rows import Row, alike, augmented, own_training, set_of

CONFIDENCE = 0.95
"""Level of the intervals."""
LEAST_PAIRS = 3
"""Pairs that an interval and a p-value need: of two, the interval is 12.7 standard errors wide to each side."""
TOO_FEW_PAIRS = "fewer than three pairs"
"""Why a difference has neither."""
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


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Student's paired t-test of `ours` − `theirs`, which assumes that the differences are normally distributed.

    Args:
        ours: [n] accuracies, one per seed.
        theirs: [n], of the same seeds in the same order.

    Raises:
        ValueError: if their lengths differ, or are 0.
    """
    from scipy.stats import ttest_1samp  # takes a second, and not all that reads evaluation.json needs it

    values = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(values)
    if len(values) < LEAST_PAIRS or statistics.stdev(values) < LEAST_SPREAD:
        return Paired(mean, None, None, None)
    test = ttest_1samp(values, 0)
    interval = test.confidence_interval(CONFIDENCE)
    return Paired(mean, float(interval.low), float(interval.high), float(test.pvalue))


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The distilled images against each baseline that was measured in the same way.

    Args:
        rows: results and cross-architecture means, as in `evaluation.json`.

    Returns:
        A row for each baseline, architecture (or mean of architectures), split and kind of augmentation: `mean`, `low`
        and `high` in points of accuracy, distilled − baseline; `p`; and the `differences`, one per seed. `low`, `high`
        and `p` are None as `Paired` has them.
    """
    return [
        _difference(ours, theirs)
        for theirs in rows
        for ours in rows
        if theirs["trained_on"] != "distilled"
        and set_of(ours) == ("distilled", *set_of(theirs)[1:])
        and _arch(ours) == _arch(theirs)
        and alike(ours, theirs, own_training(theirs["trained_on"]))
    ]


def _difference(ours: Row, theirs: Row) -> dict[str, Any]:
    test = paired(ours["accuracies"], theirs["accuracies"])
    return {
        "trained_on": ours["trained_on"],
        "against": theirs["trained_on"],
        "arch": _arch(ours),
        "split": ours["split"],
        "augment": augmented(ours),
        "mean": round(test.mean, 2),
        "low": None if test.low is None else round(test.low, 2),
        "high": None if test.high is None else round(test.high, 2),
        "p": test.p,
        "differences": [
            round(one - other, 2) for one, other in zip(ours["accuracies"], theirs["accuracies"], strict=True)
        ],
    }


def _arch(row: Row) -> str:
    return str(row["arch"]) if "arch" in row else f"mean without {row['without']}"
