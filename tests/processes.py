"""Processes of one launch that start in a moment: forked from one that has imported everything."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ld3m.__main__ import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "ld3m.distillation.loop",
        "ld3m.evaluation.evaluate",
        "ld3m.objectives.train_experts",
        "diffusers.models.autoencoders.vq_model",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.schedulers.scheduling_ddim",
    ]
)


def spawn(count: int, function: Callable[..., Any], *arguments: Any, output: Path | None = None) -> list[Any]:
    """`count` processes that run `function(*arguments)`, as torchrun would start them.

    Args:
        count: processes; a single one gets none of a launch's variables.
        function: defined at the top level of a module.
        arguments: its arguments, which must be picklable.
        output: a folder for what each prints: `0.txt`, `1.txt`, …
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        environment = (environment if count > 1 else {}) | {"LD3M_CACHE": os.environ["LD3M_CACHE"]}
        process = FORKS.Process(target=_run, args=(environment, output and output / f"{rank}.txt", function, arguments))
        process.start()
        processes.append(process)
    return processes


def finish(processes: list[Any], seconds: float = 300) -> list[int]:
    """The exit codes, negative for signals, of processes that are killed if they take longer."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def command_line(*arguments: object) -> None:
    """A command of ld3m in this process, which ends with its code."""
    sys.argv = ["ld3m", *map(str, arguments)]
    main()


def _run(
    environment: dict[str, str], output: Path | None, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    function(*arguments)
