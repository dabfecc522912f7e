"""`ld3m report`."""

from pathlib import Path
from typing import Annotated

import typer

from ld3m.cli.arguments import MeasuredBy, SetAndOverrides, grouped, names_and_overrides
from ld3m.runs.options import Reading


@grouped
def report(
    arguments: SetAndOverrides = None,
    recipe: MeasuredBy = None,
    *,
    reading: Reading,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write, or a folder, such as that of ld3m evaluate --output; default: RUN/report.html.",
        ),
    ] = None,
) -> None:
    """Write a run, finished or not, as one HTML page.

    It has the images and how they developed, curves, accuracies, the recipe, and what the run cost.

    The page loads nothing else: it can be sent, kept, and read without a network.
    """
    names, overrides = names_and_overrides(arguments)
    from ld3m.reporting.report import report
    from ld3m.runs.imported import find_set

    run = Path(names[0]) if len(names) == 1 and (Path(names[0]) / "recipe.yaml").is_file() else None
    typer.echo(report(run or find_set(names, recipe, overrides, reading), output))
