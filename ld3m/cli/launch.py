"""`ld3m launch`."""

from typing import Annotated

import typer


def launch(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPTION]… COMMAND …", help="Options of `accelerate launch`, then a command of ld3m."),
    ] = None,
) -> None:
    """Start a command on all GPUs, or on several processes.

    For example: ld3m launch distill quickstart, or ld3m launch --num_processes 2 distill quickstart

    It is accelerate launch -m ld3m, and takes its options, such as --config_file launch/zero3.yaml; but if the command
    fails, its own line is the last one, and its exit code is kept.
    """
    from ld3m.machine.launcher import launch

    raise typer.Exit(launch(arguments or []))
