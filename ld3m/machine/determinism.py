"""How a GPU computes: the same bits each time, and float32 in full unless the recipe allows less."""

import os

import torch


def settle(device: torch.device, tf32: bool = False) -> None:
    """Has NVIDIA's GPUs give the same bits for the same work from here on, as a CPU does; others are left alone.

    Runs are resumed, repeated and compared by their bits, which sums in whatever order threads end in would change.
    What PyTorch knows no such way for is an error.

    Args:
        device: that will compute.
        tf32: whether it may convolve and multiply float32 in TF32, of 11 significant bits. PyTorch by itself has
            convolutions in TF32 and products of matrices in float32.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, when it is first used
        torch.use_deterministic_algorithms(True)
        # Nothing reads memory that was never written, and writing it takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def tolerate(device: torch.device) -> None:
    """From here on what PyTorch cannot repeat bit for bit is a warning: networks of other packages may need it."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
