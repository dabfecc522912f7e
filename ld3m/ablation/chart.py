"""An ablation as an SVG drawing: accuracies with error bars, over a numeric axis or one row below the other."""

from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.ablation import pareto
from ld3m.ablation.table import Rows, accuracy_cell, columns, costs_differ_in_kind, row_label
from ld3m.recipe.varied import value_text
from ld3m.reporting import dots, svg
from ld3m.reporting.dots import Dot
from ld3m.reporting.panels import BOTTOM, LEFT, LINE, PANEL, RIGHT, TOP, framed, side_by_side
from ld3m.reporting.svg import Axis, number

Row = Mapping[str, Any]


def draw(report: Row) -> str:
    """Accuracies, one panel per column of the table; over a numeric axis also the seconds per iteration.

    If an axis is numeric, its rows are points of lines, one line for each combination of the other settings, and
    baselines that do not depend on the axis are lines across. If none is, each row is a dot; if some sets were made
    without iterations, a panel below has accuracies over the time that sets took. Error bars and bands are
    ± one standard deviation over all networks. Pointed at, a mark says its figure.

    Args:
        report: as `ablate` writes it to ablation.json.

    Returns:
        The content of an SVG file.
    """
    rows: Rows = report["rows"]
    key = _numeric_axis(rows, report["axes"])
    parts, size = _lines(rows, key) if key else _dots(rows)
    figures = [
        f"{_name(row, rows)}: {arch} {accuracy_cell(accuracies)}"
        for row in rows
        for arch, accuracies in row["accuracies"].items()
    ]
    return svg.drawing(size, f"Accuracy in %, {report['split']} split", "; ".join(figures), parts) + "\n"


def _name(row: Row, rows: Rows, without: str | None = None) -> str:
    """A row in a few words: its recipe or baseline, and its settings but the one that the axis shows."""
    settings = [f"{key} {value_text(value)}" for key, value in row["settings"].items() if key != without]
    return ", ".join([row_label(row, rows), *settings])


def _numeric_axis(rows: Rows, axes: Sequence[str]) -> str | None:
    """The key to draw over: the one with most values in a panel, two or more, all of them numbers."""
    counts: dict[str, int] = {}
    distilled = [row for row in rows if row["trained_on"] == "distilled"]
    for key in axes:
        values = [row["settings"][key] for row in distilled]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            panels = [[row for row in distilled if name in row["accuracies"]] for name in columns(rows)]
            counts[key] = max((len({row["settings"][key] for row in panel}) for panel in panels), default=0)
    most = max(counts, key=lambda key: counts[key], default=None)
    return most if most and counts[most] > 1 else None


def _interval(accuracies: Row) -> tuple[float, float]:
    """One standard deviation below and above the mean."""
    return accuracies["mean"] - accuracies["std"], accuracies["mean"] + accuracies["std"]


# --- lines over a numeric axis -----------------------------------------------------------------------------


def _lines(rows: Rows, key: str) -> tuple[list[str], tuple[int, int]]:
    """Panels of lines, two side by side, and below them the legend; with the drawing's size."""
    distilled = [row for row in rows if row["trained_on"] == "distilled"]
    values = sorted({row["settings"][key] for row in distilled})
    across = Axis(values[0], values[-1], LEFT + 14, RIGHT - 14, log=values[0] > 0 and values[-1] > 20 * values[0])
    names = dict.fromkeys(_name(row, rows, key) for row in distilled)  # in the order of the table
    series: dict[str, list[Row]] = {name: [] for name in names}
    for row in sorted(distilled, key=lambda row: row["settings"][key]):
        series[_name(row, rows, key)].append(row)
    baselines: dict[str, list[Row]] = {}
    for row in rows:
        if row["trained_on"] != "distilled":
            baselines.setdefault(_name(row, rows, key), []).append(row)
    panels = [_accuracy_panel(arch, series, baselines, key, across) for arch in columns(rows)]
    panels.append(_seconds_panel(series, key, across))
    below = svg.horizontal_axis(across, BOTTOM, values if len(values) <= 8 else None)
    below += svg.base_line(LEFT, RIGHT, BOTTOM, key)
    parts, top = side_by_side([[*panel, *below] for panel in panels])
    legend = [(svg.line_class(index), name) for index, name in enumerate(series)]
    legend += [(svg.baseline_class(index), name) for index, name in enumerate(baselines)]
    for line, (kind, name) in enumerate(legend):
        parts += svg.legend_entry(kind, LEFT, top + line * LINE, name)
    return parts, (2 * PANEL, top + len(legend) * LINE)


