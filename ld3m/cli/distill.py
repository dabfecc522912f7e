"""`ld3m distill`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import DryRun, NoResume, Output, Overrides, RecipeArgument, resolve


def distill(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Resume from this run or checkpoint: in its own folder, or in that of --output.",
            autocompletion=completion.runs,
        ),
    ] = None,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Time the parts of a few iterations, write a trace, and exit."),
    ] = False,
) -> None:
    """Distil a data set into a few images per class.

    For example: ld3m distill quickstart distill.iterations=200

    Interrupt it at any time: the same command resumes from the last checkpoint, bit-for-bit. SIGINT, SIGTERM and
    SIGUSR1 save a checkpoint first.

    Several processes share the classes: accelerate launch -m ld3m distill quickstart
    """
    from ld3m.errors import UserError
    from ld3m.recipe import Recipe

    if profile and resume:
        raise UserError("--profile: the first iterations are profiled; leave out --resume")
    if resume and no_resume:
        raise UserError("--resume and --no-resume are mutually exclusive; leave one out")
    if resume and output is None:
        output = os.path.normpath(resume / "../.." if (resume / "manifest.json").is_file() else resume)
    resolved = resolve(Recipe, recipe, overrides, dry_run, output, resume=not (resume or no_resume))
    if profile:
        from ld3m.distillation.profile import profile as take_profile

        typer.echo(take_profile(resolved))
        return
    from ld3m.distillation.loop import distill

    distill(resolved, not no_resume, resume)
