"""The two protocols of "Rethinking Large-scale Dataset Compression" (Xiao et al., arXiv 2502.06434): hard and soft
labels.

ArmandXiao/Rethinking-Dataset-Compression 91d1ef0, which is version 0.3.2 of the package `rethinkdc`, folder
rethinkdc/:

- dc_config/standard_hard_config.yaml and standard_soft_config.yaml: 300 epochs, batch 128, AdamW, rate 1e-3, weight
  decay 0.01; train_KD.py 462 and utils.py 62-80: on weights of two dimensions and more.
- train_KD.py 467-468: a cosine to 0.
- train_KD.py 400-404: a crop of 8 to 100 % of the area, flip.
- hard: train_KD.py 274, plain cross-entropy; the configuration has no CutMix.
- soft: the configuration has CutMix, β = 1, and temperature 20; train_KD.py 259-271: the labels of a ResNet-18 for the
  mixed batch, divergence without the temperature's square.
- train_KD.py 430-433: the last weights, test images resized to 256 and 224 cut out; 491: tested after epochs 1, 51,
  101, … and the last.
"""

from ld3m.evaluation.protocols.details import Protocol, Task


def rethinkdc(task: Task) -> Protocol:
    """The protocol with hard labels, or with soft ones if the user wants them."""
    soft = task.labels == "soft"
    return Protocol(
        name="rethinkdc",
        epochs=300,
        batch=128,
        optimiser="adamw",
        lr=1e-3,
        momentum=0.9,
        weight_decay=0.01,
        decay_all=False,
        schedule="cosine",
        augment=(("crop", (0.08, 1.0)), ("flip", (0.5,))),
        cutmix=1.0 if soft else 0.0,
        labels="soft" if soft else "hard",
        test_resize=round(task.resolution * 256 / 224),
        tests="fifties",
    )
