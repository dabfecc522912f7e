"""The soft-label protocol of RDED (Sun et al., CVPR 2024), by which ImageNet-1k is mostly reported.

LINs-lab/RDED 3f6453d, with the `factor` of its scripts, that of crops on a side of its images: 2, and 1 for CIFAR and
Tiny-ImageNet (scripts/*.sh), up to 64 pixels:

- argument.py 114: 300 epochs.
- validation/main.py 87-92, utils.py 67-85: AdamW, weight decay 0.01 on weights of two dimensions and more.
- argument.py 277-306: rate 1e-3, or the architecture's own; main.py 96-102: half a cosine, which ends at half the
  rate.
- argument.py 234-258: batch 10, 50, 100 for 1, 10, 50 images per class, twice as many for 100 and 1,000 classes, 100
  for Tiny-ImageNet, never more than all; for other numbers of images here as for the next of these.
- main.py 117-125: factor × factor patches shuffled, a crop of 1/factor to all of the area, flip; at factor 1 flip
  alone is left. utils.py 138-145: CutMix, β = 1.
- main.py 205-226: a teacher's labels of the mixed batch; divergence at temperature 20, without its square.
- main.py 154-155: the last weights, test images resized to size // 7 · 8 and cut; 179-181: the best of each tenth
  epoch of the last fifth.

Left out are what it has for CIFAR-100 with ConvNet-3 alone, and that each batch goes through the student twice, which
only moves the averages of a batch norm faster.
"""

from ld3m.evaluation.protocols.details import Protocol, Task

LEARNING_RATES = {"vgg11": 5e-4, "alexnet": 1e-4, "vit": 1e-4}
FAMILIES = {"timm/efficientnet": 2e-3, "timm/mobilenet": 2.5e-3, "timm/vit": 1e-4, "timm/swin": 1e-4}
"""Rates of networks whose names begin so."""
LARGEST_WHOLE = 64
"""Resolution up to which its images are one crop each, not 2 × 2."""
PATCHES = (("shuffle", (2.0,)), ("crop", (0.5, 1.0)), ("flip", (0.5,)))
"""How images of 2 × 2 crops are changed."""


def rded(task: Task) -> Protocol:
    """RDED's protocol, the labels soft unless the user wants hard ones."""
    batch = next((batch for most, batch in ((1, 10), (10, 50)) if task.per_class <= most), 100)
    if task.classes == 200:  # Tiny-ImageNet
        batch = 100
    elif task.classes in (100, 1000):
        batch *= 2
    return Protocol(
        name="rded",
        epochs=300,
        batch=min(batch, task.images),
        optimiser="adamw",
        lr=rate(task.arch),
        momentum=0.9,
        weight_decay=0.01,
        decay_all=False,
        schedule="half-cosine",
        augment=PATCHES if task.resolution > LARGEST_WHOLE else PATCHES[-1:],
        cutmix=1.0,
        labels="soft",
        test_resize=task.resolution // 7 * 8,
        tests="last-fifth",
    )


def rate(arch: str) -> float:
    """The learning rate of an architecture."""
    family = next((each for name, each in FAMILIES.items() if arch.startswith(name)), 1e-3)
    return LEARNING_RATES.get(arch, family)
