"""What rounding costs: the pull-back's error against float32, for each kind of prior and precision of its weights.

    python tests/benchmarks/precision.py

Small priors of random weights, S = 10, the reference skip; relative errors ‖a − b‖ / ‖b‖ of the images and of both
gradients. The packaged prior, which was trained, is measured as well.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_priors import KINDS

from ld3m import priors
from ld3m.recipe import SamplerRecipe
from ld3m.sampling import Schedule, render


def measure(source: str, dtype: str) -> list[torch.Tensor]:
    """Images, and gradients of Z and c, of four images."""
    prior: Any = priors.load(SamplerRecipe(source=source, dtype=dtype))
    conditional = prior.conditioning_shape != (0,)
    schedule = Schedule.of(prior.noise_schedule, 10, "reference", 3.0 if conditional else 1.0)
    draws = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(4, *prior.latent_shape, generator=draws) for _ in range(2))
    c = torch.randn(4, *prior.conditioning_shape, generator=draws)
    pixels, pull_back = render(prior, schedule, z, c, noise)
    return [pixels, *pull_back(torch.randn(pixels.shape, generator=draws))]


def main() -> None:
    """Prints a line a kind and precision."""
    print(f"{'':<32}{'images':>10}{'grad Z':>10}{'grad c':>10}")
    with tempfile.TemporaryDirectory() as temporary:
        sources = {"packaged": "fashion-mnist"}
        for name, save in KINDS.items():
            folder = Path(temporary) / name
            folder.mkdir()
            torch.manual_seed(0)
            sources[name] = str(save(folder))
        for name, source in sources.items():
            exact = measure(source, "float32")
            for dtype in ("bfloat16", "float16"):
                pairs = zip(measure(source, dtype), exact, strict=True)
                errors = [float((a - b).norm() / b.norm()) if b.numel() else float("nan") for a, b in pairs]
                print(f"{name:<22}{dtype:<10}" + "".join(f"{error:>10.4f}" for error in errors))


if __name__ == "__main__":
    main()
