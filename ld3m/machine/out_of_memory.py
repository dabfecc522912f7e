"""Memory that runs out: how it shows, and a function's answers made of fewer rows at a time where it does."""

import gc
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ld3m.errors import UserError
from ld3m.machine.memory import return_freed_memory

SIGNS = (
    "can't allocate memory",  # PyTorch's allocator on CPUs
    "bad_alloc",
    "could not create a primitive",  # oneDNN, which says no more
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError says that is about memory, and no `torch.OutOfMemoryError`."""


def ran_out(error: BaseException) -> bool:
    """Whether an error is that of memory which is not there."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free_unheld() -> None:
    """Frees what nobody holds any more."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_parts(function: Callable[[Tensor], Tensor], rows: Tensor, size: int, advice: str) -> Tensor:
    """The answers of a function that treats each row alone, some rows at a time.

    Where memory runs out, the rest goes by half as many rows, and a line says so.

    Args:
        function: [n, …] to [n, …].
        rows: [N, …], one at least.
        size: rows at a time, to begin with.
        advice: a line that names the key and what would be right, for where a single row is too much.

    Raises:
        UserError: with that line.
    """
    answers: list[Tensor] = []
    done = 0
    while done < len(rows):
        try:
            answers.append(function(rows[done : done + size]))
            done += size
            continue
        except Exception as error:
            if not ran_out(error):
                raise
            if size == 1:
                raise UserError(advice) from None
        size //= 2
        free_unheld()  # out here nothing holds what the attempt had
        tqdm.write(f"ld3m: memory ran out; goes on with {size} images at a time", file=sys.stderr)
    return torch.cat(answers)
