"""Tables of what evaluation.json holds: one for each protocol, in which everything may be compared.

`tables` prints them, the report and the card show them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ld3m.evaluation.cross_architecture import column, cross_architecture, headings
from ld3m.evaluation.differences import differences
from ld3m.evaluation.protocols.details import LAST, TESTS_TEXT
from ld3m.evaluation.rows import (
    Row,
    by_protocol,
    has_learnt,
    in_order,
    protocol_key,
    set_order,
    teacher_text,
    without_labels,
)
from ld3m.evaluation.scores import scores

FEW = 100
"""Test images below which a table says how few they are."""


@dataclass(frozen=True)
class Line:
    """One training set of a block."""

    label: str
    """The set's name, with whatever tells it from other sets of that name, and its own epochs."""
    trained_on: str
    images: int
    cells: dict[str, Row]
    """Results and cross-architecture means by their column's heading."""


@dataclass(frozen=True)
class Block:
    """Results that were tested on the same images by one protocol."""

    split: str
    tested_on: int | None
    """Images of the split."""
    protocol: dict[str, Any]
    """How the networks were trained; `lr` is a number, or numbers by heading if they differ. `seed`, the recipe's, is
    in it if other results have another."""
    archs: list[str]
    """Headings of columns: architectures."""
    means: list[str]
    """Headings of columns: cross-architecture means."""
    lines: list[Line]
    crossed: list[dict[str, Any]]
    """The cells of means, one after the other."""
    differences: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    notes: list[str]
    """What readers must know: which networks have not learnt, how few test images there are, that the
    split is not the usual one."""


def blocks(evaluation: Mapping[str, Any]) -> list[Block]:
    """All tables in their order: the test split before others, more epochs before fewer.

    Args:
        evaluation: as `rows.read` gives it, or `evaluate`; {} gives no table.
    """
    results = in_order(evaluation.get("results", ()))
    every_score, matching = scores(results), matching_network(evaluation)
    with_seed = len({row.get("seed") for row in results}) > 1
    look_at = _look_at(evaluation["imported"]) if evaluation.get("imported") else ""
    tables = [_block(group, matching, every_score, with_seed, look_at) for group in by_protocol(results)]
    caveat = [evaluation["caveat"]] if evaluation.get("caveat") else []
    return [replace(table, notes=[*table.notes, *caveat]) for table in tables]


def matching_network(evaluation: Mapping[str, Any]) -> str | None:
    """The architecture that means leave out; older versions noted it with the means alone."""
    crossed = evaluation.get("cross_architecture") or [{}]
    return evaluation.get("matching", crossed[0].get("without"))


def _block(
    rows: Sequence[Row], matching: str | None, every_score: Sequence[Row], with_seed: bool, look_at: str
) -> Block:
    first, rows = rows[0], sorted(rows, key=set_order)
    names = headings(in_order(rows))
    crossed = cross_architecture(rows, matching)
    lines: dict[Any, Line] = {}
    for row in rows:
        line = lines.setdefault(set_order(row), Line(_label(row, rows), row["trained_on"], row.get("images", 0), {}))
        line.cells[names[column(row)]] = row
    for row in crossed:
        lines[set_order(row)].cells[row["column"]] = row
    rates = {name: rate for (_, rate, _), name in names.items()}
    shown_rates = rates if len(set(rates.values())) > 1 else next(iter(rates.values()))
    protocol = {**first["protocol"], **({"lr": shown_rates} if "lr" in first["protocol"] else {})}
    if len({labels for *_, labels in names}) > 1:
        protocol = without_labels(protocol) | {"labels": {name: labels for (*_, labels), name in names.items()}}
    return Block(
        split=first["split"],
        tested_on=first.get("tested_on"),
        protocol=protocol | ({"seed": first.get("seed", 0)} if with_seed else {}),
        archs=list(names.values()),
        means=list(dict.fromkeys(row["column"] for row in crossed)),
        lines=list(lines.values()),
        crossed=crossed,
        differences=differences([*rows, *crossed]),
        scores=[dict(score) for score in every_score if protocol_key(score) == protocol_key(first)],
        notes=[
            *_not_learnt(rows, names, look_at),
            *_permuted(rows, names),
            *few_images(first.get("tested_on")),
            *bests(rows),
            *_teachers(rows),
            *_weights(rows),
        ],
    )


