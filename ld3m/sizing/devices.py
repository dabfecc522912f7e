"""Devices that a run may be planned for without having one."""

from dataclasses import dataclass

from ld3m.errors import UserError

EFFICIENCY = 0.489
"""The share of a dense peak at which operations are done once their numbers are there.

This and `TRAFFIC` follow from a gradient step measured on one H100 in three precisions (tests/benchmarks/gpu.py: 274
TFLOP at 256 px in 11.58, 4.35 and 2.94 seconds); on another device they are an extrapolation. The one published cost is
higher, 574 minutes on an A100-40GB (LD3M, arXiv 2403.03881): this gives 4.1 hours for what that code computes, three
passes forwards and one backwards, in 1,000 iterations. What else is in the 574 minutes is not said.
"""
TRAFFIC = {"float32": 0.0393, "half": 0.0276}
"""Bytes that go to and from the device's memory per operation, mostly activations; TF32 is float32 there."""
RESERVED = 1 << 30
"""Bytes of a GPU that are nobody's tensors: CUDA's context, the kernels' code and their working space. Assumed."""
SLACK = 0.1
"""What the allocator holds beyond the tensors that are alive, as a share of those that come and go. Assumed."""


@dataclass(frozen=True)
class Device:
    """A GPU by its vendor's data sheet."""

    gib: float
    """Memory that PyTorch reports, a little less than the name says."""
    single: float
    """Operations a second in float32."""
    tf32: float
    """Dense operations a second in TF32; those in float32 if the device has none."""
    half: float
    """Dense operations a second in float16, and in bfloat16 if the device has it."""
    bandwidth: float
    """Bytes a second to and from its memory."""
    bfloat16: bool = True
    """Whether it computes in bfloat16."""

    def seconds(self, operations: float, dtype: str, tf32: bool) -> float:
        """Of so many operations in a precision, float32 in TF32 or not."""
        if dtype == "float16" or (dtype == "bfloat16" and self.bfloat16):
            peak, traffic = self.half, TRAFFIC["half"]
        else:
            peak, traffic = self.tf32 if tf32 and dtype == "float32" else self.single, TRAFFIC["float32"]
        return operations * (1 / (peak * EFFICIENCY) + traffic / self.bandwidth)


DEVICES = {
    "a100-40gb": Device(39.4, 19.5e12, 156e12, 312e12, 1.555e12),
    "a100-80gb": Device(79.1, 19.5e12, 156e12, 312e12, 2.039e12),
    "h100-80gb": Device(79.1, 67e12, 494e12, 989e12, 3.35e12),
    "h200-141gb": Device(139.8, 67e12, 494e12, 989e12, 4.8e12),
    "l4-24gb": Device(22.0, 30.3e12, 60e12, 121e12, 0.3e12),
    "l40s-48gb": Device(44.4, 91.6e12, 183e12, 362e12, 0.864e12),
    "rtx-3090-24gb": Device(23.6, 35.6e12, 35.6e12, 71e12, 0.936e12),
    "rtx-4090-24gb": Device(23.6, 82.6e12, 82.6e12, 165.2e12, 1.008e12),
    "rtx-a6000-48gb": Device(47.4, 38.7e12, 77.4e12, 154.8e12, 0.768e12),
    "t4-16gb": Device(14.6, 8.1e12, 8.1e12, 65e12, 0.3e12, bfloat16=False),
    "v100-32gb": Device(31.7, 15.7e12, 15.7e12, 125e12, 0.9e12, bfloat16=False),
}
"""NVIDIA's data sheets and white papers, without sparsity; A100, H100, H200 and V100 as SXM."""


def find(name: str) -> Device:
    """A device by its name.

    Raises:
        UserError: naming those that are known.
    """
    if name not in DEVICES:
        raise UserError(f"--device: {name!r} is not known; give one of {', '.join(DEVICES)}, or none to measure here")
    return DEVICES[name]
