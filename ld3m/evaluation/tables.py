"""What evaluation.json holds, as text for people: its tables, and each kind of figure in them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ld3m.errors import counted
from ld3m.evaluation.blocks import Block, blocks
from ld3m.evaluation.differences import LEAST_PAIRS, TOO_FEW_PAIRS
from ld3m.evaluation.protocols.details import Task
from ld3m.evaluation.protocols.glad import LEARNING_RATES, glad
from ld3m.evaluation.rows import Row, best_figures, protocol_text


def accuracy_table(report: Mapping[str, Any]) -> str:
    """What was measured, a table for each protocol: a row per training set, a column per architecture.

    Below each are, if there are any, cross-architecture means, differences from other sets, DD-Ranking's scores, what
    readers must know, and how the networks were trained.

    Args:
        report: as `evaluate` returns it and evaluation.json holds it. `asked`, if it is there, are the places in
            `results` of what was asked for: tables without any of it are counted only.
    """
    tables = blocks(report)
    asked = [report["results"][number] for number in report.get("asked", range(len(report["results"])))]
    shown = [block for block in tables if any(row in asked for line in block.lines for row in line.cells.values())]
    texts = [_table(block) for block in shown]
    if left := len(tables) - len(shown):
        others = f"{counted(left, 'more table')} of networks trained or tested otherwise"
        texts.append(f"{others}: ld3m report {report['run']} shows all")
    return "\n\n".join(texts)


def _table(block: Block) -> str:
    split = f"{block.split} split" + ("" if block.protocol.get("augment", True) else ", no augmentation")
    labels = {line.label: f"{line.label}, {line.images} images, {split}" for line in block.lines}
    compared = [f"{row['trained_on']} − {row['against']}, {row['arch']}, {split}" for row in block.differences]
    scored = [f"{row['score']}, {row['arch']}, {split}" for row in block.scores]
    of = f" of {block.tested_on:,} images" if block.tested_on else ""
    head = f"accuracy in %{of}, mean ± std"
    left = 2 + max(38, *map(len, [head, *labels.values(), *compared, *scored]))
    cells = {name: [accuracy_text(line.cells.get(name)) for line in block.lines] for name in block.archs}
    widths = {name: max(16, len(name) + 2, *(2 + len(cell) for cell in cells[name])) for name in block.archs}
    lines = [f"{head:<{left}}" + "".join(f"{name:>{width}}" for name, width in widths.items())]
    for line in block.lines:
        row = [f"{accuracy_text(line.cells.get(name)):>{width}}" for name, width in widths.items()]
        lines.append(f"{labels[line.label]:<{left}}" + "".join(row))
    if block.means:
        lines.append(f"cross-architecture mean, without {block.crossed[0]['without']}, the matching network")
    for mean in block.means:
        for line in (line for line in block.lines if mean in line.cells):
            crossed = line.cells[mean]
            lines.append(
                f"{labels[line.label]:<{left}}{accuracy_text(crossed):>16}  over {', '.join(crossed['archs'])}"
            )
    if block.differences:
        lines.append(f"differences in points{difference_caption(block.differences)}")
    lines += [f"{label:<{left}}{difference_text(row)}" for label, row in zip(compared, block.differences, strict=True)]
    if block.scores:
        lines.append("DD-Ranking's scores, mean ± std; from 0 to 1, higher is better")
    lines += [f"{label:<{left}}{score_text(row)}" for label, row in zip(scored, block.scores, strict=True)]
    rest = "; all details are in evaluation.json" if "name" in block.protocol else ""
    return "\n".join([*lines, *block.notes, f"networks: {training_text(block.protocol)}{rest}"])


MAIN = {
    "epochs": "{} epochs",
    "batch": "batch {}",
    "optimiser": "{}",
    "lr": "rate {}",
    "schedule": "{}",
    "seed": "seed {}",
}
"""What most readers need of how networks were trained, and how it is said."""


def training_text(how: Mapping[str, Any]) -> str:
    """How networks were trained, in a line: the protocol's name, what the user changed, and other main details.

    Args:
        how: `protocol` of a block or a row; rows of glad leave out its name and what is the same in all of them.
    """
    how = named(how)
    changed = {key for key in how.get("changed", ()) if not isinstance(how[key], dict)}
    main = [
        text.format(json.dumps(how[key]).strip('"')) for key, text in MAIN.items() if key in how and key not in changed
    ]
    return f"{protocol_text(how)}; {', '.join(main)}"


def named(how: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of glad as those of other protocols are: with its name, all details, and what the user changed."""
    if "name" in how:
        return how
    protocol = glad(Task("", 2, 2, 32))
    own = asdict(protocol) | protocol.row()
    of_columns = {key for key, value in how.items() if isinstance(value, dict) and key != "augment"}
    changed = {key: own[key] for key, value in how.items() if value != own.get(key, value) and key not in of_columns}
    if changed.get("lr") and how["lr"] in LEARNING_RATES.values():  # an architecture's own
        del changed["lr"]
    return {**own, **how, "changed": changed}


def accuracy_text(row: Row | None) -> str:
    """Mean ± standard deviation and the number of networks, as in "62.0 ± 1.0 (5)"; nothing for None.

    One network has no deviation: "62.0 (1)". The best of several tests follows, if it is known: "62.0 ± 1.0 (5), best
    63.0 ± 0.8".
    """
    if not row:
        return ""
    return figures_text(row, len(row["accuracies"]), best_figures(row))


def figures_text(figures: Row, networks: int, best: Row | None) -> str:
    """`accuracy_text` of `mean` and `std` over so many networks, and those of the best of several tests, if known."""

    def spread(each: Row) -> str:
        alone = networks == 1 or each["std"] is None
        return f"{each['mean']:.1f}" + ("" if alone else f" ± {each['std']:.1f}")

    return f"{spread(figures)} ({networks})" + (f", best {spread(best)}" if best else "")


def difference_caption(rows: Sequence[Row]) -> str:
    """What stands beside the means of differences, which all tables of them say in their heading."""
    if all(row["p"] is None for row in rows):
        return ", paired by seed"
    return ", mean, 95 % interval and p-value of a two-sided t-test, paired by seed"


def difference_text(row: Row) -> str:
    """A difference with its interval and p-value, or why it has none."""
    pairs = len(row["differences"])
    if row["p"] is None:
        reason = TOO_FEW_PAIRS if pairs < LEAST_PAIRS else f"the same for all {pairs} seeds"
        return f"{row['mean']:+.1f}  no interval: {reason}"
    p = f"p = {row['p']:.2g}" if row["p"] >= 1e-4 else "p < 0.0001"
    return f"{row['mean']:+.1f}  [{row['low']:+.1f}, {row['high']:+.1f}]  {p} ({pairs})"


def score_text(row: Row) -> str:
    """A score with the figures that it comes from, in points of accuracy."""
    parts = (
        f"HLR {row['hlr']:+.1f}, IOR {row['ior']:+.1f}"
        if row["score"] == "LRS"
        else f"gain over random {row['gain']:+.1f}, unaugmented {row['gain_unaugmented']:+.1f}"
    )
    count = len(row["values"])
    spread = f" ± {row['std']:.3f}" if count > 1 else ""
    return f"{row['mean']:.3f}{spread} ({count})  {parts}"
