"""The digits of scikit-learn: counts, pixels and splits against what is published of them; their prior; a run."""

import gzip
import importlib.resources
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from PIL import Image
from sklearn.svm import SVC

from ld3m import priors
from ld3m.data.decoding.decode import convert
from ld3m.data.prepared import ImageSet, prepare
from ld3m.images.ranges import bytes_to_signed, bytes_to_unit, signed_to_unit
from ld3m.prior_training.quality import sample
from ld3m.priors.source import PACKAGED_PRIORS
from ld3m.recipe import DataRecipe, SamplerRecipe
from ld3m.recipe.files import load, to_yaml
from ld3m.recipe.prior import PriorRecipe

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
            of_digit = expected[half][rows[half, 64] == digit]
            assert np.array_equal(images.images(split, digit), of_digit)
    assert sorted(set(expected.flatten())) == [(count * 255 * 2 + 16) // 32 for count in range(17)]
    assert (expected.min(), expected.max()) == (0, 255)


def counts(pixels: torch.Tensor) -> np.ndarray:
    """Pixels in [0, 1] as scikit-learn has them, [n, 64] from 0 to 16."""
    return pixels.flatten(1).numpy() * 16


def test_a_published_accuracy_is_reached() -> None:
    """scikit-learn's example trains SVC(gamma=0.001) on counts from 0 to 16: 871 of 899, which it rounds to 0.97."""
    images = prepared()
    (train, train_labels), (test, test_labels) = images.everything("train"), images.everything("test")
    classifier = SVC(gamma=0.001).fit(counts(bytes_to_unit(train)), train_labels)
    assert round(classifier.score(counts(bytes_to_unit(test)), test_labels), 2) == 0.97


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


# --- the packaged prior, and a run -------------------------------------------------------------------------


def test_the_packaged_prior_is_of_the_shipped_recipe() -> None:
    shipped = Path(__file__).parent.parent / "recipes" / "prior-digits.yaml"
    packaged = PACKAGED_PRIORS["digits"] / "recipe.yaml"  # without the keys that came later, which have their defaults
    assert to_yaml(load(PriorRecipe, str(packaged))) == to_yaml(load(PriorRecipe, str(shipped)))


def test_its_samples_and_reconstructions_by_another_judge() -> None:
    """A support vector machine of the real images takes samples for what they were asked to be, most of the time."""
    prior, images = priors.load(SamplerRecipe(source="digits")), prepared()
    train, labels = images.everything("train")
    judge = SVC(gamma=0.001).fit(counts(bytes_to_unit(train)), labels)
    sampled, wanted = sample(prior, images.classes, count=100, steps=10, guidance=3, seed=1)
    assert judge.score(counts(sampled), wanted) >= 0.9
    test = images.everything("test")[0]
    with torch.no_grad():
        rebuilt = signed_to_unit(prior.decode(prior.encode(bytes_to_signed(test))))
    report = json.loads((PACKAGED_PRIORS["digits"] / "evaluation.json").read_text())
    assert float((rebuilt - bytes_to_unit(test)).abs().mean()) == pytest.approx(
        report["reconstruction"]["l1"], rel=1e-2
    )


def test_the_recipe_runs_as_it_is(ld3m: Callable[..., Outcome]) -> None:
    assert ld3m("distill", "digits", "distill.iterations=1", "distill.real_batch=8").code == 0
    written = sorted(Path("runs/digits/images").glob("*/*.png"))
    assert [path.parent.name for path in written] == list("0123456789")
    assert {(image.size, image.mode) for image in map(Image.open, written)} == {((8, 8), "L")}
