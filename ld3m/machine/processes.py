"""Processes: who we are in a launch, which classes are ours, and the little that they exchange."""

import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Concatenate, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env
from torch import Tensor

from ld3m.errors import UserError, counted, one_line
from ld3m.machine.heartbeat import Heartbeat
from ld3m.machine.launcher import arguments_of_launcher

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a process waits for the others, which may be training a network yet; `Heartbeat` sees whether they live."""


NOTICE = 10.0
"""Seconds after which a process that waits for the others to start says so."""
UNSET = "start with accelerate launch or torchrun, or unset it"
"""Advice about a variable that only launchers should set."""


@dataclass(frozen=True)
class Processes:
    """The processes of a launch, as one of them sees them. Attributes are named as those of Accelerate's `Accelerator`.

    `Processes(device)` is a process alone: it needs no launch, and its collectives return what they are given.
    """

    device: torch.device
    """Of this process."""
    process_index: int = 0
    """The number of this process, from 0."""
    num_processes: int = 1
    accelerator: Accelerator | None = None
    """Accelerate's own object, for collectives and for sharding a model; None if there was no launch."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is process 0, which writes what there is one of."""
        return self.process_index == 0

    @property
    def label(self) -> str:
        """The beginning of a line that one process of several prints: "process 1: "; empty for one alone."""
        return f"process {self.process_index}: " if self.num_processes > 1 else ""

    def print(self, line: str) -> None:
        """Prints once for each machine."""
        (self.accelerator.print if self.accelerator else print)(line)

    def wait_for_everyone(self) -> None:
        """Returns once all processes have called it."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def main_process_first(self) -> AbstractContextManager[None]:
        """A context that process 0 leaves before the others enter it."""
        context: AbstractContextManager[None] = nullcontext()
        return self.accelerator.main_process_first() if self.accelerator else context

    def shard(self, items: Sequence[T]) -> list[T]:
        """The items this process owns, dealt like cards: shards differ in size by one at most."""
        return list(items[self.process_index :: self.num_processes])

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, on all processes; tensors must be on the CPU."""
        return gather_object(items) if self.num_processes > 1 else items

    def gather_classes(self, own: Tensor, count: int) -> Tensor:
        """Rows of all classes in their order, from the rows that each process has of its shard; without a graph.

        Args:
            own: [classes of this process, …], dealt as `shard` deals them.
            count: classes of all processes.

        Returns:
            [count, …]
        """
        if self.num_processes == 1:
            return own.detach()
        assert self.accelerator
        most = -(-count // self.num_processes)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own.detach()
        dealt = self.accelerator.gather(padded).unflatten(0, (self.num_processes, most))
        return dealt.transpose(0, 1).flatten(0, 1)[:count]  # process p holds the classes p, p + processes, …

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes of a tensor of one shape on all of them."""
        if self.num_processes == 1:
            return tensor
        assert self.accelerator
        average: Tensor = self.accelerator.reduce(tensor, "mean")
        return average


_apart: ContextVar[Processes | None] = ContextVar("apart", default=None)


def watched_command(command: Callable[Concatenate[Processes, P], T]) -> Callable[P, T]:
    """Starts a command as one of the processes of its launch, which it gets as its first argument.

    They all stop if one of them dies or fails. Within `apart` it is this process's alone.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if own := _apart.get():
            return command(own, *args, **kwargs)
        processes = start()
        if processes.num_processes == 1:
            return command(processes, *args, **kwargs)
        with Heartbeat(processes.process_index, processes.num_processes):
            return command(processes, *args, **kwargs)

    return run


@contextmanager
def apart(processes: Processes) -> Iterator[None]:
    """Commands that are called inside are each process's own; the others of its launch have no part in them."""
    token = _apart.set(Processes(processes.device))
    try:
        yield
    finally:
        _apart.reset(token)


def start() -> Processes:
    """Accelerate's view of this launch, checked against the environment's and the launcher's.

    Some launch settings make every process believe that it is alone; the run would then be done several times over.
    Others start one process although more were asked for; it would then take several times as long.

    Raises:
        UserError: if the number of processes is not what the launcher set or was asked for, or exceeds the GPUs; if
            the launcher's variables do not fit each other, or what it asks for cannot be set up.
    """
    sizes = _launch_variables()
    cpu = not torch.accelerator.is_available()
    here, gpus = sizes.get("LOCAL_WORLD_SIZE", 1), torch.accelerator.device_count()
    if not cpu and here > gpus and not _flag("ACCELERATE_USE_CPU"):
        raise UserError(
            f"--num_processes: {here} on this machine, which has {counted(gpus, 'GPU')}; start one for each, or "
            "hide them for a run on CPUs: CUDA_VISIBLE_DEVICES="
        )
    accelerator = _join(cpu, sizes)
    launched = sizes.get("WORLD_SIZE", 1)
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
    processes = Processes(accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator)
    if processes.is_main_process:
        for line in _ignored_settings():
            print(f"ld3m: {line}", file=sys.stderr)
    return processes


def _launch_variables() -> dict[str, int]:
    """The variables by which a launcher tells a process its place, checked; empty ones are taken for unset."""
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name, "").strip()
        if not value:
            os.environ.pop(name, None)  # Accelerate takes it for a number
        elif value.isascii() and value.isdigit():
            numbers[name] = int(value)
        else:
            raise UserError(f"{name}: {value!r} is not a number of processes; {UNSET}")
    given = ", ".join(f"{name}={number}" for name, number in numbers.items())
    rank, count = numbers.get("RANK"), numbers.get("WORLD_SIZE")
    if numbers and count is None:
        raise UserError(f"{given}, but no WORLD_SIZE, which launchers set beside it; {UNSET}")
    if count == 0 or (count and count > 1 and rank is None) or (count and rank and rank >= count):
        raise UserError(f"{given}: RANK must be one of 0 to WORLD_SIZE - 1; {UNSET}")
    return numbers


