"""How long an evaluation will take: a step and a test of each architecture are timed before it begins."""

import time
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.data.prepared import ImageSet, Rows
from ld3m.evaluation.protocols import Protocol, Task, protocol
from ld3m.evaluation.soft_labels import SoftLabels
from ld3m.evaluation.training import untrained
from ld3m.images.ranges import bytes_to_unit
from ld3m.recipe import EvaluateRecipe

MOST = 32
"""Images of the step and the test that are timed."""
LONG = 3.0
"""Seconds of a step beside which the preparation of kernels does not count."""
TRIES = 5
"""By whose median a step before there is a set is known: other programs may be busy during one."""


class Cost(NamedTuple):
    """Seconds that a network of an architecture takes."""

    train: float
    """For each image and epoch."""
    test: float
    """For each image."""

    def seconds(self, images: int, epochs: int, tested: int) -> float:
        """Seconds to train and test a network."""
        return self.train * images * epochs + self.test * tested


def costs(
    sets: Mapping[str, tuple[Tensor | Rows, Tensor, Protocol]],
    images: ImageSet,
    device: torch.device,
    soft_labels: Mapping[str, SoftLabels] | None = None,
) -> dict[str, Cost]:
    """Times each architecture on a few images; nothing of it is kept.

    Args:
        sets: pixels and labels that the networks of each architecture are trained on, and how.
        soft_labels: what labels their batches, if that is soft.
    """
    soft = soft_labels or {}
    return {arch: _cost(arch, *some, images, device, soft.get(arch)) for arch, some in sets.items()}


def costs_of(asked: EvaluateRecipe, count: int, images: ImageSet, device: torch.device) -> dict[str, Cost]:
    """What an image takes in training and testing each architecture, on hard labels and before there is a set.

    Args:
        count: images of the set, as networks see them.
    """
    blank = torch.zeros(min(MOST, count), len(images.mean), images.resolution, images.resolution, dtype=torch.uint8)
    labels = torch.zeros(len(blank), dtype=torch.long)
    sets = {
        arch: (blank, labels, protocol(asked, Task(arch, len(images.classes), count, images.resolution)))
        for arch in asked.arch
    }
    tries = [costs(sets, images, device) for _ in range(TRIES)]
    return {arch: Cost(*(median(once[arch][part] for once in tries) for part in range(2))) for arch in sets}


def _cost(
    arch: str,
    pixels: Tensor | Rows,
    labels: Tensor,
    how: Protocol,
    images: ImageSet,
    device: torch.device,
    soft_labels: SoftLabels | None,
) -> Cost:
    network = untrained(arch, images, (0, 0), device)
    count = min(MOST, how.batch, len(pixels))
    inputs, targets = images.normalise(bytes_to_unit(pixels[:count].to(device))), labels[:count].to(device)
    network.eval()  # batch norm takes a single image, too
    train = test = 0.0
    for _ in range(2):  # the first prepares kernels and memory
        started = time.perf_counter()
        with torch.no_grad():
            float(network(inputs).sum())
        test, started = time.perf_counter() - started, time.perf_counter()
        if soft_labels:
            float(soft_labels(inputs, torch.arange(count), 0, None).sum())
        loss = functional.cross_entropy(network(inputs), targets)
        loss.backward()
        float(sum(parameter.grad.sum() for parameter in network.parameters() if parameter.grad is not None))
        train = time.perf_counter() - started
        if train > LONG:
            break
    return Cost(train / count, test / count)
