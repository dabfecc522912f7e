"""`ld3m evaluate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ld3m.cli.arguments import (
    Again,
    AsJson,
    HowMeasured,
    MeasuredBy,
    SetAndOverrides,
    Split,
    Whitening,
    folder_to_write,
    grouped,
    names_and_overrides,
)
from ld3m.runs.options import Reading


def _sets(listed: str) -> list[str]:
    """Names between commas; the run folders of an ablation may have commas in their names too."""
    names, parts = [], [part for part in listed.split(",") if part]
    while parts:
        joined = [",".join(parts[:count]) for count in range(len(parts), 0, -1)]
        names.append(next((name for name in joined if Path(name).is_dir()), parts[0]))
        parts = parts[names[-1].count(",") + 1 :]
    return names


@grouped
def evaluate(
    arguments: SetAndOverrides = None,
    recipe: MeasuredBy = None,
    *,
    reading: Reading,
    measured: HowMeasured,
    whitening: Whitening = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="Baselines, trained in the same way: as many real images chosen by random, herding, k-center, easy or "
            "hard; rded for as many mosaics of the easiest crops, as RDED makes them; full for all real images, during "
            "evaluate.full_epochs epochs; or the folder of another run of the same data.",
        ),
    ] = "",
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Also measure what DD-Ranking's label-robust and augmentation-robust scores need: the baselines "
            "random and full, and distilled and random with and without augmentation.",
        ),
    ] = False,
    split: Split = "test",
    again: Again = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=folder_to_write,
            help="The folder for evaluation.json, if the run is not yours to write to; ld3m report takes the same.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train networks on a distilled set, test them on real images.

    Prints mean ± std over seeds for each architecture, and for the mean over all architectures but the one the set was
    distilled with. For each baseline it prints the mean difference, its 95 % interval and the p-value of a t-test
    paired by seed. All of it is added to the run's evaluation.json, with how the networks were trained: there is a
    table for each way.

    Nothing is chosen on the test set: the images are those of the last iteration, and a network's accuracy is that
    after its last epoch; --best puts the best of several tests beside it. To compare settings, distil with
    data.validation_share=0.1 and use --split validation.

    Interrupt it at any time: the same command resumes with the network it was training. What was measured in the same
    way before is reused; accuracies of baselines are kept in the cache, where evaluations of other runs find them.

    Sets of other people are measured by the same protocol: ld3m evaluate user/name, or ld3m evaluate images_best.pt
    --recipe fashion-mnist; their classes are matched by name, id or number, which is printed (recipes/SETS.md)
    """
    names, overrides = names_and_overrides(arguments)
    overrides = measured.overrides(overrides)
    overrides += [f"evaluate.whitening={whitening}"] if whitening else []
    from ld3m.comparison.named_sets import set_and_recipe
    from ld3m.evaluation.evaluate import evaluate
    from ld3m.evaluation.tables import accuracy_table

    folder, measured_by = set_and_recipe(names, recipe, overrides, reading)
    report, is_main = evaluate(folder, measured_by, _sets(against), split, scores, again, output)
    if is_main:
        typer.echo(json.dumps(report, indent=2) if as_json else accuracy_table(report))
