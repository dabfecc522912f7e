"""The command line: one function a command; whatever is heavy is imported inside."""

from typing import Annotated

import typer

app = typer.Typer(
    name="ld3m",
    help="Distil an image data set into a few images per class through a frozen latent diffusion model.",
    no_args_is_help=True,
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


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as distill.iterations=200."),
]
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Where the result goes.")]
Resume = Annotated[bool, typer.Option(help="Go on with an unfinished run of the same recipe, or start anew.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]


def _overrides(overrides: list[str] | None, output: str | None) -> list[str]:
    return [*(overrides or []), *([f"output={output}"] if output else [])]


@app.command("train-prior")
def train_prior(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = True,
    dry_run: DryRun = False,
) -> None:
    """Train a small class-conditional latent diffusion model on your own images, and judge it."""
    from ld3m.recipe import PriorRecipe, load, to_yaml

    resolved = load(PriorRecipe, recipe, _overrides(overrides, output))
    if dry_run:
        typer.echo(to_yaml(resolved), nl=False)
        return
    from ld3m.train_prior import train_prior

    train_prior(resolved, resume)
