"""No published protocol: plain training on hard labels, where a recipe's keys say nothing else."""

from ld3m.evaluation.protocols.details import Protocol, Task


def custom(task: Task) -> Protocol:
    """Plain values, the same for any number of images and classes."""
    return Protocol(
        name="custom",
        epochs=300,
        batch=128,
        optimiser="sgd",
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        decay_all=True,
        schedule="cosine",
    )
