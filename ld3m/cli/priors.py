"""`ld3m priors`, and `ld3m priors get`."""

from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode="markdown", invoke_without_command=True)


@app.callback()
def priors(ctx: typer.Context) -> None:
    """List the priors that recipes name, and which are here.

    prior.source takes these names. The first run with one fetches it; ld3m priors get NAME fetches it ahead, as for a
    machine without a network.
    """
    if ctx.invoked_subcommand is None:
        from ld3m.priors.getting import listing

        typer.echo(listing())


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As ld3m priors lists it.")],
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|URL",
            help="Take it from a mirror's URL, hub:USER/NAME, or what was fetched by hand: a checkpoint, a zip archive "
            "with one, or a folder in diffusers' layout.",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace what is here.")] = False,
) -> None:
    """Fetch a prior ahead of a run, and print its folder.

    For example: ld3m priors get cin256-v2 --from model.ckpt

    An interrupted download resumes. A checkpoint of the original code is converted, which takes disk for both. A prior
    that is here already is only checked, unless you give --again.
    """
    from ld3m.priors.getting import get

    typer.echo(get(name, origin, again, "NAME"))
