"""The command that makes and measures many runs to compare them."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ld3m.cli.app import Output, app


@app.command()
def ablate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE… [KEY=VALUE…]",
            help="YAML files, or names of shipped recipes, and overrides that hold for all of them.",
        ),
    ],
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,…",
            help="A key of the recipe and the values to compare; may be given several times. "
            "The values of seed are distillation seeds, whose networks are pooled into one row.",
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Networks to train, as ld3m evaluate; by default the recipe's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Networks of each kind for each run; by default the recipe's.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Baselines of as many real images: random, herding, k-center, easy, hard, or full; measured once for "
            "cells that share them.",
        ),
    ] = "",
    split: Annotated[str, typer.Option(help="What to test on: test, or validation where some is held out.")] = "test",
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and stop.")] = False,
) -> None:
    """Compare settings: distil and evaluate every combination, and write one table and one chart.

    For example: ld3m ablate fashion-mnist --axis prior.skip=none,reference,paper --axis prior.steps=5,10,20 --axis
    seed=0,1 --against random

    The cells are the product of recipes and axes. Each is an ordinary run, `DIR/<recipe>/<key=value,…>`, which ld3m
    status, report and evaluate take. DIR is --output, by default `ablations/<name of the first recipe>`.

    With two distillation seeds or more a second table has how far each row is from the first one, paired by seed, with
    95 % intervals: name first what the others are to be compared with. Five seeds tell more than two.

    DIR/ablation.json, .md and .svg are written anew after each cell. Interrupted at any moment, the same command goes
    on; what is finished is not made again, also where an axis has more values than before.

    Processes share the classes and the networks of each cell: accelerate launch -m ld3m ablate RECIPE …
    """
    recipes = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    overrides = [argument for argument in arguments if argument not in recipes]
    if arch is not None:
        overrides.append(f"evaluate.arch=[{arch}]")
    if seeds is not None:
        overrides.append(f"evaluate.seeds={seeds}")
    from ld3m.ablation.ablate import ablate as run_all
    from ld3m.ablation.cells import Ablation
    from ld3m.ablation.table import markdown

    names = [name for name in against.split(",") if name]
    ablation = Ablation.of(recipes, overrides, axis or [], Path(output) if output else None, names, split)
    if dry_run:
        for cell in ablation.cells:
            typer.echo(f"{cell.recipe.folder}: {cell.name}")
        raise typer.Exit
    report, is_main = run_all(ablation, f"ld3m {shlex.join(sys.argv[1:])}")
    if is_main:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False) if as_json else markdown(report), nl=as_json)
