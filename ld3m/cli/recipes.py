"""`ld3m recipes`."""

import typer


def recipes() -> None:
    """List the recipes that commands find by name.

    They are those of the package, and the YAML files of the working folder's recipes/. The first lines of each say what
    it needs and how long it takes.
    """
    from ld3m.recipe.files import about_recipes

    typer.echo(about_recipes())
