"""The launcher around our processes: what is left on the screen if a command fails, and one that adds nothing to it.

`accelerate launch` ends with a traceback of its own, which `--quiet` spares with one process and nothing with several:
hence `ld3m launch`.
"""

import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from ld3m.errors import UserError, one_line

LAUNCHERS = ("accelerate", "ld3m")
"""Programs with a command `launch`."""
FORWARDED = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Signals that a launcher may get alone; a terminal sends Ctrl-C to all."""

# --- in the processes that are launched --------------------------------------------------------------------


def speaks_first(lines: Sequence[str]) -> bool:
    """Whether no other process of this launch has printed the same lines; they are then the launcher's root cause too.

    Torch's launcher names a file for each process, in one folder, where it looks for the reason of a failure, and shows
    that of the earliest as the last thing of all. Without such a launcher, every process speaks.
    """
    if not (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        return True
    error_file, text = Path(path), "\n".join(f"ld3m: {line}" for line in lines)
    try:
        (error_file.parent.parent / f"said-{hashlib.sha256(text.encode()).hexdigest()[:16]}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    with suppress(OSError):  # earlier than what the launcher notes of the others
        error_file.write_text(json.dumps({"message": text, "timestamp": int(time.time()) - 1}), encoding="utf-8")
    return True


def arguments_of_launcher() -> list[str] | None:
    """The words behind `accelerate launch` or `ld3m launch` by which this process was started; None if by neither."""
    parent = psutil.Process().parent()
    try:
        line = parent.cmdline() if parent else []
    except psutil.Error:  # another user's, or gone
        return None
    words = ("launch", "accelerate-launch", "accelerate.commands.launch")
    position = next((index for index, word in enumerate(line) if word.rpartition("/")[2] in words), None)
    if position is None or not any(name in " ".join(line[: position + 1]) for name in LAUNCHERS):
        return None
    return line[position + 1 :]


def traceback_follows() -> bool:
    """Whether a launcher that was not told to be quiet prints a traceback of its own once this process fails."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or os.environ.get("TORCHELASTIC_ERROR_FILE"):
        return False
    arguments = arguments_of_launcher()
    return arguments is not None and not {"--quiet", "-q"} & set(arguments) and "-m" in arguments


# --- ld3m launch -------------------------------------------------------------------------------------------


def launch(arguments: Sequence[str]) -> int:
    """Starts a command of ours as `accelerate launch` would, and waits for it.

    Args:
        arguments: options of `accelerate launch`, then the command; left out, as many processes as there are GPUs.

    Returns:
        The command's exit code, 128 + its number if it ended by a signal.

    Raises:
        UserError: if there is no command, or the launch cannot be set up.
    """
    from subprocess import CalledProcessError

    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = _options(arguments)
    try:
        with _in_the_background():
            launch_command(options)
    except CalledProcessError as error:
        return _code(error.returncode, "the process")
    except ChildFailedError as error:
        ended = -signal.SIGTERM  # by the launcher, since another failed
        rank, first = min(error.failures.items(), key=lambda each: (each[1].exitcode == ended, each[1].timestamp))
        return _code(first.exitcode, f"process {rank}")
    except SignalException as error:
        return 128 + int(error.sigval)
    except Exception as error:
        reason = one_line(error)
        raise UserError(f"the launch cannot be set up ({reason}); use a configuration of launch/") from None
    return 0


def _options(arguments: Sequence[str]) -> Any:
    """The options of a launch of ours, as Accelerate's parser has them, with defaults that need no configuration."""
    import torch
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    parser.error = _refuse
    options = parser.parse_args(list(arguments))
    command = [options.training_script, *options.training_script_args]
    if options.module and command[0] == "ld3m":  # as behind `accelerate launch`
        command = command[1:]
    options.module, options.training_script, options.training_script_args = True, "ld3m", command
    if options.config_file and not Path(options.config_file).is_file():
        raise UserError(f"--config_file: {options.config_file} is not there; launch/ has some, or leave it out")
    if options.config_file or Path(default_config_file).is_file():
        return options
    gpus = 0 if options.cpu else torch.accelerator.device_count()
    chosen = len(options.gpu_ids.split(",")) if options.gpu_ids not in (None, "all") else gpus
    options.num_processes = options.num_processes or chosen or 1
    options.num_machines = options.num_machines or 1
    options.mixed_precision = options.mixed_precision or "no"
    options.dynamo_backend = options.dynamo_backend or "no"
    options.use_cpu, options.cpu = not gpus, False
    options.multi_gpu = options.num_processes > 1 and not (options.use_deepspeed or options.use_fsdp)
    if options.num_machines == 1 and options.main_process_port is None:
        options.main_process_port = 0  # any that is free
    if options.num_cpu_threads_per_process is None and not os.environ.get("OMP_NUM_THREADS"):
        cores = psutil.cpu_count(logical=False) or 1
        options.num_cpu_threads_per_process = max(1, cores * options.num_machines // options.num_processes)
    return options


def _refuse(reason: str) -> NoReturn:
    if "training_script" in reason:
        raise UserError("launch: no command; give one of ld3m, as in ld3m launch distill quickstart")
    raise UserError(f"launch: {reason}; accelerate launch --help lists its options, which come before the command")


@contextmanager
def _in_the_background() -> Iterator[None]:
    """Leaves the screen to the processes that are launched, and passes on to them the signals that we get alone."""

    def forward(number: int, frame: object) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                child.send_signal(number)

    handlers = dict.fromkeys(FORWARDED, forward) | {signal.SIGINT: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    if os.environ.get("LD3M_DEBUG", "0") in ("", "0"):
        logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in before.items():
            signal.signal(number, handler)


def _code(code: int, process: str) -> int:
    """The exit code of a process that failed; says what ended it if it could not do so itself."""
    if code >= 0:
        return code
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    why = ", most likely since the machine's memory ran out" if -code == getattr(signal, "SIGKILL", None) else ""
    print(f"ld3m: {process} was ended by {name}{why}; the same command resumes from what was saved", file=sys.stderr)
    return 128 - code
