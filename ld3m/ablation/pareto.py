"""Accuracy beside cost: a panel in which sets stand by the seconds that they took, and a line joins those worth it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ld3m.ablation.table import accuracy_cell
from ld3m.reporting import svg
from ld3m.reporting.dots import WIDTH, accuracy_range
from ld3m.reporting.svg import Axis
from ld3m.runs.metrics import duration

HEIGHT = 360
"""Units of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 50, WIDTH - 20, 34, HEIGHT - 46
"""The plot inside it."""
TICKS = [factor * unit for unit in (1, 60, 3600) for factor in (1, 2, 5, 10, 20, 30)] + [
    86400 * days for days in (1, 2, 5)
]
"""Seconds that people read at a glance."""
LETTER, TALL = 6.6, 13.0
"""Units that a letter of a label is wide, and a label high."""


@dataclass(frozen=True)
class Point:
    """A set: what it took and what it reaches."""

    name: str
    seconds: float
    accuracy: float
    """The mean, in percent."""
    deviation: float
    figure: str
    """As the table has the accuracy."""


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points to which no other is at once cheaper and better, or one of both and equal in the other; by cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.seconds, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def panel(title: str, points: Sequence[Point], baselines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The elements of a panel, WIDTH × HEIGHT units, from (0, 0).

    Args:
        points: the sets, one or more, each of which took some time.
        baselines: accuracies of real images, which cost nothing, by name.
    """
    seconds = [point.seconds for point in points]
    intervals = [(point.accuracy - point.deviation, point.accuracy + point.deviation) for point in points]
    intervals += [(each["mean"], each["mean"]) for each in baselines.values()]
    across = Axis(min(seconds) / 1.3, max(seconds) * 1.3, LEFT, RIGHT, log=True)
    up = Axis(*accuracy_range(intervals), BOTTOM, TOP)
    parts = [svg.text("title", LEFT, 20, title), *svg.vertical_axis(up, LEFT, RIGHT)]
    ticks = [each for each in TICKS if across.low <= each <= across.high]
    parts += [svg.text("tick", across(each), BOTTOM + 17, _round(each), "middle") for each in ticks]
    parts += svg.base_line(LEFT, RIGHT, BOTTOM, "time to make the set, on the machine named below the table")
    for index, (name, accuracies) in enumerate(baselines.items()):
        y = up(accuracies["mean"])
        hover = f"{name}: {accuracy_cell(accuracies)}"
        parts.append(svg.rule(f"{svg.baseline_class(index)} mark", (LEFT, y), (RIGHT, y), hover))
        parts.append(svg.text("tick", RIGHT, y - 4, name, "end"))
    worth = [(across(point.seconds), up(point.accuracy)) for point in frontier(points)]
    parts.append(svg.line(len(svg.COLOURS) - 1, worth))
    taken: list[tuple[float, float, float, float]] = []
    for index, point in enumerate(points):
        x, y = across(point.seconds), up(point.accuracy)
        low, high = up(point.accuracy - point.deviation), up(point.accuracy + point.deviation)
        parts.append(svg.error_bar(x, low, high, index, upright=True))
        hover = f"{point.name}: {point.figure}, {duration(point.seconds)}"
        parts.append(svg.dot(index, x, y, hover, "mark"))
        parts.append(_label(point.name, x, y, taken))
    return parts


def _round(seconds: int) -> str:
    """A tick in one unit."""
    unit, name = next(
        (unit, name) for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")) if seconds >= unit
    )
    return f"{seconds // unit} {name}"


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """A point's name, to its right or left, on its height or beside it: the first place where no other label is."""
    wide = LETTER * len(name)
    for aside in (-6, 17, -20, 31, -34):
        for start in (x + 7, x - 7 - wide):
            box = (start, y + aside - TALL, start + wide, y + aside)
            free = all(box[0] > b[2] or box[2] < b[0] or box[1] > b[3] or box[3] < b[1] for b in taken)
            if free and box[0] > LEFT and box[2] < RIGHT:
                taken.append(box)
                return svg.text("label", round(start, 1), round(y + aside, 1), name)
    return svg.text("label", x + 7, y + 4, name)
