"""Processes: who we are, which classes are ours, and the little that must be said between us."""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env
from torch import Tensor

from ld3m.errors import UserError
from ld3m.machine import determinism
from ld3m.machine.heartbeat import Watch

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a process waits for others, which may have a network more to train; whether they live, `Watch` sees."""


def together(command: Callable[P, T]) -> Callable[P, T]:
    """Runs a command as one of the processes of its launch: they all stop where one of them dies or fails."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        accelerator = start()
        if accelerator.num_processes == 1:
            return command(*args, **kwargs)
        with Watch(accelerator.process_index, accelerator.num_processes):
            return command(*args, **kwargs)

    return run


def start(tf32: bool = False) -> Accelerator:
    """Accelerate's view of this launch, checked against the environment's and the launcher's.

    Some launch settings make every process believe that it is alone; the run would then be done several times over.
    Others start one process where more were asked for; it would then take several times as long.
    NVIDIA's GPUs are told to repeat themselves bit for bit.

    Args:
        tf32: whether NVIDIA's GPUs may compute float32 in TF32 from here on.

    Raises:
        UserError: where the number of processes is not what the launcher set or was told, or more than there are GPUs.
    """
    cpu = not torch.accelerator.is_available()
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.accelerator.device_count()
    if not cpu and here > gpus and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise UserError(
            f"--num_processes: {here} on this machine, which has {gpus} GPU{'s' * (gpus > 1)}; start one for each, or "
            "hide them for a run on CPUs: CUDA_VISIBLE_DEVICES="
        )
    deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    group = InitProcessGroupKwargs(timeout=PATIENCE)
    if deepspeed and cpu:
        group.backend = "gloo"
    accelerator = _with_deepspeed(group) if deepspeed else Accelerator(cpu=cpu, kwargs_handlers=[group])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE: the launcher started {launched} processes but Accelerate sees {accelerator.num_processes}; "
            "use a configuration of launch/ (on CPUs it needs distributed_type: MULTI_GPU and use_cpu: true)"
        )
    if launched == 1 and (setting := _asked_for_more()):
        raise UserError(
            f"{setting}, but accelerate launch started one process; use a configuration of launch/ with "
            "distributed_type: MULTI_GPU (also on CPUs, with use_cpu: true), or ask for one"
        )
    determinism.settle(accelerator.device, tf32)
    return accelerator


@functools.cache
def _asked_for_more() -> str | None:
    """The setting by which the `accelerate launch` that started this process was told to start several, if any."""
    parent = psutil.Process().parent()
    try:
        line = parent.cmdline() if parent else []
    except psutil.Error:  # another user's, or gone
        return None
    at = next((place for place, word in enumerate(line) if word in ("launch", "accelerate.commands.launch")), None)
    if at is None or "accelerate" not in " ".join(line[: at + 1]):
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    asked, _ = launch_command_parser().parse_known_args(line[at + 1 :])
    if asked.num_processes is not None:
        return f"--num_processes {asked.num_processes}" if asked.num_processes > 1 else None
    if asked.config_file is None and not os.path.isfile(default_config_file):  # noqa: PTH113
        return None
    configured = load_config_from_file(asked.config_file).num_processes
    place = asked.config_file or default_config_file
    return f"{place} says num_processes: {configured}" if (configured or 1) > 1 else None


def _with_deepspeed(group: InitProcessGroupKwargs) -> Accelerator:
    """An Accelerator that has DeepSpeed's process group, which cpu=True would silently turn off."""
    for package in ("deepspeed", "transformers"):  # the second is what Accelerate keeps DeepSpeed's configuration with
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the launch asks for DeepSpeed, which needs the package {package}: pip install 'ld3m[deepspeed]'"
            )
    from transformers.integrations import unset_hf_deepspeed_config

    accelerator = Accelerator(kwargs_handlers=[group])
    unset_hf_deepspeed_config()  # else transformers would shard a text encoder as it is loaded
    return accelerator


def name(accelerator: Accelerator) -> str:
    """What begins a line that is one process's own: "process 1: ", or nothing where there is one alone."""
    return f"process {accelerator.process_index}: " if accelerator.num_processes > 1 else ""


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
