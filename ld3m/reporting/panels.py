"""Plots of one size, two side by side, in which the charts of ablations and searches are drawn."""

from collections.abc import Sequence

from ld3m.reporting import svg
from ld3m.reporting.svg import Axis

PANEL, HEIGHT = 380, 260
"""Units of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 50, 368, 34, 214
"""The plot inside it."""
LINE = 20
"""Units of a line of the legend."""


def framed(title: str, up: Axis) -> list[str]:
    """A panel's title and vertical axis."""
    return [svg.text("title", LEFT, 20, title), *svg.vertical_axis(up, LEFT, RIGHT)]


def side_by_side(panels: Sequence[Sequence[str]]) -> tuple[list[str], int]:
    """The elements of all panels, and the height of the first line of what stands below them."""
    parts = [
        f'<g transform="translate({index % 2 * PANEL} {index // 2 * HEIGHT})">{"".join(panel)}</g>'
        for index, panel in enumerate(panels)
    ]
    return parts, -(-len(panels) // 2) * HEIGHT + LINE
