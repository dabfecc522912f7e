"""Evaluating a network by published protocols, against a loop of the kind that their public codes have.

    python tests/benchmarks/protocols.py [NETWORK RESOLUTION]…

The plain loop transforms one image after the other, as torchvision does (which must be installed), trains the network
as it is built, and tests it as often as the code does: by minimax after each hundredth of the epochs, by rethinkdc
after each fiftieth epoch. ld3m transforms whole batches and tests after the last epoch, with `--best` as often as the
code. Both see Fashion-MNIST's small set in three channels, a hundred images for a few epochs, in turn, on one thread;
sums of three rounds are extended to the protocol's epochs and 2,000 test images.
"""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from evaluation import allocate_as_usual
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms

from ld3m import networks
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.testing import tested
from ld3m.evaluation.protocols import Protocol, Task, protocol
from ld3m.evaluation.protocols.details import SCHEDULES, TESTS
from ld3m.evaluation.training import OPERATIONS, optimiser_of, train
from ld3m.images.ranges import bytes_to_unit
from ld3m.images.transforms import EIGENVALUES, EIGENVECTORS, LUMA
from ld3m.machine.memory import keep_freed_memory
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe, NetworkRecipe, Recipe
from ld3m.recipe.files import load

CPU = torch.device("cpu")
IMAGES, TESTED, EPOCHS, ROUNDS = 100, 2000, 2, 3
TARGET = 0.7


def jitter(image: Tensor) -> Tensor:
    """One operation after the other, in random order."""
    operations = ["brightness", "contrast", "saturation"]
    random.shuffle(operations)
    for operation in operations:
        grey = sum(share * channel for share, channel in zip(LUMA, image, strict=True)).expand_as(image)
        other = {"brightness": torch.zeros_like(image), "contrast": grey.mean().expand_as(image), "saturation": grey}
        image = image.lerp(other[operation], random.uniform(-0.4, 0.4))
    return image


def light(image: Tensor) -> Tensor:
    shift = torch.tensor(EIGENVECTORS) @ (torch.randn(3) * 0.1 * torch.tensor(EIGENVALUES))
    return image + shift.view(3, 1, 1)


def per_image(how: Protocol, images: ImageSet) -> Callable[[Tensor], Tensor]:
    """The transforms of a protocol, an image at a time."""
    numbers = dict(how.augment)
    steps: list[Callable[[Tensor], Tensor]] = [
        transforms.RandomResizedCrop(images.resolution, scale=numbers["crop"]),
        transforms.RandomHorizontalFlip(),
    ]
    if "jitter" in numbers:
        steps += [jitter, light]
    return transforms.Compose([*steps, transforms.Normalize(images.mean.tolist(), images.std.tolist())])


def transforms_of(name: str, pixels: Tensor, images: ImageSet) -> tuple[float, float]:
    """CPU seconds that an image's transforms take, one after the other and in one batch."""
    how = protocol(EvaluateRecipe(protocol=name), Task("convnet", len(images.classes), IMAGES, images.resolution))
    seen, draws, transform = bytes_to_unit(pixels), torch.Generator(), per_image(how, images)
    moments = [time.process_time()]
    torch.stack([transform(image) for image in seen])
    moments.append(time.process_time())
    for operation, numbers in how.augment:
        seen = OPERATIONS[operation](draws, len(seen), images.resolution, *numbers)(seen)
    images.normalise(seen)
    moments.append(time.process_time())
    plain, batched = ((end - began) / len(seen) for began, end in pairwise(moments))
    return plain, batched


