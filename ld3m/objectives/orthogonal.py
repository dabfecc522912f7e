"""Orthogonal gradient matching: OGM (Bo et al., CVPR 2026), which looks at the directions of gradients alone.

Here these are the gradients of cross-entropy. Left out of their method: gradients of least squares, which need no
backward pass, and their mean over batches; the classification loss that is added; evaluation by the optimiser Muon.
Their code is not published.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FAST = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's step (Jordan et al., 2024): the steepest at 0, it brings singular values near 1."""
EXACT = (15 / 8, -10 / 8, 3 / 8)
"""Coefficients of the Newton–Schulz step of fifth order, which brings those near 1 to 1 (Björck and Bowie, 1971)."""
STEPS = (*(FAST,) * 6, *(EXACT,) * 3)
"""Singular values of 0.0005 of the norm or more come within 0.001 of 1; those of 0 stay 0."""
SMALLEST = 1e-20
"""Added to a gradient's length, which may be zero."""


def orthogonalised(matrix: Tensor) -> Tensor:
    """U Vᵀ of a matrix U S Vᵀ: its singular values set to one, by Newton–Schulz steps a X + b (XXᵀ) X + c (XXᵀ)² X.

    An SVD would do, but its gradient has poles where singular values are equal, or zero as they are in a layer that
    sees fewer images than it has rows.

    Args:
        matrix: [rows, columns].
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + SMALLEST)
    for a, b, c in STEPS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T


def orthogonal_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Σ ‖U Vᵀ of real − U Vᵀ of synthetic‖² over the gradients of weights, each as [outputs, all else]."""
    total = torch.zeros((), dtype=synthetic[0].dtype, device=synthetic[0].device)
    for one, other in zip(real, synthetic, strict=True):
        total = total + (orthogonalised(one.flatten(1)) - orthogonalised(other.flatten(1))).square().sum()
    return total
