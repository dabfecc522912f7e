"""A search as an SVG drawing: for each axis, the accuracy of every run over the value that it had."""

from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.reporting import svg
from ld3m.reporting.dots import accuracy_range
from ld3m.reporting.panels import BOTTOM, LEFT, LINE, PANEL, RIGHT, TOP, framed, side_by_side
from ld3m.reporting.svg import Axis


def draw(report: Mapping[str, Any]) -> str:
    """A panel per axis, a dot per run in the colour of its rung; runs of different rungs do not compare.

    Args:
        report: as tune.json has it.

    Returns:
        The content of an SVG file.
    """
    runs = [
        (trial["parameters"], run, trial["trial"])
        for trial in report["trials"]
        for run in trial["runs"]
        if "failed" not in run
    ]
    panels = [panel for axis in report["axes"] if (panel := _panel(axis, runs, report["importance"]))]
    parts, top = side_by_side(panels)
    for rung, share in enumerate(report["rungs"]):
        name = f"rung {rung + 1}: {'all' if share == 1 else f'{share:.3g} of the'} iterations and epochs"
        parts += [svg.dot(rung, LEFT + 4, top + rung * LINE - 4), svg.text("label", LEFT + 16, top + rung * LINE, name)]
    size = (2 * PANEL if len(panels) > 1 else PANEL, top + len(report["rungs"]) * LINE)
    return svg.drawing(size, "Accuracy in % on held-out images", report["decision"], parts) + "\n"


def _panel(
    axis: Mapping[str, Any],
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], int]],
    importance: Mapping[str, float],
) -> list[str]:
    """The runs that have a value of an axis; nothing if there are none."""
    name = axis["name"]
    having = [(parameters[name], run, number) for parameters, run, number in runs if name in parameters]
    if not having:
        return []
    values = list(dict.fromkeys(value for value, *_ in having))
    if axis["range"]:
        across = Axis(min(values), max(values), LEFT + 14, RIGHT - 14, log=axis["log"] and max(values) > min(values))
        place = dict(zip(values, map(across, values), strict=True))
        below = svg.horizontal_axis(across, BOTTOM)
    else:
        across = Axis(-0.5, len(values) - 0.5, LEFT, RIGHT)
        place = {value: across(index) for index, value in enumerate(values)}
        below = [svg.text("tick", x, BOTTOM + 17, str(value), "middle") for value, x in place.items()]
    up = Axis(*accuracy_range([(run["mean"], run["mean"]) for _, run, _ in having]), BOTTOM, TOP)
    share = f", {100 * importance[name]:.0f} % of what mattered" if name in importance else ""
    parts = [*framed(f"accuracy in %{share}", up), *below, *svg.base_line(LEFT, RIGHT, BOTTOM, name)]
    for value, run, number in having:
        hover = f"trial {number}, {name} {value}, rung {run['rung']}: {run['mean']:.1f} %"
        parts.append(svg.dot(run["rung"] - 1, place[value], up(run["mean"]), hover, "mark"))
    return parts
