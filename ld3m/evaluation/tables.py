"""What evaluation.json holds, as text for people: one table, and each kind of figure in it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.evaluation.comparison import LEAST_PAIRS, TOO_FEW_PAIRS
from ld3m.evaluation.rows import Row, augmented, set_of


def accuracy_table(report: Mapping[str, Any]) -> str:
    """What was measured: a row per training set, a column per architecture, and how the networks were trained.

    Between them are, if there are any, cross-architecture means, differences from baselines, and DD-Ranking's scores.

    Args:
        report: as `evaluate` returns it and evaluation.json holds it.
    """
    rows = report["results"]
    widths = {row["arch"]: max(16, len(row["arch"]) + 2) for row in rows}
    labels = [*map(_set_label, rows), *map(_difference_label, report["differences"])]
    labels += map(_score_label, report["scores"])
    left = max(40, *(len(label) + 2 for label in labels))
    lines = [f"{'accuracy in %, mean ± std':<{left}}" + "".join(f"{arch:>{width}}" for arch, width in widths.items())]
    for same in dict.fromkeys(map(set_of, rows)):
        by_arch = {row["arch"]: row for row in rows if set_of(row) == same}
        cells = [f"{accuracy_text(by_arch.get(arch)):>{width}}" for arch, width in widths.items()]
        lines.append(f"{_set_label(next(iter(by_arch.values()))):<{left}}" + "".join(cells))
    crossed = report["cross_architecture"]
    lines += [f"cross-architecture mean, without {row['without']}, the matching network" for row in crossed[:1]]
    lines += [f"{_set_label(row):<{left}}{accuracy_text(row):>16}  over {', '.join(row['archs'])}" for row in crossed]
    if report["differences"]:
        lines.append(f"differences in points{difference_caption(report['differences'])}")
    lines += [f"{_difference_label(row):<{left}}{difference_text(row)}" for row in report["differences"]]
    if report["scores"]:
        lines.append("DD-Ranking's scores, mean ± std; from 0 to 1, higher is better")
    lines += [f"{_score_label(row):<{left}}{score_text(row)}" for row in report["scores"]]
    protocols = dict.fromkeys(json.dumps(row["protocol"]) for row in rows)
    return "\n".join([*lines, *(f"networks: {protocol}" for protocol in protocols)])


def accuracy_text(row: Row | None) -> str:
    """Mean ± standard deviation and the number of networks, as in "62.0 ± 1.0 (5)"; nothing for None."""
    return f"{row['mean']:.1f} ± {row['std']:.1f} ({len(row['accuracies'])})" if row else ""


def difference_caption(rows: Sequence[Row]) -> str:
    """What stands beside the means of differences, which all tables of them say in their heading."""
    if all(_lacks_interval(row) for row in rows):
        return ", paired by seed"
    return ", mean, 95 % interval and p-value of a two-sided t-test, paired by seed"


def difference_text(row: Row) -> str:
    """A difference with its interval and p-value, or why it has none."""
    pairs = len(row["differences"])
    if _lacks_interval(row):
        reason = TOO_FEW_PAIRS if pairs < LEAST_PAIRS else f"the same for all {pairs} seeds"
        return f"{row['mean']:+.1f}  no interval: {reason}"
    p = f"p = {row['p']:.2g}" if row["p"] >= 1e-4 else "p < 0.0001"
    return f"{row['mean']:+.1f}  [{row['low']:+.1f}, {row['high']:+.1f}]  {p} ({pairs})"


def _lacks_interval(row: Row) -> bool:
    """Also that of two pairs which an older version computed and stored."""
    return row["p"] is None or len(row["differences"]) < LEAST_PAIRS


def score_text(row: Row) -> str:
    """A score with the figures that it comes from, in points of accuracy."""
    parts = (
        f"HLR {row['hlr']:+.1f}, IOR {row['ior']:+.1f}"
        if row["score"] == "LRS"
        else f"gain over random {row['gain']:+.1f}, unaugmented {row['gain_unaugmented']:+.1f}"
    )
    return f"{row['mean']:.3f} ± {row['std']:.3f} ({len(row['values'])})  {parts}"


def _set_label(row: Row) -> str:
    return f"{row['trained_on']}, {row['images']} images, {_split_label(row)}"


def _difference_label(row: Row) -> str:
    return f"{row['trained_on']} − {row['against']}, {row['arch']}, {_split_label(row)}"


def _score_label(row: Row) -> str:
    return f"{row['score']}, {row['arch']}, {_split_label(row)}"


def _split_label(row: Row) -> str:
    return f"{row['split']} split" + ("" if augmented(row) else ", no augmentation")
