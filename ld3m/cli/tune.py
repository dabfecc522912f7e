"""`ld3m tune`."""

import shlex
import sys
from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import (
    AsJson,
    HowMeasured,
    Output,
    Overrides,
    RecipeArgument,
    command_line,
    grouped,
    show_report,
)
from ld3m.tuning.options import Budget


@grouped
def tune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=…",
            help="A key to search: a list `KEY=A,B`, or a range `KEY=0.03..3`, logarithmic if it spans a factor of ten "
            "(`:log` or `:linear` at its end decide). After a condition, `prior.skip=paper:distill.lr_latents=5..500`. "
            "May be repeated.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(
            metavar="rates|all",
            help="Axes that come ready for the recipe's objective, skip, prior and images per class: its learning "
            "rates, or all that matters.",
        ),
    ] = None,
    *,
    budget: Budget,
    measured: HowMeasured,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print axes and rungs, and exit.")] = False,
) -> None:
    """Search the best settings on held-out training images.

    For example: ld3m tune fashion-mnist --axes rates --axis prior.skip=none,reference,paper --trials 30 --seeds 2

    Optuna draws candidates (the first is the recipe as it is). Each is distilled and evaluated in a short run, and the
    best third are promoted to runs three times as long, up to the recipe's own iterations and epochs. Candidates that
    end within a point of the best get three distillations. Images to measure on are held out of the training images
    (`data.validation_share`, 0.1 if the recipe has none); test images are not read before --final.

    DIR/best.yaml is a recipe: ld3m distill DIR/best.yaml. DIR/tune.md, .json and .svg have all candidates, and what
    mattered. DIR is --output, by default `tunings/<name of the recipe>`. Interrupt it at any time: the same command
    resumes, and one with more --trials or --minutes continues the search.

    The processes of a launch take trials of their own, and so do commands on other machines that share DIR: ld3m launch
    tune RECIPE …
    """
    own = measured.overrides(list(overrides or []))
    from ld3m.tuning.search import Search
    from ld3m.tuning.table import beginning, markdown

    search = Search.of(recipe, own, axis or [], axes, output, budget)
    if dry_run:
        typer.echo("\n".join(beginning(search, [])))
        raise typer.Exit
    from ld3m.tuning.tune import tune as run

    outcome = run(search, command_line())
    if outcome.is_main:
        show_report(outcome.report, as_json, markdown)
        print(
            f"best: {outcome.best.name}; next: ld3m distill {shlex.quote(str(search.folder / 'best.yaml'))}",
            file=sys.stderr,
        )
