"""The protocol of GLaD (Cazenavette et al., CVPR 2023), which LD3M uses too, and for the most part MTT and DSA before
them.

As their code has it (georgecazenavette/glad, `evaluate_synset` of utils.py): 1,000 epochs in batches of 256; SGD of
momentum 0.9 with weight decay 5e-4 on all weights; the rate up to 1e-3, for VGG11 to 1e-4, over half of the epochs,
and down by a cosine; differentiable Siamese augmentation, of which a batch gets one operation with numbers of its own
for each image; and a test of the weights' average over epochs, of decay 0.995, after the last.
"""

from ld3m.evaluation.protocols.details import Protocol, Task

LEARNING_RATES = {"vgg11": 1e-4}
"""Rates of architectures that have another than the rest."""


def glad(task: Task) -> Protocol:
    """GLaD's protocol, the same for any number of images and classes."""
    return Protocol(
        name="glad",
        epochs=1000,
        batch=256,
        optimiser="sgd",
        lr=LEARNING_RATES.get(task.arch, 1e-3),
        momentum=0.9,
        weight_decay=5e-4,
        decay_all=True,
        schedule="warmup-cosine",
        ema=0.995,
        augment=(("dsa", ()),),
    )
