"""The handwritten digits that scikit-learn ships: small enough to try a whole run in a minute."""

import numpy as np

from ld3m.data.examples import GreyArrays, Source
from ld3m.errors import UserError
from ld3m.recipe import DataRecipe

CLASSES = tuple("0123456789")
TRAIN = 898
"""How many images, from the first on, are the training split, as in scikit-learn's example "Recognizing
hand-written digits"; the other 899 are the test split."""
LARGEST = 16
"""The largest value of an image: each counts the pixels that are on in a block of 4×4."""


def source(recipe: DataRecipe) -> Source:
    """Both splits, in memory."""
    images, labels = read()
    halves = {"train": slice(TRAIN), "test": slice(TRAIN, None)}
    splits = {split: GreyArrays(split, images[half], labels[half]) for split, half in halves.items()}
    return Source(CLASSES, splits, "digits")


def read() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 images, uint8 [1797, 8, 8] from 0 to 255, and their digits, int64 [1797].

    The test images of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI, 1998), which `load_digits`
    of scikit-learn reads from a file that comes with it.

    Raises:
        UserError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("data.source: digits needs the extra digits: pip install 'ld3m[digits]'") from None
    counts, labels = load_digits(return_X_y=True)
    pixels = np.rint(counts.reshape(-1, 8, 8) * (255 / LARGEST)).astype(np.uint8)
    return pixels, labels
