"""Tensors on their way from main memory to a device."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting until it is there.

    What the device is asked for next is done after the copy. A plain copy would have the CPU wait for all that a GPU
    has still to do. NVIDIA's GPUs fetch pinned memory themselves, and PyTorch keeps it until they have; on Apple's a
    copy is waited for, as nothing keeps its source.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")
