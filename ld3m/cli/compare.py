"""`ld3m compare`."""

from pathlib import Path
from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import (
    Again,
    AsJson,
    Baselines,
    HowMeasured,
    MeasuredBy,
    Output,
    Split,
    command_line,
    grouped,
    listed,
    names_and_overrides,
    show_report,
)
from ld3m.runs.options import Reading


@grouped
def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SET… [KEY=VALUE…]",
            help="Distilled sets: finished runs, USER/NAME on the Hub, folders of images by class, .pt files; and "
            "overrides, such as evaluate.epochs=300.",
            autocompletion=completion.runs_and_overrides,
        ),
    ],
    recipe: MeasuredBy = None,
    *,
    reading: Reading,
    measured: HowMeasured,
    against: Baselines = "",
    published: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A YAML or JSON list of published figures to show beside them, each with name, arch, accuracy, "
            "protocol and source, and if they are known std, networks and images_per_class.",
        ),
    ] = None,
    split: Split = "test",
    again: Again = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure several sets by one protocol, in one table.

    There is a chart with intervals, too. For example: ld3m compare runs/mine user/name images_best.pt --recipe
    fashion-mnist --against random,herding --seeds 5

    The data and the protocol are those of --recipe, or of the first run among the sets. Sets of other classes or sizes
    are refused; numbers of images and bytes may differ and are shown, and baselines have as many images as each set.

    A second table has the difference of every pair of sets, paired by seed, with intervals and p-values that are
    corrected for the number of comparisons, and says which differences hold. That takes three networks or more of each.
    Published figures are shown with their source; they are not tested.

    DIR/comparison.json, .md, .html and .svg are written; DIR is --output, by default `comparisons/SET-SET…`. Accuracies
    are kept in the cache by the content of a set: an interrupted comparison resumes, and one with a further set trains
    only what is new. Several processes share the networks: ld3m launch compare SET …
    """
    names, overrides = names_and_overrides(arguments)
    overrides = measured.overrides(overrides)
    from ld3m.comparison.compare import compare
    from ld3m.comparison.table import markdown

    report, folder, is_main = compare(
        names, overrides, recipe, reading, listed(against), published, split, again, output, command_line()
    )
    if is_main:
        show_report(report, as_json, markdown)
        typer.echo(f"written to {folder / 'comparison.html'}, .md, .json and .svg", err=True)
