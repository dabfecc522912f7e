"""The charts of a run's page: curves over iterations, and bars with errors. Their colours are the page's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from ld3m.reporting import svg
from ld3m.reporting.svg import Axis, Points, number

WIDTH, HEIGHT = 340, 230
"""Units of a chart of curves, in which text is 12 high: still readable at the width of a telephone."""
LEFT, RIGHT, TOP, BOTTOM = 52, 330, 32, 190
"""The plot inside it."""
BARS_WIDTH = 400
"""Units of a chart of bars, which needs room for their names."""
MOST_POINTS = 240
"""Points of a curve; more could not be told apart."""


# --- curves ------------------------------------------------------------------------------------------------


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """The points of a curve that show its course: the lowest and highest of each stretch, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 2)
    bounds = [stretch * len(points) // stretches for stretch in range(stretches + 1)]
    kept = {0, len(points) - 1}
    for start, end in pairwise(bounds):
        inside = range(start, end)
        kept |= {min(inside, key=lambda i: points[i][1]), max(inside, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def _vertical(values: Sequence[float]) -> Axis:
    """Logarithmic if all values are positive and far apart; else from 0, or from the lowest if that is below 0."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 20:
        return Axis(low / 1.1, high * 1.1, BOTTOM, TOP, log=True)
    return Axis(min(0.0, low), high * 1.08 if high > 0 else 1.0, BOTTOM, TOP)


def curves(name: str, title: str, lines: Mapping[str, Points], x_name: str = "iteration") -> Markup:
    """A figure with named lines; hovered or focused, the page's script reads values from it.

    Args:
        name: the beginning of the figure's ids in the page.
        title: what is shown, with its unit.
        lines: (x, y) points by the line's name, one or more each, all at the same x, all finite.
        x_name: what the horizontal axis counts.
    """
    first_line = next(iter(lines.values()))
    across = Axis(first_line[0][0], first_line[-1][0], LEFT, RIGHT)
    up = _vertical([y for points in lines.values() for _, y in points])
    whole = [tick for tick in across.ticks() if tick == int(tick)]
    parts = [
        *svg.vertical_axis(up, LEFT, RIGHT),
        *svg.horizontal_axis(across, BOTTOM, whole),
        *svg.base_line(LEFT, RIGHT, BOTTOM, x_name),
    ]
    places = _legend(list(lines))
    for series, (label, points) in enumerate(lines.items()):
        drawn = [(across(x), up(y)) for x, y in thinned(points)]
        parts.append(svg.line(series, drawn))
        if len(drawn) == 1:  # a line through one point is invisible
            parts.append(svg.dot(series, *drawn[0]))
        if len(lines) > 1:
            parts += svg.legend_entry(svg.line_class(series), *places[series], label)
    parts.append(f'<path class="guide" d="M0 {TOP}V{BOTTOM}" hidden/>')
    drawing = svg.drawing((WIDTH, HEIGHT), title, _summary(lines, up, x_name), parts, name)
    return Markup(
        f'<figure class="chart" id="{name}"><figcaption id="{name}-name">{escape(title)}</figcaption>'
        f'<div class="plot" tabindex="0" role="group" aria-labelledby="{name}-name" aria-describedby="{name}-value" '
        f'data-values="{escape(json.dumps(_readings(lines, across, x_name)))}">{drawing}</div>'
        f'<output class="value" id="{name}-value">Hover or use arrow keys to read values.</output>'
        "</figure>"
    )


def _legend(labels: Sequence[str]) -> list[tuple[float, float]]:
    """Where the entries of a legend begin, in one line above the plot, or in two if one is too narrow."""
    widths = [svg.SWATCH + 16 + 6.8 * len(label) for label in labels]
    breaks = len(labels) if sum(widths) <= WIDTH + 16 else (len(labels) + 1) // 2
    upper, lower = widths[:breaks], widths[breaks:]
    first = 8 if lower else 19
    return [
        *((sum(upper[:index]), first) for index in range(len(upper))),
        *((sum(lower[:index]), 24) for index in range(len(lower))),
    ]


def _summary(lines: Mapping[str, Points], up: Axis, x_name: str) -> str:
    """The lines in words."""
    sentences = []
    for label, points in lines.items():
        values = [y for _, y in points]
        ends, extremes = (values[0], values[-1]), (min(values), max(values))
        sentences.append(
            f"{label} from {number(ends[0])} to {number(ends[1])}, "
            f"lowest {number(extremes[0])}, highest {number(extremes[1])}"
        )
    first_line = next(iter(lines.values()))
    sentences.append(f"{x_name}s {first_line[0][0]:g} to {first_line[-1][0]:g}")
    return f"{'; '.join(sentences)}; {'logarithmic' if up.log else 'linear'} scale."


def _readings(lines: Mapping[str, Points], across: Axis, x_name: str) -> list[tuple[float, str]]:
    """The coordinates at which the guide stops, each with the values there in words."""
    by_x = {label: dict(points) for label, points in lines.items()}
    return [
        (across(x), f"{x_name} {x:,g}: {', '.join(f'{label} {number(y[x])}' for label, y in by_x.items())}")
        for x, _ in thinned(next(iter(lines.values())))
    ]


# --- bars --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A mean, its standard deviation, and the values that it is the mean of."""

    group: str
    label: str
    mean: float
    std: float
    values: list[float]


def bars(name: str, title: str, rows: Sequence[Bar]) -> Markup:
    """A figure with horizontal bars from 0, error bars of ± one standard deviation, and a dot for each value.

    Args:
        name: the beginning of the figure's ids in the page.
        title: what is shown, with its unit.
        rows: a bar each, those of one `group` together; bars of one label have one colour.
    """
    colours = {label: index % len(svg.COLOURS) for index, label in enumerate(dict.fromkeys(row.label for row in rows))}
    left, right = min(170, 14 + 7 * max(len(row.label) for row in rows)), BARS_WIDTH - 84
    across = Axis(0, max(max(row.mean + row.std, *row.values) for row in rows) or 1, left, right)
    parts, top, group = [], 4, None
    for row in rows:
        if row.group != group:
            top += 10 if group is not None else 0
            parts.append(svg.text("title", 0, top + 12, row.group))
            group, top = row.group, top + 20
        middle, mean, high = top + 9, across(row.mean), across(row.mean + row.std)
        dots = [across(value) for value in row.values]
        parts += [
            svg.rule("axis", (left, top - 1), (left, top + 19)),
            svg.text("tick", left - 8, middle + 4, row.label, "end"),
            svg.box(f"bar bar-{colours[row.label]}", (left, top + 1), (max(left, mean), top + 17)),
            *(f'<circle class="seed" cx="{x:g}" cy="{middle + 5}" r="1.6"/>' for x in dots),
            svg.error_bar(middle - 2, across(max(0.0, row.mean - row.std)), high),
            svg.text("label", max(high, *dots) + 7, middle + 4, f"{row.mean:.1f} ± {row.std:.1f}"),
        ]
        top += 21
    description = "; ".join(f"{row.group}, {row.label}: {row.mean:.1f} ± {row.std:.1f}" for row in rows)
    drawing = svg.drawing((BARS_WIDTH, top + 4), title, f"{description}.", parts, name)
    return Markup(f'<figure class="chart bars" id="{name}"><figcaption>{escape(title)}</figcaption>{drawing}</figure>')
