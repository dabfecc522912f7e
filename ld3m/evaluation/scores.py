"""DD-Ranking's scores, which separate what a distilled set adds from what soft labels and augmentation add.

Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation" (arXiv 2505.13300). All labels are hard here,
and `full` is trained as the others are, augmentation included.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ld3m.evaluation.rows import Row, alike, augmented, own_training

WEIGHT = 0.5
"""Weight of the first of a score's two figures, as on the leaderboard."""


def label_robust(hlr: float, ior: float, weight: float = WEIGHT) -> float:
    """The label-robust score LRS, in [0, 1]; 0.269 if distilled, random and all real images are equally good.

    (e^α − e^−1) / (e − e^−1) with α = w·IOR − (1 − w)·HLR. Accuracies are shares, for which α is in [−1, 1]; version
    0.2.0 of the package `ddranking` has the same formula, but applies it to percents.

    Args:
        hlr: hard label recovery, accuracy of all real images − of the synthetic ones, in [−1, 1].
        ior: improvement over random, accuracy of the synthetic images − of as many random real ones, in [−1, 1].
        weight: w, in [0, 1].
    """
    return _normalised(weight * ior - (1 - weight) * hlr)


def augmentation_robust(gain: float, gain_unaugmented: float, weight: float = WEIGHT) -> float:
    """The augmentation-robust score ARS, in [0, 1]; 0.269 for a set as good as random real images.

    Args:
        gain: accuracy of the synthetic images − of as many random real ones, with augmentation, in [−1, 1].
        gain_unaugmented: the same without.
        weight: of the first, in [0, 1].
    """
    return _normalised(weight * gain + (1 - weight) * gain_unaugmented)


def _normalised(value: float) -> float:
    """[−1, 1] to [0, 1], steeper towards the end."""
    return (math.exp(value) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def scores(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The scores that results have all figures for, for each architecture and split.

    Args:
        rows: results, as in `evaluation.json`. LRS takes "distilled", "random" and "full"; ARS takes "distilled" and
            "random", each with and without augmentation.

    Returns:
        A row per score: `mean` and `std` (population) over seeds and the `values`, in [0, 1]; and the means of what
        they come from, in points of accuracy: `hlr` and `ior`, or `gain` and `gain_unaugmented`.
    """
    computed: list[dict[str, Any]] = []
    for arch, split in dict.fromkeys((row["arch"], row["split"]) for row in rows):
        sets = {(r["trained_on"], augmented(r)): r for r in rows if (r["arch"], r["split"]) == (arch, split)}
        for augment in (True, False):
            gains, lacks = _gains(sets, "distilled", "random", augment), _gains(sets, "full", "distilled", augment)
            if gains and lacks:
                values = [label_robust(*pair) for pair in zip(lacks, gains, strict=True)]
                parts = {"augment": augment, "hlr": _points(lacks), "ior": _points(gains)}
                computed.append({"score": "LRS", "arch": arch, "split": split, **_figures(values), **parts})
        gains, plain = (_gains(sets, "distilled", "random", augment) for augment in (True, False))
        if gains and plain and alike(sets["distilled", True], sets["distilled", False], ("augment",)):
            values = [augmentation_robust(*pair) for pair in zip(gains, plain, strict=True)]
            parts = {"gain": _points(gains), "gain_unaugmented": _points(plain)}
            computed.append({"score": "ARS", "arch": arch, "split": split, **_figures(values), **parts})
    return computed


def _gains(sets: dict[tuple[str, bool], Row], better: str, worse: str, augment: bool) -> list[float]:
    """Seed by seed, the accuracy of one set's networks minus that of the other's, as shares.

    Empty if one was not measured, or not in the same way.
    """
    one, other = sets.get((better, augment)), sets.get((worse, augment))
    if not one or not other or not alike(one, other, own_training(better)):
        return []
    return [(a - b) / 100 for a, b in zip(one["accuracies"], other["accuracies"], strict=True)]


def _points(shares: Sequence[float]) -> float:
    return round(100 * statistics.fmean(shares), 2)


def _figures(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.fmean(values), 4),
        "std": round(statistics.pstdev(values), 4),
        "values": [round(value, 4) for value in values],
    }
