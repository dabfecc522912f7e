"""Evaluating five seeds of one small network, against the plain way of doing it: one after another, nothing shared.

    python tests/benchmarks/evaluation.py [IMAGES_PER_CLASS EPOCHS]…

The network is the protocol's ConvNet (depth 3, width 128), the images are real ones as the packaged prior renders their
latents in the quickstart's steps, tested on Fashion-MNIST's small set; batch 256, augmented, averaged over epochs, on
one thread. The plain way renders its images for each network anew, as the authors' code does, and ld3m has them from
its run: once. Each seed is trained and tested in the plain way and in ld3m's in turn, so that other work on the machine
weighs on both; sums of five, with the accuracies of both.

Where the time goes, in CPU milliseconds an image on one busy AMD EPYC core. Convolutions are three quarters of a step
and of a test. They run at 80 to 90 GFLOP/s forward, as large matrix products do (75 to 87): with 97 MFLOP an image, no
arrangement of this arithmetic tests in less than 1.1 or trains in less than 3.3. The plain way takes 6.3 to 8.3 for
training and 1.9 to 2.7 for testing, and on top up to 3.7 and 1.7 in the system, which hands out the freed pages of
large activations again; ours takes 5.4 to 7.1, 1.6 to 2.1, and nothing on top. Hence ratios of 0.55 to 0.7, most saved
where batches are large. With nothing beside it the plain way takes 4.8 to 6.1 and 2.0 to 2.2, ours 3.7 to 4.1 and 1.3,
so that the floor is 0.55 to 0.7 of the plain way's training and half of its testing. Five networks as one stack by
`torch.func.vmap` take 7.3 to 8.6 for training: convolutions of this width leave nothing for a stack to save. Averaging
(1 an epoch), augmentation (0.01 to 0.05 an image), the optimiser (2 a step) and normalising the test images are
hundredths.
"""

import ctypes
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache

import torch
from authors_way import authors_prior, authors_render
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from ld3m import networks, priors
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection import coresets
from ld3m.data.selection.testing import tested
from ld3m.evaluation.protocols import Protocol, Task, protocol
from ld3m.evaluation.protocols.details import warmup_cosine
from ld3m.evaluation.training import train
from ld3m.evaluation.training_sets import real_images
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_signed, bytes_to_unit, unit_to_bytes
from ld3m.machine.memory import keep_freed_memory
from ld3m.randomness import generator
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule, render

SEEDS = 5
TARGET = 0.6
CPU = torch.device("cpu")
RATE = 0.01
"""Ten times the protocol's, so that few epochs teach something."""


