"""Protocols of the field, a file each: how networks are trained on a set and tested; and one with a recipe's changes.

How that is done is `training` and `testing`.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from ld3m.errors import UserError
from ld3m.evaluation.protocols.custom import custom
from ld3m.evaluation.protocols.details import Protocol, Task, operations
from ld3m.evaluation.protocols.glad import glad
from ld3m.evaluation.protocols.idc import idc
from ld3m.evaluation.protocols.minimax import minimax
from ld3m.evaluation.protocols.rd3 import rd3
from ld3m.evaluation.protocols.rded import rded
from ld3m.evaluation.protocols.rethinkdc import rethinkdc
from ld3m.recipe import EvaluateRecipe
from ld3m.registry import Registry

__all__ = ["PROTOCOLS", "Protocol", "Task", "has_own_rate", "protocol"]

OTHERS = "others"
"""The name in `evaluate.lr` of all architectures that it does not name."""

PROTOCOLS: Registry[Callable[[Task], Protocol]] = Registry(
    "ld3m.protocols",
    "evaluate.protocol",
    {
        "glad": glad,
        "minimax": minimax,
        "idc": idc,
        "rded": rded,
        "rd3": rd3,
        "rethinkdc": rethinkdc,
        "custom": custom,
    },
)
DETAILS = tuple(field.name for field in fields(Protocol) if field.name not in ("name", "changed", "teacher"))
"""What a recipe may change."""


def protocol(
    settings: EvaluateRecipe, task: Task, trained_on: str = "distilled", augment: bool | None = None
) -> Protocol:
    """The protocol that a recipe names, with its changes, which are noted in it.

    Args:
        settings: `evaluate` of a recipe; its `lr` is not "learnt" any more.
        task: what a network is trained for; its `labels` are those of the settings.
        trained_on: the name of the set, of which "full" has `full_epochs`.
        augment: whether images are augmented, if not as the settings say.

    Raises:
        UserError: if there is no such protocol, or a change does not fit the images.
    """
    find = PROTOCOLS.find(settings.protocol)
    task = replace(task, labels=settings.labels)
    own = find(task)
    wanted: dict[str, Any] = {key: value for key in DETAILS if (value := getattr(settings, key)) is not None}
    if augment is not None and augment != augments(settings):
        wanted["augment"] = augment
    if "augment" in wanted:
        wanted["augment"] = _operations(wanted["augment"], own)
    if "lr" in wanted:
        wanted["lr"] = _rate(settings, own.lr, task.arch, own.lr != find(replace(task, arch="")).lr)
    if wanted.get("test_resize", task.resolution) < task.resolution:
        raise UserError(
            f"evaluate.test_resize: {wanted['test_resize']} is less than data.resolution={task.resolution}, which is "
            "cut out of it; give as much or more"
        )
    if trained_on == "full" and settings.full_epochs:
        few = {key: wanted.get(key, getattr(own, key)) for key in ("ema", "epochs")}
        wanted["ema"] = full_ema(few["ema"], few["epochs"], settings.full_epochs)
        wanted["epochs"] = settings.full_epochs
    changed = tuple((key, getattr(own, key)) for key, value in wanted.items() if value != getattr(own, key))
    return replace(own, **wanted, changed=changed)


def augments(settings: EvaluateRecipe) -> bool:
    """Whether a recipe leaves its protocol any augmentation."""
    return settings.augment is not False


def full_ema(ema: float, epochs: int, full_epochs: int) -> float:
    """The decay for all real images: the average covers the same share of a training of other epochs."""
    return round(ema ** (epochs / full_epochs), 6)


def has_own_rate(settings: EvaluateRecipe, arch: str) -> bool:
    """Whether the recipe names a rate for this architecture, or its protocol has one for it alone.

    Rows of glad do not say the latter; `rows.has_own_rate` knows it.
    """
    if isinstance(settings.lr, dict) and arch in settings.lr:
        return True
    find = PROTOCOLS.find(settings.protocol)
    one, other = (find(Task(name, 10, 10, 32)).lr for name in (arch, ""))
    return settings.protocol != "glad" and one != other


def _operations(value: Any, own: Protocol) -> Any:
    """Operations for `evaluate.augment`; true is the protocol's way, or Siamese augmentation if it has none."""
    if isinstance(value, dict):
        return operations(value)
    return (own.augment or (("dsa", ()),)) if value else ()


def _rate(settings: EvaluateRecipe, own: float, arch: str, has_own: bool) -> float:
    """The rate that a recipe names for the architecture, else the protocol's for it alone, else that of all others."""
    rates: Any = settings.lr if isinstance(settings.lr, dict) else {OTHERS: settings.lr}
    return float(rates.get(arch) or (own if has_own else rates.get(OTHERS)) or own)
