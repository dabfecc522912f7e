"""Processes: who we are, which classes are ours, and the little that must be said between us."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env
from torch import Tensor

from ld3m.errors import UserError

T = TypeVar("T")


def start() -> Accelerator:
    """Accelerate's view of this launch, checked against the environment's.

    Some launch settings make every process believe that it is alone; the run would then be done several times over.

    Raises:
        UserError: where the number of processes is not what the launcher set.
    """
    cpu = not torch.accelerator.is_available()
    accelerator = _with_deepspeed(cpu) if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") else Accelerator(cpu=cpu)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"the launcher started {launched} processes but Accelerate sees {accelerator.num_processes}; "
            "use a configuration of launch/ (on CPUs it needs distributed_type: MULTI_GPU and use_cpu: true)"
        )
    return accelerator


def _with_deepspeed(cpu: bool) -> Accelerator:
    """An Accelerator that has DeepSpeed's process group, which cpu=True would silently turn off."""
    for package in ("deepspeed", "transformers"):  # the second is what Accelerate keeps DeepSpeed's configuration with
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the launch asks for DeepSpeed, which needs the package {package}: pip install 'ld3m[deepspeed]'"
            )
    from transformers.integrations import unset_hf_deepspeed_config

    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if cpu else None)
    unset_hf_deepspeed_config()  # else transformers would shard a text encoder as it is loaded
    return accelerator


def shard(items: Sequence[T], accelerator: Accelerator) -> list[T]:
    """The items this process owns, dealt like cards, so that shards differ by one at most."""
    return list(items[accelerator.process_index :: accelerator.num_processes])


def gather_classes(own: Tensor, count: int, accelerator: Accelerator) -> Tensor:
    """Rows of all `count` classes in their order, of the rows that each process has of its shard; no gradient.

    Args:
        own: [classes of this process, …].
        count: classes of all processes.
        accelerator: deals them out, as `shard` does.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return own.detach()
    most = -(-count // processes)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own.detach()
    dealt = accelerator.gather(padded).unflatten(0, (processes, most))
    return dealt.transpose(0, 1).flatten(0, 1)[:count]  # process p holds the classes p, p + processes, …


def gather(items: list[Any], accelerator: Accelerator) -> list[Any]:
    """The items of all processes, on all processes; tensors must be on the CPU."""
    return gather_object(items) if accelerator.num_processes > 1 else items
