"""A gradient step at the size of the paper's 256-pixel runs on a GPU: seconds and peak memory, by precision.

    python tests/benchmarks/gpu.py [--steps S] [--images N] [--rounds N]

A prior of cin256-v2's configuration (401 M parameters, 64 × 64 latents) with random weights, the `reference` skip and
guidance 3; all images go through it at once, and no graph is kept. The baseline is speed.py's, which does what the
authors' public code does, in the same precision. Seconds are wall clock, medians of the rounds after one of two steps
to warm up; memory is what PyTorch's allocator had given out at most, less the prior's. Errors are those of the images
and of the gradient of Z against float32, of which the baseline's own is that of another order of sums; the gradient of
random weights is a harsher measure than a trained prior's, which precision.py has.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from speed import Answer, full_prior, inputs, naive, naive_gradient, ours

from ld3m import priors
from ld3m.machine.determinism import repeatable
from ld3m.sampling import Schedule

GPU = torch.device("cuda")


def measured(run: Callable[[Schedule], Answer], schedule: Schedule, warm: Schedule, rounds: int) -> tuple[float, float]:
    """Median seconds, and GiB at most beyond what there was before."""
    run(warm)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run(schedule)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), (torch.cuda.max_memory_allocated() - before) / 2**30


def errors(run: Callable[[Schedule], Answer], warm: Schedule, exact: Answer) -> str:
    """Relative distance of images and of Z's gradient, after two steps."""
    pairs = list(zip(run(warm), exact, strict=True))[:2]
    return ", ".join(f"{float((a - b).norm() / b.norm()):.1e}" for a, b in pairs)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    prior = full_prior()
    prior.render_at(256)
    for module in (prior.autoencoder, prior.denoiser):
        module.to(GPU)
    prior.table, prior.null_embedding = prior.table.to(GPU), prior.null_embedding.to(GPU)
    *learnt, grad = (tensor.to(GPU) for tensor in inputs(prior, arguments.images))
    schedule, warm = (Schedule.of(prior.noise_schedule, steps, "reference", 3.0) for steps in (arguments.steps, 2))

    def baseline(twin: object, schedule: Schedule) -> Answer:
        return naive_gradient(twin, schedule, *learnt, lambda images: grad)

    def ld3m(schedule: Schedule) -> Answer:
        return ours(prior, schedule, *learnt, lambda images: grad, 0, arguments.images)

    with repeatable(GPU):
        exact = ld3m(warm)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.images} images, S = {arguments.steps}"
    )
    print("| precision | s | of the baseline's | GiB | of the baseline's | errors: images, Z's gradient |")
    print("| --- | --: | --: | --: | --: | --- |")
    base = (0.0, 0.0)
    for precision in ("float32", "TF32", "bfloat16", "bfloat16, compiled"):
        with repeatable(GPU, tf32=precision != "float32"):
            if precision == "bfloat16":
                prior.denoiser.to(torch.bfloat16)
            if precision.endswith("compiled"):
                priors.compile_denoiser(prior, GPU)
            else:
                twin = partial(baseline, naive(prior))
                base = measured(twin, schedule, warm, arguments.rounds)
                print(
                    f"| {precision}, the baseline | {base[0]:.2f} | | {base[1]:.1f} | | {errors(twin, warm, exact)} |"
                )
            took = measured(ld3m, schedule, warm, arguments.rounds)
            row = f"| {precision} | {took[0]:.2f} | {took[0] / base[0]:.2f} | {took[1]:.1f} | {took[1] / base[1]:.2f} |"
            print(row, errors(ld3m, warm, exact), "|", flush=True)
            if precision == "bfloat16":
                torch.use_deterministic_algorithms(False)
                free = measured(ld3m, schedule, warm, arguments.rounds)
                print(f"| the same, if it need not repeat itself | {free[0]:.2f} | | {free[1]:.1f} | | |", flush=True)


if __name__ == "__main__":
    main()
