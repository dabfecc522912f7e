"""Where images come from: folders, Parquet files, the Hub, data sets known by name."""

import glob
import gzip
import hashlib
import io
import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ld3m import registry
from ld3m.data import digits, imagenet
from ld3m.data.class_choice import choose
from ld3m.errors import UserError, one_line
from ld3m.files import ASSETS
from ld3m.recipe import DataRecipe

SMALL_FASHION_MNIST = ASSETS / "fashion-mnist-small"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot",
)  # fmt: skip
IMAGE_SUFFIXES = tuple(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""File names that Pillow reads; some it only writes."""


class Example(NamedTuple):
    """One image of a source: its name for messages, its class, and how to read it (which may fail)."""

    name: str
    label: int
    read: Callable[[], Image.Image]


class Examples(Protocol):
    """A list, or what makes each example when it is asked for: ImageNet's 1.3 million would take half a gigabyte."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True)
class GreyArrays:
    """`Examples` that lie in memory, uint8 [n, H, W]: prepared many at a time, since nothing must be decoded."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        read = partial(Image.fromarray, self.pixels[index])
        return Example(f"{self.name}/{index}", int(self.labels[index]), read)


@dataclass(frozen=True)
class Source:
    """A labelled image data set before preparation."""

    classes: Sequence[str]
    splits: Mapping[str, Examples]
    """Examples of "train" and, where the source has one, "test"."""
    identity: str
    """Changes when the content changes; part of the cache's key."""
    aliases: Mapping[str, int] = field(default_factory=dict)
    """Other names that `data.subset` may call a class by, such as WordNet ids."""
    subsets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Classes of the subsets that `data.subset` may name."""


def open_source(recipe: DataRecipe) -> Source:
    """The source that `data.source` names.

    Raises:
        UserError: where it does not hold what the recipe asks of it.
    """
    name = recipe.source
    if name in SOURCES:
        return SOURCES[name](recipe)
    if name.startswith("hub:"):
        return _hub(name.removeprefix("hub:"), recipe)
    path = Path(name)
    if "*" in name or path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return _parquet(path, recipe)
    if path.is_dir():
        return _image_folder(path, recipe)
    if path.exists():
        raise UserError(f"data.source: {path} is neither a folder nor a .parquet file")
    return registry.find("ld3m.sources", SOURCES, name, "data.source")(recipe)


def _fashion_mnist(recipe: DataRecipe) -> Source:
    """The full data set, from Debian's package where it is installed, else from the Hub."""
    if not DEBIAN_FASHION_MNIST.is_dir():
        return _hub("zalando-datasets/fashion_mnist", recipe, classes=FASHION_MNIST_CLASSES)
    splits: dict[str, Examples] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
        labels = _read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz", header=8)
        splits[split] = GreyArrays(split, images, labels)
    return Source(FASHION_MNIST_CLASSES, splits, "fashion-mnist")


def _read_idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _small_fashion_mnist(recipe: DataRecipe) -> Source:
    return _parquet(SMALL_FASHION_MNIST, recipe)


def _digits(recipe: DataRecipe) -> Source:
    images, labels = digits.read()
    halves = {"train": slice(digits.TRAIN), "test": slice(digits.TRAIN, None)}
    splits = {split: GreyArrays(split, images[half], labels[half]) for split, half in halves.items()}
    return Source(digits.CLASSES, splits, "digits")


def _image_folder(root: Path, recipe: DataRecipe) -> Source:
    """`root/train/<class>/…` and `root/test/<class>/…` (or `val`), or `root/<class>/…` alone."""
    folders = {"train": root / "train"} if (root / "train").is_dir() else {"train": root}
    if folders["train"] != root:
        tests = [root / name for name in ("test", "val", "validation") if (root / name).is_dir()]
        if tests:  # ImageNet's test folder has no classes, its val may have
            folders["test"] = next(filter(_class_folders, tests), tests[0])
    classes = _class_folders(folders["train"])
    if not classes:
        raise UserError(
            f"data.source: {folders['train']} has no class folders; put images in <class>/ folders below it"
        )
    for folder in folders.values():
        if unknown := sorted(set(_class_folders(folder)) - set(classes)):
            raise UserError(f"data.source: {folder / unknown[0]} is a class that {folders['train']} does not have")
    return _from_folders(folders, classes, dict(enumerate(classes)))


def _imagenet(recipe: DataRecipe) -> Source:
    """ImageNet-1k from `data.root`, $LD3M_IMAGENET or the Hub: all 1,000 classes by number, whichever are there.

    Of a folder, only the classes of `data.subset` are looked at.
    """
    classes, subsets = imagenet.classes(), imagenet.subsets()
    names = [name for _, name in classes]
    aliases = {wordnet_id: label for label, (wordnet_id, _) in enumerate(classes)}
    key = "data.root" if recipe.root else "LD3M_IMAGENET"
    place = recipe.root or os.environ.get("LD3M_IMAGENET") or imagenet.HUB
    if place.startswith("hub:"):
        try:
            source = _hub(place.removeprefix("hub:"), recipe, names)
        except UserError as error:
            raise UserError(f"{error}; or name ImageNet's folder by data.root or LD3M_IMAGENET") from None
        return replace(source, aliases=aliases, subsets=subsets)
    root = Path(place)
    tests = [root / name for name in ("val", "validation", "val_folders") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        raise UserError(f"{key}: {root} needs the folders train/n01440764/… and val/n01440764/…, one a class")
    test = next((folder for folder in tests if set(_class_folders(folder)) & aliases.keys()), None)
    if test is None:
        raise UserError(
            f"{key}: {tests[0]} is not sorted by class; move its images into folders such as {tests[0]}/n01440764"
        )
    chosen = {label: classes[label].wordnet_id for label in choose(recipe.subset, names, aliases, subsets)}
    for label, name in chosen.items():
        if missing := [folder for folder in (root / "train", test) if not (folder / name).is_dir()]:
            raise UserError(
                f"{key}: there is no {missing[0] / name}, the class {names[label]!r}; "
                "set data.subset to classes that are there"
            )
    source = _from_folders({"train": root / "train", "test": test}, names, chosen)
    return replace(source, aliases=aliases, subsets=subsets)


def _from_folders(folders: Mapping[str, Path], classes: Sequence[str], names: Mapping[int, str]) -> Source:
    """A source of the images below class folders.

    Args:
        folders: of each split.
        classes: names of the classes.
        names: the folder, in that of each split, of each class to look at.
    """
    stamps = hashlib.sha256()
    splits = {split: _Files(folder) for split, folder in folders.items()}
    for split, files in splits.items():
        for label, name in names.items():
            folder = (files.folder / name).resolve()
            for path in _image_files(folder):
                stamps.update(f"{split} {label} {_stamp(folder / path)}\n".encode())
                files.add(f"{name}/{path}", label)
    return Source(classes, splits, stamps.hexdigest())


class _Files:
    """`Examples` by path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        """Below the folder."""
        self.labels = array("l")

    def add(self, path: str, label: int) -> None:
        self.paths.append(path)
        self.labels.append(label)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = str(self.folder / self.paths[index])
        return Example(path, self.labels[index], partial(Image.open, path))


def _image_files(root: Path) -> list[str]:
    """Images anywhere below a folder, in order; links that lead nowhere among them, so that they are told."""
    found: list[tuple[str, ...]] = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        below = Path(parent).relative_to(root).parts
        found += [(*below, name) for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name)]
    return ["/".join(parts) for parts in sorted(found)]


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))


def _is_hidden(name: str) -> bool:
    """What systems and tools leave beside images, such as ._1.png, .ipynb_checkpoints and __MACOSX."""
    return name.startswith((".", "__"))


def _stamp(path: Path) -> str:
    """Changes when the file's content does."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            path, status = path.resolve(), path.stat()
    except OSError:
        return f"{path} is not there"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _parquet(path: Path, recipe: DataRecipe) -> Source:
    """A Parquet file, a pattern, or a folder of `train*.parquet` and `test*.parquet` (or `val*`)."""
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
    for file in files:  # mistakes are told before anything is copied
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
    return _from_tables(loaded, recipe, "\n".join(_stamp(file.resolve()) for file in files))


def _hub(name: str, recipe: DataRecipe, classes: Sequence[str] | None = None) -> Source:
    """A data set of the Hugging Face Hub; its test split, or its validation split where test labels are secret."""
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
            raise UserError(f"data.label_column: the {split} split of {recipe.source} numbers its classes otherwise")
        try:
            table = table.cast_column(image_column, datasets.Image(decode=False))
        except Exception as error:
            raise UserError(f"data.image_column: {image_column!r} holds no images ({one_line(error)})") from None
        for index, value in enumerate(table[label_column]):
            if value not in labels:
                raise UserError(
                    f"data.label_column: row {index} of {split} has label {value!r}, which is none of the classes"
                )
        numbers = array("l", (labels[value] for value in table[label_column]))
        splits[split] = _Rows(f"{recipe.source} {split}", table, image_column, numbers)
    return Source(names, splits, identity)


@dataclass(frozen=True)
class _Rows:
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
        wrong = f"there is no column {name!r}" if name else "cannot be told"
        raise UserError(f"data.{key}: {wrong}; {recipe.source} has {', '.join(features)}")
    if key == "label_column" and not isinstance(features[name], datasets.ClassLabel | datasets.Value):
        raise UserError(f"data.{key}: {name!r} holds lists or structures, not one label a row")
    return str(name)


SOURCES: dict[str, Callable[[DataRecipe], Source]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "fashion-mnist-small": _small_fashion_mnist,
    "imagenet": _imagenet,
}
"""Sources by the name that `data.source` gives; other packages add theirs through entry points of the group
`ld3m.sources`, which a file or folder of the same name goes before."""
