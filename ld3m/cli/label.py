"""`ld3m label`."""

from typing import Annotated

import typer

from ld3m.cli.arguments import MeasuredBy, ProtocolName, SetAndOverrides, grouped, names_and_overrides
from ld3m.evaluation.options import Kept
from ld3m.runs.options import Reading


@grouped
def label(
    arguments: SetAndOverrides = None,
    recipe: MeasuredBy = None,
    *,
    reading: Reading,
    protocol: ProtocolName = None,
    kept: Kept,
    again: Annotated[bool, typer.Option("--again", help="Replace labels that are there already.")] = False,
) -> None:
    """Store a teacher's soft labels with a distilled set.

    For example: ld3m label runs/shapes teacher.source=teachers/shapes --protocol rded --epochs 300

    Networks are then trained with them and without the teacher, also by others once the set is pushed. Labels of epochs
    are of what a network sees in them by the protocol: crops, mixed images. Interrupt it at any time: the same command
    resumes.
    """
    names, overrides = names_and_overrides(arguments)
    from ld3m.comparison.named_sets import set_and_recipe
    from ld3m.evaluation.label import label
    from ld3m.recipe.evaluation import from_own_values

    folder, measured_by = set_and_recipe(names, recipe, from_own_values(overrides, protocol), reading)
    label(folder, measured_by, kept, again)
