"""The rows of evaluation.json: which are of the same thing, which may be compared, and all of them as text."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m.errors import user_error_if_damaged

Row = Mapping[str, Any]


def results(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's evaluation.json, none where there is no such file.

    Raises:
        UserError: where it is damaged.
    """
    path = folder / "evaluation.json"
    if not path.is_file():
        return []
    with user_error_if_damaged(path, "move it away to do without"):
        return list(json.loads(path.read_text(encoding="utf-8"))["results"])


def figures(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean and population standard deviation, as the literature's code computes it, and what they are of."""
    return {
        "mean": round(statistics.fmean(accuracies), 2),
        "std": round(statistics.pstdev(accuracies), 2),
        "accuracies": [round(value, 2) for value in accuracies],
    }


def augmented(row: Row) -> bool:
    """Whether the networks of a row, of any table of evaluation.json, saw augmented images."""
    return bool(row.get("protocol", row).get("augment", True))


def set_name(row: Row) -> str:
    """What a row's networks were trained on, and whether without augmentation, as a short label."""
    return row["trained_on"] if augmented(row) else f"{row['trained_on']} unaugmented"


def set_of(row: Row) -> tuple[str, str, bool]:
    """What rows of several architectures share that stand in one line: the set, the split, and augmentation."""
    return row["trained_on"], row["split"], augmented(row)


def alike(one: Row, other: Row, but_for: Sequence[str] = ()) -> bool:
    """Whether two rows of one architecture can be compared seed by seed: as many networks, trained and tested alike.

    Args:
        one: a row of results, or of cross-architecture means.
        other: another of the same kind.
        but_for: keys of the protocol that may differ.
    """

    def how(row: Row) -> list[Any]:
        protocol = {key: value for key, value in row.get("protocol", {}).items() if key not in but_for}
        return [len(row["accuracies"]), row.get("archs"), row.get("tested_on"), protocol]

    return how(one) == how(other)


def own_training(name: str) -> tuple[str, ...]:
    """Keys of the protocol in which a baseline of this name may differ from the distilled images."""
    return ("epochs", "ema") if name == "full" else ()


# --- as text -----------------------------------------------------------------------------------------------


def table(report: Mapping[str, Any]) -> str:
    """What was measured: a row a training set, a column an architecture, and how the networks were trained.

    Between them are, where there are any, cross-architecture means, differences from baselines, and DD-Ranking's
    scores.
    """
    rows = report["results"]
    widths = {row["arch"]: max(16, len(row["arch"]) + 2) for row in rows}
    labels = [*map(_label, rows), *map(_versus, report["differences"]), *map(_scored, report["scores"])]
    left = max(40, *(len(label) + 2 for label in labels))
    lines = [f"{'accuracy in %, mean ± std':<{left}}" + "".join(f"{arch:>{width}}" for arch, width in widths.items())]
    for same in dict.fromkeys(map(set_of, rows)):
        found = {row["arch"]: row for row in rows if set_of(row) == same}
        cells = [f"{_cell(found.get(arch)):>{width}}" for arch, width in widths.items()]
        lines.append(f"{_label(next(iter(found.values()))):<{left}}" + "".join(cells))
    for number, row in enumerate(report["cross_architecture"]):
        if number == 0:
            lines.append(f"cross-architecture mean, without {row['without']}, the matching network")
        lines.append(f"{_label(row):<{left}}{_cell(row):>16}  over {', '.join(row['archs'])}")
    if report["differences"]:
        lines.append("differences in points, mean and 95 % interval, paired by seed (two-sided t-test)")
    lines += [f"{_versus(row):<{left}}{difference(row)}" for row in report["differences"]]
    if report["scores"]:
        lines.append("DD-Ranking's scores, mean ± std; from 0 to 1, higher is better")
    lines += [f"{_scored(row):<{left}}{score(row)}" for row in report["scores"]]
    protocols = dict.fromkeys(json.dumps(row["protocol"]) for row in rows)
    return "\n".join([*lines, *(f"networks: {protocol}" for protocol in protocols)])


def difference(row: Row) -> str:
    """A difference with its interval and p-value, or why it has none."""
    seeds = len(row["differences"])
    if row["p"] is None:
        return f"{row['mean']:+.1f}  no interval: {'one seed' if seeds == 1 else f'the same for all {seeds} seeds'}"
    p = f"p = {row['p']:.2g}" if row["p"] >= 1e-4 else "p < 0.0001"
    return f"{row['mean']:+.1f}  [{row['low']:+.1f}, {row['high']:+.1f}]  {p} ({seeds})"


def score(row: Row) -> str:
    """A score with the figures that it comes from, in points of accuracy."""
    parts = (
        f"HLR {row['hlr']:+.1f}, IOR {row['ior']:+.1f}"
        if row["score"] == "LRS"
        else f"gain over random {row['gain']:+.1f}, unaugmented {row['gain_unaugmented']:+.1f}"
    )
    return f"{row['mean']:.3f} ± {row['std']:.3f} ({len(row['values'])})  {parts}"


def _label(row: Row) -> str:
    end = "" if augmented(row) else ", no augmentation"
    return f"{row['trained_on']}, {row['images']} images, {row['split']} split{end}"


def _cell(row: Row | None) -> str:
    return f"{row['mean']:.1f} ± {row['std']:.1f} ({len(row['accuracies'])})" if row else ""


def _versus(row: Row) -> str:
    end = "" if augmented(row) else ", no augmentation"
    return f"{row['trained_on']} − {row['against']}, {row['arch']}, {row['split']} split{end}"


def _scored(row: Row) -> str:
    end = "" if augmented(row) else ", no augmentation"
    return f"{row['score']}, {row['arch']}, {row['split']} split{end}"
