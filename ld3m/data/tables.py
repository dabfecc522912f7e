"""Images in tables of `datasets`: those of the Hugging Face Hub, and those that `table_files` finds on disk."""

import io
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ld3m.data.decoding.formats import open_image
from ld3m.data.examples import Example, Examples, Source, UnreadableImageError
from ld3m.data.layouts.identity import Identity
from ld3m.data.layouts.listing import exists
from ld3m.data.layouts.split_names import plainest, rank, split_of
from ld3m.errors import UserError, one_line, some
from ld3m.recipe import DataRecipe

UNLABELLED = {-1, None}
"""What stands for a label that is not known, also in a column of plain numbers."""
_ID = re.compile(r"(?P<id>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")


def hub(name: str, recipe: DataRecipe, classes: Sequence[str] | None = None) -> Source:
    """A data set of the Hugging Face Hub, or of a folder that is laid out as one.

    Args:
        name: its id, with a configuration and a revision if it needs them: NAME:CONFIG@REVISION.
        classes: names to give its classes, in its order; left out, its own.

    Raises:
        UserError: if it cannot be loaded, or as `from_splits` does.
    """
    import datasets

    from ld3m.machine.hub import ask, explained

    identifier, config, revision = name, None, None
    if not exists(name):
        if not (match := _ID.fullmatch(name)):
            raise UserError(f"data.source: hub:{name} names no data set; give hub:NAME, or hub:NAME:CONFIG@REVISION")
        identifier, config, revision = match["id"], match["config"], match["revision"]
    local = exists(identifier)

    def load() -> Any:
        return datasets.load_dataset(
            identifier, *([config] if config else []), **({"revision": revision} if revision else {})
        )

    try:
        loaded = load() if local else ask(load)
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error  # datasets wraps what is wrong
        several = f"; give one as hub:{'./' if local else ''}{identifier}:CONFIG" if "Config name" in str(error) else ""
        why = f" ({one_line(cause)})" if local else f" from the Hub: {explained(cause)}"
        raise UserError(f"data.source: cannot load {name}{why}{several}") from None
    # a fingerprint changes with the data's revision
    return from_splits(loaded, name, recipe, lambda used: name + "".join(each._fingerprint for each in used), classes)


