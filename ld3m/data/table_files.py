"""Tables on disk: Parquet and Arrow files, what `datasets` saved, and copies of data sets of the Hub."""

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ld3m.data import tables
from ld3m.data.examples import Source
from ld3m.data.layouts.identity import Identity
from ld3m.data.layouts.listing import (
    check_regular,
    files_below,
    has_images_itself,
    holds_images,
    printable,
    sub_folders,
)
from ld3m.data.layouts.split_names import split_of
from ld3m.errors import UserError, one_line
from ld3m.reading import HEAD, foreign_kind, read_text
from ld3m.recipe import DataRecipe

SUFFIXES = (".parquet", ".arrow")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files that list the images beside them and their labels, as the Hub's image folders have."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".jsonl", ".csv", ".json")
"""What else `datasets` may make images of."""


def hub_snapshot(folder: Path) -> Path:
    """The newest files of a data set in the Hub's cache, whose folder holds blobs, refs and snapshots."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    revision = folder / "refs" / "main"
    newest = snapshots / read_text(revision, "give a folder in snapshots/").strip() if revision.is_file() else None
    return newest if newest and newest.is_dir() else folder


def is_table_folder(folder: Path) -> bool:
    """Whether a folder is to be read as tables: files of rows, or images beside a file that lists their labels.

    Tables in folders of images do not count.
    """
    if _metadata(folder) or files_below(folder, SUFFIXES):
        return True
    return not holds_images(folder) and bool(files_below(folder, ARCHIVES))


def from_files(path: Path, recipe: DataRecipe, classes: Sequence[str] | None = None) -> Source:
    """The tables of a file, of the files of a pattern, or of a folder.

    A folder may be what `save_to_disk` wrote, a clone or snapshot of a data set of the Hub, or hold Parquet or Arrow
    files whose names, or whose folders' names, say their splits.

    Args:
        path: of the file or folder, or a pattern.
        classes: names to give the classes, in their order; left out, their own.

    Raises:
        UserError: if there is no such file, or it cannot be read, or it is not clear which data set is meant, or as
            `tables.from_splits` does.
    """
    name = printable(str(path))
    if path.is_dir():
        if saved := _saved(path):
            files = [file for folder in saved.values() for file in files_below(folder, (".arrow", ".json"))]
            loaded = _LazyTables({split: partial(_load_saved, folder) for split, folder in saved.items()})
            folders = list(saved.values())
            return tables.from_splits(loaded, name, recipe, lambda used: _identity(files), classes, folders)
        files = [file for file in files_below(path, SUFFIXES) if not file.name.startswith("cache-")]
        if _metadata(path) or _has_configurations(path / "README.md"):
            return tables.hub(str(path), recipe, classes)
        if not files:
            try:
                return tables.hub(str(path), recipe, classes)
            except UserError as error:
                raise UserError(f"{error}; unpack archives of images into <class>/ folders") from None
        _refuse_several(path, files)
    else:
        files = [path] if path.is_file() else sorted(map(Path, glob.iglob(str(path), recursive=True)))  # noqa: PTH207
    files = [file for file in files if not file.is_dir()]
    if not files:
        raise UserError(f"data.source: no file matches {name}")
    for file in files:  # mistakes are reported before anything is copied
        _check(file, recipe)
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_name(file, _fixed_part(path)), []).append(file)
    unnamed = [split for split in splits if split_of(split) is None]
    if len(unnamed) > 1 and not any(split_of(split) == "train" for split in splits):
        splits[", ".join(unnamed)] = [file for split in unnamed for file in splits.pop(split)]
    loaded = _LazyTables({split: partial(_load, chosen) for split, chosen in splits.items()})
    folders = list(dict.fromkeys([*(file.parent for file in files), *([path] if path.is_dir() else [])]))
    return tables.from_splits(loaded, name, recipe, lambda used: _identity(files), classes, folders)


class _LazyTables(Mapping[str, Any]):
    """Tables by split, each loaded when it is asked for: a split that is not used is not copied."""

    def __init__(self, load: Mapping[str, Callable[[], Any]]) -> None:
        self._load = load
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, split: str) -> Any:
        if split not in self._loaded:
            self._loaded[split] = self._load[split]()
        return self._loaded[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load)

    def __len__(self) -> int:
        return len(self._load)


def _check(file: Path, recipe: DataRecipe) -> None:
    """Raises a UserError if a file is no table with the columns of images and labels."""
    import datasets
    import pyarrow.parquet

    name = printable(str(file))
    try:
        check_regular(file)
        with file.open("rb") as opened:
            if kind := foreign_kind(opened.read(HEAD)):
                raise ValueError(f"it is {kind}")
        if file.suffix.lower() == ".arrow":
            with pyarrow.memory_map(str(file)) as source:
                schema = pyarrow.ipc.open_stream(source).schema
        else:
            schema = pyarrow.parquet.read_schema(file)
        features = datasets.Features.from_arrow_schema(schema)
    except Exception as error:
        kind = "Arrow" if file.suffix.lower() == ".arrow" else "Parquet"
        raise UserError(f"data.source: {name} is not readable as {kind} ({one_line(error)})") from None
    tables.check_columns(features, recipe)


def _load(files: Sequence[Path]) -> Any:
    import datasets

    arrow = [str(file) for file in files if file.suffix.lower() == ".arrow"]
    parquet = [glob.escape(str(file)) for file in files if str(file) not in arrow]
    # datasets keeps its Arrow copy of Parquet by path and time of change alone
    copies = Path(datasets.config.HF_DATASETS_CACHE) / "ld3m" / _identity(files)[:20]
    try:
        parts = [datasets.Dataset.from_file(file) for file in arrow]
        parts += [datasets.Dataset.from_parquet(parquet, cache_dir=str(copies))] if parquet else []
        return datasets.concatenate_datasets(parts)
    except Exception as error:  # columns that differ from file to file, no room for the Arrow copy, …
        raise UserError(f"data.source: cannot load {printable(str(files[0]))} ({one_line(error)})") from None


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:
        raise UserError(f"data.source: cannot load {printable(str(folder))} ({one_line(error)})") from None


def _saved(folder: Path) -> dict[str, Path]:
    """The folders that `save_to_disk` wrote, by split; a folder of one data set is its training split."""
    if (folder / "state.json").is_file():
        return {"train": folder}
    return {child.name: child for child in sub_folders(folder) if (child / "state.json").is_file()}


def _fixed_part(path: Path) -> Path:
    """The folder that was named, above which no folder says the split of one file only."""
    if path.is_dir():
        return path
    return next((each for each in path.parents if not glob.has_magic(str(each))), Path())


def _split_name(file: Path, root: Path) -> str:
    """What a file's split is called: its name without numbers of parts, or the nearest folder that says a split.

    Folders from `root` upward hold all files: what they say of testing or validation is not meant of them.
    """
    stem = re.sub(r"([-_. ]*\d+)?([-_. ]*of[-_. ]*\d+)?$", "", file.stem) or file.stem
    below = [parent.name for parent in file.parents if root in parent.parents]
    above = [parent.name for parent in file.parents if root not in parent.parents and split_of(parent.name) == "train"]
    return next((name for name in [stem, *below, *above] if split_of(name)), stem)


def _refuse_several(folder: Path, files: Sequence[Path]) -> None:
    """Raises a UserError if tables lie in several folders that are not called by splits: configurations, versions."""
    places: dict[tuple[str, ...], None] = {}
    for file in files:
        parts = file.relative_to(folder).parts[:-1]
        places[tuple(part for part in parts if not split_of(part))] = None
    if len(places) > 1:
        several = ", ".join(printable(str(folder.joinpath(*parts))) for parts in places)
        raise UserError(
            f"data.source: {printable(str(folder))} holds several data sets; give one of {several}, or a pattern"
        )


def _has_configurations(card: Path) -> bool:
    """Whether a data set's README says which files are which split."""
    return card.is_file() and bool(
        re.match(r"---\n(.*\n)?configs:(.*\n)*?.*data_files:", read_text(card, "remove or repair it"))
    )


def _metadata(folder: Path) -> bool:
    """Whether a folder of images, or of splits of images, has a file that lists their labels."""
    return any(
        (each / name).is_file() and has_images_itself(each)
        for each in [folder, *sub_folders(folder)]
        for name in METADATA
    )


def _identity(files: Sequence[Path]) -> str:
    identity = Identity()
    for file in files:
        identity.add(file.resolve())
    return identity.digest()
