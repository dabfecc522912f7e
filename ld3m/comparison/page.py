"""A comparison as one web page that loads nothing else."""

from markupsafe import Markup

from ld3m.comparison import chart
from ld3m.comparison.table import Report, accuracies, differences, protocol_text, remarks
from ld3m.reporting.page import page


def html(report: Report) -> str:
    """The page.

    Args:
        report: as `compare` returns it and comparison.json holds it.
    """
    content = {
        "data": report["data"],
        "classes": report["classes"],
        "names": [each["name"] for each in report["sets"]],
        "chart": Markup(chart.draw(report, "chart")),
        "caption": chart.TITLE,
        "tables": [part for part in (accuracies(report), differences(report)) if part],
        "protocol": protocol_text(report),
        "remarks": remarks(report),
        "command": report["command"],
    }
    return page("comparison.html", content)