def check_access(name: str) -> None:
    """That a data set of the Hub is there for who is logged in, before anything else is fetched.

    Args:
        name: as for `hub`. A folder is not looked at, and a Hub out of reach says nothing: there may be a copy here.

    Raises:
        UserError: if there is none, or its terms were not accepted.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    from ld3m.machine.hub import ask

    if exists(name) or not (match := _ID.fullmatch(name)):
        return
    try:
        ask(lambda: HfApi().auth_check(match["id"], repo_type="dataset"))
    except RepositoryNotFoundError as error:  # a gated one too
        raise UserError(f"data.source: cannot load {name} from the Hub: {one_line(error)}") from None
    except Exception:  # of the network, and the clients' own
        return


def from_splits(
    loaded: Mapping[str, Any],
    name: str,
    recipe: DataRecipe,
    identity: Callable[[Sequence[Any]], str],
    classes: Sequence[str] | None = None,
    folders: Sequence[Path] = (),
) -> Source:
    """The training split of a data set, and its test split, or its validation split if that alone has labels.

    Args:
        loaded: tables of `datasets`, by the names of their splits.
        identity: what changes with the content of the tables that are used.
        classes: names to give its classes, in its order; left out, its own.
        folders: below which the files lie that rows name in place of an image, unless they name them whole.

    Raises:
        UserError: if there is no training split, or its columns are not images and labels.
    """
    by_split = {
        split: [each for each in loaded if split_of(each) == split] for split in ("train", "test", "validation")
    }
    tests = sorted(by_split["test"], key=rank) + sorted(by_split["validation"], key=rank)
    unnamed = [each for each in loaded if split_of(each) is None]
    train = plainest(by_split["train"] or (unnamed if len(unnamed) == 1 else []))
    if not train:
        raise UserError(
            f"data.source: {name} has no train split, only {', '.join(loaded)}; call that of training train"
        )
    if len(train) > 1:
        raise UserError(
            f"data.source: {name} has several training splits ({', '.join(train)}); give one of them alone, by its "
            "files or as datasets' save_to_disk writes it"
        )
    label_column = _column("label_column", loaded[train[0]].features, recipe)
    reasons: dict[str, str] = {}
    test: list[str] = []
    for each in tests:
        if test:
            break
        if label_column in loaded[each].features and set(loaded[each].unique(label_column)) - UNLABELLED:
            test = [each]
        else:
            reasons[each] = " (no labels)"
    chosen = {"train": loaded[train[0]], **({"test": loaded[test[0]]} if test else {})}
    source = _from_tables(chosen, recipe, identity(list(chosen.values())), classes, folders)
    unused = [each + reasons.get(each, "") for each in loaded if each not in train + test]
    features = chosen["train"].features
    others = [key for key in features if key != label_column and _is_class_label(features[key])]
    if others and not recipe.label_column:
        unused += [f"the column {key}" for key in others]
    parts = [
        f"classes: {len(source.classes)} ({some(source.classes)}), from {train[0]}, column {label_column}",
        f"test: {test[0]}" if test else "test: a share of them (data.test_share)",
        *([f"not used: {', '.join(unused)}"] if unused else []),
    ]
    counted = not _is_class_label(features[label_column]) and "-1" in source.classes
    if counted:
        parts.append("-1 is taken for a class; remove its rows if it stands for no label")
    guessed = unused or counted or train != ["train"] or test not in ([], ["test"]) or len(source.classes) < 2
    return replace(source, note="; ".join(parts)) if guessed else source


def _from_tables(
    tables: dict[str, Any], recipe: DataRecipe, identity: str, classes: Sequence[str] | None, folders: Sequence[Path]
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
    outside = Identity()
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
        found = table[label_column][:]  # at once: row by row takes a second for ten thousand
        for index, value in enumerate(found):
            if value not in labels:
                raise UserError(
                    f"data.label_column: row {index} of {split} has label {value!r}, which is none of the classes"
                )
        numbers = array("l", (labels[value] for value in found))
        splits[split] = rows = _TableRows(f"{recipe.source} {split}", table, image_column, numbers, folders)
        for path in rows.named_files():
            outside.add(path)
    return Source(names, splits, f"{identity} {outside.digest()}")


@dataclass(frozen=True)
class _TableRows:
    """`Examples` in a `datasets` table."""

    name: str
    table: Any
    column: str
    labels: Sequence[int]
    folders: Sequence[Path]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(f"{self.name} row {index}", self.labels[index], partial(self._read, index))

    def _read(self, index: int) -> Image.Image:
        import datasets

        record = self.table[index][self.column]
        if record is None or (record["bytes"] is None and record["path"] is None):
            raise UnreadableImageError("the row has no image")
        if record["bytes"] is not None:
            return open_image(io.BytesIO(record["bytes"]))
        if _is_remote(record["path"]):
            return datasets.Image().decode_example(record)
        return open_image(self._locate(record["path"]))

    def named_files(self) -> Iterator[Path]:
        """The files on this machine that rows name in place of an image's bytes."""
        for part in self.table.select_columns([self.column]).with_format("arrow").iter(1000):
            for images in part[self.column].chunks:  # whose bytes are not touched
                names = images.field("path").filter(images.field("bytes").is_null())
                yield from (self._locate(name) for name in names.to_pylist() if name and not _is_remote(name))

    def _locate(self, name: str) -> Path:
        """A file by its name, which is whole or counts from one of the folders."""
        return next((folder / name for folder in self.folders if exists(str(folder / name))), Path(name))


def _is_remote(name: str) -> bool:
    return "://" in name


def check_columns(features: Any, recipe: DataRecipe) -> None:
    """Raises a UserError if there is no column of images or none of labels."""
    _column("image_column", features, recipe)
    _column("label_column", features, recipe)


def _is_class_label(kind: Any) -> bool:
    import datasets

    return isinstance(kind, datasets.ClassLabel)


def _column(key: Literal["image_column", "label_column"], features: Any, recipe: DataRecipe) -> str:
    """The column that the recipe names, or the first of the right type, or of a usual name."""
    import datasets

    kind, usual = {
        "image_column": (datasets.Image, ("image", "img")),
        "label_column": (datasets.ClassLabel, ("label", "labels", "class", "fine_label", "class_id", "target")),
    }[key]
    by_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    name = getattr(recipe, key) or next((name for name in (*by_kind, *usual) if name in features), None)
    if name not in features:
        wrong = f"there is no column {name!r}" if name else "no column has the type or a usual name"
        raise UserError(f"data.{key}: {wrong}; {recipe.source} has {', '.join(features)}")
    if key == "label_column" and not isinstance(features[name], datasets.ClassLabel | datasets.Value):
        raise UserError(f"data.{key}: {name!r} holds lists or structures, not one label per row")
    return str(name)
