"""How the C library's allocator treats large tensors."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets this process use freed blocks again, however large, in place of asking the system for new ones.

    glibc gives blocks of more than 32 MiB, and the end of its heap, back to the system as soon as they are free. A
    training step frees and asks for the same activations all the time: the system then hands out zeroed pages one by
    one, which takes up to half as long as the step's own work. Where there is no glibc, nothing changes.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, 2**30)
            set_option(_M_TRIM_THRESHOLD, 2**31 - 1)
