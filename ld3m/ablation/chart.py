"""An ablation as a drawing of its own, in SVG: accuracies with error bars, over a numeric axis or row by row."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from markupsafe import escape

from ld3m.ablation.table import Rows, archs, cell, label, text
from ld3m.reporting.svg import Axis, log_ticks, number, ticks

Row = Mapping[str, Any]
Place = tuple[float, float]

PANEL, HEIGHT = 380, 260
"""Units of a panel of lines; two stand side by side."""
LEFT, RIGHT, TOP, BOTTOM = 50, 368, 34, 214
"""Of the plot inside it."""
WIDTH = 2 * PANEL
LINE = 20
"""Units from one row, or entry of the legend, to the next."""
COLOURS = ("#1f5fae", "#b4500b", "#2a7a4b", "#7a4aa8", "#a8325a", "#5f6368")
DASHES = ("7 4", "2 3", "9 3 2 3", "4 2", "12 4")
"""Of the lines of baselines."""
STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1c2024}"
    ".quiet{fill:#5b636b}.title{font-weight:600}.grid{stroke:#e4e4de;fill:none}.axis{stroke:#5b636b;fill:none}"
    ".line{fill:none;stroke-width:2}.error{fill:none;stroke-width:1.3}.baseline{fill:none;stroke:#5b636b}"
    ".band{fill:#5b636b;opacity:.12}"
)


def svg(report: Row) -> str:
    """Accuracies, a panel an architecture; with a numeric axis also the seconds of an iteration over it.

    Where an axis is numeric, its rows are points of lines, one for each other setting, and baselines that do not
    depend on it are lines across; otherwise each row is a dot. Error bars and bands are ± one standard deviation over
    all networks. Hovered, a mark says its figure.

    Args:
        report: as `ablate` writes it to ablation.json.
    """
    rows: Rows = report["rows"]
    key = _numeric(rows, report["axes"])
    drawn, size = _lines(rows, key) if key else _dots(rows)
    said = "; ".join(f"{_name(row, rows)}: {arch} {cell(row['accuracies'][arch])}" for row, arch in _measured(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" '
        f'height="{size[1]}" role="img"><title>Accuracy in %, {escape(report["split"])} split</title>'
        f'<desc>{escape(said)}</desc><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(drawn)}</svg>\n"
    )


def _measured(rows: Rows) -> list[tuple[Row, str]]:
    return [(row, arch) for row in rows for arch in row["accuracies"]]


def _name(row: Row, rows: Rows, without: str | None = None) -> str:
    """A row in a few words: its recipe or baseline and its settings, but the one that an axis shows."""
    settings = [f"{key} {text(value)}" for key, value in row["settings"].items() if key != without]
    return ", ".join([label(row, rows), *settings])


def _numeric(rows: Rows, axes: Sequence[str]) -> str | None:
    """The axis to draw over: of those whose values are numbers, two or more, the one with most."""
    found: dict[str, int] = {}
    for key in axes:
        values = [row["settings"][key] for row in rows if row["trained_on"] == "distilled"]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[key] = len(set(values))
    best = max(found, key=lambda key: found[key], default=None)
    return best if best and found[best] > 1 else None


def _range(figures: Sequence[Row]) -> tuple[float, float]:
    """What an axis of accuracies covers: all error bars and a little more."""
    low = min(figure["mean"] - figure["std"] for figure in figures)
    high = max(figure["mean"] + figure["std"] for figure in figures)
    room = 0.08 * (high - low) or 1.0
    return max(0.0, low - room), min(100.0, high + room)


# --- lines over a numeric axis -----------------------------------------------------------------------------


def _lines(rows: Rows, key: str) -> tuple[list[str], tuple[int, int]]:
    """Panels of lines, two a row, and below them what the lines are."""
    distilled = [row for row in rows if row["trained_on"] == "distilled"]
    places = sorted({row["settings"][key] for row in distilled})
    across = Axis(places[0], places[-1], LEFT + 14, RIGHT - 14, log=places[0] > 0 and places[-1] > 20 * places[0])
    series: dict[str, list[Row]] = {}
    for row in sorted(distilled, key=lambda row: row["settings"][key]):
        series.setdefault(_name(row, rows, key), []).append(row)
    series = {_name(row, rows, key): series[_name(row, rows, key)] for row in distilled}  # in the order of the table
    baselines: dict[str, list[Row]] = {}
    for row in rows:
        if row["trained_on"] != "distilled":
            baselines.setdefault(_name(row, rows, key), []).append(row)
    shown = [(arch, lambda row, arch=arch: row["accuracies"].get(arch)) for arch in archs(rows)]
    panels = [_accuracies(arch, figure, series, baselines, key, across) for arch, figure in shown]
    panels.append(_seconds(series, key, across))
    drawn = []
    for place, parts in enumerate(panels):
        ticked = places if len(places) <= 8 else log_ticks(*places[:: len(places) - 1]) if across.log else None
        for value in ticked or ticks(places[0], places[-1]):
            parts.append(
                f'<text class="quiet" x="{across(value)}" y="{BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
            )
        parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
        parts.append(f'<text class="quiet" x="{RIGHT}" y="{BOTTOM + 36}" text-anchor="end">{escape(key)}</text>')
        drawn.append(f'<g transform="translate({place % 2 * PANEL} {place // 2 * HEIGHT})">{"".join(parts)}</g>')
    top = -(-len(panels) // 2) * HEIGHT + LINE
    for index, name in enumerate(series):
        drawn.append(f'<path class="line" stroke="{_colour(index)}" d="M{LEFT} {top - 4}h28"/>')
        drawn.append(f'<text x="{LEFT + 38}" y="{top}">{escape(name)}</text>')
        top += LINE
    for index, name in enumerate(baselines):
        drawn.append(f'<path class="baseline" stroke-dasharray="{_dash(index)}" d="M{LEFT} {top - 4}h28"/>')
        drawn.append(f'<text x="{LEFT + 38}" y="{top}">{escape(name)}</text>')
        top += LINE
    return drawn, (WIDTH, top)


def _accuracies(
    arch: str,
    figure: Callable[[Row], Row | None],
    series: Mapping[str, list[Row]],
    baselines: Mapping[str, list[Row]],
    key: str,
    across: Axis,
) -> list[str]:
    """One architecture's panel: lines with error bars, moved apart a little, and baselines."""
    everything = [row for lines in (series, baselines) for group in lines.values() for row in group]
    up = Axis(*_range([found for row in everything if (found := figure(row))]), BOTTOM, TOP)
    parts = _frame(f"{arch}, accuracy in %", up)
    for index, (name, group) in enumerate(baselines.items()):
        over = [(row["settings"].get(key), found) for row in group if (found := figure(row))]
        style = f'class="baseline mark" stroke-dasharray="{_dash(index)}"'
        for value, found in over:
            said = f"<title>{escape(name)}: {cell(found)}</title>"
            low, high = up(found["mean"] - found["std"]), up(found["mean"] + found["std"])
            start, end = (LEFT, RIGHT) if value is None else (across(value) - 9, across(value) + 9)
            parts.append(
                f'<rect class="band" x="{start:g}" y="{high}" width="{end - start:g}" height="{low - high:g}"/>'
            )
            parts.append(f'<path {style} d="M{start:g} {up(found["mean"])}H{end:g}">{said}</path>')
    for index, (name, group) in enumerate(series.items()):
        over = [(row, found) for row in group if (found := figure(row))]
        aside = 4 * (index - (len(series) - 1) / 2)
        points = [(across(row["settings"][key]) + aside, found) for row, found in over]
        parts.append(_line(index, [(x, up(found["mean"])) for x, found in points]))
        for (x, found), (row, _) in zip(points, over, strict=True):
            low, high = up(found["mean"] - found["std"]), up(found["mean"] + found["std"])
            said = f"{name}, {key} {row['settings'][key]:g}: {cell(found)}"
            bar = f"M{x:g} {low}V{high}M{x - 3:g} {low}h6M{x - 3:g} {high}h6"
            parts.append(f'<path class="error" stroke="{_colour(index)}" d="{bar}"/>')
            parts.append(_mark(index, x, up(found["mean"]), said))
    return parts


