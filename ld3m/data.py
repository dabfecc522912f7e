"""Real images as uint8 tensors by class: prepared once from their source, cached, memory-mapped."""

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ld3m.errors import UserError, one_line
from ld3m.files import write_folder
from ld3m.randomness import generator
from ld3m.recipe import DataRecipe
from ld3m.sources import Example, Source, open_source

LAYOUT = 1
"""Version of the cache's layout; part of its key."""


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
    settings = recipe.model_dump(include=DataRecipe.model_fields.keys() - {"source"})  # and of no core-set of it
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
                    f"data.source: cannot read {example.name} ({one_line(error)}); "
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
