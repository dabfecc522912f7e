"""Devices that a run may be planned for without having one."""

from dataclasses import dataclass

from ld3m.errors import UserError

UTILISATION = 0.071
"""The share of the dense TF32 or bfloat16 peak that a run reaches.

From the one published cost: 574 minutes at 256 px, T = 20, one image of each of ten classes, on an A100-40GB (LD3M,
arXiv 2403.03881), whose code computes the chain's forward three times and its backward once. Taken as 1,000 iterations,
their operations, counted on cin256-v2's configuration, are this share of that card's peak.
"""
SINGLE = 2.7
"""How many times as long float32 takes as TF32: measured on an H100, by tests/benchmarks/gpu.py."""
RESERVED = 1 << 30
"""Bytes of a GPU that are nobody's tensors: CUDA's context, the kernels' code and their working space. Assumed."""
SLACK = 0.1
"""What the allocator holds beyond the tensors that are alive, as a share of those that come and go. Assumed."""


@dataclass(frozen=True)
class Device:
    """A GPU by its vendor's data sheet."""

    gib: float
    """Memory that PyTorch reports, a little less than the name says."""
    tf32: float
    """Dense operations a second in TF32."""
    half: float
    """Dense operations a second in bfloat16 or float16."""

    def seconds(self, operations: float, dtype: str, tf32: bool) -> float:
        """Of so many operations in a precision, float32 in TF32 or not, at the utilisation assumed."""
        if dtype != "float32":
            return operations / (self.half * UTILISATION)
        return operations / (self.tf32 * UTILISATION) * (1 if tf32 else SINGLE)


DEVICES = {
    "a100-40gb": Device(39.4, 156e12, 312e12),
    "a100-80gb": Device(79.1, 156e12, 312e12),
    "h100-80gb": Device(79.1, 494e12, 989e12),
    "h200-141gb": Device(139.8, 494e12, 989e12),
    "l4-24gb": Device(22.0, 60e12, 121e12),
    "l40s-48gb": Device(44.4, 183e12, 362e12),
}
"""NVIDIA's data sheets: A100 (SXM), H100 (SXM), H200 (SXM), L4, L40S; without sparsity."""


def find(name: str) -> Device:
    """A device by its name.

    Raises:
        UserError: naming those that are known.
    """
    if name not in DEVICES:
        raise UserError(f"--device: {name!r} is not known; give one of {', '.join(DEVICES)}, or none to measure here")
    return DEVICES[name]
