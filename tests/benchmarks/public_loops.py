"""Training and testing by every protocol, soft labels' too, against plain loops of the public kind.

    python tests/benchmarks/public_loops.py [--two-cores] [ARCH [EPOCHS [IMAGES_PER_CLASS [PROTOCOL…]]]]

The plain loop has a DataLoader whose images go through transforms one by one, written out here, not torchvision's. The
teacher is a ConvNet that nobody trained, and RDED's plain loop shows each batch to the student twice, as its code does.
With --two-cores it is two networks: the plain way has them one after the other on two threads, ours has one on each
core, as `ld3m launch` does; wall time, which needs a machine with nothing else to do.

ConvNet, 100 images, two epochs extended to all, beside ten busy processes on two cores of an AMD EPYC: ratios of CPU
seconds, with one test after the last epoch, and with --best against as many tests in the plain loop: minimax 0.50 and
0.65, rded 0.54 and 0.58, rethinkdc 0.63 and 0.70, custom 0.64; once each, they vary by a tenth. rd3, beside seven busy
processes, the median of five: 0.62 and 0.68; with a teacher that is not laid out channels last, in turn, 0.70 and 0.76.
Of rd3's plain time a tenth is tests; of the rest a quarter is the teacher, which both ways have in common.
glad 0.65 and 0.68, idc 0.67 and 0.79, two runs of four epochs beside fifteen busy processes: their plain loops change
whole batches, and a step of the network alone is 0.69 of the plain one on 64 images, 0.77 on 36. One epoch is one batch
in glad, which is up to 0.85 then, as all memory is new.
ResNetAP-10, minimax, one epoch and 100 test images extended to all, on the same machine: 0.56 and 0.72, once.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from multiprocessing import get_context
from typing import Any

import torch
from evaluation import allocate_as_usual
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ld3m import networks
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection import coresets
from ld3m.evaluation.protocols import PROTOCOLS, Protocol, Task, protocol
from ld3m.evaluation.protocols.details import SCHEDULES, TESTS
from ld3m.evaluation.soft_labels import Online
from ld3m.evaluation.training import SIAMESE, optimiser_of, train
from ld3m.evaluation.training_sets import real_images
from ld3m.images.ranges import bytes_to_unit
from ld3m.images.resample import centre
from ld3m.images.transforms import EIGENVALUES, EIGENVECTORS, LUMA
from ld3m.machine.memory import keep_freed_memory
from ld3m.networks.speed import quick_on_cpus
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe, NetworkRecipe, Recipe
from ld3m.recipe.files import load

TARGET = 0.7
TESTED = 50
"""Test images of each class."""
CPU = torch.device("cpu")


# --- the plain way -----------------------------------------------------------------------------------------


def crop(image: Tensor, low: float, high: float) -> Tensor:
    """torchvision's RandomResizedCrop of one image."""
    side = image.shape[-1]
    for _ in range(10):
        area = side**2 * float(torch.empty(1).uniform_(low, high))
        ratio = math.exp(float(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3))))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= side and 0 < height <= side:
            break
    else:
        width = height = side
    top, left = (int(torch.randint(0, side - size + 1, (1,))) for size in (height, width))
    part = image[None, :, top : top + height, left : left + width]
    return functional.interpolate(part, (side, side), mode="bilinear", antialias=True)[0]


def flip(image: Tensor, share: float) -> Tensor:
    return image.flip(2) if float(torch.rand(1)) < share else image


def jitter(image: Tensor, *strengths: float) -> Tensor:
    """Minimax's ColorJitter, in random order."""
    for kind in torch.randperm(3).tolist():
        grey = image if len(image) == 1 else sum(share * image[c : c + 1] for c, share in enumerate(LUMA))
        other = [torch.zeros_like(image), torch.full_like(image, float(grey.mean())), grey.expand_as(image)][kind]
        image = image.lerp(other, float(torch.empty(1).uniform_(-strengths[kind], strengths[kind])))
    return image


def lighting(image: Tensor, deviation: float) -> Tensor:
    alpha = deviation * torch.randn(3)
    shift = torch.tensor(EIGENVECTORS).mul(alpha).mul(torch.tensor(EIGENVALUES)).sum(1)
    return image + (shift if len(image) == 3 else shift.mean(0, keepdim=True)).view(-1, 1, 1)


