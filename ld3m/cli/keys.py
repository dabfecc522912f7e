"""`ld3m keys`."""

from typing import Annotated

import typer

from ld3m.cli import completion


def keys(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="[PATTERN]",
            help="A key, a part of one, or a word of what they mean; a * stands for any characters.",
            show_default=False,
            autocompletion=completion.keys,
        ),
    ] = "",
) -> None:
    """Explain the keys of recipes: values, default, meaning.

    For example: ld3m keys prior.skip, ld3m keys lr, or ld3m keys memory. Without a pattern it lists all of them, as
    recipes/KEYS.md does.
    """
    from ld3m.recipe.keys import listing

    typer.echo(listing(pattern))
