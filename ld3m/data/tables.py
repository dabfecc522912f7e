"""Images in tables: Parquet files, and data sets of the Hugging Face Hub, both read by `datasets`."""

import glob
import io
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ld3m.data.examples import Example, Examples, Source
from ld3m.data.identity import Identity
from ld3m.errors import UserError, one_line
from ld3m.recipe import DataRecipe


def parquet(path: Path, recipe: DataRecipe) -> Source:
    """A Parquet file, a pattern, or a folder of `train*.parquet` and `test*.parquet` (or `val*`).

    Raises:
        UserError: if there is no such file, or it cannot be read, or its columns are not images and labels.
    """
    import datasets
    import pyarrow.parquet

    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(path.glob("*.parquet"))
    else:
        files = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    if not files:
        raise UserError(f"data.source: no file matches {path}")
    for file in files:  # mistakes are reported before anything is copied
        try:
            features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
        except Exception as error:
            raise UserError(f"data.source: {file} is not readable as Parquet ({one_line(error)})") from None
        _column("image_column", features, recipe)
        _column("label_column", features, recipe)
    named = {prefix: [file for file in files if file.name.startswith(prefix)] for prefix in ("test", "val")}
    train = [file for file in files if file not in named["test"] + named["val"]]
    if not train:
        raise UserError(f"data.source: {path} has only test files; name the training ones train*.parquet")
    loaded = {}
    for split, chosen in (("train", train), ("test", named["test"] or named["val"])):
        if chosen:
            try:
                loaded[split] = datasets.Dataset.from_parquet([glob.escape(str(file)) for file in chosen])
            except Exception as error:  # columns that differ from file to file, no room for the Arrow copy, …
                raise UserError(f"data.source: cannot load {chosen[0]} ({one_line(error)})") from None
    identity = Identity()
    for file in files:
        identity.add(file.resolve())
    return _from_tables(loaded, recipe, identity.digest())


def hub(name: str, recipe: DataRecipe, classes: Sequence[str] | None = None) -> Source:
    """A data set of the Hugging Face Hub; its test split, or its validation split if the test labels are secret.

    Args:
        name: its id.
        recipe: may name the columns.
        classes: names to give its classes, in its order; left out, its own.

    Raises:
        UserError: if it cannot be loaded, or has no training split, or its columns are not images and labels.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        raise UserError(f"data.source: cannot load {name} from the Hub ({one_line(error)})") from None
    if "train" not in loaded:
        raise UserError(f"data.source: {name} has no train split, only {', '.join(loaded)}")
    splits = {"train": loaded["train"]}
    label_column = _column("label_column", splits["train"].features, recipe)
    for split in ("test", "validation", "valid", "val"):
        labelled = split in loaded and label_column in loaded[split].features
        if labelled and set(loaded[split].unique(label_column)) - {-1, None}:
            splits["test"] = loaded[split]
            break
    # a fingerprint changes with the data's revision
    identity = name + "".join(table._fingerprint for table in splits.values())
    return _from_tables(splits, recipe, identity, classes)


def _from_tables(
    tables: dict[str, Any], recipe: DataRecipe, identity: str, classes: Sequence[str] | None = None
) -> Source:
    """Examples from `datasets` tables: the image and label columns are found by type, or named by the recipe."""
    import datasets

    features = tables["train"].features
    image_column = _column("image_column", features, recipe)
    label_column = _column("label_column", features, recipe)
    kind = features[label_column]
    if isinstance(kind, datasets.ClassLabel):
        known, values = kind.names, list(range(len(kind.names)))
    else:
        values = sorted(value for value in tables["train"].unique(label_column) if value is not None)
        known = [str(value) for value in values]
    if classes and len(classes) != len(known):
        raise UserError(f"data.source: {recipe.source} has {len(classes)} classes, but this has {len(known)}")
    names = [name.replace("/", "-").replace(" ", "-") for name in (classes or known)]
    if bad := [name for name, count in Counter(names).items() if count > 1 or not name.strip(".")]:
        raise UserError(f"data.label_column: {bad[0]!r} names two classes, or cannot name a folder")
    labels = {value: label for label, value in enumerate(values)}
    splits: dict[str, Examples] = {}
    for split, table in tables.items():
        for key, column in (("image_column", image_column), ("label_column", label_column)):
            if column not in table.features:
                raise UserError(f"data.{key}: the {split} split of {recipe.source} has no column {column!r}")
        if getattr(table.features[label_column], "names", None) != getattr(kind, "names", None):
            raise UserError(
                f"data.label_column: the {split} split of {recipe.source} numbers its classes in another order"
            )
        try:
            if getattr(table.features[image_column], "dtype", None) == "large_binary":
                table = table.cast_column(image_column, datasets.Value("binary"))  # older versions take no large ones
            table = table.cast_column(image_column, datasets.Image(decode=False))
        except Exception as error:
            raise UserError(f"data.image_column: {image_column!r} holds no images ({one_line(error)})") from None
        for index, value in enumerate(table[label_column]):
            if value not in labels:
                raise UserError(
                    f"data.label_column: row {index} of {split} has label {value!r}, which is none of the classes"
                )
        numbers = array("l", (labels[value] for value in table[label_column]))
        splits[split] = _TableRows(f"{recipe.source} {split}", table, image_column, numbers)
    return Source(names, splits, identity)


@dataclass(frozen=True)
class _TableRows:
    """`Examples` in a `datasets` table."""

    name: str
    table: Any
    column: str
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(f"{self.name} row {index}", self.labels[index], partial(self._read, index))

    def _read(self, index: int) -> Image.Image:
        record = self.table[index][self.column]
        return Image.open(io.BytesIO(record["bytes"]) if record["bytes"] else record["path"])


def _column(key: Literal["image_column", "label_column"], features: Any, recipe: DataRecipe) -> str:
    """The column that the recipe names, or the first of the right type, or of a usual name."""
    import datasets

    kind, usual = {
        "image_column": (datasets.Image, ("image", "img")),
        "label_column": (datasets.ClassLabel, ("label", "labels", "class", "fine_label")),
    }[key]
    by_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    name = getattr(recipe, key) or next((name for name in (*by_kind, *usual) if name in features), None)
    if name not in features:
        wrong = f"there is no column {name!r}" if name else "no column has the type or a usual name"
        raise UserError(f"data.{key}: {wrong}; {recipe.source} has {', '.join(features)}")
    if key == "label_column" and not isinstance(features[name], datasets.ClassLabel | datasets.Value):
        raise UserError(f"data.{key}: {name!r} holds lists or structures, not one label per row")
    return str(name)
