"""RD³'s one soft-label protocol for all sets (arXiv 2509.19743, ICLR 2026).

There is no public code. From its abstract and tables are 400 epochs, batch 50, AdamW at 1e-3, a smoothed cosine, which
is the one that ends at half the rate, RDED's augmentation, and labels by the divergence from a ResNet-18. All else is
RDED's: weight decay, temperature, CutMix, test images and test points, and the rates of single architectures.

By it, published ImageNet-1k figures of ten images per class differ by 6.7 points instead of 27.3.
"""

from dataclasses import replace

from ld3m.evaluation.protocols.details import Protocol, Task
from ld3m.evaluation.protocols.rded import PATCHES, rded

EPOCHS = 400
BATCH = 50


def rd3(task: Task) -> Protocol:
    """RD³'s protocol, the same for any number of images and classes.

    Its batch does not grow with the images, as RDED's does: 50 is what the tables have for all sets. Sets with fewer
    images than that are one batch. Its augmentation is that of 2 × 2 patches at every resolution: one for all sets.

    Args:
        task: its architecture and resolution count.
    """
    return replace(rded(task), name="rd3", epochs=EPOCHS, batch=min(BATCH, task.images), augment=PATCHES)
