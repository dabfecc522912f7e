"""`ld3m status`."""

import json
from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import AsJson


def status(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="A run's folder; by default the newest in runs/.", autocompletion=completion.runs
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is: its state, loss, rate and time left.

    From another terminal, while it runs or afterwards: ld3m status runs/quickstart
    """
    from dataclasses import asdict

    from ld3m.reporting.status import read, text
    from ld3m.runs.folder import find_run

    progress = read(find_run(run or []))
    typer.echo(json.dumps(asdict(progress), indent=2) if as_json else text(progress))
