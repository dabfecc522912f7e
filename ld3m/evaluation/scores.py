"""DD-Ranking's scores, which separate what a distilled set adds from what soft labels and augmentation add.

Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation" (arXiv 2505.13300). All labels are hard here,
and `full` is trained as the others are, augmentation included.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.evaluation.cross_architecture import column, headings
from ld3m.evaluation.rows import Row, augmented, by_protocol, has_learnt, protocol_key

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
        A row per score and protocol: `mean` and `std` (population) over seeds and the `values`, in [0, 1]; and the
        means of what they come from, in points of accuracy: `hlr` and `ior`, or `gain` and `gain_unaugmented`.
    """
    computed: list[dict[str, Any]] = []
    groups = by_protocol(rows)
    for group in groups:
        here = _columns(group)
        plain = _columns(_unaugmented(group[0], groups)) if augmented(group[0]) else {}
        for name, sets in here.items():
            how = {key: group[0][key] for key in ("split", "tested_on", "seed", "protocol") if key in group[0]}
            about = {"arch": name, **how}
            gains, lacks = _gains(sets, "distilled", "random"), _gains(sets, "full", "distilled")
            if gains and lacks:
                values = [label_robust(*pair) for pair in zip(lacks, gains, strict=False)]
                parts = {"augment": augmented(group[0]), "hlr": _points(lacks), "ior": _points(gains)}
                computed.append({"score": "LRS", **about, **_figures(values), **parts})
            without = _gains(plain.get(name, {}), "distilled", "random")
            if gains and without:
                values = [augmentation_robust(*pair) for pair in zip(gains, without, strict=False)]
                parts = {"gain": _points(gains), "gain_unaugmented": _points(without)}
                computed.append({"score": "ARS", **about, **_figures(values), **parts})
    return computed


def _unaugmented(row: Row, groups: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """The group of the same protocol without augmentation; none if it was not measured."""
    wanted = protocol_key({**row, "protocol": {**row["protocol"], "augment": False}})
    return next((group for group in groups if protocol_key(group[0]) == wanted), [])


def _columns(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Results of one protocol by architecture and training set, as far as their networks have learnt."""
    columns: dict[str, dict[str, Row]] = {}
    for row in filter(has_learnt, rows):
        columns.setdefault(headings(rows)[column(row)], {})[row["trained_on"]] = row
    return columns


def _gains(sets: Mapping[str, Row], better: str, worse: str) -> list[float]:
    """Seed by seed, the accuracy of one set's networks minus that of the other's, as shares.

    Empty if one was not measured.
    """
    if better not in sets or worse not in sets:
        return []
    pairs = zip(sets[better]["accuracies"], sets[worse]["accuracies"], strict=False)
    return [(one - other) / 100 for one, other in pairs]


def _points(shares: Sequence[float]) -> float:
    return round(100 * statistics.fmean(shares), 2)


def _figures(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.fmean(values), 4),
        "std": round(statistics.pstdev(values), 4) if len(values) > 1 else None,
        "values": [round(value, 4) for value in values],
    }
