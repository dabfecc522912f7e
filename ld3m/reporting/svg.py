"""Charts as SVG text for a web page: curves over iterations, bars with errors. Colours are the page's."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 230
"""Units of a curve's coordinates, in which text has 12: still readable at the width of a telephone."""
LEFT, RIGHT, TOP, BOTTOM = 52, 330, 32, 190
BARS_WIDTH = 400
"""The same of a chart of bars, which need room for their names."""
MOST_POINTS = 240
"""Points of a curve; more could not be told apart."""
Points = Sequence[tuple[float, float]]


def number(value: float) -> str:
    """A number as people read it: four digits, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.4g}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two, at most so many."""
    if high <= low:
        return [low]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers, with 2 and 5 times these where there are few."""
    factors = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Points of a curve that show its course: of each stretch the lowest and the highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 2)
    bounds = [place * len(points) // stretches for place in range(stretches + 1)]
    kept = {0, len(points) - 1}
    for start, end in pairwise(bounds):
        inside = range(start, end)
        kept |= {min(inside, key=lambda i: points[i][1]), max(inside, key=lambda i: points[i][1])}
    return [points[place] for place in sorted(kept)]


@dataclass(frozen=True)
class Axis:
    """Maps values to coordinates."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value, to a tenth of a unit."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / ((high - low) or 1) * (self.end - self.start), 1)


