"""How well a classifier does on real images, and whether that is better than guessing."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ld3m.data.prepared import ImageSet
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.processes import Processes

TEST_CHUNK = 100
"""Images tested at a time; larger activations are slower on CPUs, where each is mapped and unmapped every time."""

PERMUTED = 10.0
"""Points that renaming the classes must gain before labels are taken for permuted; confusion of alike classes gains a
few."""


class Tested(NamedTuple):
    """How a network does on the images of a split."""

    accuracy: float
    """Percent of the images that it classifies correctly."""
    at_chance: bool
    """Whether it is no better than guessing, as far as so many images tell."""
    best: float | None = None
    """The highest accuracy of several tests during training, chosen by these images; None if it was not asked for."""
    reassigned: float | None = None
    """The accuracy if what it says were renamed, one class for one, to the best: much higher if labels it learnt were
    in another order. None for a network whose file an older version wrote."""


@torch.no_grad()
def tested(
    network: Callable[[Tensor], Tensor],
    images: ImageSet,
    split: str,
    device: torch.device,
    processes: Processes | None = None,  # noqa: PT028 - it is no test
) -> Tested:
    """Tests a network on all images of a split, a chunk of which is in memory at a time.

    The next chunk is read from disk, by a thread, while one is tested.

    Args:
        network: normalised images [n, channels, H, W] to logits [n, classes].
        processes: that share the classes, each with the same network; None: this one tests on all.
    """
    classes, counts = len(images.classes), images.counts[split]
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    own = processes.shard(range(classes)) if processes else range(classes)
    for label, chunk in _in_memory(images, split, own):
        logits = network(images.normalise(bytes_to_unit(chunk.to(device))))
        confusion[label] += torch.bincount(logits.argmax(1).cpu(), minlength=classes)
    if processes:
        for label, row in processes.gather([(label, confusion[label]) for label in own]):
            confusion[label] = row
    correct = confusion.diag().tolist()
    return Tested(100 * sum(correct) / sum(counts), at_chance(correct, counts), None, reassigned(confusion))


def _in_memory(images: ImageSet, split: str, labels: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """The images of some classes, a chunk at a time, the next of which a thread reads from disk meanwhile."""
    chunks = ((label, each.clone()) for label in labels for each in images.images(split, label).split(TEST_CHUNK))
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(next, chunks, None)
        while chunk := ahead.result():
            ahead = reader.submit(next, chunks, None)
            yield chunk


def reassigned(confusion: Tensor) -> float:
    """The highest accuracy in percent of a classifier whose answers are renamed, each class for another one.

    Args:
        confusion: int64 [classes, classes], images of a class by row and what they were taken for by column.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    return 100 * int(confusion[rows, columns].sum()) / max(1, int(confusion.sum()))


def is_permuted(accuracy: float, renamed: float, classes: int, images: int) -> bool:
    """Whether a classifier tells classes apart, but calls them by each other's names.

    Networks that have learnt nothing gain by renaming, too: untrained ConvNets reach 18 to 26 % of ten garments so, and
    more of few images, to which the renaming is fitted. Of ten classes 28 % must be right, of others a share as far
    from chance, and three standard errors of that share, but never more than half of the way.

    Args:
        accuracy: in percent.
        renamed: `reassigned` of the same answers.
        classes: how many there are.
        images: that were classified.
    """
    chance = 1 / classes
    least = min(3 * chance, chance + (1 - chance) / 5)
    least = min(least + 3 * math.sqrt(least * (1 - least) / max(1, images)), (1 + chance) / 2)
    return renamed - accuracy >= PERMUTED and renamed >= 100 * least


def at_chance(correct: Sequence[int], counts: Sequence[int]) -> bool:
    """Whether a classifier is no better than one that does not look at the image.

    The mean share of correct images over classes, whose expectation is then 1 / classes however many images each class
    has, is at most two standard errors above that, or half as much again if there are too few images to tell.

    Args:
        correct: images of each class that were classified correctly.
    """
    tested = [(right, count) for right, count in zip(correct, counts, strict=True) if count]
    if len(tested) < 2:
        return False
    share = sum(right / count for right, count in tested) / len(tested)
    guess = 1 / len(tested)
    error = math.sqrt(sum(guess * (1 - guess) / count for _, count in tested)) / len(tested)
    return share <= guess + min(2 * error, guess / 2)
