"""A comparison as text: the accuracies of all sets, which differences hold, and what readers must know."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ld3m import markdown as md
from ld3m.comparison.published import Figure
from ld3m.errors import span
from ld3m.evaluation.differences import LEAST_PAIRS, TOO_FEW_PAIRS
from ld3m.evaluation.rows import protocol_text
from ld3m.evaluation.tables import accuracy_text, named

Report = Mapping[str, Any]
"""What comparison.json holds."""


@dataclass(frozen=True)
class Table:
    """A table of plain text; the last `figures` columns are numbers."""

    heads: list[str]
    rows: list[list[str]]
    figures: int
    caption: str
    """One sentence or more."""


def columns(report: Report) -> list[str]:
    """The networks, those of published figures alone last."""
    measured = [arch for each in report["sets"] for arch in each["accuracies"]]
    return list(dict.fromkeys([*measured, *(figure["arch"] for figure in report["published"])]))


def published(report: Report) -> dict[str, dict[str, Figure]]:
    """The published figures by name and network."""
    found: dict[str, dict[str, Figure]] = {}
    for entry in report["published"]:
        found.setdefault(entry["name"], {})[entry["arch"]] = Figure.model_validate(entry)
    return found


def figure_text(figure: Figure) -> str:
    """A published figure as the table has it: "45.2 ± 0.3 (3)", as far as it is known."""
    spread = "" if figure.std is None else f" ± {figure.std:.1f}"
    return f"{figure.accuracy:.1f}{spread}" + ("" if figure.networks is None else f" ({figure.networks})")


def accuracies(report: Report) -> Table:
    """A row per set, those that were measured first."""
    archs, rows = columns(report), []
    for each in report["sets"]:
        cells = [accuracy_text(each["accuracies"].get(arch)) for arch in archs]
        rows.append([each["name"], each["kind"], span(each["images_per_class"]), f"{each['bytes']:,}", *cells])
    for name, figures in published(report).items():
        sizes = [figure.images_per_class for figure in figures.values() if figure.images_per_class]
        cells = [figure_text(figures[arch]) if arch in figures else "" for arch in archs]
        rows.append([name, "published", span(sizes) if sizes else "", "", *cells])
    caption = (
        f"Accuracy in % of {report['tested_on']:,} images of the {report['split']} split, mean ± standard deviation "
        "over networks (their number). Bytes are of the pixels, as they are stored."
    )
    if report["published"]:
        caption += " Published figures stand as they were published; they have no networks here, and are not tested."
    return Table(["set", "kind", "images per class", "bytes", *archs], rows, 2 + len(archs), caption)


def differences(report: Report) -> Table | None:
    """A row per pair of measured sets and network; None if there is no pair."""
    rows = [_difference(row) for row in report["differences"]]
    if not rows:
        return None
    tests = sum(row["p"] is not None for row in report["differences"])
    caption = "Difference in points, set − against, paired by seed. "
    if tests:
        corrected = " are of one comparison,"
        if tests > 1:
            corrected = f" are corrected for {tests} comparisons by Bonferroni: all intervals hold together with 95 % "
            corrected += "confidence,"
        caption += (
            f"Intervals (Student's) and p-values (two-sided){corrected} and a difference holds if its interval leaves "
            "out 0. They tell which set is better, not which method: that takes several distillations of each (ld3m "
            "ablate --axis seed=0,1,…)."
        )
    else:
        caption += f"Nothing is tested: {TOO_FEW_PAIRS}; give --seeds {LEAST_PAIRS} or more."
    return Table(["set", "against", "network", "difference", "95 % interval", "p", "holds"], rows, 4, caption)


def _difference(row: Report) -> list[str]:
    names, mean = [row["set"], row["against"], row["arch"]], f"{row['mean']:+.1f}"
    if row["p"] is None:
        pairs = len(row["differences"])
        why = f"the same for all {pairs} seeds" if pairs >= LEAST_PAIRS else TOO_FEW_PAIRS
        return [*names, mean, "", "", f"not tested: {why}"]
    interval = f"[{row['low']:+.1f}, {row['high']:+.1f}]"
    p = f"{row['p']:.2g}" if row["p"] >= 1e-4 else "< 0.0001"
    return [*names, mean, interval, p, "yes" if row["holds"] else "no"]


def remarks(report: Report) -> list[str]:
    """What readers must know: of sets and networks, and where published figures are from."""
    return [
        *report["notes"],
        *(
            f"{name}, {figure.arch}: published in {figure.source}; networks: {figure.protocol}."
            for name, figures in published(report).items()
            for figure in figures.values()
        ),
    ]


def protocol_name(report: Report) -> str:
    """The protocol of all networks, and what the user changed of it, as tables of evaluations say it."""
    return protocol_text(named(report["protocol"]))


def protocol_details(report: Report) -> str:
    """How the networks were trained, as YAML; rows of glad leave out its name."""
    return yaml.safe_dump({"name": "glad"} | report["protocol"], sort_keys=False, allow_unicode=True)


def markdown(report: Report) -> str:
    """All of it as Markdown."""
    parts = [f"# Comparison on {md.text(report['data'])}, {report['classes']:,} classes"]
    for part in filter(None, (accuracies(report), differences(report))):
        names = len(part.heads) - part.figures  # the columns that hold words of others
        cells = [[*map(md.text, row[:names]), *row[names:]] for row in part.rows]
        parts += [md.table([md.text(head) for head in part.heads], cells, part.figures), md.text(part.caption)]
    if notes := remarks(report):
        parts.append("\n".join(f"- {md.text(note)}" for note in notes))
    parts.append(f"Networks: {md.text(protocol_name(report))}\n\n{md.fenced(protocol_details(report), 'yaml')}")
    if report["command"]:
        parts.append(f"Command: {md.code(report['command'])}")
    return "\n\n".join(parts) + "\n"
