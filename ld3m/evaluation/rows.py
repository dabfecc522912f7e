"""The rows of evaluation.json: checked as they are read, added to, and sorted by what may stand in one table.

Importing this module imports no torch.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m.errors import UserError, counted
from ld3m.evaluation.protocols import full_ema
from ld3m.evaluation.protocols.details import LAST
from ld3m.evaluation.protocols.glad import LEARNING_RATES
from ld3m.evaluation.row_schema import Evaluation
from ld3m.reading import read_json, unless_unreadable
from ld3m.recipe.varied import value_text

FILE = "evaluation.json"
Row = Mapping[str, Any]
"""A row of any table of evaluation.json; `row_schema.Result` says what one of `results` has."""
ARCHS = ("convnet", "resnet18", "vgg11", "alexnet", "vit", "convnet6", "resnetap10", "resnet18_idc")
"""The order of columns; other architectures follow by name."""
OF_LABELS = ("labels", "temperature", "temperature_squared", "soft_loss", "teacher")
"""What of a row's protocol says whether its labels were hard or soft, and whose: they stand in one table."""
ROUNDING = 0.02
"""Points by which a mean may differ from that of the rounded accuracies beside it."""


def read(folder: Path) -> dict[str, Any]:
    """A run's evaluation.json, the one way to read it; {} if it is not there.

    What follows from the results (`blocks.blocks`) is not taken from the file: older versions put figures side by side
    that were measured in different ways.

    Raises:
        UserError: if it cannot be read or is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    advice = "move it away to continue without it"
    found: dict[str, Any] = {**read_json(path, Evaluation, advice)}
    for index, row in enumerate(found["results"]):
        if abs(row["mean"] - statistics.fmean(row["accuracies"])) > ROUNDING:
            raise UserError(f"{path} is damaged (results.{index}: mean is not that of its accuracies); {advice}")
    return found | {"results": in_order(found["results"])}


def gathered(folder: Path, elsewhere: Path | None, unread: list[str]) -> dict[str, Any]:
    """A run's evaluation.json with what was measured elsewhere, if anything was; what is unreadable is left out.

    Args:
        elsewhere: a folder with another evaluation.json of the run, whose figures come first.
        unread: is added a line for each that cannot be read.
    """
    own = unless_unreadable(unread, {}, read, folder)
    if elsewhere is None:
        return own
    other = unless_unreadable(unread, {}, read, elsewhere)
    both = merged(own.get("results", []), other.get("results", []))[0]
    return {**own, **other, **({"results": both} if both else {})}


def results(folder: Path) -> list[dict[str, Any]]:
    """The results of a run's evaluation.json in their order, none if there is no such file."""
    return list(read(folder).get("results", []))


