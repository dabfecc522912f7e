"""Evaluation: other networks, trained from scratch on the distilled set only, tested on real images.

The protocol is GLaD's (Cazenavette et al., CVPR 2023), which LD3M uses; whatever a recipe changes is printed.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ld3m import augment, coresets, data, networks, parallel, run
from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe, NetworkRecipe, Recipe

LEARNING_RATES = {"vgg11": 1e-4}
"""The protocol's rates where they differ from 1e-3."""
BASELINES = ("random", *coresets.SELECTIONS)
"""What `--against` compares with: as many real images of each class, taken from all training images."""
TEST_CHUNK = 100
"""Images tested at a time; larger activations are slower on CPUs, where each is mapped and unmapped anew."""


@dataclass(frozen=True)
class Result:
    """Test accuracies in percent of one architecture trained on one set, a network a seed."""

    trained_on: str
    arch: str
    accuracies: list[float]

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float:
        """Population standard deviation, as the literature's code computes it."""
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.accuracies) / len(self.accuracies))


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
        UserError: for an unknown architecture, baseline or split.
    """
    settings = recipe.evaluate
    for names, known, option in ((settings.arch, networks.NETWORKS, "--arch"), (against, BASELINES, "--against")):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"{option}: {unknown[0]!r} is not known; known are {', '.join(known)}")
    accelerator = parallel.start()
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        images = data.prepare(recipe.data, progress=main)
    if split not in images.counts:
        raise UserError(
            f"--split: there is no {split!r}, only {', '.join(images.counts)}; "
            "data.validation_share=0.1 would hold out some for validation"
        )
    distilled = run.load_images(folder, images.classes, recipe.data.channels, recipe.data.resolution)
    whole = coresets.open_whole(images, recipe.data, against, accelerator.device)
    for_all_seeds = {name: real_images(name, whole, distilled[1], recipe, 0) for name in against if name != "random"}
    for_all_seeds["distilled"] = distilled
    tested = images.everything(split)
    jobs = [
        (trained_on, arch, seed)
        for trained_on in ("distilled", *against)
        for arch in settings.arch
        for seed in range(settings.seeds)
    ]
    partial = folder / "evaluating"
    done = []
    for trained_on, arch, seed in tqdm(parallel.shard(jobs, accelerator), "evaluating", disable=not main):
        chosen = for_all_seeds.get(trained_on) or real_images(trained_on, whole, distilled[1], recipe, seed)
        kept = partial / f"{_digest(recipe, images, trained_on, arch, seed, split, chosen[0])}.json"
        if not kept.is_file():
            network = train(arch, *chosen, images, recipe, seed, accelerator.device)
            write_json(kept, {"accuracy": accuracy(network, *tested, images, accelerator.device)})
        done.append(((trained_on, arch, seed), json.loads(kept.read_text())["accuracy"]))
    measured = dict(parallel.gather(done, accelerator))
    results = [
        Result(trained_on, arch, [measured[trained_on, arch, seed] for seed in range(settings.seeds)])
        for trained_on in ("distilled", *against)
        for arch in settings.arch
    ]
    rows = [_row(result, settings, split, len(distilled[0]), len(tested[0])) for result in results]
    for row in rows:
        if row["trained_on"] in coresets.SELECTIONS:
            row["scorer"] = recipe.data.scorer.model_dump()
    if main:
        path = folder / "evaluation.json"
        earlier = json.loads(path.read_text())["results"] if path.is_file() else []
        same = ("trained_on", "arch", "split")
        fresh = {tuple(row[key] for key in same) for row in rows}
        rows = [row for row in earlier if tuple(row[key] for key in same) not in fresh] + rows
        write_json(path, {"run": recipe.name, "results": rows})
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    return {"run": str(folder), "results": rows}, main


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
        "mean": round(result.mean, 2),
        "std": round(result.std, 2),
        "accuracies": [round(value, 2) for value in result.accuracies],
        "images": images,
        "tested_on": tested,
        "protocol": protocol,
    }


def table(report: dict[str, Any]) -> str:
    """The report as text: a row a training set, a column an architecture, and how the networks were trained."""
    rows = report["results"]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    lines = [f"accuracy in %, mean ± std{'':>15}" + "".join(f"{arch:>16}" for arch in archs)]
    for trained_on, split in dict.fromkeys((row["trained_on"], row["split"]) for row in rows):
        cells = []
        for arch in archs:
            found = [r for r in rows if (r["trained_on"], r["split"], r["arch"]) == (trained_on, split, arch)]
            cells.append(
                f"{found[0]['mean']:.1f} ± {found[0]['std']:.1f} ({len(found[0]['accuracies'])})" if found else ""
            )
        images = next(r["images"] for r in rows if r["trained_on"] == trained_on)
        label = f"{trained_on}, {images} images, {split} split"
        lines.append(f"{label:<40}" + "".join(f"{cell:>16}" for cell in cells))
    protocols = dict.fromkeys(json.dumps(row["protocol"]) for row in rows)
    return "\n".join([*lines, *(f"networks: {protocol}" for protocol in protocols)])


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


def learning_rate(arch: str, settings: EvaluateRecipe) -> float:
    """The recipe's rate, or the protocol's for the architecture."""
    return settings.lr or LEARNING_RATES.get(arch, 1e-3)


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
        arch: a name of `networks.NETWORKS`.
        pixels: uint8 [N, channels, H, W].
        labels: int64 [N].
        images: the set they stand for, which normalises them.
        recipe: its `evaluate` section counts; a ConvNet is the literature's, whatever the set was matched in.
        seed: of the initial weights, the order of images and the augmentation.
        device: where to train.
    """
    settings = recipe.evaluate
    shape = networks.Shape(recipe.data.channels, recipe.data.resolution, len(images.classes))
    weights = generator(recipe.seed, "evaluation network", seed)
    network = networks.build(arch, shape, NetworkRecipe(), weights).to(device)
    average = networks.averaged(network, settings.ema)
    rate = learning_rate(arch, settings)
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    inputs = images.normalise(data.to_pixels(pixels.to(device)))
    targets = labels.to(device)
    for epoch in range(settings.epochs):
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_factor(epoch, settings.epochs)
        draws = generator(recipe.seed, "evaluation epoch", seed, epoch)
        for batch in torch.randperm(len(inputs), generator=draws).split(settings.batch):
            shown = inputs[batch]
            if settings.augment:
                shown = augment.draw(draws, recipe.data.resolution, len(batch))(shown)
            loss = functional.cross_entropy(network(shown), targets[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        average.update_parameters(network)
    return average.module.eval()


@torch.no_grad()
def accuracy(network: nn.Module, pixels: Tensor, labels: Tensor, images: data.ImageSet, device: torch.device) -> float:
    """Percent of uint8 images [N, channels, H, W] that the network puts in the right class."""
    right = 0
    for chunk, targets in zip(pixels.split(TEST_CHUNK), labels.split(TEST_CHUNK), strict=True):
        logits = network(images.normalise(data.to_pixels(chunk.to(device))))
        right += int((logits.argmax(1).cpu() == targets).sum())
    return 100 * right / len(labels)
