"""Cross-architecture means: accuracy over architectures that a set was not matched in, as GLaD and LD3M report it."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from ld3m.evaluation.rows import Row, by_protocol, figures, has_learnt, has_own_rate, labels_text, set_order

Column = tuple[str, float, str]
"""An architecture, the learning rate of its networks, and their labels."""


def column(row: Row) -> Column:
    """The column that a result stands in."""
    return row["arch"], row["protocol"].get("lr", 0.0), labels_text(row["protocol"])


def headings(rows: Sequence[Row]) -> dict[Column, str]:
    """The columns of results of one protocol: architectures, with the rate and the labels if there are several."""
    columns = dict.fromkeys(map(column, rows))
    rates = Counter((arch, labels) for arch, _, labels in columns)
    texts = {labels_text(row["protocol"]): labels_text(row["protocol"], short=True) for row in rows}
    if len(set(texts.values())) < len(texts):  # two teachers
        texts = {labels: labels for labels in texts}
    return {
        (arch, rate, labels): (arch if rates[arch, labels] == 1 else f"{arch} at {rate:g}")
        + (f", {texts[labels]}" if len(texts) > 1 else "")
        for arch, rate, labels in columns
    }


def cross_architecture(rows: Sequence[Row], matching: str | None) -> list[dict[str, Any]]:
    """The mean accuracy over all architectures but the matching network's, for each training set.

    Sets are compared over the same architectures: besides the mean over all that the distilled images were measured
    in, there is one over those that another set was measured in too. Networks that have not learnt are left out, and
    learning rates may differ only if they are an architecture's own.

    Args:
        matching: the architecture of the matching network; there are no means if it is not known.

    Returns:
        A row for each protocol, training set and choice of at least two architectures. Its `accuracies` are, seed by
        seed, the means over these, as far as all of them have that seed; `mean` and `std` are over seeds; its protocol
        is what theirs share; `column` is its heading.
    """
    means = []
    for group in by_protocol(rows) if matching else []:
        names = headings(group)
        sets: dict[Any, dict[Column, Row]] = {}
        for row in sorted(group, key=set_order):
            sets.setdefault(set_order(row), {})[column(row)] = row
        choices = list(_choices(group, list(sets.values()), matching))
        for choice in choices:
            archs = [names[each] for each in choice]
            heading = f"mean without {matching}" if len(choices) == 1 else f"mean of {', '.join(archs)}"
            for measured in sets.values():
                chosen = [measured[each] for each in choice if each in measured and has_learnt(measured[each])]
                if len(chosen) == len(choice):
                    means.append(_mean(chosen) | {"without": matching, "archs": archs, "column": heading})
    return means


def _choices(
    rows: Sequence[Row], sets: Sequence[Mapping[Column, Row]], matching: str | None
) -> Iterator[tuple[Column, ...]]:
    """The architectures to average over: all that one set has at rates that go together, and what others share."""
    others = [row for row in rows if row["arch"] != matching]
    every = {column(row)[2] for row in others}
    kinds = {column(row)[1:] for row in others if not has_own_rate(row)}
    kinds |= {(0.0, labels) for labels in every - {labels for _, labels in kinds}}
    seen = set()
    for rate, labels in sorted(kinds):
        by_arch: dict[str, dict[Column, None]] = {}
        for row in (row for row in others if column(row)[2] == labels):
            if has_own_rate(row) or column(row)[1] == rate:
                by_arch.setdefault(row["arch"], {})[column(row)] = None
        for plan in product(*by_arch.values()):
            learnt = [tuple(c for c in plan if c in measured and has_learnt(measured[c])) for measured in sets]
            first = learnt[0]
            for archs in [first, *(tuple(c for c in each if c in first) for each in learnt[1:])]:
                if len(archs) >= 2 and archs not in seen:
                    seen.add(archs)
                    yield archs


def _mean(rows: Sequence[Row]) -> dict[str, Any]:
    """One set's mean row over results of several architectures, of the seeds that all have."""
    shared = [
        key for key in rows[0]["protocol"] if all(r["protocol"].get(key) == rows[0]["protocol"][key] for r in rows)
    ]
    by_seed = zip(*(row["accuracies"] for row in rows), strict=False)
    same = ("trained_on", "split", "images", "tested_on", "seed", "scorer")
    return {
        **{key: rows[0][key] for key in same if key in rows[0]},
        **figures([statistics.fmean(values) for values in by_seed]),
        "protocol": {key: rows[0]["protocol"][key] for key in shared},
    }
