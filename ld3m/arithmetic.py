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
    across, down = ((places + 1) / 2).unbind(-1)
    columns, rows = _beside(across * (width - 1), width), _beside(down * (height - 1), height)
    flat, shape = images.flatten(2), places.shape[1:3]
    corners = []
    for row, high in rows:
        for column, wide in columns:
            chosen = (row * width + column).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
            corners.append(flat.gather(2, chosen).unflatten(2, shape) * (high * wide).unsqueeze(1))
    return corners[0] + corners[1] + corners[2] + corners[3]


def _beside(place: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two whole numbers around each place, kept in [0, size), and their weights, 0 where they were outside."""
    first = place.floor()
    beyond = place - first
    return [
        (whole.clamp(0, size - 1).long(), weight * ((whole >= 0) & (whole < size)))
        for whole, weight in ((first, 1 - beyond), (first + 1, beyond))
    ]


def resize(images: Tensor, resolution: int) -> Tensor:
    """Bilinear, smoothed where it shrinks, as `functional.interpolate` has it; its gradient is repeatable.

    Args:
        images: [N, channels, H, W].
        resolution: height and width of the answer.
    """
    rows, columns = (_resizing(size, resolution, images.dtype, images.device) for size in images.shape[2:])
    return rows @ images @ columns.T


@cache
def _resizing(size: int, resolution: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix [resolution, size] that resizes a line; kept on the device, which would be waited for."""
    lines = torch.eye(size, dtype=torch.float64).view(1, 1, size, size)
    matrix = functional.interpolate(lines, size=(resolution, size), mode="bilinear", antialias=True)[0, 0]
    return matrix.to(device, dtype)
