"""Evaluation: other networks, trained from scratch on the distilled set only, tested on real images.

The protocol is GLaD's (Cazenavette et al., CVPR 2023), which LD3M uses; whatever a recipe changes is printed.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ld3m import coresets, data, networks, parallel, run
from ld3m.allocator import keep_freed_memory
from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.formation import shown
from ld3m.networks.quick import quick_on_cpus
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe, NetworkRecipe, Recipe
from ld3m.training import train_epoch

LEARNING_RATE = 1e-3
LEARNING_RATES = {"vgg11": 1e-4}
"""The protocol's rate, and the rates of architectures that have another."""
BASELINES = ("random", *coresets.SELECTIONS, "full")
"""What `--against` compares with: as many real images of each class, taken from all training images, or all of them."""
TEST_CHUNK = 100
"""Images tested at a time; larger activations are slower on CPUs, where each is mapped and unmapped anew."""


@dataclass(frozen=True)
class Result:
    """Test accuracies in percent of one architecture trained on one set, a network a seed."""

    trained_on: str
    arch: str
    accuracies: list[float]


@parallel.together
def evaluate(
    folder: Path, recipe: Recipe, against: Sequence[str] = (), split: str = "test"
) -> tuple[dict[str, Any], bool]:
    """Trains `recipe.evaluate.seeds` networks of each architecture on a run's images and on the baselines.

    Networks are dealt to the processes of an `accelerate launch`. Each accuracy is kept in the run's `evaluating/`
    until all are there, so that an interrupted evaluation goes on with the network it was at. The outcome is added to
    the run's `evaluation.json`, where it replaces earlier figures of the same set, architecture and split.

    Args:
        folder: a finished run.
        recipe: its recipe; `evaluate` says how networks are trained.
        against: names of `BASELINES`.
        split: "test", or "validation" where the recipe holds out a share of the training images.

    Returns:
        The figures, and whether this process is the one to print them.

    Raises:
        UserError: for an unknown architecture, baseline or split, or an architecture that does not fit the images.
    """
    settings = recipe.evaluate
    if unknown := [name for name in against if name not in BASELINES]:
        raise UserError(f"--against: {unknown[0]!r} is not known; known are {', '.join(BASELINES)}")
    archs = list(dict.fromkeys(settings.arch))
    for arch in archs:  # any number of classes shows the mistakes, and they are told before data is prepared
        networks.check(arch, networks.Shape(recipe.data.channels, recipe.data.resolution, 2), NetworkRecipe(), "--arch")
    accelerator = parallel.start()
    main = accelerator.is_main_process
    keep_freed_memory()
    images = data.prepare(recipe.data, progress=main)
    if split not in images.counts:
        raise UserError(
            f"--split: there is no {split!r}, only {', '.join(images.counts)}; "
            "data.validation_share=0.1 would hold out some for validation"
        )
    if settings.lr == "learnt":
        recipe = _with_learnt_rate(recipe, folder)
        settings = recipe.evaluate
    distilled = run.load_images(folder, images.classes, recipe.data.channels, recipe.data.resolution)
    whole = coresets.open_whole(images, recipe.data, against, accelerator.device)
    for_all_seeds = {name: real_images(name, whole, distilled[1], recipe, 0) for name in against if name != "random"}
    for_all_seeds["distilled"] = _seen(*distilled, recipe.distill.factor)
    jobs = [
        (trained_on, arch, seed)
        for trained_on in ("distilled", *against)
        for arch in archs
        for seed in range(settings.seeds)
    ]
    partial = folder / "evaluating"
    kept, done = [], []
    for trained_on, arch, seed in tqdm(parallel.shard(jobs, accelerator), "evaluating", disable=not main):
        chosen = for_all_seeds.get(trained_on) or real_images(trained_on, whole, distilled[1], recipe, seed)
        path = partial / f"{_digest(recipe, images, trained_on, arch, seed, split, chosen[0])}.json"
        if path.is_file():
            share = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
        else:
            network = train(arch, *chosen, images, recipe, seed, accelerator.device)
            share = accuracy(network, images, split, accelerator.device)
            write_json(path, {"accuracy": share})
        kept.append(path)
        done.append(((trained_on, arch, seed), share))
    measured = dict(parallel.gather(done, accelerator))
    results = [
        Result(trained_on, arch, [measured[trained_on, arch, seed] for seed in range(settings.seeds)])
        for trained_on in ("distilled", *against)
        for arch in archs
    ]
    sizes = {
        name: sum(images.counts["train"]) if name == "full" else len(distilled[0]) for name in ("distilled", *against)
    }
    rows = [_row(result, settings, split, sizes[result.trained_on], sum(images.counts[split])) for result in results]
    for row in rows:
        if row["trained_on"] in coresets.SELECTIONS:
            row["scorer"] = recipe.data.scorer.model_dump()
    if main:
        path = folder / "evaluation.json"
        earlier = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
        same = ("trained_on", "arch", "split")
        fresh = {tuple(row[key] for key in same) for row in rows}
        rows = [row for row in earlier if tuple(row[key] for key in same) not in fresh] + rows
    report = {
        "results": rows,
        "cross_architecture": cross_architecture(rows, recipe.network.arch),
        "normalisation": {"mean": images.mean.tolist(), "std": images.std.tolist()},
    }
    if main:
        write_json(path, {"run": recipe.name, **report})
    accelerator.wait_for_everyone()
    for path in kept:  # its own only: another evaluation of the run may be under way
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or another process was first
        partial.rmdir()
    return {"run": str(folder), **report}, main


