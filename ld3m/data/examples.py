"""What a source of real images is: labelled examples of a training split and, if there is one, of a test split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image


class UnreadableImageError(ValueError):
    """What is wrong with an image, in words for the user."""


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
    """`Examples` that are in memory, uint8 [n, H, W]: prepared many at a time, since nothing must be decoded."""

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
    """Examples of "train" and, if the source has one, "test"."""
    identity: str
    """Changes when the content changes; part of the cache's key."""
    aliases: Mapping[str, int] = field(default_factory=dict)
    """Other names that `data.subset` may call a class by, such as WordNet ids."""
    subsets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Classes of the subsets that `data.subset` may name."""
    note: str = ""
    """What was guessed of its layout and what is not used, in a line; printed before images are prepared."""
    caveat: str = ""
    """Why figures measured on its test split are not what readers may take them for; stands wherever they do."""
    default: Sequence[int] | None = None
    """The classes that no `data.subset` means, by number; None: all."""
