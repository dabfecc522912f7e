"""What charts are drawn with, as SVG text: axes with round ticks, lines, marks, error bars, legend entries.

The page's charts (`reporting.charts`) and the chart of an ablation (`ablation.chart`) are made of these. Every element
has a class, and no colour of its own: in a page the colours are those of its style sheet, which follow the reader's
theme; a drawing that is a file of its own brings `STYLE`. Coordinates are the drawing's units; y grows downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = ("#1f5fae", "#b4500b", "#2a7a4b", "#7a4aa8", "#a8325a", "#5f6368")
"""Colours of series in a drawing that is a file of its own; the page's style sheet has as many."""
DASHES = ("7 4", "2 3", "9 3 2 3", "4 2", "12 4")
"""Dashes of baselines."""
CAP = 3
"""Units by which the ends of an error bar stick out to each side."""
SWATCH = 24
"""Length of the piece of line in a legend."""
STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1c2024}"
    ".tick{fill:#5b636b}.title{font-weight:600}.grid{stroke:#e4e4de;fill:none}.axis{stroke:#5b636b;fill:none}"
    ".line{fill:none;stroke-width:2}.error{fill:none;stroke-width:1.3}.baseline{fill:none;stroke:#5b636b}"
    ".band{fill:#5b636b;opacity:.12}"
    + "".join(f".line-{i},.error-{i}{{stroke:{colour}}}.dot-{i}{{fill:{colour}}}" for i, colour in enumerate(COLOURS))
    + "".join(f".dash-{i}{{stroke-dasharray:{dash}}}" for i, dash in enumerate(DASHES))
)
"""The style sheet of a drawing that is a file of its own."""

Points = Sequence[tuple[float, float]]


# --- numbers and axes --------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A number for people: four significant digits, thousands separated."""
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.4g}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two, at most `most` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{multiple * step:.12g}") for multiple in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers, with 2 and 5 times these if there are few."""
    factors = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


@dataclass(frozen=True)
class Axis:
    """Maps values to coordinates, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value, to a tenth of a unit."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / ((high - low) or 1) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values on it."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def vertical_axis(up: Axis, left: float, right: float) -> list[str]:
    """Grid lines at round values, from `left` to `right`, with the values beside them."""
    parts = []
    for value in up.ticks():
        parts.append(rule("grid", (left, up(value)), (right, up(value))))
        parts.append(text("tick", left - 7, up(value) + 4, number(value), "end"))
    return parts


def horizontal_axis(across: Axis, bottom: float, values: Sequence[float] | None = None) -> list[str]:
    """Values below the plot: round ones if none are given."""
    return [
        text("tick", across(value), bottom + 17, f"{value:,g}", "middle")
        for value in (across.ticks() if values is None else values)
    ]


def base_line(left: float, right: float, bottom: float, name: str) -> list[str]:
    """The line that a plot stands on, and the name of the horizontal axis below its end."""
    return [rule("axis", (left, bottom), (right, bottom)), text("label", right, bottom + 34, name, "end")]


# --- elements ----------------------------------------------------------------------------------------------


def text(kind: str, x: float, y: float, content: str, anchor: str = "start") -> str:
    """A line of text.

    Args:
        kind: its class: "title", "label" or "tick".
        x: of its start, middle or end, as `anchor` says.
        y: of its base line.
        content: any text; it is escaped.
        anchor: SVG's text-anchor.
    """
    aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{aligned}>{escape(content)}</text>'


def rule(kind: str, start: tuple[float, float], end: tuple[float, float], hover: str = "") -> str:
    """A straight line; pointed at, it says `hover`."""
    return _hovered("path", f'class="{kind}" d="M{start[0]:g} {start[1]:g}L{end[0]:g} {end[1]:g}"', hover)


def line(series: int, points: Points) -> str:
    """A line through points, in the colour of its series."""
    joined = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline class="{line_class(series)}" points="{joined}"/>'


def line_class(series: int) -> str:
    """The class of a series' line, in the plot and in the legend."""
    return f"line line-{series % len(COLOURS)}"


def baseline_class(index: int) -> str:
    """The class of the dashed line of a baseline, in the plot and in the legend."""
    return f"baseline dash-{index % len(DASHES)}"


def dot(series: int, x: float, y: float, hover: str = "", kind: str = "dot") -> str:
    """A dot in the colour of its series; pointed at, it says `hover`."""
    of_series = f"{kind} dot-{series % len(COLOURS)}"
    return _hovered("circle", f'class="{of_series}" cx="{x:g}" cy="{y:g}" r="3.5"', hover)


def error_bar(at: float, low: float, high: float, series: int | None = None, upright: bool = False) -> str:
    """A line from `low` to `high` with a cap at each end.

    Args:
        at: its other coordinate: y, or x if it is upright.
        series: whose colour it has; that of text if None.
        upright: whether it runs along y.
    """
    kind = "error" if series is None else f"error error-{series % len(COLOURS)}"
    path = (
        f"M{at:g} {low:g}V{high:g}M{at - CAP:g} {low:g}h{2 * CAP}M{at - CAP:g} {high:g}h{2 * CAP}"
        if upright
        else f"M{low:g} {at:g}H{high:g}M{low:g} {at - CAP:g}v{2 * CAP}M{high:g} {at - CAP:g}v{2 * CAP}"
    )
    return f'<path class="{kind}" d="{path}"/>'


def box(kind: str, corner: tuple[float, float], opposite: tuple[float, float]) -> str:
    """A rectangle between two opposite corners, in any order."""
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(corner, opposite, strict=True))
    size = f'width="{right - left:g}" height="{bottom - top:g}"'
    return f'<rect class="{kind}" x="{left:g}" y="{top:g}" {size}/>'


def legend_entry(kind: str, x: float, y: float, name: str) -> list[str]:
    """A piece of line of a class, and the name of what is drawn so; y is of the name's base line."""
    return [rule(kind, (x, y - 4), (x + SWATCH, y - 4)), text("label", x + SWATCH + 7, y, name)]


def drawing(
    size: tuple[float, float], title: str, description: str, parts: Sequence[str], name: str | None = None
) -> Markup:
    """A whole drawing, with a title and a description for those who do not see it.

    Args:
        description: the figures, in words.
        name: the beginning of its ids in a page; None: a file of its own, which brings `STYLE` and a white ground.
    """
    box_and_role = f'viewBox="0 0 {size[0]:g} {size[1]:g}" role="img"'
    if name is None:
        return Markup(
            f'<svg xmlns="http://www.w3.org/2000/svg" {box_and_role} width="{size[0]:g}" height="{size[1]:g}">'
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc><style>{STYLE}</style>"
            f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
        )
    return Markup(
        f'<svg {box_and_role} aria-labelledby="{name}-title {name}-description"><title id="{name}-title">'
        f'{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _hovered(element: str, attributes: str, hover: str) -> str:
    return f"<{element} {attributes}>" + (f"<title>{escape(hover)}</title></{element}>" if hover else f"</{element}>")
