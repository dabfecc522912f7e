"""Memory that runs out: how to recognise it, and trying again with less."""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ld3m.errors import UserError
from ld3m.machine.memory import return_freed_memory

T = TypeVar("T")
SIGNS = (
    "can't allocate memory",  # PyTorch's allocator on CPUs
    "bad_alloc",
    "could not create a primitive",  # oneDNN, which says no more
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError that is about memory, and not a `torch.OutOfMemoryError`, says."""


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free_unheld() -> None:
    """Frees what nobody holds any more."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def retry(attempt: Callable[[], T], give_way: Callable[[], None]) -> T:
    """The result of an attempt; each time memory runs out, gives way and tries again.

    Args:
        attempt: what needs memory. A later attempt must not see what an earlier one left half done.
        give_way: makes the next attempt take less, or raises if there is nothing less; what the failed attempt held
            has been freed by then.
    """
    while True:
        try:
            return attempt()
        except Exception as error:
            if not ran_out(error):
                raise
        free_unheld()  # outside the except block, where the error's traceback no longer holds the attempt's tensors
        give_way()


def in_parts(function: Callable[[Tensor], Tensor], rows: Tensor, size: int, advice: str) -> Tensor:
    """The results of a function that treats each row alone, computed for some rows at a time.

    If memory runs out, the remaining rows are computed half as many at a time, and a line says so.

    Args:
        function: [n, …] to [n, …].
        rows: [N, …], N at least 1.
        size: rows at a time, to begin with.
        advice: the error if a single row is too much: names the key and what would be right.

    Raises:
        UserError: with that line.
    """
    results: list[Tensor] = []
    done = 0

    def next_rows() -> Tensor:
        return function(rows[done : done + size])

    def halve() -> None:
        nonlocal size
        if size == 1:
            raise UserError(advice)
        size //= 2
        tqdm.write(f"ld3m: memory ran out; continuing with {size} images at a time", file=sys.stderr)

    while done < len(rows):
        results.append(retry(next_rows, halve))
        done += size
    return torch.cat(results)
