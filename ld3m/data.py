"""Real images: from any source to uint8 tensors by class, prepared once, cached, memory-mapped."""

import glob
import gzip
import hashlib
import io
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ld3m.errors import UserError
from ld3m.files import write_folder
from ld3m.randomness import generator
from ld3m.recipe import DataRecipe

SMALL_FASHION_MNIST = Path(__file__).parent / "assets" / "fashion-mnist-small"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot",
)  # fmt: skip
IMAGE_SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""File names that Pillow reads; some it only writes."""
LAYOUT = 2
"""Version of the cache's layout; part of its key."""


class Example(NamedTuple):
    """One image of a source: its name for messages, its class, and how to read it (which may fail)."""

    name: str
    label: int
    read: Callable[[], Image.Image]


@dataclass(frozen=True)
class Source:
    """A labelled image data set before preparation."""

    classes: Sequence[str]
    splits: dict[str, Sequence[Example]]
    """Examples of "train" and, where the source has one, "test"."""
    identity: str
    """Changes when the content changes; part of the cache's key."""


@dataclass(frozen=True)
class ImageSet:
    """Prepared images: uint8 [n, channels, resolution, resolution] of each class and split, on disk until used."""

    classes: list[str]
    mean: Tensor
    """[channels], of training pixels in [0, 1]."""
    std: Tensor
    """[channels], of training pixels in [0, 1]."""
    counts: dict[str, list[int]]
    """Images of each class, by split."""
    folder: Path

    def images(self, split: str, label: int) -> Tensor:
        """The images of one class, uint8 [n, channels, H, W]; memory-mapped, so only what is used is read."""
        return safetensors.torch.load_file(self.folder / split / f"{label}.safetensors")["images"]

    def everything(self, split: str) -> tuple[Tensor, Tensor]:
        """All images of a split in memory, uint8 [N, channels, H, W], and their labels, int64 [N]."""
        images = [self.images(split, label) for label in range(len(self.classes))]
        labels = torch.arange(len(self.classes)).repeat_interleave(torch.tensor(self.counts[split]))
        return torch.cat(images), labels

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [N, channels, H, W] in [0, 1] to what every network sees, real images and synthetic alike."""
        shape = (1, -1, 1, 1)
        return (pixels - self.mean.view(shape).to(pixels)) / self.std.view(shape).to(pixels)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images to float32 pixels in [0, 1]."""
    return images.float() / 255


def to_signed(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1], the range of every autoencoder."""
    return to_pixels(images) * 2 - 1


# --- sources -----------------------------------------------------------------------------------------------


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
    if not path.is_dir():
        raise UserError(f"data.source: {path} is neither a folder nor a .parquet file")
    return _image_folder(path, recipe)


def _fashion_mnist(recipe: DataRecipe) -> Source:
    """The full data set, from Debian's package where it is installed, else from the Hub."""
    if not DEBIAN_FASHION_MNIST.is_dir():
        return _hub("zalando-datasets/fashion_mnist", recipe, classes=FASHION_MNIST_CLASSES)
    splits: dict[str, Sequence[Example]] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
        labels = _read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz", header=8)
        splits[split] = [
            Example(f"{split}/{index}", int(label), partial(Image.fromarray, image))
            for index, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
    return Source(FASHION_MNIST_CLASSES, splits, "fashion-mnist")


def _read_idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _small_fashion_mnist(recipe: DataRecipe) -> Source:
    return _parquet(SMALL_FASHION_MNIST, recipe)


def _image_folder(root: Path, recipe: DataRecipe) -> Source:
    """`root/train/<class>/…` and `root/test/<class>/…` (or `val`), or `root/<class>/…` alone."""
    folders = {"train": root / "train"} if (root / "train").is_dir() else {"train": root}
    if folders["train"] != root:
        for name in ("test", "val", "validation"):
            if (root / name).is_dir():
                folders["test"] = root / name
                break
    classes = _class_folders(folders["train"])
    if not classes:
        raise UserError(
            f"data.source: {folders['train']} has no class folders; put images in <class>/ folders below it"
        )
    splits: dict[str, Sequence[Example]] = {}
    stamps = hashlib.sha256()
    for split, folder in folders.items():
        if unknown := sorted(set(_class_folders(folder)) - set(classes)):
            raise UserError(f"data.source: {folder / unknown[0]} is a class that {folders['train']} does not have")
        examples = []
        for label, name in enumerate(classes):
            for path in sorted((folder / name).rglob("*")):
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not _is_hidden(path, folder):
                    stamps.update(f"{split} {name} {_stamp(path)}\n".encode())
                    examples.append(Example(str(path), label, partial(Image.open, path)))
        splits[split] = examples
    return Source(classes, splits, stamps.hexdigest())


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry, folder))


