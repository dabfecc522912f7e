"""The first images of each class of a source, prepared by themselves: enough to rehearse a run of a large data set."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ld3m.data.examples import Example, Examples, Source
from ld3m.recipe import DistilledDataRecipe


class FirstImagesRecipe(DistilledDataRecipe):
    """The real images of a recipe, of which only the first of each class are prepared; no file can say so."""

    first: dict[str, int]
    """How many of each class, by split; classes that have fewer have all."""
    cache: Path
    """The folder in which they are prepared, in the place of the cache, as nobody else needs them."""


@dataclass(frozen=True)
class _Chosen:
    """`Examples` that are some of others."""

    examples: Examples
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.examples[self.indices[index]]


def first_of(source: Source, classes: Sequence[int], first: Mapping[str, int]) -> Source:
    """A source with the first examples of each of some classes, in their order.

    Args:
        classes: by their numbers in the source; no others are left.
        first: how many of each class, by split.
    """
    splits = {split: _first(examples, classes, first[split]) for split, examples in source.splits.items()}
    return replace(source, splits=splits)


def _first(examples: Examples, classes: Sequence[int], count: int) -> _Chosen:
    taken, indices = Counter(dict.fromkeys(classes, 0)), array("l")
    for index in range(len(examples)):
        label = examples[index].label
        if label in taken and taken[label] < count:
            taken[label] += 1
            indices.append(index)
    return _Chosen(examples, indices)
