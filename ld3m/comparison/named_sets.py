"""Sets as a command line names them: their folders, and the recipe by which they are measured."""

from collections.abc import Sequence
from pathlib import Path

from ld3m.comparison.sets import names_of
from ld3m.data.sources import check_source
from ld3m.errors import UserError
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs.folder import is_run, load_recipe
from ld3m.runs.imported import find_set
from ld3m.runs.options import Reading

WITHOUT_FORMATION = ("distill.factor=1", "distill.dm.match=mean")
"""How many images are in one is each set's own; `moments` of one image, which no measurement asks for, is refused."""


def sets_and_recipe(
    names: Sequence[str],
    recipe: str | None,
    overrides: list[str],
    reading: Reading | None = None,
) -> tuple[dict[str, tuple[str, Path]], Recipe]:
    """Several sets, by their names what the command line calls each and its folder; and the recipe that measures all.

    Args:
        recipe: a file, or the name of a shipped recipe; None: that of the first run among them, or of the first.

    Raises:
        UserError: for an unknown set, or a mistake in the recipe.
    """
    if not names:
        raise UserError("SET: name two or more, such as ld3m compare runs/mine runs/other")
    called = names_of(names)
    if recipe is None:
        first = next((name for name in names if is_run(Path(name))), names[0])
        folder, _ = set_and_recipe([first], None, overrides, reading)
        recipe, overrides = str(folder / "recipe.yaml"), [*WITHOUT_FORMATION, *overrides]
    measured_by = load(Recipe, recipe, overrides)
    folders = [set_and_recipe([name], recipe, overrides, reading)[0] for name in names]
    return dict(zip(called, zip(names, folders, strict=True), strict=True)), measured_by


def set_and_recipe(
    names: Sequence[str],
    recipe: str | None,
    overrides: list[str],
    reading: Reading | None = None,
) -> tuple[Path, Recipe]:
    """The folder of a distilled set, and the recipe by which it is measured: its own, unless one is named.

    Args:
        names: one set, or none for the newest finished run in runs/.
        reading: what is said of a set of somebody else that its files do not say; None: nothing.

    Raises:
        UserError: for an unknown set, or a mistake in the recipe.
    """
    folder = find_set(names, recipe, overrides, reading)
    if recipe:
        return folder, load(Recipe, recipe, overrides)
    own = load_recipe(folder, overrides)
    _check_makers_data(own, overrides)
    return folder, own


def _check_makers_data(recipe: Recipe, overrides: Sequence[str]) -> None:
    """That what a set's own recipe names is here: folders of whoever made it may be another machine's.

    Raises:
        UserError: naming the key to give.
    """
    try:
        check_source(recipe.data)
    except UserError as error:
        key = str(error).partition(": ")[0]
        missing = recipe.data.root if key == "data.root" else recipe.data.source
        if any(override.startswith(f"{key}=") for override in overrides):
            raise
        raise UserError(
            f"{key}: '{missing}' is not there: it was a folder of whoever made this set; "
            f"give {key}=YOUR FOLDER of the same images"
        ) from None
