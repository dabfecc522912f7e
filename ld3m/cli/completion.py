"""What the shell offers when Tab is pressed: recipes, keys with values, run folders. Nothing here imports PyTorch."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

PRIOR_RECIPES = "prior-"
"""How names of recipes for `ld3m train-prior` start."""
RUNS = ("runs/*", "imported/*", "ablations/*/*/*")
"""Where the commands put run folders, below the working folder."""


def recipes(incomplete: str) -> list[str]:
    """Names of recipes of distillations that start with the incomplete word."""
    return [name for name in _shipped(incomplete) if not name.startswith(PRIOR_RECIPES)]


def prior_recipes(incomplete: str) -> list[str]:
    """Names of recipes of priors."""
    return [name for name in _shipped(incomplete) if name.startswith(PRIOR_RECIPES)]


def runs(incomplete: str) -> list[str]:
    """Run folders, finished or not."""
    recipe_files = (path for pattern in RUNS for path in Path().glob(f"{pattern}/recipe.yaml"))
    return sorted(_starting_with(incomplete, (path.parent.as_posix() for path in recipe_files)))


def networks(incomplete: str) -> list[str]:
    """Names of networks, of which several are given with commas between them."""
    from ld3m.evaluation.rows import ARCHS

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in ARCHS if name.startswith(last)]


def keys(incomplete: str) -> list[str]:
    """Keys of both kinds of recipe."""
    from ld3m.recipe import Recipe
    from ld3m.recipe.keys import keys
    from ld3m.recipe.prior import PriorRecipe

    return _starting_with(incomplete, dict.fromkeys([*keys(Recipe), *keys(PriorRecipe)]))


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """`KEY=VALUE` of a recipe of a distillation."""
    from ld3m.recipe import Recipe

    return _overrides(Recipe, _previous(ctx), incomplete)


def prior_overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """`KEY=VALUE` of a recipe of a prior."""
    from ld3m.recipe.prior import PriorRecipe

    return _overrides(PriorRecipe, _previous(ctx), incomplete)


def recipes_and_overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """For an argument that takes both."""
    return recipes(incomplete) + overrides(ctx, incomplete)


def runs_and_overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """For an argument that takes both."""
    return runs(incomplete) + overrides(ctx, incomplete)


def skips(incomplete: str) -> list[str]:
    """The decaying skip's placements."""
    from ld3m.recipe import Recipe

    return _starting_with(incomplete, _values(Recipe, "prior.skip"))


def splits(incomplete: str) -> list[str]:
    """Images that networks may be tested on."""
    return _starting_with(incomplete, ("test", "validation"))


def layouts(incomplete: str) -> list[str]:
    """Layouts that a set can be exported in."""
    return _starting_with(incomplete, ("folder", "rded", "rethinkdc", "pt"))


def protocols(incomplete: str) -> list[str]:
    """How networks are trained and tested."""
    from ld3m.evaluation.protocols import PROTOCOLS

    return _starting_with(incomplete, PROTOCOLS.names)


def _starting_with(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _shipped(incomplete: str) -> list[str]:
    from ld3m.recipe.files import shipped

    return _starting_with(incomplete, shipped())


def _previous(ctx: typer.Context) -> Sequence[str]:
    """The words before the incomplete one that belong to the same argument."""
    return next((value for value in ctx.params.values() if isinstance(value, list | tuple)), ())


def _overrides(kind: "type[BaseModel]", previous: Sequence[str], incomplete: str) -> list[str]:
    """Keys that match, each with a = after it; if only one matches, also with its values.

    Bash ends a word at each =, so a value may come alone: after the key, or after the key and the =.
    """
    from ld3m.recipe.keys import keys

    known = keys(kind)
    key, equals, _ = incomplete.partition("=")
    before = [word for word in previous[-2:] if word != "="]
    if before and before[-1] in known:
        return _starting_with(incomplete, _values(kind, before[-1]))
    if equals:
        return _starting_with(incomplete, (f"{key}={value}" for value in _values(kind, key))) if key in known else []
    matching = _starting_with(incomplete, known)
    if len(matching) == 1:  # with a second word to choose from, shells put no blank after the =
        return [f"{matching[0]}=", *(f"{matching[0]}={value}" for value in _values(kind, matching[0]))]
    return [f"{key}=" for key in matching]


def _values(kind: "type[BaseModel]", key: str) -> list[str]:
    """The values that a key's type lists, and its default if it has one."""
    *sections, last = key.split(".")
    for section in sections:
        kind = kind.model_fields[section].annotation  # type: ignore[assignment]
    field = kind.model_fields[last]
    values = list(_named(field.annotation))
    if isinstance(field.default, str | int | float) and not isinstance(field.default, bool):
        values.append(str(field.default))
    return list(dict.fromkeys(values))


def _named(annotation: Any) -> Iterator[str]:
    """The values that a type lists."""
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            if member is not type(None):
                yield from _named(member)