def plain_train(arch: str, pixels: Tensor, labels: Tensor, images: ImageSet, how: Protocol, seed: int) -> nn.Module:
    network: nn.Module = networks.build(arch, images.shape, NetworkRecipe(), generator(0, "evaluation network", seed))
    optimiser, transform = optimiser_of(network, how), per_image(how, images)
    for epoch in range(how.epochs):
        for group in optimiser.param_groups:
            group["lr"] = how.lr * SCHEDULES[how.schedule](epoch, how.epochs)
        for indices in torch.randperm(len(pixels)).split(how.batch):
            seen = torch.stack([transform(image) for image in pixels[indices]])
            targets, share, others = labels[indices], 1.0, torch.randperm(len(indices))
            if how.cutmix:
                side, centre = int(images.resolution * (1 - np.random.beta(1, 1)) ** 0.5), np.random.randint(32, size=2)
                (top, left), (bottom, right) = np.clip([centre - side // 2, centre + side // 2], 0, images.resolution)
                seen[:, :, top:bottom, left:right] = seen[others, :, top:bottom, left:right]
                share = 1 - (bottom - top) * (right - left) / images.resolution**2
            logits = network(seen)
            loss = share * functional.cross_entropy(logits, targets)
            loss = loss + (1 - share) * functional.cross_entropy(logits, targets[others])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def compare(arch: str, resolution: int) -> None:
    images = prepare(load(Recipe, "quickstart", [f"data.resolution={resolution}", "data.channels=3"]).data)
    pixels, labels = (each[:: len(each) // IMAGES][:IMAGES] for each in images.everything("train"))
    test_pixels, test_labels = images.everything("test")
    print(f"{arch} at {resolution} px, {IMAGES} images, in CPU seconds of a whole training and its tests:")

    def ours_tested(network: nn.Module) -> float:
        return tested(network, images, "test", CPU).accuracy

    @torch.no_grad()
    def plainly_tested(network: nn.Module) -> float:
        chunks = zip(test_pixels.split(100), test_labels.split(100), strict=True)
        return sum(int((network(images.normalise(bytes_to_unit(x))).argmax(1) == y).sum()) for x, y in chunks)

    for name in ("minimax", "rethinkdc"):
        plainly, batched = transforms_of(name, pixels, images)
        print(f"  {name:<10}transforms of an image: plain {1e3 * plainly:.2f} ms, ld3m {1e3 * batched:.3f} ms")
        whole = protocol(EvaluateRecipe(protocol=name), Task(arch, len(images.classes), IMAGES, resolution))
        short = replace(whole, epochs=EPOCHS)
        ways: dict[str, tuple[Callable[[], None], Callable[[int], nn.Module], Callable[[nn.Module], float]]] = {
            "plain": (
                allocate_as_usual,
                lambda seed: plain_train(arch, bytes_to_unit(pixels), labels, images, short, seed),  # noqa: B023
                plainly_tested,
            ),
            "ld3m": (
                keep_freed_memory,
                lambda seed: train(arch, pixels, labels, images, short, (0, seed), CPU),  # noqa: B023
                ours_tested,
            ),
        }
        seconds = {way: [0.0, 0.0] for way in ways}
        for seed in range(ROUNDS):
            for way, (allocate, training, testing) in ways.items():
                allocate()
                began = time.process_time()
                network = training(seed)
                between = time.process_time()
                testing(network)
                seconds[way][0] += (between - began) / ROUNDS / EPOCHS * whole.epochs
                seconds[way][1] += (time.process_time() - between) / ROUNDS / len(test_labels) * TESTED
        points = len(TESTS[whole.tests](whole.epochs))
        plain = seconds["plain"][0] + points * seconds["plain"][1]
        for asked, tests in (("last", 1), ("--best", points)):
            ours = seconds["ld3m"][0] + tests * seconds["ld3m"][1]
            print(f"  {name:<10}{asked:<7}plain {plain:8.0f}   ld3m {ours:8.0f}   ratio {ours / plain:.2f} ≤ {TARGET}?")
        shares = [each / other for each, other in zip(seconds["ld3m"], seconds["plain"], strict=True)]
        print(f"  {name:<10}ratio of training alone {shares[0]:.2f}, of a test {shares[1]:.2f}")


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    for arch, resolution in zip(words[::2], words[1::2], strict=True):
        compare(arch, int(resolution))


if __name__ == "__main__":
    main(sys.argv[1:] or ["convnet", "32"])
