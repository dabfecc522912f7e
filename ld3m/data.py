"""Real images: from any source to uint8 tensors by class, prepared once, cached, memory-mapped."""

import gzip
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
IMAGE_SUFFIXES = frozenset(Image.registered_extensions())
LAYOUT = 1
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
            Example(f"{split}/{index}", int(label), lambda image=image: Image.fromarray(image))
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
    classes = sorted(entry.name for entry in folders["train"].iterdir() if entry.is_dir())
    if not classes:
        raise UserError(
            f"data.source: {folders['train']} has no class folders; put images in <class>/ folders below it"
        )
    splits: dict[str, Sequence[Example]] = {}
    stamps = hashlib.sha256()
    for split, folder in folders.items():
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if unknown := sorted(set(found) - set(classes)):
            raise UserError(f"data.source: {folder / unknown[0]} is a class that {folders['train']} does not have")
        examples = []
        for label, name in enumerate(classes):
            for path in sorted((folder / name).rglob("*")):
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    stat = path.stat()
                    stamps.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
                    examples.append(Example(str(path), label, lambda path=path: Image.open(path)))
        splits[split] = examples
    return Source(classes, splits, stamps.hexdigest())


def _parquet(path: Path, recipe: DataRecipe) -> Source:
    """A Parquet file, a pattern, or a folder of `train*.parquet` and `test*.parquet`."""
    import datasets

    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    else:
        files = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    if not files:
        raise UserError(f"data.source: no file matches {path}")
    test = [str(file) for file in files if file.name.startswith(("test", "val"))]
    train = [str(file) for file in files if str(file) not in test]
    if not train:
        raise UserError(f"data.source: {path} has only test files; name the training ones train*.parquet")
    loaded = {}
    for split, names in (("train", train), ("test", test)):
        if names:
            try:
                loaded[split] = datasets.Dataset.from_parquet(names)
            except Exception as error:
                raise UserError(f"data.source: {names[0]} is not readable as Parquet: {_one_line(error)}") from None
    stamps = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return _from_tables(loaded, recipe, "\n".join(stamps))


def _hub(name: str, recipe: DataRecipe, classes: Sequence[str] | None = None) -> Source:
    """A data set of the Hugging Face Hub."""
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        raise UserError(f"data.source: cannot load {name} from the Hub: {_one_line(error)}") from None
    splits = {"train": loaded.get("train")}
    if splits["train"] is None:
        raise UserError(f"data.source: {name} has no train split, only {', '.join(loaded)}")
    for split in ("test", "validation", "valid", "val"):
        if split in loaded:
            splits["test"] = loaded[split]
            break
    # pylint-free: the fingerprint changes with the data's revision
    identity = name + "".join(table._fingerprint for table in splits.values())
    return _from_tables(splits, recipe, identity, classes)


def _from_tables(
    tables: dict[str, Any], recipe: DataRecipe, identity: str, classes: Sequence[str] | None = None
) -> Source:
    """Examples from `datasets` tables: the image and label columns are found by type, or named by the recipe."""
    import datasets

    features = tables["train"].features
    image_column = recipe.image_column or _find(
        features, lambda kind: isinstance(kind, datasets.Image), ("image", "img")
    )
    label_column = recipe.label_column or _find(
        features,
        lambda kind: isinstance(kind, datasets.ClassLabel),
        ("label", "labels", "class", "fine_label"),
    )
    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in features:
            what = f"there is no column {column!r}" if column else "the column cannot be told"
            raise UserError(f"data.{key}: {what}; {recipe.source} has {', '.join(features)}")
    known = features[label_column].names if isinstance(features[label_column], datasets.ClassLabel) else None
    if known is None:
        values = sorted(set(tables["train"][label_column]))
        known = [str(value) for value in values]
        labels = {value: label for label, value in enumerate(values)}
    else:
        labels = {label: label for label in range(len(known))}
    names = [name.replace("/", "-").replace(" ", "-") for name in (classes or known)]
    splits: dict[str, Sequence[Example]] = {}
    for split, table in tables.items():
        table = table.cast_column(image_column, datasets.Image(decode=False))
        examples = []
        for index, value in enumerate(table[label_column]):
            if value not in labels:
                raise UserError(
                    f"data.label_column: row {index} of {split} has label {value!r}, which no training row has"
                )

            def read(table: Any = table, index: int = index) -> Image.Image:
                record = table[index][image_column]
                return Image.open(io.BytesIO(record["bytes"]) if record["bytes"] else record["path"])

            examples.append(Example(f"{recipe.source} {split} row {index}", labels[value], read))
        splits[split] = examples
    return Source(names, splits, identity)


def _find(features: Any, is_kind: Callable[[Any], bool], usual: Sequence[str]) -> str | None:
    by_kind = [name for name, kind in features.items() if is_kind(kind)]
    by_name = [name for name in usual if name in features]
    return next(iter(by_kind + by_name), None)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


