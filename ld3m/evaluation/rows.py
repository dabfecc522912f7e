"""The rows of evaluation.json: what their networks were trained on, and which rows may be compared."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m.errors import user_error_if_damaged
from ld3m.runs.folder import document

Row = Mapping[str, Any]


def results(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's evaluation.json, none if there is no such file.

    Raises:
        UserError: if it is damaged.
    """
    evaluation = document(folder, "evaluation.json")
    with user_error_if_damaged(folder / "evaluation.json", "move it away to continue without it"):
        return list(evaluation["results"]) if evaluation else []


def figures(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean and population standard deviation, as the literature's code computes it, with the accuracies in percent."""
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