def figures(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean and population standard deviation, as the literature's code computes it, with the accuracies in percent.

    One network has no deviation: None.
    """
    rounded = [round(value, 2) for value in accuracies]
    return {
        "mean": round(statistics.fmean(rounded), 2),
        "std": round(statistics.pstdev(rounded), 2) if len(rounded) > 1 else None,
        "accuracies": rounded,
    }


def best_figures(row: Row) -> dict[str, Any] | None:
    """Mean and deviation of the best accuracies that a row has, as `figures` gives them.

    None if it has none, or if its protocol tests after the last epoch alone, whose accuracy stands there already.
    """
    best = row.get("best", {"tests": LAST})
    found = [value for value in best.get("accuracies", ()) if value is not None]
    return figures(found) if found and best["tests"] != LAST else None


# --- what a row is of --------------------------------------------------------------------------------------


def augmented(row: Row) -> bool:
    """Whether the networks of a row, of any table of evaluation.json, saw augmented images."""
    return bool(row.get("protocol", row).get("augment", True))


def set_name(row: Row) -> str:
    """What a row's networks were trained on, and whether without augmentation, as a short label."""
    return row["trained_on"] if augmented(row) else f"{row['trained_on']} unaugmented"


def protocol_text(how: Mapping[str, Any]) -> str:
    """A row's protocol by its name, with what the user changed, as in "minimax, but epochs 300, not 2000"; "" for glad.

    Args:
        how: `protocol` of a row.
    """
    changes = [
        f"{key} {value_text(how[key])}, not {value_text(value)}" for key, value in how.get("changed", {}).items()
    ]
    return f"{how.get('name', '')}, but {'; '.join(changes)}" if changes else how.get("name", "")


def without_labels(how: Mapping[str, Any]) -> dict[str, Any]:
    """A row's protocol without what says whether its labels were hard or soft, and whose."""
    changed = {key: value for key, value in how.get("changed", {}).items() if key not in OF_LABELS}
    rest = {key: value for key, value in how.items() if key not in (*OF_LABELS, "changed")}
    return rest | ({"changed": changed} if changed else {})


def labels_text(how: Mapping[str, Any], short: bool = False) -> str:
    """What a row's labels were: "hard labels", "soft labels of torchvision/resnet18".

    Args:
        how: `protocol` of a row.
        short: whether "soft labels" is enough.
    """
    if how.get("labels", "hard") == "hard":
        return "hard labels"
    whose = how.get("teacher") or {}
    if short or not whose:
        return "soft labels"
    per = f", stored per {whose.get('per')}" if whose.get("stored") else ""
    top = f", top {whose['top']}" if whose.get("top") else ""
    name = f"of {whose['teacher']}" if "accuracy" in whose else whose["teacher"]
    at = "by squared error" if how.get("soft_loss") == "squared" else f"at temperature {how.get('temperature', 1):g}"
    return f"soft labels {name}{per}{top} {at}"


def teacher_text(how: Mapping[str, Any]) -> str | None:
    """Whose soft labels a row has, how good that teacher is, and how many bytes they take; None for hard labels."""
    whose = how.get("teacher")
    if not whose:
        return None
    kept = "made for each batch"
    if whose.get("stored"):
        epochs = whose.get("epochs")
        each = counted(epochs, "epoch") if whose.get("per") == "epoch" else "one for each image"
        top = f", top {whose['top']} classes" if whose.get("top") else ""
        kept = f"stored: {each}{top}, {whose.get('dtype')}, {whose.get('bytes', 0):,} bytes"
    if "accuracy" not in whose:
        return f"soft labels {whose['teacher']}; {kept}"
    return f"soft labels of {whose['teacher']}, {whose['accuracy']:.1f} % of the test images correct; {kept}"


def has_own_rate(row: Row) -> bool:
    """Whether the rate of a result is its architecture's alone, and not that of all architectures."""
    own = LEARNING_RATES.get(row["arch"])
    return row.get("own_rate", False) or (own is not None and row["protocol"].get("lr") == own)


def has_learnt(row: Row) -> bool:
    """Whether most networks of a result are better than guessing."""
    return len(row.get("at_chance", ())) <= len(row["accuracies"]) / 2


def in_order(rows: Iterable[Row]) -> list[Any]:
    """Rows in an order that does not depend on when they were measured: by protocol, set and architecture."""
    return sorted(rows, key=lambda row: (_protocol_order(row), set_order(row), _arch_order(row)))


def set_order(row: Row) -> tuple[Any, ...]:
    """Distilled images first, then as many real ones, all real ones, and other runs."""
    name = row["trained_on"]
    ranks = {"distilled": 0, "random": 1, "full": 3}
    return ranks.get(name, 4 if name.startswith("run ") else 2), name, row.get("images", 0), _text(row.get("scorer"))


def _arch_order(row: Row) -> tuple[Any, ...]:
    known = ARCHS.index(row["arch"]) if row["arch"] in ARCHS else len(ARCHS)
    return known, row["arch"], row["protocol"].get("lr", 0), labels_text(row["protocol"])


def _protocol_order(row: Row) -> tuple[Any, ...]:
    how = row["protocol"]
    images = row["split"] != "test", row["split"], -row.get("tested_on", 0), row.get("seed", 0)
    numbers = -how.get("epochs", 0), how.get("batch", 0), how.get("ema", 0), not how.get("augment", True)
    return *images, how.get("name", ""), *numbers, protocol_key(row)


# --- which rows may be compared ----------------------------------------------------------------------------


def by_protocol(rows: Sequence[Row]) -> list[list[Any]]:
    """Rows that may be compared: tested on the same images, and trained alike but for the learning rate.

    The rate belongs to the architecture, as the protocol itself has it. All real images stand with every row to whose
    protocol `evaluate.full_epochs` relates theirs; all other rows stand in one group. The order is kept.

    Args:
        rows: results, or results and cross-architecture means.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["trained_on"] != "full":
            groups.setdefault(protocol_key(row), []).append(row)
    for row in rows:
        if row["trained_on"] == "full":
            fitting = [group for group in groups.values() if _is_full_of(row, group[0])]
            for group in fitting or [groups.setdefault(protocol_key(row), [])]:
                group.append(row)
    return list(groups.values())


def _is_full_of(full: Row, row: Row) -> bool:
    """Whether a row of all real images was trained as `evaluate.full_epochs` has it for another row's protocol."""
    how, epochs = row["protocol"], full["protocol"].get("epochs", 0)
    if "name" in how:  # it has epochs and a batch for as many images
        return row["trained_on"] != "full" and _without_counts(full) == _without_counts(row)
    ema = full_ema(how.get("ema", 0), how.get("epochs", 0), epochs) if epochs else 0
    as_full = {**row, "protocol": {**how, "epochs": epochs, **({"ema": ema} if "ema" in how else {})}}
    return row["trained_on"] != "full" and protocol_key(full) in (protocol_key(row), protocol_key(as_full))


def _without_counts(row: Row) -> str:
    """`protocol_key` without what a protocol may make depend on the number of images."""
    counted = ("epochs", "batch", "ema", "changed")
    return protocol_key(
        {**row, "protocol": {key: row["protocol"][key] for key in row["protocol"] if key not in counted}}
    )


def protocol_key(row: Row) -> str:
    """What rows of one table share: on what they were tested, and how they were trained but for the rate and labels."""
    how = {key: value for key, value in without_labels(row["protocol"]).items() if key != "lr"}
    return _text([row["split"], row.get("tested_on"), row.get("seed"), how])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# --- adding to what was measured ---------------------------------------------------------------------------


def merged(earlier: Sequence[Row], new: Sequence[Row]) -> tuple[list[dict[str, Any]], list[Row]]:
    """Results with new ones: these replace earlier ones of the same networks, seed by seed, and nothing else.

    Returns:
        All results in their order, and the earlier ones of which an accuracy is lost.
    """
    rows = {_identity(row): dict(row) for row in earlier}
    lost: list[Row] = []
    for row in new:
        there = rows.pop(_identity(row), None)
        if there is None:  # an older version did not note the seed
            there = rows.pop(_identity({**row, "seed": None}), None)
        count = len(row["accuracies"])
        kept = there["accuracies"][count:] if there and there.get("content") == row.get("content") else []
        if there and there["accuracies"] != [*row["accuracies"][: len(there["accuracies"])], *kept]:
            lost.append(there)
        chance = [*row.get("at_chance", ()), *(s for s in (there or {}).get("at_chance", ()) if s >= count and kept)]
        rows[_identity(row)] = (
            dict(row)
            | figures([*row["accuracies"], *kept])
            | ({"at_chance": chance} if chance else {})
            | _best_of_both(row, there, len(kept))
        )
    return in_order(rows.values()), lost


def _best_of_both(row: Row, there: Row | None, kept: int) -> dict[str, Any]:
    """The `best` of a row that replaces another, whose last `kept` accuracies stay; of equal ones it stays too."""
    new, old = row.get("best"), (there or {}).get("best")
    if not old or (new and new["tests"] != old["tests"]) or row.get("content") != (there or {}).get("content"):
        return {"best": {**new, "accuracies": [*new["accuracies"], *[None] * kept]}} if new else {}
    count = len(row["accuracies"])
    mine = new["accuracies"] if new else [None] * count
    same = [a == b for a, b in zip(row["accuracies"], (there or {})["accuracies"], strict=False)]
    filled = [
        best if best is not None or not (seed < len(same) and same[seed]) else old["accuracies"][seed]
        for seed, best in enumerate(mine)
    ]
    every = [*filled, *old["accuracies"][count : count + kept]]
    return {"best": {"tests": old["tests"], "accuracies": every}} if any(each is not None for each in every) else {}


def is_same(row: Row, other: Row) -> bool:
    """Whether two rows are of the same set, architecture and protocol, whatever their accuracies."""
    return _identity(row) == _identity(other)


def _identity(row: Row) -> str:
    keys = ("trained_on", "arch", "split", "images", "tested_on", "protocol", "scorer", "seed")
    return _text([row.get(key) for key in keys])
