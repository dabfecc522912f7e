"""Preparing real images, against a plain loop that opens, converts, resizes and appends them one at a time.

    python tests/benchmarks/preparation.py [ROUNDS]

Two sets: Fashion-MNIST's 70,000 grey images of 28 pixels (where Debian's dataset-fashion-mnist is not installed, as
many made-up PNG files of 10 classes), and 2,000 made-up photographs, JPEGs of 500 × 400 pixels, in an image folder.
Each is prepared at 32 pixels into a fresh cache, in turn with the loop, three times; the figures are medians, of
wall-clock seconds and of the process's CPU seconds. The bytes of both are compared. The target, 0.5, is for two free
cores; decoding JPEGs is Pillow's own work in both, which two threads halve at best.
"""

import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ld3m.data import sources
from ld3m.data.known import fashion_mnist
from ld3m.data.prepared import prepare
from ld3m.files import write_tensors
from ld3m.recipe import DataRecipe

TARGET = 0.5


def plain(recipe: DataRecipe, folder: Path) -> torch.Tensor:
    """The loop of the literature's loaders: every image by itself, all in a list, one file at the end."""
    found, labels = [], []
    source = sources.open_source(recipe)
    for split in source.splits.values():
        for index in range(len(split)):
            example = split[index]
            image = example.read().convert("L" if recipe.channels == 1 else "RGB")
            image = ImageOps.fit(image, (recipe.resolution, recipe.resolution), Image.Resampling.BICUBIC)
            pixels = np.array(image)
            found.append(pixels[None] if recipe.channels == 1 else pixels.transpose(2, 0, 1))
            labels.append(example.label)
    images = torch.from_numpy(np.stack(found))
    write_tensors(folder / "images.safetensors", {"images": images, "labels": torch.tensor(labels)})
    return images


def ours(recipe: DataRecipe, folder: Path) -> torch.Tensor:
    os.environ["LD3M_CACHE"] = str(folder)
    images = prepare(recipe, progress=False)
    parts = [
        torch.cat([images.images(split, label) for split in images.counts]) for label in range(len(images.classes))
    ]
    return torch.cat(parts)


def timed(work: Callable[[DataRecipe, Path], torch.Tensor], recipe: DataRecipe) -> tuple[float, float, torch.Tensor]:
    with tempfile.TemporaryDirectory() as temporary:
        wall, cpu = time.perf_counter(), time.process_time()
        images = work(recipe, Path(temporary)).clone()
        return time.perf_counter() - wall, time.process_time() - cpu, images


def compare(name: str, recipe: DataRecipe, rounds: int) -> None:
    """Prints the medians of both and their ratio."""
    seconds: dict[str, list[tuple[float, float]]] = {"one by one": [], "ld3m": []}
    for _ in range(rounds):
        for label, work in (("one by one", plain), ("ld3m", ours)):
            wall, cpu, images = timed(work, recipe)
            seconds[label].append((wall, cpu))
            if label == "one by one":
                expected = images
        contents = [sorted(image.tobytes() for image in tensor.numpy()) for tensor in (expected, images)]
        assert contents[0] == contents[1], "other bytes"  # in another order, where a test split is held out
    medians = {
        label: [statistics.median(column) for column in zip(*rows, strict=True)] for label, rows in seconds.items()
    }
    for label, (wall, cpu) in medians.items():
        print(f"{name:<34} {label:<11} {wall:7.2f} s wall {cpu:7.2f} s CPU  {len(expected) / wall:8.0f} images/s")
    wall, cpu = (medians["ld3m"][column] / medians["one by one"][column] for column in (0, 1))
    print(f"{name:<34} ratio       {wall:7.2f}        {cpu:7.2f}        target {TARGET}", flush=True)


def photographs(root: Path, count: int = 2000) -> Path:
    """JPEGs with edges, gradients and grain, about as large as photographs of their size; ten classes."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:400, :500]
    for index in range(count):
        phases, waves = rng.uniform(0, 6, 3), rng.uniform(10, 60, 2)
        scene = [120 + 60 * np.sin(columns / waves[0] + phase) + 50 * np.cos(rows / waves[1]) for phase in phases]
        pixels = np.stack(scene, -1) + 8 * rng.standard_normal((400, 500, 1))
        path = root / str(index % 10) / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return root


def small_files(root: Path, count: int = 60_000) -> Path:
    """PNG files of 28 pixels; ten classes."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = root / str(index % 10) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
    return root


def main(rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if fashion_mnist.DEBIAN.is_dir():
            compare("Fashion-MNIST", DataRecipe(source="fashion-mnist", resolution=32, channels=1), rounds)
        else:
            source = str(small_files(place / "small"))
            compare("made-up PNG files", DataRecipe(source=source, resolution=32, channels=1, test_share=0.1), rounds)
        source = str(photographs(place / "photographs"))
        compare("2,000 JPEGs of 500 × 400", DataRecipe(source=source, resolution=32, test_share=0.1), rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