def _label(row: Row, rows: Sequence[Row]) -> str:
    """The name of a set, told apart from other core-sets of that name by their scorer, and its own epochs."""
    name, scorer = str(row["trained_on"]), row.get("scorer") or {}
    if judge := row.get("mosaics", {}).get("judge"):
        name = f"{name} (crops chosen by {judge})"
    scorers = [each.get("scorer") or {} for each in rows if each["trained_on"] == row["trained_on"]]
    if unlike := [key for key, value in scorer.items() if any(each.get(key) != value for each in scorers)]:
        name = f"{name} (scorer {', '.join(f'{key} {scorer[key]}' for key in unlike)})"
    usual = {each["protocol"].get("epochs") for each in rows if each["trained_on"] != "full"}
    own = row["protocol"].get("epochs")
    return f"{name} ({own} epochs)" if usual and own not in usual else name


def _teachers(rows: Sequence[Row]) -> list[str]:
    """A line for each teacher of soft labels."""
    return list(dict.fromkeys(text for row in rows if (text := teacher_text(row["protocol"]))))


def _weights(rows: Sequence[Row]) -> list[str]:
    """A line for each set whose images do not all count the same."""
    return list(
        dict.fromkeys(
            "images of {} count by weights from {:.3g} to {:.3g}, 1 on average".format(
                row["trained_on"], *row["weights"]
            )
            for row in rows
            if row.get("weights")
        )
    )


def _look_at(matched: str) -> str:
    """What may be wrong with a set of somebody else that networks learn nothing from."""
    return (
        f"or the set is not read as it was made: look at {matched.partition('; ')[0]} (--class-order), what its values "
        "mean (--pixels, --whitening), its labels, and its images in the report"
    )


def _permuted(rows: Sequence[Row], names: Mapping[Any, str]) -> list[str]:
    """A line for each result whose networks tell classes apart, but call them by each other's names."""
    return [
        f"{names[column(row)]} on {row['trained_on']} takes classes for each other: renamed one for one, "
        f"{statistics.fmean(row['reassigned']):.1f} % would be right, not {row['mean']:.1f}; the set's classes may be "
        "in another order than assumed (--class-order FILE)"
        for row in rows
        if row.get("reassigned")
    ]


def _not_learnt(rows: Sequence[Row], names: Mapping[Any, str], look_at: str) -> list[str]:
    """A line for each result with networks at chance, with what may be wrong of a set of somebody else."""
    notes = []
    for row in rows:
        count, of = len(row.get("at_chance", ())), len(row["accuracies"])
        if count:
            which = f"{count} of {of} networks are" if of > 1 else "the network is"
            left_out = "" if has_learnt(row) else ", left out of means and scores"
            of_row = f"{names[column(row)]} on {row['trained_on']}"
            if row.get("reassigned"):  # `_permuted` says why
                notes.append(f"{of_row}: {which} at chance{left_out}")
                continue
            notes.append(
                f"{of_row} has not learnt: {which} at chance{left_out}; give more epochs, or a rate of its own: "
                f"evaluate.lr={{{row['arch']}: …}}"
            )
            if look_at and row["trained_on"] == "distilled":
                notes[-1] += f"; {look_at}"
    return notes


def bests(rows: Sequence[Row]) -> list[str]:
    """A line if rows have the best of several tests, which no other figure here is made of."""
    tests = dict.fromkeys(row["best"]["tests"] for row in rows if "best" in row)
    when = [TESTS_TEXT.get(each, each) for each in tests if each != LAST]
    if when:
        return [
            f"best: each network's highest accuracy of those after {' or '.join(when)}, chosen by the test images; "
            "means, differences and scores are of the last epoch"
        ]
    return ["best: this protocol tests after the last epoch alone, whose accuracy this is"] * bool(tests)


def few_images(tested_on: int | None) -> list[str]:
    """A line if so few images were tested on that each weighs much."""
    if not tested_on or tested_on >= FEW:
        return []
    images = "1 image" if tested_on == 1 else f"{tested_on} images"
    return [f"measured on {images}: each is {100 / tested_on:.1f} points of accuracy"]
