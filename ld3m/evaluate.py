"""Evaluation: other networks, trained from scratch on the distilled set only, tested on real images.

The protocol is GLaD's (Cazenavette et al., CVPR 2023), which LD3M uses; whatever a recipe changes is printed.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm import tqdm

from ld3m import arithmetic, coresets, data, networks, parallel, run
from ld3m.allocator import keep_freed_memory
from ld3m.comparison import differences
from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.formation import shown
from ld3m.networks.quick import quick_on_cpus
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe, NetworkRecipe, Recipe
from ld3m.rows import Row, set_of
from ld3m.scores import scores
from ld3m.training import train_epoch

LEARNING_RATE = 1e-3
LEARNING_RATES = {"vgg11": 1e-4}
"""The protocol's rate, and the rates of architectures that have another."""
BASELINES = ("random", *coresets.SELECTIONS, "full")
"""What `--against` compares with: as many real images of each class, taken from all training images, or all of them."""
LAYOUT = 1
"""Version of how networks are trained and tested; part of the key under which baselines are kept."""
NOT_THE_SPLIT = {"root", "on_corrupt", "workers", "keep", "keep_order", "scorer"}
"""Keys of a data recipe in which two runs may differ and still have the same training and test images."""
TEST_CHUNK = 100
"""Images tested at a time; larger activations are slower on CPUs, where each is mapped and unmapped anew."""


@parallel.together
def evaluate(
    folder: Path, recipe: Recipe, against: Sequence[str] = (), split: str = "test", with_scores: bool = False
) -> tuple[dict[str, Any], bool]:
    """Trains `recipe.evaluate.seeds` networks of each architecture on a run's images and on the baselines.

    Networks are dealt to the processes of an `accelerate launch`. Each accuracy is kept until all are there, so that an
    interrupted evaluation goes on with the network it was at: the baselines' for good, with the prepared data, where
    other runs of the same data and seed find them; the others' in the run's `evaluating/`. The outcome is added to the
    run's `evaluation.json`, where it replaces earlier figures of the same set, architecture, split and augmentation.

    A network is tested once, after its last epoch: nothing is chosen by the images it is tested on.

    Args:
        folder: a finished run.
        recipe: its recipe; `evaluate` says how networks are trained.
        against: names of `BASELINES`, and folders of other finished runs of the same data, trained on alike.
        split: "test", or "validation" where the recipe holds out a share of the training images.
        with_scores: whether to measure all that DD-Ranking's scores need: "random" and "full", and the distilled and
            the random images with and without augmentation.

    Returns:
        The figures, and whether this process is the one to print them.

    Raises:
        UserError: for an unknown architecture, baseline or split, an architecture that does not fit the images, or
            another run of other data.
    """
    others = _others(against, recipe)
    archs = list(dict.fromkeys(recipe.evaluate.arch))
    for arch in archs:  # any number of classes shows the mistakes, and they are told before data is prepared
        networks.check(arch, networks.Shape(recipe.data.channels, recipe.data.resolution, 2), NetworkRecipe(), "--arch")
    accelerator = parallel.start(recipe.tf32)
    arithmetic.tolerate(accelerator.device)
    main = accelerator.is_main_process
    keep_freed_memory()
    images = data.prepare(recipe.data, progress=main)
    if split not in images.counts:
        raise UserError(
            f"--split: there is no {split!r}, only {', '.join(images.counts)}; "
            "data.validation_share=0.1 would hold out some for validation"
        )
    if recipe.evaluate.lr == "learnt":
        recipe = with_learnt_rate(recipe, folder)
    trainings = _trainings(recipe, others, with_scores)
    folders = {"distilled": folder, **{name: other for name, other in others.items() if other}}
    stored = {
        name: run.load_images(path, images.classes, recipe.data.channels, recipe.data.resolution)
        for name, path in folders.items()
    }
    factors = {name: run.load_recipe(path, []).distill.factor for name, path in others.items() if path}
    factors["distilled"] = recipe.distill.factor  # its own file may name folders that only its maker has
    for_all_seeds = {name: _seen(*stored[name], factors[name]) for name in stored}
    distilled = stored["distilled"]
    baselines = {name for name, _ in trainings} & set(BASELINES)
    whole = coresets.open_whole(images, recipe.data, baselines, accelerator.device)
    for_all_seeds |= {name: real_images(name, whole, distilled[1], recipe, 0) for name in baselines - {"random"}}
    jobs = [(training, arch, seed) for training in trainings for arch in archs for seed in range(recipe.evaluate.seeds)]
    kept, done = [], []
    for job in tqdm(parallel.shard(jobs, accelerator), "evaluating", disable=not main):
        (name, _), arch, seed = job
        how = trainings[job[0]]
        chosen = for_all_seeds.get(name) or real_images(name, whole, distilled[1], recipe, seed)
        digest = _digest(how, images, name, arch, seed, split, chosen[0])
        shared = name in baselines
        path = (data.cache_folder() / "baselines" if shared else folder / "evaluating") / f"{digest}.json"
        with _alone(path) if shared else nullcontext():
            if path.is_file():
                share = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
            else:
                network = train(arch, *chosen, images, how, seed, accelerator.device)
                share = accuracy(network, images, split, accelerator.device)
                write_json(path, {"accuracy": share})
        kept += [] if shared else [path]
        done.append((job, share))
    measured = dict(parallel.gather(done, accelerator))
    rows = []
    for (name, augment), how in trainings.items():
        size = len(({**for_all_seeds, **stored}.get(name) or distilled)[0])
        for arch in archs:
            accuracies = [measured[(name, augment), arch, seed] for seed in range(recipe.evaluate.seeds)]
            rows.append(_row(name, arch, accuracies, how, split, size, sum(images.counts[split])))
    path = folder / "evaluation.json"
    if main:
        earlier = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
        fresh = {(set_of(row), row["arch"]) for row in rows}
        rows = [row for row in earlier if (set_of(row), row["arch"]) not in fresh] + rows
    crossed = cross_architecture(rows, recipe.network.arch)
    report = {
        "results": rows,
        "cross_architecture": crossed,
        "differences": differences([*rows, *crossed]),
        "scores": scores(rows),
        "normalisation": {"mean": images.mean.tolist(), "std": images.std.tolist()},
    }
    if main:
        write_json(path, {"run": recipe.name, **report})
    accelerator.wait_for_everyone()
    for path in kept:  # its own only: another evaluation of the run may be under way
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or another process was first
        (folder / "evaluating").rmdir()
    return {"run": str(folder), **report}, main


