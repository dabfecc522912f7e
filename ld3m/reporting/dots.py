"""A dot per set, with its interval: panels one below the other, baselines as lines from top to bottom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from ld3m.reporting import svg
from ld3m.reporting.svg import Axis

WIDTH = 760
"""Units of the drawing."""
LINE = 20
"""Units from one dot to the next."""


@dataclass(frozen=True)
class Dot:
    """An accuracy, in percent."""

    name: str
    mean: float
    low: float
    high: float
    """The ends of its interval; both are the mean if it has none."""
    figure: str
    """As the table has it."""
    is_baseline: bool = False


def accuracy_range(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """What an axis of accuracies, in percent, covers: all intervals, one or more, and a little beyond."""
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    margin = 0.08 * (high - low) or 1.0
    return max(0.0, low - margin), min(100.0, high + margin)


def dots(panels: Mapping[str, Sequence[Dot]]) -> tuple[list[str], tuple[int, int]]:
    """The elements of a drawing, and its width and height.

    Pointed at, a mark says its figure.

    Args:
        panels: dots by the title of their panel, one or more each.
    """
    names = dict.fromkeys(dot.name for panel in panels.values() for dot in panel)
    left, right = min(440, 20 + 7 * max(map(len, names), default=0)), WIDTH - 120
    top, parts = 0, []
    for title, panel in panels.items():
        across = Axis(*accuracy_range([(dot.low, dot.high) for dot in panel]), left, right)
        first, last = top + 34, top + 34 + LINE * len(panel)
        parts.append(svg.text("title", 14, top + 20, title))
        parts += [svg.rule("grid", (across(value), first), (across(value), last)) for value in across.ticks()]
        parts += svg.horizontal_axis(across, last)
        series, baselines = count(), count()
        for index, dot in enumerate(panel):
            x, y, low, high = across(dot.mean), first + LINE * (index + 0.5), across(dot.low), across(dot.high)
            parts.append(svg.text("label", left - 12, y + 4, dot.name, "end"))
            parts.append(svg.text("tick", right + 8, y + 4, dot.figure))
            hover = f"{dot.name}: {dot.figure}"
            if dot.is_baseline:
                parts.append(svg.box("band", (low, first), (high, last)))
                kind = f"{svg.baseline_class(next(baselines))} mark"
                parts.append(svg.rule(kind, (x, first), (x, last), hover))
            else:
                colour = next(series)
                parts.append(svg.error_bar(y, low, high, colour))
                parts.append(svg.dot(colour, x, y, hover, "mark"))
        top = last + 30
    return parts, (WIDTH, top + 4)
