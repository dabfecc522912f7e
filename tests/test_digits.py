"""The digits of scikit-learn: counts, pixels and splits against what is published of them, and a run on them."""

import gzip
import importlib.resources
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from PIL import Image
from sklearn.svm import SVC

from ld3m.data import ImageSet, prepare
from ld3m.pixels import convert
from ld3m.recipe import DataRecipe

PUBLISHED = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
"""Digits 0 to 9 in the test set of UCI's "Optical Recognition of Handwritten Digits", which scikit-learn ships."""
PUBLISHED_TEST = [88, 91, 86, 91, 92, 91, 91, 89, 88, 92]
"""The "support" in the report of scikit-learn's example "Recognizing hand-written digits"."""


def prepared(**settings: Any) -> ImageSet:
    return prepare(DataRecipe.model_validate({"source": "digits", "resolution": 8, "channels": 1, **settings}))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """The file in scikit-learn's wheel as it is: 64 counts from 0 to 16 and the digit, a row an image."""
    file = importlib.resources.files("sklearn.datasets.data") / "digits.csv.gz"
    return np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), delimiter=",").astype(int)


def test_counts_are_those_published() -> None:
    images = prepared()
    assert images.classes == list("0123456789")
    assert images.counts["test"] == PUBLISHED_TEST
    assert [sum(pair) for pair in zip(images.counts["train"], images.counts["test"], strict=True)] == PUBLISHED
    assert (sum(PUBLISHED), sum(PUBLISHED_TEST)) == (1797, 899)


def test_every_image_is_in_one_split_with_its_pixels_on_the_scale_of_255(rows: np.ndarray) -> None:
    """round(count · 255 / 16), halves up, in whole numbers; the first 898 train, as the file has them."""
    images = prepared()
    expected = ((rows[:, :64] * 255 * 2 + 16) // 32).reshape(-1, 1, 8, 8)
    for digit in range(10):
        for split, half in (("train", slice(898)), ("test", slice(898, None))):
            own = expected[half][rows[half, 64] == digit]
            assert np.array_equal(images.images(split, digit), own)
    assert sorted(set(expected.flatten())) == [(count * 255 * 2 + 16) // 32 for count in range(17)]
    assert (expected.min(), expected.max()) == (0, 255)


def test_a_published_accuracy_is_reached() -> None:
    """scikit-learn's example trains SVC(gamma=0.001) on counts from 0 to 16: 871 of 899, which it rounds to 0.97."""
    images = prepared()
    (train, train_labels), (test, test_labels) = images.everything("train"), images.everything("test")
    classifier = SVC(gamma=0.001).fit(train.flatten(1).numpy() * (16 / 255), train_labels.numpy())
    right = classifier.predict(test.flatten(1).numpy() * (16 / 255)) == test_labels.numpy()
    assert round(float(right.mean()), 2) == 0.97


def test_other_sizes_and_colour(rows: np.ndarray) -> None:
    first = Image.fromarray(((rows[0, :64] * 255 * 2 + 16) // 32).reshape(8, 8).astype(np.uint8))
    digit = int(rows[0, 64])
    assert np.array_equal(prepared(resolution=16).images("train", digit)[0], convert(first, 16, 1))
    assert np.array_equal(prepared(channels=3).images("train", digit)[0], convert(first, 8, 3))


def test_a_validation_split_is_of_the_training_images() -> None:
    images = prepared(validation_share=0.1, subset=["3", "8"])
    assert images.classes == ["3", "8"]
    assert images.counts == {"train": [83, 77], "test": [91, 88], "validation": [9, 9]}


def test_without_scikit_learn_the_extra_is_named(ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = ld3m("distill", "quickstart", "data.source=digits")
    assert result.code == 2
    assert result.err.splitlines() == ["ld3m: data.source: digits needs the extra digits: pip install 'ld3m[digits]'"]
