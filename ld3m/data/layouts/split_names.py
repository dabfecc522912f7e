"""Which split a name means: that of a folder, a file, or a split of a data set on the Hub."""

import re
from collections.abc import Sequence
from typing import Literal

SplitName = Literal["train", "test", "validation"]

WORDS: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "validation"),
}
"""What people call their splits, in any case; of two names of one split, the one that is first here is preferred."""
NEUTRAL = (
    "set", "sets", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "samples", "files",
    "split", "splits", "folder", "dir", "part", "of", "full", "x",
)  # fmt: skip
"""Words beside a split's that say nothing else."""
_COMPOUND = re.compile(f"({'|'.join(sorted(WORDS, key=len, reverse=True))})({'|'.join(NEUTRAL)})?")


def split_of(name: str) -> SplitName | None:
    """The split that a name has among its words: "seg_train", "Validation", "TrainSet", "cifar-test-00000-of-2".

    A name with the words of two splits means training if one is validation ("train_val", "trainval"), else testing
    ("test-dev"), and no split at all if they are training and testing.
    """
    found = {WORDS[match[1]] for word in _words(name) if (match := _COMPOUND.fullmatch(word))}
    if {"train", "test"} <= found:
        return None
    order: tuple[SplitName, ...] = ("train", "test", "validation")
    return next((split for split in order if split in found), None)


def is_plain(name: str) -> bool:
    """Whether a name says the split and nothing else, as "Test_Data" and "val2017" do, unlike "test_tube"."""
    words = [word.lower() for word in re.split(r"[\W_\d]+", name) if word]
    return any(map(_COMPOUND.fullmatch, words)) and all(_COMPOUND.fullmatch(word) or word in NEUTRAL for word in words)


def rank(name: str) -> int:
    """The place of a name among those of its split, from the preferred one on."""
    words = list(WORDS)
    return words.index(name.lower()) if name.lower() in words else len(words)


def plainest(names: Sequence[str]) -> list[str]:
    """The one of a split's names that is nothing but its word, such as "train" beside "train_small"; else all."""
    exact = sorted((name for name in names if name.lower() in WORDS), key=rank)
    return exact[:1] or list(names)


def _words(name: str) -> set[str]:
    """The words of a name in lower case, split at punctuation, digits and, either way, at capital letters."""
    chunks = [chunk for chunk in re.split(r"[\W_\d]+", name) if chunk]
    camel = r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+"
    parts = [part for chunk in chunks for pattern in (camel, r"[A-Z]+|[a-z]+") for part in re.findall(pattern, chunk)]
    return {word.lower() for word in (*chunks, *parts)}