def _is_hidden(path: Path, root: Path) -> bool:
    """What systems and tools leave beside images, such as ._1.png, .ipynb_checkpoints and __MACOSX."""
    return any(part.startswith((".", "__")) for part in path.relative_to(root).parts)


def _stamp(path: Path) -> str:
    """Changes when the file's content does."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


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
            raise UserError(f"data.source: {file} is not readable as Parquet ({_one_line(error)})") from None
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
                raise UserError(f"data.source: cannot load {chosen[0]} ({_one_line(error)})") from None
    return _from_tables(loaded, recipe, "\n".join(_stamp(file) for file in files))


def _hub(name: str, recipe: DataRecipe, classes: Sequence[str] | None = None) -> Source:
    """A data set of the Hugging Face Hub; its test split, or its validation split where test labels are secret."""
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        raise UserError(f"data.source: cannot load {name} from the Hub ({_one_line(error)})") from None
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
    names = [name.replace("/", "-").replace(" ", "-") for name in (classes or known)]
    if bad := [name for name, count in Counter(names).items() if count > 1 or not name.strip(".")]:
        raise UserError(f"data.label_column: {bad[0]!r} names two classes, or cannot name a folder")
    labels = {value: label for label, value in enumerate(values)}
    splits: dict[str, Sequence[Example]] = {}
    for split, table in tables.items():
        for key, column in (("image_column", image_column), ("label_column", label_column)):
            if column not in table.features:
                raise UserError(f"data.{key}: the {split} split of {recipe.source} has no column {column!r}")
        if getattr(table.features[label_column], "names", None) != getattr(kind, "names", None):
            raise UserError(f"data.label_column: the {split} split of {recipe.source} numbers its classes otherwise")
        try:
            table = table.cast_column(image_column, datasets.Image(decode=False))
        except Exception as error:
            raise UserError(f"data.image_column: {image_column!r} holds no images ({_one_line(error)})") from None
        examples = []
        for index, value in enumerate(table[label_column]):
            if value not in labels:
                raise UserError(
                    f"data.label_column: row {index} of {split} has label {value!r}, which is none of the classes"
                )

            def read(table: Any = table, index: int = index) -> Image.Image:
                record = table[index][image_column]
                return Image.open(io.BytesIO(record["bytes"]) if record["bytes"] else record["path"])

            examples.append(Example(f"{recipe.source} {split} row {index}", labels[value], read))
        splits[split] = examples
    return Source(names, splits, identity)


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


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


SOURCES: dict[str, Callable[[DataRecipe], Source]] = {
    "fashion-mnist": _fashion_mnist,
    "fashion-mnist-small": _small_fashion_mnist,
}


# --- preparation -------------------------------------------------------------------------------------------


def convert(image: Image.Image, resolution: int, channels: int) -> np.ndarray:
    """Any PIL image as uint8 [channels, resolution, resolution].

    EXIF rotation is applied, 16-bit, 32-bit and float images are scaled to 8 bits, transparency is laid on white;
    the short side is resized (bicubic, antialiased) to `resolution` and the centre cropped.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales by the mode's largest value; 32-bit modes have none, so that it is told from the image's own."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    if image.mode.startswith("I;16"):
        largest = 65535
    elif image.mode == "F" and values.max() <= 1:
        largest = 1
    else:
        largest = 255 if values.max() <= 255 else 65535
    return Image.fromarray((values / largest * 255).clip(0, 255).round().astype(np.uint8))


