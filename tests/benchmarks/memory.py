"""Peak memory of the pull-back: flat in the number of steps and in the number of images.

    python tests/benchmarks/memory.py

Each case renders and pulls back in a fresh process; the peak is the operating system's figure for that process.
"""

import resource
import subprocess
import sys

CASES = {
    "S = 10,  8 images (baseline)": (10, 8, 0),
    "S = 50,  8 images": (50, 8, 0),
    "S = 10, 64 images": (10, 64, 0),
    "S = 10,  8 images, all graphs kept": (10, 8, 10),
}


def measure(steps: int, images: int, keep: int) -> None:
    """Prints the peak resident memory in MiB of one render and pull-back on the packaged prior."""
    import torch

    from ld3m import priors
    from ld3m.recipe import SamplerRecipe
    from ld3m.sampling import Schedule, render

    torch.set_num_threads(1)
    prior = priors.load(SamplerRecipe(source="fashion-mnist"))
    schedule = Schedule.of(prior.noise_schedule, steps, "reference", 3.0)
    z = torch.randn(images, *prior.latent_shape)
    c = prior.class_embeddings(prior.classes)[torch.arange(images) % len(prior.classes)]
    pixels, pull_back = render(prior, schedule, z, c, torch.randn_like(z), micro_batch=8, keep_graph_steps=keep)
    pull_back(torch.randn_like(pixels))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measures every case, three times, and prints medians as ratios to the first."""
    medians = {}
    for name, case in CASES.items():
        command = [sys.executable, __file__, *map(str, case)]
        peaks = sorted(float(subprocess.check_output(command, stderr=subprocess.DEVNULL)) for _ in range(3))
        medians[name] = peaks[1]
    baseline = next(iter(medians.values()))
    for name, peak in medians.items():
        print(f"{name:<36} {peak:8.0f} MiB  × {peak / baseline:.3f}")


if __name__ == "__main__":
    measure(*map(int, sys.argv[1:])) if len(sys.argv) > 1 else main()