def allocate_as_usual() -> None:
    """What glibc's thresholds grow to by themselves in a program that allocates large tensors: 32 and 64 MiB."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(-3, 32 * 2**20)
        ctypes.CDLL(None).mallopt(-1, 64 * 2**20)
        ctypes.CDLL(None).malloc_trim(0)


def plain_train(
    rendered: Callable[[], torch.Tensor], labels: torch.Tensor, images: ImageSet, how: Protocol, seed: int
) -> nn.Module:
    """As the public evaluation code trains: images of its own, the network as it is built, its average by parameter."""
    shape = networks.Shape(1, 32, len(images.classes))
    network = networks.build("convnet", shape, NetworkRecipe(), generator(0, "evaluation network", seed))
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)

    def blend(average: torch.Tensor, new: torch.Tensor, updates: torch.Tensor | int) -> torch.Tensor:
        return average + (new - average) * max(1 / (int(updates) + 1), 1 - how.ema)

    average = AveragedModel(network, avg_fn=blend)
    inputs = images.normalise(bytes_to_unit(rendered()))
    for epoch in range(how.epochs):
        for group in optimiser.param_groups:
            group["lr"] = RATE * warmup_cosine(epoch, how.epochs)
        draws = generator(0, "evaluation epoch", seed, epoch)
        for places in torch.randperm(len(inputs), generator=draws).split(how.batch):
            shown = augment.draw(draws, 32, len(places))(inputs[places])
            loss = functional.cross_entropy(network(shown), labels[places])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        average.update_parameters(network)
    return average.module.eval()


@torch.no_grad()
def plain_accuracy(network: nn.Module, images: ImageSet) -> float:
    """The test images are loaded and normalised anew for each network."""
    right = 0
    pixels, labels = images.everything("test")
    for chunk, targets in zip(pixels.split(100), labels.split(100), strict=True):
        right += int((network(images.normalise(bytes_to_unit(chunk))).argmax(1) == targets).sum())
    return 100 * right / len(pixels)


def compare(per_class: int, epochs: int) -> None:
    recipe = load(Recipe, "quickstart", [f"evaluate.epochs={epochs}", f"evaluate.lr={RATE}", "evaluate.ema=0.995"])
    images = prepare(recipe.data)
    how = protocol(recipe.evaluate, Task("convnet", 10, 10 * per_class, 32))
    prior = priors.load(recipe.prior)
    schedule = Schedule.of(prior.noise_schedule, recipe.prior.steps, recipe.prior.skip, recipe.prior.guidance)
    wanted = torch.arange(len(images.classes)).repeat_interleave(per_class)
    few, labels = real_images("random", coresets.open_whole(images, recipe.data, [], CPU), wanted, recipe, 0)
    z = prior.encode(bytes_to_signed(few))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    c = prior.class_embeddings(images.classes)[labels]
    rendered = cache(lambda: unit_to_bytes(render(prior, schedule, z, c, noise)[0]))
    plainly = authors_prior(prior)

    @torch.no_grad()
    def rendered_anew() -> torch.Tensor:
        return unit_to_bytes(authors_render(plainly, schedule, z, c, noise))

    ways: dict[str, tuple[Callable[[], None], Callable[[int], nn.Module], Callable[[nn.Module], float]]] = {
        "plain": (
            allocate_as_usual,
            lambda seed: plain_train(rendered_anew, labels, images, how, seed),
            lambda network: plain_accuracy(network, images),
        ),
        "ld3m": (
            keep_freed_memory,
            lambda seed: train("convnet", rendered(), labels, images, how, (0, seed), CPU),
            lambda network: tested(network, images, "test", CPU).accuracy,
        ),
    }
    wall, cpu = ({way: [0.0, 0.0] for way in ways} for _ in range(2))
    accuracies: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(SEEDS):
        for way, (allocate, training, testing) in ways.items():
            allocate()
            moments = [(time.perf_counter(), time.process_time())]
            network = training(seed)
            moments.append((time.perf_counter(), time.process_time()))
            accuracies[way].append(testing(network))
            moments.append((time.perf_counter(), time.process_time()))
            for part in (0, 1):
                wall[way][part] += moments[part + 1][0] - moments[part][0]
                cpu[way][part] += moments[part + 1][1] - moments[part][1]
    tests_each = sum(images.counts["test"])
    print(f"{len(labels)} images, {epochs} epochs, tested on {tests_each:,}, {SEEDS} seeds, in seconds:")
    for kind, seconds in (("wall", wall), ("CPU", cpu)):
        for way, (training_s, testing_s) in seconds.items():
            both = training_s + testing_s
            print(f"  {kind:<5}{way:<7}training {training_s:7.1f}   testing {testing_s:7.1f}   both {both:7.1f}")
        shares = [ours / plain for ours, plain in zip(seconds["ld3m"], seconds["plain"], strict=True)]
        both = sum(seconds["ld3m"]) / sum(seconds["plain"])
        print(f"  {kind:<5}ratio  training {shares[0]:7.2f}   testing {shares[1]:7.2f}   both {both:7.2f} ≤ {TARGET}?")
    for way, values in accuracies.items():
        mean, std = torch.tensor(values).mean(), torch.tensor(values).std(correction=0)
        print(f"  {way:<6} accuracies {', '.join(f'{value:.2f}' for value in values)}: {mean:.2f} ± {std:.2f}")


def main(cases: list[int]) -> None:
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")  # rendering without a graph
    torch.set_num_threads(1)
    for per_class, epochs in zip(cases[::2], cases[1::2], strict=True):
        compare(per_class, epochs)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1, 40, 5, 20])