SOURCES: dict[str, Callable[[DataRecipe], Source]] = {
    "fashion-mnist": _fashion_mnist,
    "fashion-mnist-small": _small_fashion_mnist,
}


# --- preparation -------------------------------------------------------------------------------------------


def convert(image: Image.Image, resolution: int, channels: int) -> np.ndarray:
    """Any PIL image as uint8 [channels, resolution, resolution].

    EXIF rotation is applied, 16-bit and float images are scaled to 8 bits, transparency is laid on white; the short
    side is resized (bicubic, antialiased) to `resolution` and the centre cropped.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        scale = 1 if values.max() <= 1 and image.mode == "F" else 255 if values.max() <= 255 else 65535
        image = Image.fromarray((values.clip(0) / scale * 255).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


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
    settings = recipe.model_dump(exclude={"image_column", "label_column", "source"})
    key = json.dumps([LAYOUT, source.identity, settings, recipe.image_column, recipe.label_column], sort_keys=True)
    folder = cache_folder() / "data" / hashlib.sha256(key.encode()).hexdigest()[:20]
    if not (folder / "index.json").is_file():
        write_folder(folder, lambda target: _prepare_into(target, source, chosen, recipe, progress))
    index = json.loads((folder / "index.json").read_text())
    if index["corrupt"] and progress:
        tqdm.write(f"skipped {len(index['corrupt'])} unreadable images: {', '.join(index['corrupt'][:5])} …")
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
    place = {label: position for position, label in enumerate(chosen)}
    corrupt: list[str] = []
    prepared: dict[str, list[list[np.ndarray]]] = {}
    for split, examples in source.splits.items():
        wanted = [example for example in examples if example.label in place]
        prepared[split] = [[] for _ in chosen]
        for example in tqdm(wanted, f"preparing {split} images", disable=not progress, leave=False):
            try:
                image = convert(example.read(), recipe.resolution, recipe.channels)
            except Exception as error:  # a broken file can raise nearly anything in a decoder
                if recipe.on_corrupt == "error":
                    raise UserError(
                        f"data.source: cannot read {example.name} ({_one_line(error)}); "
                        "mend or remove it, or set data.on_corrupt=skip"
                    ) from None
                corrupt.append(example.name)
                continue
            prepared[split][place[example.label]].append(image)
    classes = [source.classes[label] for label in chosen]
    stacked = {split: [_stack(images, recipe) for images in by_class] for split, by_class in prepared.items()}
    if "test" not in stacked:
        stacked = _hold_out(stacked, "test", recipe.test_share)
    if recipe.validation_share:
        stacked = _hold_out(stacked, "validation", recipe.validation_share)
    for split, by_class in stacked.items():
        for name, images in zip(classes, by_class, strict=True):
            if not len(images):
                raise UserError(f"data.source: class {name!r} has no {split} images in {recipe.source}")
    counts = {split: [len(images) for images in by_class] for split, by_class in stacked.items()}
    for split, by_class in stacked.items():
        (target / split).mkdir()
        for label, images in enumerate(by_class):
            safetensors.torch.save_file({"images": images}, target / split / f"{label}.safetensors")
    mean, std = _statistics(stacked["train"])
    index = {"classes": classes, "counts": counts, "mean": mean, "std": std, "corrupt": corrupt}
    (target / "index.json").write_text(json.dumps(index))


def _stack(images: list[np.ndarray], recipe: DataRecipe) -> Tensor:
    shape = (len(images), recipe.channels, recipe.resolution, recipe.resolution)
    return torch.from_numpy(np.stack(images)) if images else torch.empty(shape, dtype=torch.uint8)


def _hold_out(stacked: dict[str, list[Tensor]], split: str, share: float) -> dict[str, list[Tensor]]:
    """Moves `share` of each class's training images, at least one, to a split of their own."""
    train, held_out = [], []
    for label, images in enumerate(stacked["train"]):
        order = torch.randperm(len(images), generator=generator(0, split, label))
        count = max(1, round(share * len(images)))
        held_out.append(images[order[:count].sort().values])
        train.append(images[order[count:].sort().values])
    return {**stacked, "train": train, split: held_out}


def _statistics(by_class: list[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all training pixels, in units of [0, 1]."""
    counts: Counter[str] = Counter()
    total = torch.zeros(by_class[0].shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for images in by_class:
        for chunk in images.split(4096):
            values = chunk.double() / 255
            total += values.sum((0, 2, 3))
            squares += values.square().sum((0, 2, 3))
        counts["pixels"] += images.numel() // images.shape[1]
    mean = total / counts["pixels"]
    std = (squares / counts["pixels"] - mean.square()).clamp(min=1e-8).sqrt()
    return mean.tolist(), std.tolist()
