"""`ld3m distill`."""

import os
import shlex
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
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Try every step from the first iteration to the push on a small scale, say what failed and what the "
            "whole will take, and exit; nothing is kept.",
        ),
    ] = False,
) -> None:
    """Distil a data set into a few images per class.

    For example: ld3m distill quickstart distill.iterations=200

    Interrupt it at any time: the same command resumes from the last checkpoint, bit-for-bit. SIGINT, SIGTERM and
    SIGUSR1 save a checkpoint first.

    Several processes share the classes: ld3m launch distill quickstart
    """
    from ld3m.errors import UserError
    from ld3m.recipe import Recipe

    alone = {"--profile": profile, "--dry-run": dry_run, "--resume": resume}
    if profile and resume:
        raise UserError("--profile: the first iterations are profiled; leave out --resume")
    if rehearse and (other := [name for name, given in alone.items() if given]):
        raise UserError(f"--rehearse: is for a run from its start, and exits after it; leave out {' and '.join(other)}")
    if resume and no_resume:
        raise UserError("--resume and --no-resume are mutually exclusive; leave one out")
    if resume and output is None:
        output = Path(os.path.normpath(resume / "../.." if (resume / "manifest.json").is_file() else resume))
    resolved = resolve(Recipe, recipe, overrides, dry_run, output, resume=not (resume or no_resume))
    if profile:
        from ld3m.distillation.profile import profile as take_profile

        typer.echo(take_profile(resolved))
        return
    if rehearse:
        from ld3m.rehearsal.rehearse import rehearse as try_all

        rehearsal = try_all(resolved, not no_resume)
        if not rehearsal.is_main:
            raise typer.Exit(2 if rehearsal.errors else 0)
        typer.echo(rehearsal.conclusion(_command(recipe, overrides, output, no_resume)))
        rehearsal.raise_if_failed()
        return
    from ld3m.distillation.loop import distill

    distill(resolved, not no_resume, resume)


def _command(recipe: str, overrides: list[str] | None, output: Path | None, no_resume: bool) -> str:
    """The command line that starts the run."""
    options = [*(["-o", str(output)] if output else []), *(["--no-resume"] if no_resume else [])]
    return shlex.join(["ld3m", "distill", recipe, *(overrides or []), *options])
