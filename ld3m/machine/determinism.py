"""How a GPU computes: the same bits each time, and float32 in full unless the recipe allows less."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(device: torch.device, tf32: bool = False, warn_only: bool = False) -> Iterator[None]:
    """Within it NVIDIA's GPUs give the same bits for the same work, as a CPU does; other devices are left alone.

    Runs are resumed, repeated and compared by their bits, which sums in whatever order threads end in would change.
    The settings before it come back at its end.

    Args:
        device: that computes.
        tf32: whether it may convolve and multiply float32 in TF32, of 11 significant bits. PyTorch by itself has
            convolutions in TF32 and products of matrices in float32.
        warn_only: whether an operation that PyTorch cannot repeat is a warning and not an error: networks of other
            packages may need it.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it when it is first used
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        # Nothing reads memory that was never written, and writing it takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