def _vertical(values: Sequence[float]) -> Axis:
    """Logarithmic where all are positive and far apart; else from 0, or round what is below it."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 20:
        return Axis(low / 1.1, high * 1.1, BOTTOM, TOP, log=True)
    return Axis(min(0.0, low), high * 1.08 if high > 0 else 1.0, BOTTOM, TOP)


def curves(name: str, title: str, lines: Mapping[str, Points], x: str = "iteration") -> Markup:
    """A figure with named lines of (x, y) points; hovered or focused, the page's script reads values from it.

    Args:
        name: of the figure in the page's ids.
        title: what is shown, with its unit.
        lines: of one point or more each, all at the same x, none of it infinite.
        x: what the horizontal axis counts.
    """
    everything = [value for points in lines.values() for _, value in points]
    places = [place for place, _ in next(iter(lines.values()))]
    across, up = Axis(places[0], places[-1], LEFT, RIGHT), _vertical(everything)
    said = [
        f"{label} from {number(points[0][1])} to {number(points[-1][1])}, "
        f"lowest {number(min(v for _, v in points))}, highest {number(max(v for _, v in points))}"
        for label, points in lines.items()
    ]
    said.append(f"{x}s {places[0]:g} to {places[-1]:g}; {'logarithmic' if up.log else 'linear'} scale")
    parts = []
    for value in log_ticks(up.low, up.high) if up.log else ticks(up.low, up.high):
        parts.append(f'<path class="grid" d="M{LEFT} {up(value)}H{RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{up(value) + 4:g}" text-anchor="end">{number(value)}</text>'
        )
    for value in [tick for tick in ticks(across.low, across.high) if tick == int(tick)]:
        parts.append(f'<text class="tick" x="{across(value)}" y="{BOTTOM + 17}" text-anchor="middle">{value:,g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    parts.append(f'<text class="label" x="{RIGHT}" y="{BOTTOM + 34}" text-anchor="end">{escape(x)}</text>')
    place = 0.0
    for index, (label, points) in enumerate(lines.items()):
        kept = thinned(points)
        drawn = " ".join(f"{across(x)},{up(y)}" for x, y in kept)
        style = f"line line-{index % 6}"
        if len(kept) == 1:
            parts.append(f'<circle class="dot dot-{index % 6}" cx="{across(kept[0][0])}" cy="{up(kept[0][1])}" r="3"/>')
        parts.append(f'<polyline class="{style}" points="{drawn}"/>')
        if len(lines) > 1:
            parts.append(f'<path class="{style}" d="M{place:g} 15h20"/>')
            parts.append(f'<text class="label" x="{place + 26:g}" y="19">{escape(label)}</text>')
            place += 36 + 6.8 * len(label)
    parts.append(f'<path class="guide" d="M0 {TOP}V{BOTTOM}" hidden/>')
    values, drawing = json.dumps(_values(lines, across, x)), _svg(name, title, said, (WIDTH, HEIGHT), parts)
    return Markup(
        f'<figure class="chart" id="{name}"><figcaption id="{name}-name">{escape(title)}</figcaption>'
        f'<div class="plot" tabindex="0" role="group" aria-labelledby="{name}-name" aria-describedby="{name}-value" '
        f'data-values="{escape(values)}">{drawing}</div>'
        f'<output class="value" id="{name}-value">Point at it or use arrow keys to read values.</output>'
        "</figure>"
    )


def _values(lines: Mapping[str, Points], across: Axis, x: str) -> list[tuple[float, str]]:
    """Where the guide can stand, and what is said there."""
    by_place = {label: dict(points) for label, points in lines.items()}
    values = []
    for place, _ in thinned(next(iter(lines.values()))):
        said = [f"{label} {number(at[place])}" for label, at in by_place.items()]
        values.append((across(place), f"{x} {place:,g}: {', '.join(said)}"))
    return values


@dataclass(frozen=True)
class Bar:
    """A mean with its deviation and what it is the mean of."""

    group: str
    label: str
    mean: float
    std: float
    values: list[float]


def bars(name: str, title: str, rows: Sequence[Bar], unit: str) -> Markup:
    """A figure with a horizontal bar a row, from 0, an error bar of ± one deviation, and a dot a value.

    Args:
        name: of the figure in the page's ids.
        title: what is shown.
        rows: grouped by their `group`, in this order; labels of one name have one colour.
        unit: what is written behind means.
    """
    colours = {label: index % 6 for index, label in enumerate(dict.fromkeys(row.label for row in rows))}
    left, right = min(170, 14 + 7 * max(len(row.label) for row in rows)), BARS_WIDTH - 84
    highest = max(max(row.mean + row.std, *row.values) for row in rows)
    across = Axis(0, highest or 1, left, right)
    parts, top, group = [], 4, None
    for row in rows:
        if row.group != group:
            top += 10 if group is not None else 0
            parts.append(f'<text class="group" x="0" y="{top + 12}">{escape(row.group)}</text>')
            group, top = row.group, top + 20
        middle = top + 9
        parts.append(f'<path class="axis" d="M{left} {top - 1}v20"/>')
        low, mean, high = across(max(0.0, row.mean - row.std)), across(row.mean), across(row.mean + row.std)
        colour = colours[row.label]
        parts.append(f'<text class="tick" x="{left - 8}" y="{middle + 4}" text-anchor="end">{escape(row.label)}</text>')
        parts.append(
            f'<rect class="bar bar-{colour}" x="{left}" y="{top + 1}" width="{max(0.0, mean - left):g}" height="16"/>'
        )
        parts += [f'<circle class="seed" cx="{across(value)}" cy="{middle + 5}" r="1.6"/>' for value in row.values]
        parts.append(f'<path class="error" d="M{low} {middle - 2}H{high}M{low} {middle - 5}v6M{high} {middle - 5}v6"/>')
        parts.append(
            f'<text class="label" x="{max(high, *(across(value) for value in row.values)) + 7:g}" y="{middle + 4}">'
            f"{row.mean:.1f} ± {row.std:.1f}{escape(unit)}</text>"
        )
        top += 21
    said = [f"{row.group}, {row.label}: {row.mean:.1f} ± {row.std:.1f}{unit}" for row in rows]
    return Markup(
        f'<figure class="chart bars" id="{name}"><figcaption>{escape(title)}</figcaption>'
        f"{_svg(name, title, said, (BARS_WIDTH, top + 4), parts)}</figure>"
    )


def _svg(name: str, title: str, said: Sequence[str], size: tuple[int, int], parts: Sequence[str]) -> str:
    """A drawing with a title and a description for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-labelledby="{name}-title {name}-said">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-said">{escape("; ".join(said))}.</desc>'
        f"{''.join(parts)}</svg>"
    )
