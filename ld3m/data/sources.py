"""Sources by what `data.source` says: a name that is known, a folder, Parquet files, the Hub, or another package's."""

import glob
import re
from collections.abc import Callable
from pathlib import Path

from ld3m.data import folders, table_files, tables
from ld3m.data.class_choice import choose_from
from ld3m.data.examples import Source
from ld3m.data.known import digits, fashion_mnist, ilsvrc, imagenet
from ld3m.data.layouts.listing import exists
from ld3m.errors import UserError
from ld3m.recipe import DataRecipe, DistilledDataRecipe
from ld3m.registry import Registry

SOURCES: Registry[Callable[[DataRecipe], Source]] = Registry(
    "ld3m.sources",
    "data.source",
    {
        "digits": digits.source,
        "fashion-mnist": fashion_mnist.source,
        "fashion-mnist-small": fashion_mnist.small_source,
        "imagenet": ilsvrc.source,
    },
)
"""Over those of other packages a file or folder of the same name takes precedence."""


def check_source(recipe: DataRecipe) -> None:
    """That `data.source` and `data.root` are there, and ImageNet's folder is one; the Hub is not asked.

    Raises:
        UserError: if one is not.
    """
    _check_there(recipe)
    if recipe.source == "imagenet":
        ilsvrc.check(recipe)


def check_access(recipe: DataRecipe) -> None:
    """That the Hub lets us read the images, if they come from there; no image is fetched.

    Raises:
        UserError: if it does not.
    """
    if recipe.source == "imagenet":
        ilsvrc.check_access(recipe)
    elif recipe.source.startswith("hub:"):
        tables.check_access(recipe.source.removeprefix("hub:"))


def _check_there(recipe: DataRecipe) -> None:
    """That `data.source` and `data.root` are there; nothing is opened."""
    name, root = recipe.source, recipe.root
    if "*" in name and not exists(name) and not name.startswith("hub:") and not _matches(name):
        raise UserError(f"data.source: no file matches {name}")
    if not (name.startswith("hub:") or exists(name) or "*" in name or name in SOURCES.names):
        known = ", ".join(SOURCES.names)
        raise UserError(
            f"data.source: {name!r} is not there; give a folder, Parquet files, hub:<id>, or one of {known}"
        )
    path = Path(name)
    if name not in SOURCES and exists(name) and not (path.is_dir() or path.suffix.lower() in table_files.SUFFIXES):
        raise UserError(f"data.source: {path} is neither a folder nor a .parquet or .arrow file")
    if root and not root.startswith("hub:") and not (exists(root) and Path(root).is_dir()):
        raise UserError(f"data.root: {root!r} is not a folder; give one that has train/ and val/, or hub:<id>")


def _matches(pattern: str) -> bool:
    """Whether a pattern matches any file; one that is none is reported when it is opened."""
    try:
        return any(True for _ in glob.iglob(pattern, recursive=True))  # noqa: PTH207
    except (OSError, ValueError, re.error):
        return True


def open_source(recipe: DataRecipe) -> Source:
    """The source that `data.source` names.

    Raises:
        UserError: if it is not there, or does not hold what the recipe asks of it, or has a single class, which leaves
            nothing to tell apart.
    """
    _check_there(recipe)
    source = _open(recipe)
    _check_several(source, recipe)
    return source


def class_names(recipe: DataRecipe) -> list[str] | None:
    """The classes that a recipe chooses, as far as names of folders tell; no image is opened, no network asked.

    Returns:
        their names; None if only the opened source tells.

    Raises:
        UserError: if `data.source` is not there, its folders are not laid out as classes, or `data.subset` names none.
    """
    check_source(recipe)
    source = _outline(recipe)
    if source is None:
        return None
    _check_several(source, recipe)
    chosen = choose_from(source, recipe.subset)
    return [source.classes[label] for label in chosen]


def _outline(recipe: DataRecipe) -> Source | None:
    """A source without its images; None if it must be opened."""
    name, path = recipe.source, Path(recipe.source)
    if name == "digits":
        return Source(digits.CLASSES, {}, "")
    if name in ("fashion-mnist", "fashion-mnist-small"):
        return Source(fashion_mnist.CLASSES, {}, "")
    if name == "imagenet" and recipe.subset is not None:  # else a small copy may have fewer
        return Source(imagenet.names(), {}, "", imagenet.numbers(), imagenet.subsets())
    if name in SOURCES or name.startswith("hub:") or not path.is_dir():
        return None
    path = table_files.hub_snapshot(path)
    return None if table_files.is_table_folder(path) else folders.outline(path)


def _check_several(source: Source, recipe: DataRecipe) -> None:
    """Raises a UserError if there is one class only."""
    if len(source.classes) < 2 and isinstance(recipe, DistilledDataRecipe):
        raise UserError(
            f"data.source: {recipe.source} has one class only ({', '.join(source.classes)}); give a folder of "
            "train/<class>/ and test/<class>/, or of <class>/ folders, with two classes or more"
        )


def _open(recipe: DataRecipe) -> Source:
    name = recipe.source
    if name in SOURCES:
        return SOURCES[name](recipe)
    if name.startswith("hub:"):
        return tables.hub(name.removeprefix("hub:"), recipe)
    path = Path(name)
    if path.is_dir():
        path = table_files.hub_snapshot(path)
        return table_files.from_files(path, recipe) if table_files.is_table_folder(path) else folders.image_folder(path)
    if "*" in name or path.suffix.lower() in table_files.SUFFIXES:
        return table_files.from_files(path, recipe)
    return SOURCES.find(name)(recipe)
