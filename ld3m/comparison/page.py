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
    tables = [
        {
            "parts": [part for part in (accuracies(table, report), differences(table, report)) if part],
            "protocol": protocol_text(table),
        }
        for table in report["tables"]
    ]
    content = {
        "data": report["data"],
        "classes": report["classes"],
        "names": [line["name"] for line in report["tables"][0]["lines"]],
        "chart": Markup(chart.draw(report, "chart")),
        "caption": chart.TITLE,
        "tables": tables,
        "remarks": remarks(report),
        "command": report["command"],
    }
    return page("comparison.html", content)
