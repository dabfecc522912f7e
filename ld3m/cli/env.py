"""`ld3m env`."""

import typer


def env() -> None:
    """Print what a bug report needs: versions, GPUs, settings.

    It also lists caches and the configuration of Accelerate. Tokens, keys and passwords are left out, so you can paste
    the output into an issue as it is.
    """
    from ld3m.machine.environment import report

    typer.echo(report())
