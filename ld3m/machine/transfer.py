"""Copies of tensors from main memory to a device."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on a device, without waiting until it is there.

    The device does what it is asked next after the copy. A plain copy would have the CPU wait for everything that a GPU
    has still to do. NVIDIA's GPUs fetch pinned memory themselves, and PyTorch keeps it until they have; on Apple's, the
    CPU waits for the copy, since nothing keeps its source.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")
