"""The images that a classifier gets right, most or least confidently (CaO2, ICCV 2025; hatchetProject/CaO2 6381e50).

Its code draws several times as many as are kept and takes the most confident for 10 images per class, the least
confident for 50. Confidence is the largest share of softmax. If too few are right, others follow in the same order.
"""

import torch
from torch import Tensor

from ld3m.sampling.approach import ClassTask, Kept
from ld3m.sampling.judged import Judged


def confident(task: ClassTask, drawn: Tensor) -> Kept:
    """Right first, then from the most confident on."""
    return Kept(by_confidence(Judged.of(task, drawn).logits, task.label, most=True)[: task.count])


def least_confident(task: ClassTask, drawn: Tensor) -> Kept:
    """Right first, then from the least confident on."""
    return Kept(by_confidence(Judged.of(task, drawn).logits, task.label, most=False)[: task.count])


def by_confidence(logits: Tensor, label: int, most: bool) -> Tensor:
    """The order in which images are taken, int64 [n].

    Args:
        logits: [n, classes].
        most: whether the most confident come first.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    order = confidence.argsort(descending=most, stable=True)
    right = predicted[order] == label
    return torch.cat([order[right], order[~right]])