def _others(against: Sequence[str], recipe: Recipe) -> dict[str, Path | None]:
    """What to compare with, by the name that it has in the results: baselines, and the folders of other runs."""
    others: dict[str, Path | None] = {}
    for name in dict.fromkeys(against):
        if name in BASELINES:
            others[name] = None
            continue
        folder = Path(name)
        if not (folder / "recipe.yaml").is_file() or not (folder / "images").is_dir():
            known = ", ".join(BASELINES)
            raise UserError(f"--against: {name!r} is not known; known are {known}, and the folder of a finished run")
        theirs = run.load_recipe(folder, []).data
        for key, value in recipe.data.model_dump(exclude=NOT_THE_SPLIT).items():
            if (other := getattr(theirs, key)) != value:
                raise UserError(f"--against: {name} has data.{key}={other}, not {value}; give a run of the same data")
        label = f"run {folder.resolve().name}"  # its path is nobody else's business
        if label in others:
            raise UserError(f"--against: two runs are called {folder.name}; give one at a time")
        others[label] = folder
    return others


def _trainings(recipe: Recipe, others: Iterable[str], with_scores: bool) -> dict[tuple[str, bool], Recipe]:
    """By set and augmentation, the recipe that says how its networks are trained."""
    augment = recipe.evaluate.augment
    wanted = [(name, augment) for name in ("distilled", *others)]
    if with_scores:
        wanted += [(name, augment) for name in ("distilled", "random") for augment in (True, False)]
        wanted.append(("full", augment))
    return {(name, augment): training(recipe, name, augment) for name, augment in dict.fromkeys(wanted)}


def training(recipe: Recipe, trained_on: str, augment: bool) -> Recipe:
    """The recipe that says how networks are trained on a set; only "full" has epochs of its own."""
    settings = recipe.evaluate
    changes: dict[str, Any] = {"augment": augment}
    if trained_on == "full" and settings.full_epochs:  # the average reaches back over as much of the training
        decay = round(settings.ema ** (settings.epochs / settings.full_epochs), 6)
        changes |= {"epochs": settings.full_epochs, "ema": decay}
    return recipe.model_copy(update={"evaluate": settings.model_copy(update=changes)})