def _seen(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """What networks are trained on: the images, or, enlarged, those that each of them holds."""
    return shown(data.to_pixels(images), labels, factor) if factor > 1 else (images, labels)


def _digest(
    recipe: Recipe, images: data.ImageSet, trained_on: str, arch: str, seed: int, split: str, pixels: Tensor
) -> str:
    """Tells one trained and tested network from all others."""
    how = recipe.evaluate.model_dump(exclude={"arch", "seeds"})
    said = json.dumps([recipe.seed, images.folder.name, how, trained_on, arch, seed, split])
    return hashlib.sha256(said.encode() + pixels.numpy().tobytes()).hexdigest()[:20]


def _row(result: Result, settings: EvaluateRecipe, split: str, images: int, tested: int) -> dict[str, Any]:
    protocol = {key: value for key, value in settings.model_dump().items() if key not in ("arch", "seeds")}
    protocol["lr"] = learning_rate(result.arch, settings)
    return {
        "trained_on": result.trained_on,
        "arch": result.arch,
        "split": split,
        **_figures(result.accuracies),
        "images": images,
        "tested_on": tested,
        "protocol": protocol,
    }


def _figures(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean and population standard deviation, as the literature's code computes it, and what they are of."""
    return {
        "mean": round(statistics.fmean(accuracies), 2),
        "std": round(statistics.pstdev(accuracies), 2),
        "accuracies": [round(value, 2) for value in accuracies],
    }


def cross_architecture(rows: Sequence[dict[str, Any]], matching: str) -> list[dict[str, Any]]:
    """How a set trains architectures that it was not matched in: means over these, as GLaD and LD3M report them.

    Args:
        rows: results as in `evaluation.json`, the newest last.
        matching: the architecture of the matching network, which is left out.

    Returns:
        A row for each training set and split that has two other architectures or more measured in the way of the
        newest of them: of as many seeds under the same protocol. Its accuracies are, seed by seed, the means over
        these architectures; `mean` and `std` are over seeds.
    """
    means = []
    for trained_on, split in dict.fromkeys((row["trained_on"], row["split"]) for row in rows):
        others = [r for r in rows if (r["trained_on"], r["split"]) == (trained_on, split) and r["arch"] != matching]
        alike = [row for row in others if _measured_alike(row, others[-1])]
        if len(alike) >= 2:
            by_seed = zip(*(row["accuracies"] for row in alike), strict=True)
            means.append(
                {
                    "trained_on": trained_on,
                    "split": split,
                    "without": matching,
                    "archs": [row["arch"] for row in alike],
                    **_figures([statistics.fmean(values) for values in by_seed]),
                    "images": alike[-1]["images"],
                }
            )
    return means


def _measured_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows may be averaged: learning rates may differ where each is its architecture's own."""

    def how(row: dict[str, Any]) -> list[Any]:
        protocol = {key: value for key, value in row["protocol"].items() if key != "lr"}
        return [len(row["accuracies"]), row["images"], row["tested_on"], protocol]

    rates = [row["protocol"]["lr"] for row in (one, other)]
    own = [LEARNING_RATES.get(row["arch"], LEARNING_RATE) for row in (one, other)]
    return how(one) == how(other) and (rates == own or rates[0] == rates[1])


def table(report: dict[str, Any]) -> str:
    """The report as text: a row a training set, a column an architecture, and how the networks were trained.

    Below are the cross-architecture means, where there are any.
    """
    rows = report["results"]
    widths = {row["arch"]: max(16, len(row["arch"]) + 2) for row in rows}
    lines = [f"{'accuracy in %, mean ± std':<40}" + "".join(f"{arch:>{width}}" for arch, width in widths.items())]
    for trained_on, split in dict.fromkeys((row["trained_on"], row["split"]) for row in rows):
        found = {r["arch"]: r for r in rows if (r["trained_on"], r["split"]) == (trained_on, split)}
        cells = [f"{_cell(found.get(arch)):>{width}}" for arch, width in widths.items()]
        lines.append(f"{_label(next(iter(found.values()))):<40}" + "".join(cells))
    for number, row in enumerate(report["cross_architecture"]):
        if number == 0:
            lines.append(f"cross-architecture mean, without {row['without']}, the matching network")
        lines.append(f"{_label(row):<40}{_cell(row):>16}  over {', '.join(row['archs'])}")
    protocols = dict.fromkeys(json.dumps(row["protocol"]) for row in rows)
    return "\n".join([*lines, *(f"networks: {protocol}" for protocol in protocols)])


def _label(row: dict[str, Any]) -> str:
    return f"{row['trained_on']}, {row['images']} images, {row['split']} split"


def _cell(row: dict[str, Any] | None) -> str:
    return f"{row['mean']:.1f} ± {row['std']:.1f} ({len(row['accuracies'])})" if row else ""


def real_images(
    selection: str, images: coresets.Coreset, labels: Tensor, recipe: Recipe, draw: int
) -> tuple[Tensor, Tensor]:
    """As many real training images of each class as `labels` has, or all where there are fewer, and their labels.

    Another draw of "random" gives other images; the other selections always give the same.
    """
    chosen = []
    for label, count in enumerate(torch.bincount(labels, minlength=len(images.classes)).tolist()):
        draws = generator(recipe.seed, "random images", draw, label)
        chosen.append(images.images("train", label)[images.select(selection, label, count, draws)])
    sizes = torch.tensor([len(part) for part in chosen])
    return torch.cat(chosen), torch.arange(len(chosen)).repeat_interleave(sizes)


def _with_learnt_rate(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the step size that the run learnt in the place of `evaluate.lr: learnt`."""
    step_size = run.learnt(folder).get("step_size")
    if step_size is None:
        raise UserError(f"evaluate.lr: {folder} has learnt no step size (objective mtt does); give a number")
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"lr": step_size})})


def learning_rate(arch: str, settings: EvaluateRecipe) -> float:
    """The recipe's rate, or the protocol's for the architecture."""
    return float(settings.lr or LEARNING_RATES.get(arch, LEARNING_RATE))


def rate_factor(epoch: int, epochs: int) -> float:
    """The share of the learning rate in an epoch: linear warm-up over the first half, cosine decay over the second.

    As the reference's LinearLR(1e-7) over half the epochs and CosineAnnealingLR from the epoch after.
    """
    half = max(1, epochs // 2)
    if epoch <= half:
        return 1e-7 + (1 - 1e-7) * epoch / half
    return (1 + math.cos(math.pi * (epoch - half - 1) / half)) / 2


def train(
    arch: str,
    pixels: Tensor,
    labels: Tensor,
    images: data.ImageSet,
    recipe: Recipe,
    seed: int,
    device: torch.device,
) -> nn.Module:
    """A network trained on a few images and nothing else, its weights averaged over epochs.

    Args:
        arch: as `networks.build` takes it.
        pixels: uint8, or float32 in units of [0, 1], [N, channels, H, W].
        labels: int64 [N].
        images: the set they stand for, which normalises them.
        recipe: its `evaluate` section counts; a ConvNet is the literature's, whatever the set was matched in.
        seed: of the initial weights, the order of images, the augmentation and dropout.
        device: where to train.
    """
    settings = recipe.evaluate
    shape = networks.Shape(recipe.data.channels, recipe.data.resolution, len(images.classes))
    weights = generator(recipe.seed, "evaluation network", seed)
    network = networks.build(arch, shape, NetworkRecipe(), weights).to(device)
    if device.type == "cpu" and isinstance(network, networks.ConvNet):  # it does not pay for the others
        network = quick_on_cpus(network)
    average = networks.averaged(network, settings.ema)
    rate = learning_rate(arch, settings)
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    inputs = images.normalise(data.to_pixels(pixels.to(device)))
    targets = labels.to(device)
    for epoch in range(settings.epochs):
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_factor(epoch, settings.epochs)
        draws = generator(recipe.seed, "evaluation epoch", seed, epoch)
        train_epoch(network, optimiser, inputs, targets, settings.batch, settings.augment, draws)
        average.update_parameters(network)
    return average.module.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: data.ImageSet, split: str, device: torch.device) -> float:
    """Percent of a split's images that the network puts in the right class; only a chunk of them is in memory."""
    right = 0
    for label in range(len(images.classes)):
        for chunk in images.images(split, label).split(TEST_CHUNK):
            logits = network(images.normalise(data.to_pixels(chunk.to(device))))
            right += int((logits.argmax(1) == label).sum())
    return 100 * right / sum(images.counts[split])
