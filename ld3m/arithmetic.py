"""How a GPU computes: the same bits each time, and float32 in full where no recipe allows less."""

import os
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


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


def sample_bilinear(images: Tensor, places: Tensor) -> Tensor:
    """`functional.grid_sample` with corners aligned and zeros outside, whose gradient PyTorch adds up repeatably.

    Args:
        images: [N, channels, H, W].
        places: [N, h, w, 2], column and row of each value of the answer, from -1 to 1.

    Returns:
        [N, channels, h, w]
    """
    height, width = images.shape[2:]
    size = places.new_tensor([width - 1, height - 1])
    places = (places + 1) / 2 * size
    first = places.floor()
    beyond = places - first
    flat, parts = images.flatten(2), []
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        step = places.new_tensor(corner)
        corners = first + step
        weight = torch.where(step.bool(), beyond, 1 - beyond).prod(-1)
        weight = weight * ((corners >= 0) & (corners <= size)).all(-1)
        column, row = corners.clamp(min=0).minimum(size).long().unbind(-1)
        chosen = (row * width + column).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
        parts.append(flat.gather(2, chosen).unflatten(2, weight.shape[1:]) * weight.unsqueeze(1))
    return parts[0] + parts[1] + parts[2] + parts[3]


def resize(images: Tensor, resolution: int) -> Tensor:
    """Bilinear, smoothed where it shrinks, as `functional.interpolate` has it; its gradient is repeatable.

    Args:
        images: [N, channels, H, W].
        resolution: height and width of the answer.
    """
    rows, columns = (_resizing(size, resolution).to(images) for size in images.shape[2:])
    return rows @ images @ columns.T


@cache
def _resizing(size: int, resolution: int) -> Tensor:
    """The matrix [resolution, size] that resizes a line."""
    lines = torch.eye(size, dtype=torch.float64).view(1, 1, size, size)
    return functional.interpolate(lines, size=(resolution, size), mode="bilinear", antialias=True)[0, 0]
