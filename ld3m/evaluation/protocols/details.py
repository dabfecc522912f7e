"""All details of how a network is trained on a set and tested, and what happens in which epoch.

Importing this module imports no torch.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

ALWAYS = ("epochs", "batch", "lr", "ema", "augment")
"""Details that rows of all versions have."""
OF_SOFT_LABELS = ("temperature", "temperature_squared", "teacher")
"""Details that networks of hard labels do not have."""
NOT_IN_ROWS = {*OF_SOFT_LABELS, "whitening", "tests", "dtype", "cutmix_share", "soft_loss", "changed"}
"""Details without which the accuracy after the last epoch is the same, or that stand elsewhere; some only if set."""
Operations = tuple[tuple[str, tuple[float, ...]], ...]
"""Names of `evaluate.augment` with their numbers, in the order in which they are applied."""

LAST = "last"
"""The name in `TESTS` of a single test."""


@dataclass(frozen=True)
class Task:
    """What a network is trained for, on which a protocol's values may depend."""

    arch: str
    classes: int
    images: int
    """That networks see: each of several in one counts."""
    resolution: int
    labels: str | None = None
    """hard or soft, if the user says so."""

    @property
    def per_class(self) -> int:
        """Images of a class, about as many in each; 1 or more."""
        return max(1, round(self.images / self.classes))


@dataclass(frozen=True)
class Protocol:
    """Everything that decides how a network is trained and tested, besides the images and the random numbers."""

    name: str
    epochs: int
    batch: int
    optimiser: str
    """sgd, adam or adamw."""
    lr: float
    """The largest rate of the schedule."""
    momentum: float
    """Of SGD, or the first of Adam's decay rates, whose second is 0.999."""
    weight_decay: float
    decay_all: bool
    """Whether biases and the weights of norms, which have one dimension, decay too."""
    schedule: str
    """A name of `SCHEDULES`."""
    ema: float = 0.0
    """Decay of the average of the weights over epochs, which is what is tested; 0: the last weights."""
    augment: Operations = ()
    cutmix: float = 0.0
    """β of CutMix's Beta(β, β); 0: no CutMix."""
    cutmix_share: float = 1.0
    """The share of batches that are mixed."""
    labels: str = "hard"
    """hard: the classes; soft: what a teacher says of each batch as the network sees it."""
    temperature: float = 20.0
    """Of soft labels, on both sides of the divergence."""
    temperature_squared: bool = False
    """Whether the divergence from soft labels is multiplied by the temperature's square."""
    soft_loss: str = "divergence"
    """divergence, or squared: of a network's logits from the labels' as they are, at no temperature."""
    teacher: dict[str, Any] | None = None
    """Whose soft labels are, and how good that is (`SoftLabels.about`); None before it is looked for."""
    whitening: str | None = None
    """A kind of `data.whitening.Whitening`, which images are shown by; None: they are normalised."""
    test_resize: int | None = None
    """Side to which test images are resized before their centre is cut out; None: they stay as they are."""
    tests: str = LAST
    """A name of `TESTS`: the epochs after which the best is looked for, if it is asked for."""
    dtype: str = "float32"
    """float32 or bfloat16, in which convolutions and matrix products are computed; weights stay in float32."""
    changed: tuple[tuple[str, Any], ...] = ()
    """Details that the user changed, with the protocol's own values."""

    def row(self) -> dict[str, Any]:
        """All that decides the accuracy after the last epoch, as JSON takes it: `protocol` in rows of results.

        Rows of glad name no protocol: they have the details that recipes could always change, and others only if they
        are changed. All other rows have everything, soft labels' details if they are soft, and under `changed` the
        protocol's own values of what the user changed.
        """
        soft = OF_SOFT_LABELS if self.labels == "soft" else ()
        unusual = {
            "whitening": self.whitening,
            "dtype": self.dtype != "float32",
            "cutmix_share": self.cutmix_share != 1,
        }
        unusual["soft_loss"] = bool(soft) and self.soft_loss != "divergence"
        shown = (*soft, *(key for key, is_so in unusual.items() if is_so))
        values = {key: value for key, value in asdict(self).items() if key not in NOT_IN_ROWS or key in shown}
        values["augment"] = written(self.augment)
        changes = {key: written(value) if key == "augment" else value for key, value in self.changed if key in values}
        if self.name != "glad":
            return values | ({"changed": changes} if changes else {})
        usual = {key: values[key] for key in ALWAYS} | {
            "augment": values["augment"] == {"dsa": True} or values["augment"]
        }
        return usual | {key: values[key] for key in (*changes, *soft) if key not in ALWAYS}


def operations(augment: dict[str, Any]) -> Operations:
    """`evaluate.augment`'s operations as a protocol has them."""
    values = {name: value if isinstance(value, list) else [value] for name, value in augment.items()}
    return tuple((name, () if numbers == [True] else tuple(map(float, numbers))) for name, numbers in values.items())


def written(augment: Operations) -> dict[str, Any] | bool:
    """Operations as rows and `evaluate.augment` have them; false for none."""
    plain = {name: [*numbers] if len(numbers) > 1 else numbers[0] if numbers else True for name, numbers in augment}
    return plain or False


# --- over the epochs ---------------------------------------------------------------------------------------


def warmup_cosine(epoch: int, epochs: int) -> float:
    """Linear warm-up over the first half, cosine decay over the second.

    As the reference's LinearLR(1e-7) over half the epochs and CosineAnnealingLR from the epoch after.
    """
    half = max(1, epochs // 2)
    if epoch <= half:
        return 1e-7 + (1 - 1e-7) * epoch / half
    return (1 + math.cos(math.pi * (epoch - half - 1) / half)) / 2


def step(epoch: int, epochs: int) -> float:
    """A fifth from 2/3 of the epochs, and a fifth of that from 5/6."""
    return float(0.2 ** sum(epoch >= milestone for milestone in (2 * epochs // 3, 5 * epochs // 6)))


def half_cosine(epoch: int, epochs: int) -> float:
    """A cosine of twice the epochs: from 1 to a half."""
    return (1 + math.cos(math.pi * epoch / (2 * epochs))) / 2


def cosine(epoch: int, epochs: int) -> float:
    """From 1 to nearly 0: the last epoch has more."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "warmup-cosine": warmup_cosine,
    "step": step,
    "half-cosine": half_cosine,
    "cosine": cosine,
    "constant": lambda epoch, epochs: 1.0,
}
"""The factor of the learning rate in an epoch, from 0, of so many."""

TESTS: dict[str, Callable[[int], set[int]]] = {
    LAST: lambda epochs: {epochs},
    "hundredths": lambda epochs: {*range(max(1, epochs // 100), epochs + 1, max(1, epochs // 100)), epochs},
    "last-fifth": lambda epochs: {*(done for done in range(10, epochs + 1, 10) if done - 1 > 0.8 * epochs), epochs},
    "fifties": lambda epochs: {*range(1, epochs + 1, 50), epochs},
}
"""The numbers of epochs after which a protocol tests, of so many. The last is always one of them."""

TESTS_TEXT = {
    "hundredths": "each hundredth of the epochs",
    "last-fifth": "each tenth epoch of the last fifth",
    "fifties": "each fiftieth epoch",
}
"""The same in words."""