def _seconds(series: Mapping[str, list[Row]], key: str, across: Axis) -> list[str]:
    """The panel of seconds an iteration."""
    taken = {
        name: [(row["settings"][key], row["seconds_per_iteration"]) for row in group if row["seconds_per_iteration"]]
        for name, group in series.items()
    }
    up = Axis(0, 1.08 * max((value for points in taken.values() for _, value in points), default=1.0), BOTTOM, TOP)
    parts = _frame("Seconds an iteration", up)
    for index, (name, points) in enumerate(taken.items()):
        parts.append(_line(index, [(across(x), up(value)) for x, value in points]))
        for x, value in points:
            parts.append(
                f'<circle cx="{across(x)}" cy="{up(value)}" r="3.5" fill="{_colour(index)}">'
                f"<title>{escape(name)}, {key} {x:g}: {number(value)} s</title></circle>"
            )
    return parts


def _frame(title: str, up: Axis) -> list[str]:
    """A panel's title, and its vertical axis with round numbers."""
    parts = [f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
    for value in ticks(up.low, up.high):
        parts.append(f'<path class="grid" d="M{LEFT} {up(value)}H{RIGHT}"/>')
        parts.append(
            f'<text class="quiet" x="{LEFT - 7}" y="{up(value) + 4:g}" text-anchor="end">{number(value)}</text>'
        )
    return parts


# --- a dot a row -------------------------------------------------------------------------------------------


def _dots(rows: Rows) -> tuple[list[str], tuple[int, int]]:
    """A panel an architecture, one below the other: a dot a row, baselines as lines from top to bottom."""
    names = [_name(row, rows) for row in rows]
    left = min(440, 20 + 7 * max(map(len, names), default=0))
    top, drawn = 0, []
    for arch in archs(rows):
        measured = [
            (name, row, row["accuracies"][arch])
            for name, row in zip(names, rows, strict=True)
            if arch in row["accuracies"]
        ]
        across = Axis(*_range([figure for *_, figure in measured]), left, WIDTH - 120)
        drawn.append(f'<text class="title" x="14" y="{top + 20}">{escape(arch)}, accuracy in %</text>')
        first, last = top + 34, top + 34 + LINE * len(measured)
        for value in ticks(across.low, across.high):
            drawn.append(f'<path class="grid" d="M{across(value)} {first}V{last}"/>')
            drawn.append(
                f'<text class="quiet" x="{across(value)}" y="{last + 16}" text-anchor="middle">{number(value)}</text>'
            )
        colours, dashes = count(), count()
        for place, (name, row, figure) in enumerate(measured):
            y, x = first + LINE * place + LINE / 2, across(figure["mean"])
            low, high = across(figure["mean"] - figure["std"]), across(figure["mean"] + figure["std"])
            said = f"{name}: {cell(figure)}"
            drawn.append(f'<text x="{left - 12}" y="{y + 4:g}" text-anchor="end">{escape(name)}</text>')
            drawn.append(f'<text class="quiet" x="{WIDTH - 112}" y="{y + 4:g}">{cell(figure)}</text>')
            if row["trained_on"] == "distilled":
                index = next(colours)
                bar = f"M{low} {y:g}H{high}M{low} {y - 3:g}v6M{high} {y - 3:g}v6"
                drawn.append(f'<path class="error" stroke="{_colour(index)}" d="{bar}"/>')
                drawn.append(_mark(index, x, y, said))
            else:
                drawn.append(
                    f'<rect class="band" x="{low}" y="{first}" width="{high - low:g}" height="{last - first}"/>'
                )
                drawn.append(
                    f'<path class="baseline mark" stroke-dasharray="{_dash(next(dashes))}" d="M{x} {first}V{last}">'
                    f"<title>{escape(said)}</title></path>"
                )
        top = last + 30
    return drawn, (WIDTH, top + 4)


def _line(index: int, points: Sequence[Place]) -> str:
    return f'<polyline class="line" stroke="{_colour(index)}" points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def _mark(index: int, x: float, y: float, said: str) -> str:
    place = f'cx="{x:g}" cy="{y:g}" r="3.5" fill="{_colour(index)}"'
    return f'<circle class="mark" {place}><title>{escape(said)}</title></circle>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _dash(index: int) -> str:
    return DASHES[index % len(DASHES)]