def _accuracy_panel(
    arch: str, series: Mapping[str, list[Row]], baselines: Mapping[str, list[Row]], key: str, across: Axis
) -> list[str]:
    """One column of the table: lines with error bars, moved apart a little, and baselines with bands."""
    everything = [row for lines in (series, baselines) for rows in lines.values() for row in rows]
    intervals = [_interval(row["accuracies"][arch]) for row in everything if arch in row["accuracies"]]
    up = Axis(*dots.accuracy_range(intervals), BOTTOM, TOP)
    parts = framed(f"{arch}, accuracy in %", up)
    for index, (name, rows) in enumerate(baselines.items()):
        for row in rows:
            if arch not in row["accuracies"]:
                continue
            accuracies, value = row["accuracies"][arch], row["settings"].get(key)
            start, end = (LEFT, RIGHT) if value is None else (across(value) - 9, across(value) + 9)
            low, high = map(up, _interval(accuracies))
            mean, kind = up(accuracies["mean"]), f"{svg.baseline_class(index)} mark"
            parts.append(svg.box("band", (start, low), (end, high)))
            parts.append(svg.rule(kind, (start, mean), (end, mean), f"{name}: {accuracy_cell(accuracies)}"))
    for index, (name, rows) in enumerate(series.items()):
        aside = 4 * (index - (len(series) - 1) / 2)
        measured = [(row["settings"][key], row["accuracies"][arch]) for row in rows if arch in row["accuracies"]]
        points = [(across(value) + aside, up(accuracies["mean"])) for value, accuracies in measured]
        parts.append(svg.line(index, points))
        for (x, y), (value, accuracies) in zip(points, measured, strict=True):
            low, high = map(up, _interval(accuracies))
            parts.append(svg.error_bar(x, low, high, index, upright=True))
            parts.append(svg.dot(index, x, y, f"{name}, {key} {value:g}: {accuracy_cell(accuracies)}", "mark"))
    return parts


def _seconds_panel(series: Mapping[str, list[Row]], key: str, across: Axis) -> list[str]:
    """Seconds per iteration."""
    seconds = {
        name: [(row["settings"][key], row["seconds_per_iteration"]) for row in rows if row["seconds_per_iteration"]]
        for name, rows in series.items()
    }
    up = Axis(0, 1.08 * max((y for points in seconds.values() for _, y in points), default=1.0), BOTTOM, TOP)
    parts = framed("Seconds per iteration", up)
    for index, (name, points) in enumerate(seconds.items()):
        parts.append(svg.line(index, [(across(x), up(y)) for x, y in points]))
        parts += [svg.dot(index, across(x), up(y), f"{name}, {key} {x:g}: {number(y)} s") for x, y in points]
    return parts


# --- a dot per row -----------------------------------------------------------------------------------------


def _dots(rows: Rows) -> tuple[list[str], tuple[int, int]]:
    """A panel per column of the table, one below the other: a dot per row, baselines as lines from top to bottom."""
    parts, (width, height) = dots.dots(
        {
            f"{arch}, accuracy in %": [
                Dot(
                    _name(row, rows),
                    accuracies["mean"],
                    *_interval(accuracies),
                    accuracy_cell(accuracies),
                    row["trained_on"] != "distilled",
                )
                for row in rows
                if (accuracies := row["accuracies"].get(arch))
            ]
            for arch in columns(rows)
        }
    )
    if costs_differ_in_kind(rows):
        for arch in columns(rows):
            parts.append(f'<g transform="translate(0 {height})">{"".join(_cost_panel(rows, arch))}</g>')
            height += pareto.HEIGHT
    return parts, (width, height)


def _cost_panel(rows: Rows, arch: str) -> list[str]:
    """Accuracies of a column over the seconds that the sets took."""
    measured = [(row, row["accuracies"][arch]) for row in rows if arch in row["accuracies"]]
    points = [
        pareto.Point(_name(row, rows), row["seconds"], each["mean"], each["std"], accuracy_cell(each))
        for row, each in measured
        if row["trained_on"] == "distilled" and row["seconds"]
    ]
    baselines = {_name(row, rows): each for row, each in measured if row["trained_on"] != "distilled"}
    return pareto.panel(f"{arch}, accuracy in % over the time that a set took", points, baselines) if points else []
