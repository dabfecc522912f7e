"""Characteristic-function matching: NCFM (Wang et al., CVPR 2025; github.com/gszfwsb/NCFM at de92fb8).

Left out of their method, beside what other keys do: the network that learns the frequencies against the images, which
all 21 published configurations have switched off; the cross-entropy of a trained network that is added ("calibration");
and networks that are interpolated between random and trained weights, for which `distill.networks=experts` draws an
epoch. The factor 300 is theirs; with their optimiser, AdamW, it has no effect.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.machine.transfer import send

SCALE = 300.0
"""Factor of the loss."""
SMALLEST_PHASE = 1e-12
"""Of the phase term, so that the root has a finite slope where the two functions agree."""


class CharacteristicFunction:
    """Φ(t) = mean of exp(i t·f) over features f, each of length 1, at random frequencies t.

    Args:
        frequencies: how many; each t is standard normal.
        generator: they are drawn from it when the first features show their dimension.
    """

    def __init__(self, frequencies: int, generator: torch.Generator) -> None:
        self.count = frequencies
        self.generator = generator
        self.frequencies: Tensor | None = None
        """[frequencies, features]"""

    def __call__(self, features: Tensor) -> Tensor:
        """Features [n, features] to the real and the imaginary part of Φ, [2, frequencies]."""
        if self.frequencies is None:
            drawn = torch.randn(self.count, features.shape[1], generator=self.generator)
            self.frequencies = send(drawn, features.device).to(features.dtype)
        angles = functional.normalize(features, dim=1) @ self.frequencies.T
        return torch.stack([angles.cos().mean(0), angles.sin().mean(0)])


def characteristic_distance(real: Tensor, synthetic: Tensor, amplitude: float, phase: float) -> Tensor:
    """300 · mean over t of √(α (|Φ| − |Ψ|)² + β · 2 (|Φ| |Ψ| − Re Φ Ψ*)).

    With α = β it is the distance |Φ − Ψ| in the complex plane, times √α. Images are alike within a class if amplitudes
    differ, and elsewhere on average if phases do.

    Args:
        real: Φ, [2, frequencies].
        synthetic: Ψ, [2, frequencies].
        amplitude: α.
        phase: β.
    """
    lengths = real.square().sum(0).sqrt(), synthetic.square().sum(0).sqrt()
    apart = 2 * (lengths[0] * lengths[1] - (real * synthetic).sum(0))
    squares = amplitude * (lengths[0] - lengths[1]).square() + phase * apart.clamp(min=SMALLEST_PHASE)
    return SCALE * squares.sqrt().mean()