def protocol(recipe: Recipe, arch: str) -> dict[str, Any]:
    """How networks of an architecture are trained, as rows of results say it."""
    return _protocol(recipe) | {"lr": learning_rate(arch, recipe.evaluate)}


def _alone(path: Path) -> FileLock:
    """Lets one process at a time measure what a file of the cache keeps; the others find it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


def _seen(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """What networks are trained on: the images, or, enlarged, those that each of them holds."""
    return shown(data.to_pixels(images), labels, factor) if factor > 1 else (images, labels)


def _digest(
    recipe: Recipe, images: data.ImageSet, trained_on: str, arch: str, seed: int, split: str, pixels: Tensor
) -> str:
    """Tells one trained and tested network from all others."""
    said = json.dumps([LAYOUT, recipe.seed, images.folder.name, _protocol(recipe), trained_on, arch, seed, split])
    return hashlib.sha256(said.encode() + pixels.numpy().tobytes()).hexdigest()[:20]


def _protocol(recipe: Recipe) -> dict[str, Any]:
    return recipe.evaluate.model_dump(exclude={"arch", "seeds", "full_epochs"})


def _row(
    trained_on: str, arch: str, accuracies: Sequence[float], recipe: Recipe, split: str, images: int, tested: int
) -> dict[str, Any]:
    row = {
        "trained_on": trained_on,
        "arch": arch,
        "split": split,
        **_figures(accuracies),
        "images": images,
        "tested_on": tested,
        "protocol": protocol(recipe, arch),
    }
    return row | {"scorer": recipe.data.scorer.model_dump()} if trained_on in coresets.SELECTIONS else row


def _figures(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean and population standard deviation, as the literature's code computes it, and what they are of."""
    return {
        "mean": round(statistics.fmean(accuracies), 2),
        "std": round(statistics.pstdev(accuracies), 2),
        "accuracies": [round(value, 2) for value in accuracies],
    }


def cross_architecture(rows: Sequence[Row], matching: str) -> list[dict[str, Any]]:
    """How a set trains architectures that it was not matched in: means over these, as GLaD and LD3M report them.

    Args:
        rows: results as in `evaluation.json`, the newest last.
        matching: the architecture of the matching network, which is left out.

    Returns:
        A row for each training set, split and kind of augmentation that has two other architectures or more measured
        in the way of the newest of them: of as many seeds under the same protocol. Its accuracies are, seed by seed,
        the means over these architectures; `mean` and `std` are over seeds; its protocol is what theirs share.
    """
    means = []
    for same in dict.fromkeys(map(set_of, rows)):
        others = [row for row in rows if set_of(row) == same and row["arch"] != matching]
        alike = [row for row in others if _measured_alike(row, others[-1])]
        if len(alike) >= 2:
            by_seed = zip(*(row["accuracies"] for row in alike), strict=True)
            shared = set.intersection(*(set(row["protocol"].items()) for row in alike))
            means.append(
                {
                    "trained_on": same[0],
                    "split": same[1],
                    "without": matching,
                    "archs": [row["arch"] for row in alike],
                    **_figures([statistics.fmean(values) for values in by_seed]),
                    "images": alike[-1]["images"],
                    "protocol": {key: value for key, value in alike[-1]["protocol"].items() if (key, value) in shared},
                }
            )
    return means


def _measured_alike(one: Row, other: Row) -> bool:
    """Whether two rows may be averaged: learning rates may differ where each is its architecture's own."""

    def how(row: Row) -> list[Any]:
        protocol = {key: value for key, value in row["protocol"].items() if key != "lr"}
        return [len(row["accuracies"]), row["images"], row["tested_on"], protocol]

    rates = [row["protocol"]["lr"] for row in (one, other)]
    own = [LEARNING_RATES.get(row["arch"], LEARNING_RATE) for row in (one, other)]
    return how(one) == how(other) and (rates == own or rates[0] == rates[1])


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


def with_learnt_rate(recipe: Recipe, folder: Path) -> Recipe:
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