def cache_folder() -> Path:
    """Where prepared data is kept: $LD3M_CACHE, or ld3m below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LD3M_CACHE") or Path(base) / "ld3m")


def prepare(recipe: DataRecipe, progress: bool = True) -> ImageSet:
    """The recipe's images, from the cache or prepared into it.

    Splits are "train", "test" and, where `validation_share` asks for one, "validation".

    Raises:
        UserError: naming the source, class or file that is wrong.
    """
    source = open_source(recipe)
    chosen = _subset(source.classes, recipe.subset)
    settings = recipe.model_dump(exclude={"source"})
    key = json.dumps([LAYOUT, source.identity, list(source.classes), settings], sort_keys=True)
    folder = cache_folder() / "data" / hashlib.sha256(key.encode()).hexdigest()[:20]
    if not (folder / "index.json").is_file():
        write_folder(folder, lambda target: _prepare_into(target, source, chosen, recipe, progress))
    index = json.loads((folder / "index.json").read_text())
    if index["corrupt"] and progress:
        shown = [*index["corrupt"][:5], *["…"] * (len(index["corrupt"]) > 5)]
        print(f"skipped {len(index['corrupt'])} unreadable images: {', '.join(shown)}", file=sys.stderr)
    return ImageSet(
        classes=index["classes"],
        mean=torch.tensor(index["mean"]),
        std=torch.tensor(index["std"]),
        counts=index["counts"],
        folder=folder,
    )


def _subset(classes: Sequence[str], subset: list[str] | None) -> list[int]:
    if subset is None:
        return list(range(len(classes)))
    if unknown := [name for name in subset if name not in classes]:
        raise UserError(f"data.subset: {unknown[0]!r} is not a class; the classes are {', '.join(classes)}")
    if len(set(subset)) != len(subset):
        raise UserError("data.subset: names a class twice; name each once")
    return [list(classes).index(name) for name in subset]


def _prepare_into(target: Path, source: Source, chosen: list[int], recipe: DataRecipe, progress: bool) -> None:
    """Reads, splits and writes one class at a time, then the index."""
    examples: dict[str, dict[int, list[Example]]] = {split: defaultdict(list) for split in source.splits}
    for split, every in source.splits.items():
        for example in every:
            examples[split][example.label].append(example)
    for label in chosen:  # an empty class is told before hours of reading
        _sizes({split: len(examples[split][label]) for split in examples}, source.classes[label], recipe)
    total = sum(len(examples[split][label]) for split in examples for label in chosen)
    corrupt: list[str] = []
    counts: dict[str, list[int]] = defaultdict(list)
    histogram = torch.zeros(recipe.channels, 256, dtype=torch.int64)
    with tqdm(desc="preparing images", total=total, leave=False, disable=None if progress else True) as bar:
        for place, label in enumerate(chosen):
            stacked = {split: _read(examples[split][label], recipe, corrupt, bar) for split in examples}
            found = {split: len(images) for split, images in stacked.items()}
            sizes = _sizes(found, source.classes[label], recipe)
            for split, size in sizes.items():
                if split not in found:
                    stacked["train"], stacked[split] = _hold_out(stacked["train"], split, label, size)
            for split, images in stacked.items():
                (target / split).mkdir(exist_ok=True)
                safetensors.torch.save_file({"images": images}, target / split / f"{place}.safetensors")
                counts[split].append(len(images))
            for channel, pixels in enumerate(stacked["train"].unbind(1)):
                histogram[channel] += pixels.flatten().bincount(minlength=256)
    mean, std = _statistics(histogram)
    classes = [source.classes[label] for label in chosen]
    index = {"classes": classes, "counts": counts, "mean": mean, "std": std, "corrupt": corrupt}
    (target / "index.json").write_text(json.dumps(index))


def _sizes(found: dict[str, int], name: str, recipe: DataRecipe) -> dict[str, int]:
    """Images of a class in each split once the splits that the source has not are held out of "train".

    Raises:
        UserError: where a split would have none.
    """
    sizes = dict(found)
    for split, share in (("test", recipe.test_share), ("validation", recipe.validation_share)):
        if share and split not in sizes:
            sizes[split] = max(1, round(share * sizes["train"]))
            sizes["train"] -= sizes[split]
    if min(sizes.values()) < 1:
        counts = ", ".join(f"{count} {split}" for split, count in found.items())
        raise UserError(
            f"data.source: class {name!r} has too few images in {recipe.source} ({counts}); "
            f"it needs at least one for each of {', '.join(sizes)}"
        )
    return sizes


def _read(examples: list[Example], recipe: DataRecipe, corrupt: list[str], bar: tqdm) -> Tensor:
    """Images uint8 [n, channels, H, W]; the names of unreadable ones go to `corrupt`, or the first is an error."""
    images = []
    for example in examples:
        try:
            images.append(convert(example.read(), recipe.resolution, recipe.channels))
        except Exception as error:  # a broken file can raise nearly anything in a decoder
            if recipe.on_corrupt == "error":
                raise UserError(
                    f"data.source: cannot read {example.name} ({_one_line(error)}); "
                    "mend or remove it, or set data.on_corrupt=skip"
                ) from None
            corrupt.append(example.name)
        bar.update()
    shape = (len(images), recipe.channels, recipe.resolution, recipe.resolution)
    return torch.from_numpy(np.stack(images)) if images else torch.empty(shape, dtype=torch.uint8)


def _hold_out(images: Tensor, split: str, label: int, count: int) -> tuple[Tensor, Tensor]:
    """The images without `count` of them, and these; `label` is the source's, so that a subset holds out the same."""
    order = torch.randperm(len(images), generator=generator(0, split, label))
    return images[order[count:].sort().values], images[order[:count].sort().values]


def _statistics(histogram: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in units of [0, 1], of counts [channels, 256] of pixel values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = histogram / histogram.sum(1, keepdim=True, dtype=torch.float64)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp(min=1e-8).sqrt()
    return mean.tolist(), std.tolist()
