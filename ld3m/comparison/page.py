"""A comparison as a drawing, a dot per set with the 95 % interval of its mean, and as one web page with it."""

from markupsafe import Markup

from ld3m.comparison.sets import REAL
from ld3m.comparison.table import (
    Report,
    accuracies,
    columns,
    differences,
    figure_text,
    protocol_details,
    protocol_name,
    published,
    remarks,
)
from ld3m.evaluation.tables import accuracy_text
from ld3m.reporting import svg
from ld3m.reporting.dots import Dot, dots
from ld3m.reporting.page import page

TITLE = "Accuracy in %, with the 95 % interval of the mean"


def draw(report: Report, name: str | None = None) -> str:
    """The drawing, an SVG file or a part of a page; pointed at, a mark says its figure.

    What has no interval (fewer than three networks, or a published figure without deviation or number) is a dot alone;
    baselines are lines from top to bottom.

    Args:
        name: the beginning of its ids in a page; None: a file of its own.
    """
    panels = {}
    for arch in columns(report):
        lines = [_dot(each, each["accuracies"][arch]) for each in report["sets"] if arch in each["accuracies"]]
        for set_name, figures in published(report).items():
            if figure := figures.get(arch):
                low, high = figure.interval() or (figure.accuracy, figure.accuracy)
                lines.append(Dot(f"{set_name} (published)", figure.accuracy, low, high, figure_text(figure)))
        panels[f"{arch}, accuracy in %"] = lines
    parts, size = dots(panels)
    words = "; ".join(f"{title}: {dot.name} {dot.figure}" for title, panel in panels.items() for dot in panel)
    return svg.drawing(size, TITLE, f"{words}.", parts, name) + ("\n" if name is None else "")


def _dot(each: Report, cell: Report) -> Dot:
    low, high = cell["interval"] or (cell["mean"], cell["mean"])
    return Dot(each["name"], cell["mean"], low, high, accuracy_text(cell), each["kind"] == REAL)


def html(report: Report) -> str:
    """The page, which loads nothing else."""
    content = {
        "data": report["data"],
        "classes": report["classes"],
        "names": [each["name"] for each in report["sets"]],
        "chart": Markup(draw(report, "chart")),
        "caption": TITLE,
        "tables": [part for part in (accuracies(report), differences(report)) if part],
        "protocol": protocol_name(report),
        "details": protocol_details(report),
        "remarks": remarks(report),
        "command": report["command"],
    }
    return page("comparison.html", content)
