"""The hard-label protocol of Minimax Diffusion (Gu et al., CVPR 2024), which is IDC's, and which most of the field
reports.

vimar-gu/MinimaxDiffusion 969fc6f, for ImageNet and its subsets at 224 pixels:

- argument.py 18-43, 425-432: epochs by images per class, each of several in one counted; with 100 classes 2/3 of them.
- argument.py 116-119, train.py 102: SGD, momentum 0.9, weight decay 5e-4 on all weights, rate 0.01, batch 64; and
  295-302: above 100 classes rate 0.1, weight decay 1e-4, batch 128.
- train.py 107-108: the rate × 0.2 at 2/3 and 5/6 of the epochs.
- data.py 317-336: a crop of half to all of the area, flip, colours by 0.4, PCA lighting by 0.1.
- argument.py 134-135, train.py 184-197: CutMix of every batch, β = 1, the loss mixed by area.
- argument.py 432, train.py 131-137: the last weights, test images as they are; the best of each hundredth of the
  epochs.

Its networks have instance norm: ResNetAP-10, ResNet-18 and ConvNet-6. For CIFAR-10 and the like the same code has
IDC's way for small images, which is the protocol `idc`; here the above holds for all images.
"""

from ld3m.evaluation.protocols.details import Protocol, Task

EPOCHS = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
"""Epochs up to so many images of a class; above, 300."""


def minimax(task: Task) -> Protocol:
    """Minimax's protocol for ImageNet and its subsets."""
    epochs = next((epochs for most, epochs in EPOCHS if task.per_class <= most), 300)
    if task.classes == 100:
        epochs = 2 * epochs // 3 // 100 * 100
    many = task.classes > 100
    return Protocol(
        name="minimax",
        epochs=epochs,
        batch=128 if many else 64,
        optimiser="sgd",
        lr=0.1 if many else 0.01,
        momentum=0.9,
        weight_decay=1e-4 if many else 5e-4,
        decay_all=True,
        schedule="step",
        augment=(("crop", (0.5, 1.0)), ("flip", (0.5,)), ("jitter", (0.4, 0.4, 0.4)), ("lighting", (0.1,))),
        cutmix=1.0,
        tests="hundredths",
    )
