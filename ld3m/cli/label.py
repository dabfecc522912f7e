"""`ld3m label`."""

from typing import Annotated

import typer

from ld3m.cli.arguments import HowRead, MeasuredBy, SetAndOverrides, grouped, names_and_overrides


@grouped
def label(
    arguments: SetAndOverrides = None,
    recipe: MeasuredBy = None,
    *,
    read: HowRead,
    epochs: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=10**6,
            help="Label each image as it is seen in each of so many epochs, which come round again in a longer "
            "training; by default it is labelled once, as it is.",
        ),
    ] = 0,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="K", min=1, help="Keep the K likeliest classes of each label, and of the others what they share."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="How exactly: float16 or float32.")] = "float16",
    again: Annotated[bool, typer.Option("--again", help="Replace labels that are there already.")] = False,
) -> None:
    """Store a teacher's soft labels with a distilled set.

    For example: ld3m label runs/shapes teacher.source=teachers/shapes evaluate.protocol=rded --epochs 300

    Networks are then trained with them and without the teacher, also by others once the set is pushed. Labels of epochs
    are of what a network sees in them by the protocol: crops, mixed images. Interrupt it at any time: the same command
    resumes.
    """
    names, overrides = names_and_overrides(arguments)
    from ld3m.comparison.named_sets import set_and_recipe
    from ld3m.evaluation.label import Kept, label

    folder, measured_by = set_and_recipe(names, recipe, overrides, read.reading)
    label(folder, measured_by, Kept(epochs, top, dtype), again)
