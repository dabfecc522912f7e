"""Where a GPU's time goes, by kind of kernel, from the events of a trace that torch.profiler exports."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ON_THE_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of the events that occupy a GPU."""
KINDS = {
    "layout changes": r"nchwtonhwc|nhwctonchw|nchw2nhwc|nhwc2nchw|tensortransform|transpose_readwrite",
    "attention": r"flash_fwd|flash_bwd|fmha|sdpa|softmax|attention",
    "convolution": r"fprop|dgrad|wgrad|conv2d|convfwd|convdgrad|implicit_convolve|implicit_gemm|winograd|depthwise"
    r"|triton_tem_fused\w*conv|fft2d",
    "product": r"gemm|nvjet|gemv|splitkreduce|cublas|cutlass_\d+_|triton_tem|_mm_",
    "norm and activation": r"norm|silu|gelu|sigmoid|rowwisemoments|computefusedparams|computeinternalgradients"
    r"|backwardfusedparams|gammabeta|var_mean|welford",
    "copies": r"memcpy|memset|direct_copy|catarray|fillfunctor|copy_kernel|clone|_to_copy|upsample"
    r"|index_elementwise|triton_poi_fused_(cat|stack)\w*$",
}
"""What a kernel's name contains, in lower case, by kind; the first that fits counts."""
REST = "the rest"


def kind(name: str) -> str:
    """The kind of a kernel, by the name that the profiler gives it; `REST` for sums, products by numbers and the like.

    cuDNN and cuBLAS name their kernels by operation and tile, PyTorch by the functor, Inductor (`triton_…_fused_…`) by
    all the operations that it fused, among which a norm or an activation counts before a copy.
    """
    lower = name.lower()
    return next((each for each, pattern in KINDS.items() if re.search(pattern, lower)), REST)


@dataclass(frozen=True)
class Times:
    """Of a stretch of work."""

    seconds: Mapping[str, float]
    """By kind of kernel, added up."""
    kernels: int
    """Kernels, copies and fills."""
    idle: float
    """Seconds from the first kernel to the last during which none ran."""
    longest: list[tuple[str, float]]
    """The kernels that took most, by name, and their seconds."""

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> "Times":
        """Of the events of a trace; times in it are in microseconds."""
        work = sorted((event for event in events if event.get("cat") in ON_THE_GPU), key=lambda event: event["ts"])
        by_kind: dict[str, float] = defaultdict(float)
        by_name: dict[str, float] = defaultdict(float)
        idle, end = 0.0, work[0]["ts"] if work else 0.0
        for event in work:
            by_kind[kind(event["name"])] += event["dur"] / 1e6
            by_name[event["name"]] += event["dur"] / 1e6
            idle += max(0.0, event["ts"] - end) / 1e6
            end = max(end, event["ts"] + event["dur"])
        longest = sorted(by_name.items(), key=lambda item: -item[1])
        return cls(dict(by_kind), len(work), idle, longest)
