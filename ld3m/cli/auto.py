"""`ld3m auto`."""

import json
from typing import Annotated

import typer

from ld3m.cli import completion
from ld3m.cli.arguments import AsJson, Output


def auto(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="The images: a folder by class, or anything else that `data.source` may be."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Keys of the recipe that stand, such as data.resolution=128; prior.source=… is a prior to try too.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    images_per_class: Annotated[
        int, typer.Option("--images-per-class", "-n", metavar="N", min=1, help="Images of each class in the set.")
    ] = 1,
    minutes: Annotated[
        float, typer.Option(metavar="M", help="The time for everything: pilots, distillation and evaluation.")
    ] = 15,
    output: Output = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what is found, how the time is split, what may be tried, and exit."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the best set of your own images in a given time.

    For example: ld3m auto photos --images-per-class 10 --minutes 30

    It looks at the images, tries several recipes in short pilots on held-out training images, distils by the best one,
    measures the set on test images against random, herded and all real ones, and writes report and card. The result is
    an ordinary run in `runs/auto-<source>`, and auto.yaml in it is its recipe.

    Interrupt it at any time: the same command resumes, and repeats no finished pilot.

    Several processes share the work: ld3m launch auto SOURCE …
    """
    from ld3m.automatic.answer import answer, look, plan_lines, worth_trying
    from ld3m.automatic.question import Question

    question = Question(source, images_per_class, minutes, tuple(overrides or ()), output)
    if dry_run:
        import torch

        accelerator = torch.accelerator.current_accelerator()
        found = look(question, accelerator.type if accelerator else "cpu")
        for line in plan_lines(question, found, worth_trying(question, found)):
            typer.echo(line)
        raise typer.Exit
    from ld3m.evaluation.tables import accuracy_table

    report, is_main = answer(question)
    if is_main:
        typer.echo(json.dumps(report, indent=2) if as_json else accuracy_table(report))
