"""IDC's own protocol (Kim et al., ICML 2022), by which CIFAR, SVHN and the MNISTs are reported with hard labels.

snu-mllab/Efficient-Dataset-Condensation ceac95a, for images of 32 pixels, here of up to 64:

- argument.py 445-446: 1,000 epochs for any number of images; tested after the last.
- argument.py 120-123, train.py 104-110: batch 64, SGD, momentum 0.9, weight decay 5e-4 on all weights, rate 0.01,
  × 0.2 at 2/3 and 5/6 of the epochs.
- argument.py 245, 269, 452; misc/augment.py 53-83: of each normalised image a flip and changes of brightness,
  saturation and contrast, and in each batch one of a shift by up to an eighth, a scaling by up to 1.2 and a rotation by
  up to 15 degrees, each image by its own numbers.
- argument.py 268, train.py 200-215: CutMix of half of the batches, β = 1.

Its network is ConvNet-3 with instance norm: `--arch convnet`. Left out is what it has for single sets: no flip of the
digits of SVHN and MNIST (`evaluate.augment={idc: true}`), no CutMix for some of theirs, images of 28 pixels. Larger
images are trained as by `minimax`, which comes from this code, with its rates for many classes from 100 on (line 301).
"""

from dataclasses import replace

from ld3m.evaluation.protocols.details import Protocol, Task
from ld3m.evaluation.protocols.minimax import minimax

LARGEST_SMALL = 64
"""Resolution up to which images are trained as CIFAR's."""


def idc(task: Task) -> Protocol:
    """IDC's protocol for small images, and for ImageNet's."""
    how = replace(minimax(task), name="idc")
    if task.resolution > LARGEST_SMALL:
        return replace(how, lr=0.1, weight_decay=1e-4, batch=128) if task.classes >= 100 else how
    augment = (("idc", ()), ("flip", (0.5,)))
    return replace(
        how, epochs=1000, batch=64, lr=0.01, weight_decay=5e-4, augment=augment, cutmix_share=0.5, tests="last"
    )
