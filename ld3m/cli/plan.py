"""`ld3m plan`."""

import json
from typing import Annotated

import typer

from ld3m.cli.arguments import AsJson, Overrides, RecipeArgument, resolve


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=10**6, help="Processes that share the classes.")
    ] = 1,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Look this GPU up in a table instead of measuring this machine: a100-40gb, a100-80gb, h100-80gb, "
            "h200-141gb, l4-24gb, l40s-48gb, rtx-3090-24gb, rtx-4090-24gb, rtx-a6000-48gb, t4-16gb, v100-32gb.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a run's memory, hours and disk space beforehand.

    By default it times part of an iteration on this machine, in about a minute: ld3m plan quickstart

    With --device it needs neither images nor weights, of a prior without a known name only the JSON files of its
    folder: ld3m plan imagenet1k --processes 8 --device h100-80gb

    It also counts shards, denoiser calls, communication and the hours of ld3m evaluate, warns of what will not fit, and
    names the override that makes it fit.
    """
    from dataclasses import asdict

    from ld3m.recipe import Recipe

    resolved = resolve(Recipe, recipe, overrides)
    from ld3m.distillation.plan import plan
    from ld3m.distillation.plan_text import plan_text

    result = plan(resolved, processes, device)
    typer.echo(json.dumps(asdict(result), indent=2) if as_json else plan_text(result))