def _flag(name: str) -> bool:
    """One of Accelerate's variables that is true or false."""
    try:
        return bool(parse_flag_from_env(name))
    except ValueError:
        raise UserError(f"{name}: {os.environ[name]!r} is neither true nor false; {UNSET}") from None


def _join(cpu: bool, sizes: Mapping[str, int]) -> Accelerator:
    """Meets the other processes of the launch, and says what it waits for if they are slow to come."""
    count = sizes.get("WORLD_SIZE", 1)
    where = f"{os.environ.get('MASTER_ADDR', 'this machine')}:{os.environ.get('MASTER_PORT', '29500')}"
    line = (
        f"ld3m: process {sizes.get('RANK', 0)} of {count} (WORLD_SIZE) is waiting for the others at {where} "
        f"(MASTER_ADDR, MASTER_PORT); unset WORLD_SIZE if this process is meant to be alone"
    )
    notice = threading.Timer(NOTICE, print, [line], {"file": sys.stderr, "flush": True})
    notice.daemon = True
    group = InitProcessGroupKwargs(timeout=PATIENCE)
    try:
        if count > 1:
            notice.start()
        if _flag("ACCELERATE_USE_DEEPSPEED"):
            if cpu:
                group.backend = "gloo"
            return _with_deepspeed(group)
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[group])
        torch.empty(1, device=accelerator.device)  # ACCELERATE_TORCH_DEVICE may name one that is not there
        return accelerator
    except UserError:
        raise
    except Exception as error:  # Accelerate, DeepSpeed and torch.distributed have no kind of their own
        raise UserError(f"the launch cannot be set up ({one_line(error)}); use a configuration of launch/") from None
    finally:
        notice.cancel()


def _ignored_settings() -> Iterator[str]:
    """A line for each setting of the launch that changes nothing here, with the key that does."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("", "no"):
        keys = "prior.dtype=bfloat16 network.dtype=bfloat16" if precision != "fp16" else "prior.dtype=float16"
        yield f"the launch's mixed_precision={precision} is ignored: precision is the recipe's, such as {keys}"
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if compiler not in ("", "no"):
        yield f"the launch's dynamo_backend={compiler} is ignored: prior.compile=on compiles the denoiser"


@functools.cache
def _asked_for_more() -> str | None:
    """The setting by which the launch that started this process was asked to start several, if any."""
    arguments = arguments_of_launcher()
    if arguments is None:
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    asked, _ = launch_command_parser().parse_known_args(arguments)
    if asked.num_processes is not None:
        return f"--num_processes {asked.num_processes}" if asked.num_processes > 1 else None
    if asked.config_file is None and not os.path.isfile(default_config_file):  # noqa: PTH113
        return None
    configured = load_config_from_file(asked.config_file).num_processes
    path = asked.config_file or default_config_file
    return f"{path} says num_processes: {configured}" if (configured or 1) > 1 else None


def _with_deepspeed(group: InitProcessGroupKwargs) -> Accelerator:
    """An Accelerator that has DeepSpeed's process group, which cpu=True would silently turn off."""
    for package in ("deepspeed", "transformers"):  # the second is what Accelerate keeps DeepSpeed's configuration with
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the launch asks for DeepSpeed, which needs the package {package}: pip install 'ld3m[deepspeed]'"
            )
    import deepspeed
    from transformers.integrations import unset_hf_deepspeed_config

    # DeepSpeed would compile a kernel for processes that share a machine's memory: a minute, and a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[group])
    unset_hf_deepspeed_config()  # else transformers would shard a text encoder as it is loaded
    return accelerator
