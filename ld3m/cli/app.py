"""The program that commands add themselves to, and what they share."""

from typing import Annotated

import typer

app = typer.Typer(
    name="ld3m",
    help="Distil an image data set into a few images per class through a frozen latent diffusion model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # which flows paragraphs anew, as wide as the terminal is
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ld3m import __version__

        typer.echo(f"ld3m {__version__}")
        raise typer.Exit


@app.callback()
def ld3m(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Distil an image data set into a few images per class through a frozen latent diffusion model."""


Output = Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Where the result goes.")]
