"""Trajectory matching: peak memory against the student's steps, and the time of experts trained as one stack.

    python tests/benchmarks/trajectory.py

The memory of each case is the operating system's figure for a fresh process, in which glibc gives large blocks back
when they are freed: otherwise what it keeps for later blurs the peak by a tenth. Times are medians of five, in turn.
"""

import os
import resource
import statistics
import subprocess
import sys
import time

STEPS = (10, 50, 100)
STACKS = (1, 2, 4, 8)
BATCH = 64


def measure(steps: int) -> None:
    """Prints the peak resident memory in MiB of one match: 50 colour images of 32 pixels, ConvNet-3, width 128."""
    import torch

    from ld3m import networks
    from ld3m.networks.flat import FlatNetwork, weights_of
    from ld3m.objectives.mtt import draw_batches, match_trajectory
    from ld3m.recipe import NetworkRecipe

    torch.set_num_threads(1)
    numbers = torch.Generator().manual_seed(0)
    network = networks.build("convnet", networks.Shape(3, 32, 10), NetworkRecipe(), numbers)
    start = weights_of(network)
    target = start + 0.01 * torch.randn(start.shape, generator=numbers)
    batches = draw_batches(50, 25, steps, numbers)
    pixels, labels = torch.rand(50, 3, 32, 32, generator=numbers), torch.arange(10).repeat_interleave(5)
    everyone = torch.ones(50, dtype=torch.bool)
    student = FlatNetwork(network)
    match_trajectory(
        student, start, target, 0.01, batches, lambda step, places, images: images, pixels, labels, everyone
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def time_stacks() -> None:
    """Prints the seconds of a step of one expert, by how many are trained at once."""
    import torch

    from ld3m import networks
    from ld3m.networks.flat import FlatNetwork, weights_of
    from ld3m.objectives.train_experts import sgd_step
    from ld3m.recipe import NetworkRecipe

    torch.set_num_threads(1)
    seconds: dict[int, list[float]] = {count: [] for count in STACKS}
    numbers = torch.Generator().manual_seed(0)
    network = networks.build("convnet", networks.Shape(1, 32, 10), NetworkRecipe(width=64), numbers)
    weights, student = weights_of(network), FlatNetwork(network)
    for repeat in range(6):
        for count in STACKS:
            images, labels = torch.rand(count, BATCH, 1, 32, 32), torch.randint(10, (count, BATCH))
            began = time.perf_counter()
            sgd_step(student, weights.repeat(count, 1), images, labels, 0.01)
            if repeat:  # the first is a warm-up
                seconds[count].append((time.perf_counter() - began) / count)
    one = statistics.median(seconds[1])
    for count in STACKS:
        median = statistics.median(seconds[count])
        print(f"experts.together={count}: {median:.3f} s a step of each  × {median / one:.2f}")


def main() -> None:
    """Measures the memory of every number of steps in fresh processes, then the stacks."""
    peaks = {}
    for steps in STEPS:
        command = [sys.executable, __file__, str(steps)]
        given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
        found = sorted(
            float(subprocess.check_output(command, stderr=subprocess.DEVNULL, env=given_back)) for _ in range(3)
        )
        peaks[steps] = found[1]
        print(f"syn_steps = {steps:<3} {peaks[steps]:8.0f} MiB  × {peaks[steps] / peaks[STEPS[0]]:.3f}")
    time_stacks()


if __name__ == "__main__":
    measure(int(sys.argv[1])) if len(sys.argv) > 1 else main()
