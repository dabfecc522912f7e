"""Sources by what `data.source` says: a name that is known, a folder, Parquet files, the Hub, or another package's."""

from collections.abc import Callable
from pathlib import Path

from ld3m import registry
from ld3m.data import folders, tables
from ld3m.data.examples import Source
from ld3m.data.known import digits, fashion_mnist, imagenet
from ld3m.errors import UserError
from ld3m.recipe import DataRecipe

SOURCES: dict[str, Callable[[DataRecipe], Source]] = {
    "digits": digits.source,
    "fashion-mnist": fashion_mnist.source,
    "fashion-mnist-small": fashion_mnist.small_source,
    "imagenet": imagenet.source,
}
"""Sources by the name that `data.source` gives; other packages add theirs through entry points of the group
`ld3m.sources`, over which a file or folder of the same name takes precedence."""


def check_source(recipe: DataRecipe) -> None:
    """That `data.source` and `data.root` are there; nothing is opened, and the Hub is not asked.

    Raises:
        UserError: if one is not.
    """
    name, root = recipe.source, recipe.root
    if not (name in SOURCES or name.startswith("hub:") or "*" in name or Path(name).exists()):
        offered = registry.plugins("ld3m.sources")
        if name not in offered:
            known = ", ".join([*SOURCES, *sorted(offered)])
            raise UserError(
                f"data.source: {name!r} is not there; give a folder, Parquet files, hub:<id>, or one of {known}"
            )
    if root and not root.startswith("hub:") and not Path(root).is_dir():
        raise UserError(f"data.root: {root!r} is not a folder; give one that has train/ and val/, or hub:<id>")


def open_source(recipe: DataRecipe) -> Source:
    """The source that `data.source` names.

    Raises:
        UserError: if it is not there, or does not hold what the recipe asks of it.
    """
    check_source(recipe)
    name = recipe.source
    if name in SOURCES:
        return SOURCES[name](recipe)
    if name.startswith("hub:"):
        return tables.hub(name.removeprefix("hub:"), recipe)
    path = Path(name)
    if "*" in name or path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return tables.parquet(path, recipe)
    if path.is_dir():
        return folders.image_folder(path)
    if path.exists():
        raise UserError(f"data.source: {path} is neither a folder nor a .parquet file")
    return registry.find("ld3m.sources", SOURCES, name, "data.source")(recipe)
