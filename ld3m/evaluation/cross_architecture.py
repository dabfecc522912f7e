"""Cross-architecture means: accuracy over architectures that a set was not matched in, as GLaD and LD3M report it."""

import statistics
from collections.abc import Sequence
from typing import Any

from ld3m.evaluation.protocol import own_rate
from ld3m.evaluation.rows import Row, figures, set_of


def cross_architecture(rows: Sequence[Row], matching: str) -> list[dict[str, Any]]:
    """The mean accuracy over all architectures but the matching network's, for each training set.

    Args:
        rows: results as in `evaluation.json`, the newest last.
        matching: the architecture of the matching network.

    Returns:
        A row for each training set, split and kind of augmentation that has at least two other architectures measured
        like the newest of them: with as many seeds under the same protocol. Its accuracies are, seed by seed, the means
        over these architectures; `mean` and `std` are over seeds; its protocol is what theirs share.
    """
    means = []
    for same in dict.fromkeys(map(set_of, rows)):
        others = [row for row in rows if set_of(row) == same and row["arch"] != matching]
        alike = [row for row in others if _measured_alike(row, others[-1])]
        if len(alike) >= 2:
            by_seed = zip(*(row["accuracies"] for row in alike), strict=True)
            shared = set.intersection(*(set(row["protocol"].items()) for row in alike))
            means.append(
                {
                    "trained_on": same[0],
                    "split": same[1],
                    "without": matching,
                    "archs": [row["arch"] for row in alike],
                    **figures([statistics.fmean(values) for values in by_seed]),
                    "images": alike[-1]["images"],
                    "protocol": {key: value for key, value in alike[-1]["protocol"].items() if (key, value) in shared},
                }
            )
    return means


def _measured_alike(one: Row, other: Row) -> bool:
    """Whether two rows may be averaged: learning rates may differ if each is its architecture's own."""

    def how(row: Row) -> list[Any]:
        protocol = {key: value for key, value in row["protocol"].items() if key != "lr"}
        return [len(row["accuracies"]), row["images"], row["tested_on"], protocol]

    rates = [row["protocol"]["lr"] for row in (one, other)]
    own = [own_rate(row["arch"]) for row in (one, other)]
    return how(one) == how(other) and (rates == own or rates[0] == rates[1])
