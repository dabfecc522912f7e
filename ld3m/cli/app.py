"""The program: its commands, in the panels and the order that `ld3m --help` shows."""

import os
import sys
from typing import Annotated

import typer

from ld3m.cli.ablate import ablate
from ld3m.cli.auto import auto
from ld3m.cli.compare import compare
from ld3m.cli.convert_prior import convert_prior
from ld3m.cli.distill import distill
from ld3m.cli.env import env
from ld3m.cli.evaluate import evaluate
from ld3m.cli.experts import experts
from ld3m.cli.export import export
from ld3m.cli.keys import keys
from ld3m.cli.label import label
from ld3m.cli.launch import launch
from ld3m.cli.plan import plan
from ld3m.cli.priors import app as priors
from ld3m.cli.push_to_hub import push_to_hub
from ld3m.cli.recipes import recipes
from ld3m.cli.render import render
from ld3m.cli.report import report
from ld3m.cli.sample import sample
from ld3m.cli.status import status
from ld3m.cli.train_prior import train_prior
from ld3m.cli.train_teacher import train_teacher
from ld3m.cli.tune import tune
from ld3m.launched import is_first_process

PANELS = {
    "Make": (distill, auto, sample, plan, train_prior, train_teacher, experts, convert_prior, launch),
    "Measure": (evaluate, compare, ablate, tune),
    "Share": (report, render, label, export, push_to_hub),
    "Inspect": (status, recipes, keys, env),
}
"""The commands by panel, both in the order of a user's day; underscores in a name become dashes."""
SHARED = (
    "distill",
    "auto",
    "sample",
    "train-prior",
    "train-teacher",
    "experts",
    "label",
    "evaluate",
    "compare",
    "ablate",
    "tune",
    "render",
)
"""Commands whose work the processes of a launch share; the first of them alone does others, and dry runs."""
SETTINGS: dict[object, dict[str, bool]] = {launch: {"ignore_unknown_options": True, "allow_interspersed_args": False}}
"""How the words of a command are read, if not by its own options alone."""

app = typer.Typer(
    name="ld3m",
    help="Distil an image data set into a few images per class through a frozen latent diffusion model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # the other modes keep the line breaks of the docstrings
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        from ld3m import __version__

        typer.echo(f"ld3m {__version__}")
        raise typer.Exit


@app.callback()
def ld3m(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil an image data set into a few images per class through a frozen latent diffusion model."""
    further = os.environ.get("TORCHELASTIC_ERROR_FILE") and not is_first_process()
    if further and (context.invoked_subcommand not in SHARED or "--dry-run" in sys.argv):
        raise typer.Exit


for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel, context_settings=SETTINGS.get(command))(command)
app.add_typer(priors, name="priors", rich_help_panel="Inspect")
