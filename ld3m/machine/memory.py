"""Memory: how much this process has used and may use, and how the C library's allocator treats large tensors."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_DEFAULT_THRESHOLD = 128 * 1024
"""Of both thresholds, in glibc."""


def peak(device: torch.device) -> int:
    """The most bytes that this process has used: on a GPU by its tensors, else all of it in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux's figure if there is one, as getrusage's begins with the parent process's
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows does not have

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Lets `peak` begin again from what is used now; where the system cannot, it stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux's
        Path("/proc/self/clear_refs").write_text("5")


def free(device: torch.device) -> int:
    """Bytes that this process may still use: a GPU's, or its share of the machine's or of its control group's."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        available = min(available, max(0, limit - used))
    except (OSError, ValueError):  # no control group, or one without a limit
        pass
    return available // int(os.environ.get("LOCAL_WORLD_SIZE") or "1")


# --- the allocator -----------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Lets this process use freed blocks again, however large, instead of asking the system for new ones.

    glibc gives blocks of more than 32 MiB, and the end of its heap, back to the system as soon as they are free. A
    training step frees and asks for the same activations all the time: the system then hands out zeroed pages one by
    one, which takes up to half as long as the step itself. Without glibc, nothing changes.
    """
    _set_thresholds(mmap=2**30, trim=2**31 - 1)


def return_freed_memory() -> None:
    """Returns freed memory to the system, from here on at once: for when memory runs out."""
    if _set_thresholds(mmap=_DEFAULT_THRESHOLD, trim=_DEFAULT_THRESHOLD):
        ctypes.CDLL(None).malloc_trim(0)


def _set_thresholds(mmap: int, trim: int) -> bool:
    """Sets from how many bytes on a block is a separate mapping, and the heap's free end returned; whether it could."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        return False
    set_option(_M_MMAP_THRESHOLD, mmap)
    set_option(_M_TRIM_THRESHOLD, trim)
    return True
