"""Networks and their optimiser as the tensors of one file, and back: what a training resumes from."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

OF_SGD, OF_ADAM = ("momentum_buffer",), ("step", "exp_avg", "exp_avg_sq")
"""What optimisers keep of a weight that had a gradient."""


def packed(parts: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors by the name of their part and their own, `network.0.weight`, and `optimiser.<weight>.<slot>`.

    Each has memory of its own, as a file needs it.
    """
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for number, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{slot}": value for slot, value in slots.items() if value is not None}
    return {key: value.clone() for key, value in tensors.items()}


def restore(tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
    """Gives parts and their optimiser the state that `packed` had of them.

    Raises:
        ValueError: before anything is changed, if the tensors are not of these parts.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        found[part][name] = value
    state: dict[int, dict[str, Any]] = {}
    for name, value in found.pop("optimiser", {}).items():
        number, slot = name.split(".")
        state.setdefault(int(number), {})[slot] = value
    if strange := found.keys() - parts.keys():
        raise ValueError(f"{min(strange)} is too many")
    for name, module in parts.items():
        _check_same(module.state_dict(), found[name])
    weights: list[Tensor] = [weight for group in optimiser.param_groups for weight in group["params"]]
    kept: tuple[str, ...] = OF_SGD if isinstance(optimiser, torch.optim.SGD) else OF_ADAM
    for index, slots in state.items():
        _check_same({slot: torch.zeros(()) if slot == "step" else weights[index] for slot in kept}, slots)
    for name, module in parts.items():
        module.load_state_dict(found[name])
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


def _check_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless both have tensors of the same names, shapes and types."""
    if different := sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"{different[0]} is {'missing' if different[0] in expected else 'too many'}")
    for name, value in found.items():
        wanted = expected[name]
        if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"{name} is {list(value.shape)} of {value.dtype}, not {list(wanted.shape)}")
