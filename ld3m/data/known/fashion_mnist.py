"""Fashion-MNIST (Xiao et al., arXiv 1708.07747), and a tenth of it that comes with the package."""

import gzip
from pathlib import Path

import numpy as np

from ld3m.data import table_files, tables
from ld3m.data.examples import Examples, GreyArrays, Source
from ld3m.files import ASSETS
from ld3m.recipe import DataRecipe

SMALL = ASSETS / "fashion-mnist-small"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the original files."""
CLASSES = (
    "T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot",
)  # fmt: skip


def source(recipe: DataRecipe) -> Source:
    """The full data set, from Debian's package if it is installed, else from the Hub."""
    if not DEBIAN.is_dir():
        return tables.hub("zalando-datasets/fashion_mnist", recipe, CLASSES)
    splits: dict[str, Examples] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(DEBIAN / f"{prefix}-images-idx3-ubyte.gz", header=16).reshape(-1, 28, 28)
        labels = _read_idx(DEBIAN / f"{prefix}-labels-idx1-ubyte.gz", header=8)
        splits[split] = GreyArrays(split, images, labels)
    return Source(CLASSES, splits, "fashion-mnist")


def small_source(recipe: DataRecipe) -> Source:
    """800 training and 200 test images of each class."""
    return table_files.from_files(SMALL, recipe)


def _read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)
