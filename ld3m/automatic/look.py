"""A look at own images: classes, counts, sizes and colours, and what a recipe should say of them."""

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ld3m.data.class_choice import choose_from
from ld3m.data.decoding.decode import is_transparent, on_white
from ld3m.data.examples import Examples
from ld3m.data.sources import open_source
from ld3m.errors import UserError, counted, span
from ld3m.recipe import DistilledDataRecipe

SAMPLE = 64
"""Training images that are looked at."""
LARGEST = {"cpu": 64}
"""Pixels of the images to distil, by the kind of device, unless the user says more."""
LARGEST_OTHERS = 128
"""The same on devices that are not named."""
TESTED, SMALLEST_TEST, LARGEST_TEST = 200, 0.1, 0.25
"""Images to test on, if the source has no test split, and the smallest and largest share that they may be."""
HELD_OUT, FEWEST_SHARE, MOST_SHARE = 2000, 0.02, 0.2
"""Images on which pilots are measured, and the smallest and largest share of the training images that they may be."""


@dataclass(frozen=True)
class Look:
    """What is there, and what follows."""

    classes: list[str]
    counts: list[int]
    """Training images of each class, without those that are held out for testing."""
    resolution: int
    channels: int
    tested: int
    """Images to test on."""
    test_share: float | None
    """The share of each class that is held out for testing; None if the source has a test split."""
    lines: list[str]
    """What was found and decided, for people."""

    @property
    def validation_share(self) -> float:
        """The share of the training images on which pilots are measured."""
        return round(min(MOST_SHARE, max(FEWEST_SHARE, HELD_OUT / sum(self.counts))), 3)

    @property
    def fewest(self) -> int:
        """Training images of the smallest class in a pilot."""
        least = min(self.counts)
        return least - max(1, round(self.validation_share * least))

    @property
    def smallest(self) -> str:
        """The class that has fewest training images."""
        return self.classes[self.counts.index(min(self.counts))]


def look_at(recipe: DistilledDataRecipe, given: Sequence[str], device: str, images_per_class: int) -> Look:
    """Looks at a source; of its images a few of the training split are opened, and none of the test split.

    Args:
        recipe: `source`, `subset` and `test_share` count, and what is given.
        given: keys of `data` that the user has set, which stand.
        device: the kind of device of the run, such as "cpu".

    Raises:
        UserError: if the source is not there, has one class only, or too few images.
    """
    source = open_source(recipe)
    chosen = choose_from(source, recipe.subset)
    train, has_test = source.splits["train"], "test" in source.splits
    labels = [train[index].label for index in range(len(train))]
    by_class = Counter(labels)
    share = recipe.test_share if "test_share" in given else _test_share(sum(by_class[label] for label in chosen))
    held_out = [0 if has_test else max(1, round(share * by_class[label])) for label in chosen]
    counts = [by_class[label] - out for label, out in zip(chosen, held_out, strict=True)]
    names, of_chosen = [source.classes[label] for label in chosen], set(chosen)
    seen = _opened(train, [index for index, label in enumerate(labels) if label in of_chosen])
    test = source.splits.get("test", ())
    tested = sum(test[index].label in of_chosen for index in range(len(test))) or sum(held_out)
    lines = [_counts_text(names, counts)]
    lines += [] if has_test else [f"no test split: {share:.0%} of each class is held out for testing"]
    resolution = recipe.resolution
    if "resolution" not in given and seen:
        resolution, line = _resolution(seen, LARGEST.get(device, LARGEST_OTHERS))
        lines.append(line)
    channels: int = recipe.channels
    if "channels" not in given and seen:
        channels, line = _channels(seen)
        lines.append(line)
    found = Look(names, counts, resolution, channels, tested, None if has_test else share, lines)
    _check_enough(found, images_per_class)
    return found


def _opened(examples: Examples, indices: Sequence[int]) -> list[Image.Image]:
    """Some of the images, evenly spread; those that cannot be read are named when all are prepared."""
    images = []
    for index in indices[:: -(-len(indices) // SAMPLE) or 1]:
        with suppress(Exception):
            image = examples[index].read()
            image.load()
            images.append(image)
    return images


def _counts_text(names: Sequence[str], counts: Sequence[int]) -> str:
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(names):,} classes ({shown}), {sum(counts):,} training images, {span(counts)} in each"


def _test_share(images: int) -> float:
    """The share that is held out for testing of so many images, so that one more or less is not a point."""
    return round(min(LARGEST_TEST, max(SMALLEST_TEST, TESTED / max(1, images))), 3)


def _resolution(images: Sequence[Image.Image], largest: int) -> tuple[int, str]:
    """Pixels of a side to distil at, and why: the usual short side, rounded up to a multiple of 8."""
    sides = [min(image.size) for image in images]
    side = int(statistics.median_low(sides))
    resolution = min(largest, max(8, -(-side // 8) * 8))
    size = f"{side}" if min(sides) == max(sides) else f"{min(sides)} to {max(sides)}, usually {side}"
    cropped = "; the centre is cropped" if any(image.width != image.height for image in images) else ""
    finer = min(2 * largest, -(-side // 8) * 8)
    more = f"; data.resolution={finer} is finer and slower" if finer > resolution else ""
    return resolution, f"short side of {size} pixels: data.resolution={resolution}{cropped}{more}"


def _channels(images: Sequence[Image.Image]) -> tuple[int, str]:
    """Grey or colour, and why."""
    modes = ", ".join(sorted({image.mode for image in images}))
    kind, channels = ("grey", 1) if all(map(_is_grey, images)) else ("colour", 3)
    white = "; what is transparent becomes white" if any(map(is_transparent, images)) else ""
    return channels, f"{kind} ({modes}): data.channels={channels}{white}"


def _is_grey(image: Image.Image) -> bool:
    """Whether an image has no colour, however it is stored."""
    if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"):
        return True
    pixels = np.asarray(on_white(image).convert("RGB"))  # colours that nobody sees do not count
    return bool((pixels == pixels[..., :1]).all())


def _check_enough(found: Look, images_per_class: int) -> None:
    """That the smallest class has training images for a set, and one more to measure pilots on."""
    if found.fewest < images_per_class:
        name, rest = found.smallest, max(0, found.fewest)
        fewer = f"give {rest} or fewer, " if rest else ""
        raise UserError(
            f"--images-per-class: {images_per_class}, but class {name!r} has {_training_images(rest)} without those "
            f"that are held out; {fewer}give it more images, or leave it out by data.subset"
        )


def _training_images(count: int) -> str:
    return counted(count, "training image")