def shuffle(image: Tensor, side: float) -> Tensor:
    for _ in range(2):
        parts = list(image.chunk(int(side), 2))
        image = torch.cat([parts[index] for index in torch.randperm(len(parts))], 2).permute(0, 2, 1)
    return image


TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    "crop": crop, "flip": flip, "jitter": jitter, "lighting": lighting, "shuffle": shuffle
}  # fmt: skip


class Transformed(Dataset[tuple[Tensor, Tensor]]):
    """Images that are changed and normalised one by one, as they are asked for."""

    def __init__(self, pixels: Tensor, labels: Tensor, images: ImageSet, changes: list[Callable[[Tensor], Tensor]]):
        self.pixels, self.labels, self.images, self.changes = pixels, labels, images, changes
        self.mean, self.std = images.mean.view(-1, 1, 1), images.std.view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.pixels[index].float() / 255
        for change in self.changes:
            image = change(image)
        return (image - self.mean) / self.std, self.labels[index]


def plain(
    arch: str, pixels: Tensor, labels: Tensor, images: ImageSet, how: Protocol, teacher: nn.Module, tests: Tensor
) -> float:
    """Trains and tests as the public codes do; when it had trained, by the clock of CPU time."""
    network = networks.build(arch, images.shape, NetworkRecipe(), generator(0, "evaluation network", 0))
    optimiser = optimiser_of(network, how)
    changes = [
        lambda image, name=name, numbers=numbers: TRANSFORMS[name](image, *numbers)
        for name, numbers in how.augment if name in TRANSFORMS
    ]  # fmt: skip
    batches = DataLoader(Transformed(pixels, labels, images, changes), how.batch, shuffle=True)
    average, draws = networks.averaged(network, how.ema) if how.ema else None, torch.Generator()
    for epoch in range(how.epochs):
        for group in optimiser.param_groups:
            group["lr"] = how.lr * SCHEDULES[how.schedule](epoch, how.epochs)
        for seen, targets in batches:
            share, other = 1.0, targets
            for name in (name for name, _ in how.augment if name in SIAMESE):
                seen = SIAMESE[name](draws, seen.shape[-1], len(seen))(seen)
            if how.cutmix and float(torch.rand(1)) < how.cutmix_share:
                order, side = torch.randperm(len(seen)), seen.shape[-1]
                cut = int(side * math.sqrt(1 - float(torch.distributions.Beta(1.0, 1.0).sample())))
                row, column = torch.randint(side, (2,)).tolist()
                rows = slice(max(0, row - cut // 2), row + cut // 2)
                columns = slice(max(0, column - cut // 2), column + cut // 2)
                seen[:, :, rows, columns] = seen[order][:, :, rows, columns]
                other = targets[order]
                share = 1 - len(range(*rows.indices(side))) * len(range(*columns.indices(side))) / side**2
            if how.labels == "soft":
                with torch.no_grad():
                    if how.name == "rded":
                        network(seen)
                    wanted = functional.softmax(teacher(seen) / how.temperature, 1)
                logits = functional.log_softmax(network(seen) / how.temperature, 1)
                loss = functional.kl_div(logits, wanted, reduction="batchmean")
            else:
                logits = network(seen)
                loss = functional.cross_entropy(logits, targets) * share
                loss = loss + functional.cross_entropy(logits, other) * (1 - share)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            float(loss)
        if average:
            average.update_parameters(network)
    final, trained = (average.module if average else network).eval(), time.process_time()
    resize = [lambda image: centre(image[None], how.test_resize or images.resolution)[0]]
    marks = torch.arange(len(images.classes)).repeat_interleave(TESTED)
    with torch.no_grad():
        for seen, targets in DataLoader(Transformed(tests, marks, images, resize), 100):
            float((final(seen).argmax(1) == targets).sum())
    return trained


# --- ours --------------------------------------------------------------------------------------------------


def ours(
    arch: str, pixels: Tensor, labels: Tensor, images: ImageSet, how: Protocol, teacher: nn.Module, tests: Tensor
) -> float:
    soft = Online(quick_on_cpus(deepcopy(teacher))) if how.labels == "soft" else None  # type: ignore[arg-type]
    network, trained = train(arch, pixels, labels, images, how, (0, 0), CPU, soft), time.process_time()
    with torch.no_grad():
        for chunk in tests.split(100):
            network(centre(images.normalise(bytes_to_unit(chunk)), how.test_resize or images.resolution))
    return trained


def inputs(arch: str, name: str, epochs: int, per_class: int) -> tuple[Any, ...]:
    """What both ways take: arch, pixels, labels, images, protocol, teacher and test images."""
    recipe = load(Recipe, "quickstart", [])
    images = prepare(recipe.data, progress=False)
    wanted = torch.arange(len(images.classes)).repeat_interleave(per_class)
    pixels, labels = real_images("random", coresets.open_whole(images, recipe.data, [], CPU), wanted, recipe, 0)
    tests = torch.cat([images.images("test", label)[:TESTED] for label in range(len(images.classes))])
    teacher = networks.build("convnet", images.shape, NetworkRecipe(), generator(0, "teacher")).eval()
    settings = recipe.evaluate.model_copy(update={"protocol": name, "epochs": epochs})
    how = protocol(settings, Task(arch, len(images.classes), len(pixels), images.resolution))
    return arch, pixels, labels, images, how, teacher, tests


def on_one_thread(*about: Any) -> None:
    """Ours in a process of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    ours(*inputs(*about))


def cpu_seconds(*about: Any) -> list[list[float]]:
    """Of the training and the test of a network in the plain way and in ours, each on one thread."""
    seconds, given = [], inputs(*about)
    torch.set_num_threads(1)
    for way, allocate in ((plain, allocate_as_usual), (ours, keep_freed_memory)):
        allocate()
        began = time.process_time()
        trained = way(*given)
        seconds.append([trained - began, time.process_time() - trained])
    return seconds


def wall_seconds(*about: Any) -> list[float]:
    """Of two networks on two cores: one after the other on both, and one on each."""
    given = inputs(*about)
    torch.set_num_threads(2)
    allocate_as_usual()
    began = time.perf_counter()
    for _ in range(2):
        plain(*given)
    seconds = [time.perf_counter() - began]
    with get_context("spawn").Pool(2) as pool:
        pool.starmap(on_one_thread, [(about[0], "custom", 1, 1)] * 2, chunksize=1)  # imports
        began = time.perf_counter()
        pool.starmap(on_one_thread, [about] * 2, chunksize=1)
        return [*seconds, time.perf_counter() - began]


def main(arch: str, epochs: int, per_class: int, names: list[str], on_two_cores: bool) -> None:
    warnings.filterwarnings("ignore")
    classes = 10
    if on_two_cores:
        print(f"{arch}, {classes * per_class} images, {epochs} epochs; seconds of two networks on two cores")
        for name in names:
            plainly, here = wall_seconds(arch, name, epochs, per_class)
            print(f"  {name:<10} {plainly:6.1f} → {here:6.1f}: {here / plainly:.2f} ≤ {TARGET}?", flush=True)
        return
    cpu_seconds(arch, "custom", 1, 1)  # prepares kernels
    print(f"{arch}, {classes * per_class} images; CPU seconds of a whole training and its tests of 2,000 images")
    for name in names:
        whole = protocol(EvaluateRecipe(protocol=name), Task(arch, classes, classes * per_class, 32))
        points = len(TESTS[whole.tests](whole.epochs))
        (train_plain, test_plain), (train_ours, test_ours) = (
            (train / epochs * whole.epochs, test / TESTED / classes * 2000)
            for train, test in cpu_seconds(arch, name, epochs, per_class)
        )
        both = train_plain + points * test_plain
        last, best = ((train_ours + tests * test_ours) / both for tests in (1, points))
        print(
            f"  {name:<10} {both:6.0f}: last {last:.2f}, --best {best:.2f} ≤ {TARGET}? "
            f"training alone {train_ours / train_plain:.2f}, a test {test_ours / test_plain:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--two-cores"]
    arch, epochs, per_class, *only = [*words[:3], *["convnet", "3", "10"][len(words) :], *words[3:]]
    main(arch, int(epochs), int(per_class), only or list(PROTOCOLS), on_two_cores="--two-cores" in sys.argv)
