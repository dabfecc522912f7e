"""`ld3m ablate`."""

from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import (
    AsJson,
    Baselines,
    HowMeasured,
    Output,
    Split,
    command_line,
    grouped,
    listed,
    names_and_overrides,
    show_report,
)


@grouped
def ablate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE… [KEY=VALUE…]",
            help="YAML files or names of shipped recipes, and overrides that apply to all of them.",
            autocompletion=completion.recipes_and_overrides,
        ),
    ],
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,…",
            help="A key of the recipe and the values to compare; may be repeated. The values of seed are distillation "
            "seeds, whose networks are pooled into one row.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    *,
    measured: HowMeasured,
    against: Baselines = "",
    split: Split = "test",
    output: Output = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and exit.")] = False,
) -> None:
    """Distil, evaluate and compare combinations of settings.

    For example: ld3m ablate fashion-mnist --axis prior.skip=none,reference,paper --axis prior.steps=5,10,20 --axis
    seed=0,1 --against random

    A cell is one combination of a recipe and a value of each axis. Each cell is an ordinary run in
    `DIR/<recipe>/<key=value,…>`, which ld3m status, report and evaluate accept. DIR is --output, by default
    `ablations/<name of the first recipe>`.

    With two or more distillation seeds, a second table compares each row with the first, paired by seed, with 95 %
    intervals; so name first what the others are compared with. Five seeds give much tighter intervals than two.

    DIR/ablation.json, .md and .svg are updated after each cell. Interrupt it at any time: the same command resumes, and
    finished cells are kept, even if you add values to an axis.

    Several processes share the classes and the networks of each cell: ld3m launch ablate RECIPE …
    """
    recipes, overrides = names_and_overrides(arguments)
    overrides = measured.overrides(overrides)
    from ld3m.ablation.ablate import ablate as run_all
    from ld3m.ablation.cells import Ablation
    from ld3m.ablation.table import markdown

    ablation = Ablation.of(recipes, overrides, axis or [], output, listed(against), split)
    if dry_run:
        from ld3m.distillation.inputs import check_classes

        for cell in ablation.cells:
            check_classes(cell.recipe)
            typer.echo(f"{cell.recipe.folder}: {cell.name}")
        raise typer.Exit
    report, is_main = run_all(ablation, command_line())
    if is_main:
        show_report(report, as_json, markdown)
