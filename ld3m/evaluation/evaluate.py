"""Evaluation: other networks, trained from scratch on the distilled set only, tested on real images."""

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from tqdm import tqdm

from ld3m import networks
from ld3m.data import coresets
from ld3m.data import prepared as data
from ld3m.errors import UserError
from ld3m.evaluation import protocol
from ld3m.evaluation.comparison import differences
from ld3m.evaluation.cross_architecture import cross_architecture
from ld3m.evaluation.protocol import accuracy, train
from ld3m.evaluation.rows import Row, figures, results, set_of
from ld3m.evaluation.scores import scores
from ld3m.evaluation.training_sets import BASELINES, TrainingSets
from ld3m.files import ANOTHER_CACHE, cache_folder, cache_key, writable, write_json
from ld3m.machine.determinism import repeatable
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.runs.folder import load_recipe

LAYOUT = 1
"""Version of how networks are trained and tested; part of the key under which accuracies are kept."""
NOT_THE_SPLIT = {"root", "on_corrupt", "keep", "keep_order", "scorer"}
"""Keys of a data recipe in which two runs may differ and still have the same training and test images."""


class Job(NamedTuple):
    """One network to train and to test."""

    trained_on: str
    augment: bool
    arch: str
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """What the networks of an evaluation have in common."""

    folder: Path
    """Of the run."""
    images: data.ImageSet
    split: str
    """Of the images, to test on."""
    sets: TrainingSets
    trainings: dict[tuple[str, bool], Recipe]
    """By set and augmentation, the recipe that says how networks are trained."""
    device: torch.device

    def accuracy(self, job: Job, path: Path, bar: tqdm) -> float:
        """In percent; of a network that was trained already it is found where it is kept, at its `place`."""
        how = self.trainings[job[:2]]
        shared = job.trained_on in BASELINES and not path.is_file()
        with FileLock(path.with_suffix(".lock")) if shared else nullcontext():  # others wait for it, and find it there
            if path.is_file():
                bar.update(how.evaluate.epochs)
                return float(json.loads(path.read_text(encoding="utf-8"))["accuracy"])
            chosen = self.sets.seen(job.trained_on, job.seed)
            network = train(job.arch, *chosen, self.images, how, job.seed, self.device, bar)
            share = accuracy(network, self.images, self.split, self.device)
            write_json(path, {"accuracy": share})
            return share

    def place(self, job: Job) -> Path:
        """The file in which the accuracy is kept: until all are there in the run's folder, or a baseline's for good."""
        how, (pixels, _) = self.trainings[job[:2]], self.sets.seen(job.trained_on, job.seed)
        trained = [LAYOUT, how.seed, self.images.folder.name, protocol.settings(how), *job[:1], *job[2:], self.split]
        digest = cache_key(trained, pixels.numpy().tobytes())
        folder = cache_folder() / "baselines" if job.trained_on in BASELINES else self.folder / "evaluating"
        return folder / f"{digest}.json"

    def row(self, trained_on: str, augment: bool, arch: str, accuracies: Sequence[float]) -> dict[str, Any]:
        """What evaluation.json says of networks that differ by nothing but their seed."""
        how = self.trainings[trained_on, augment]
        row = {
            "trained_on": trained_on,
            "arch": arch,
            "split": self.split,
            **figures(accuracies),
            "images": self.sets.size(trained_on),
            "tested_on": sum(self.images.counts[self.split]),
            "protocol": protocol.said(how, arch),
        }
        return row | {"scorer": how.data.scorer.model_dump()} if trained_on in coresets.SELECTIONS else row


@watched_command
def evaluate(
    processes: Processes,
    folder: Path,
    recipe: Recipe,
    against: Sequence[str] = (),
    split: str = "test",
    with_scores: bool = False,
    again: bool = True,
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
        again: whether what evaluation.json has by the same protocol is measured again.

    Returns:
        The figures, and whether this process is the one to print them.

    Raises:
        UserError: for an unknown architecture, baseline or split, an architecture that does not fit the images, or
            another run of other data.
    """
    with repeatable(processes.device, recipe.tf32, warn_only=True):  # networks of other packages may not be repeatable
        return _evaluate(processes, folder, recipe, against, split, with_scores, again)


def _evaluate(
    processes: Processes,
    folder: Path,
    recipe: Recipe,
    against: Sequence[str],
    split: str,
    with_scores: bool,
    again: bool,
) -> tuple[dict[str, Any], bool]:
    others = _others(against, recipe)
    archs = list(dict.fromkeys(recipe.evaluate.arch))
    for arch in archs:  # any number of classes shows the mistakes, and they are told before data is prepared
        networks.check(arch, networks.Shape(recipe.data.channels, recipe.data.resolution, 2), NetworkRecipe(), "--arch")
    main = processes.is_main_process
    keep_freed_memory()
    images = data.prepare(recipe.data, progress=main)
    if split not in images.counts:
        raise UserError(
            f"--split: there is no {split!r}, only {', '.join(images.counts)}; "
            "data.validation_share=0.1 would hold out some for validation"
        )
    if recipe.evaluate.lr == "learnt":
        recipe = protocol.with_learnt_rate(recipe, folder)
    trainings = _trainings(recipe, others, with_scores)
    compared = {name: others.get(name) for name, _ in trainings if name != "distilled"}
    sets = TrainingSets.of(recipe, folder, compared, images, processes.device)
    evaluation = Evaluation(folder, images, split, sets, trainings, processes.device)
    earlier = results(folder)
    lines = [
        (*training, arch)
        for training, how in trainings.items()
        for arch in archs
        if again or not found(earlier, how, training[0], arch, split)
    ]
    own = processes.shard([Job(*line, seed) for line in lines for seed in range(recipe.evaluate.seeds)])
    epochs = sum(trainings[job[:2]].evaluate.epochs for job in own)
    places = {job: evaluation.place(job) for job in own}
    for job, place in places.items():  # before hours of training
        if not place.is_file():
            shared = job.trained_on in BASELINES
            writable(place.parent, ANOTHER_CACHE if shared else "copy the run to where it can be measured")
    with tqdm(desc="evaluating", total=epochs, unit="epoch", disable=not main) as bar:
        done = [(job, evaluation.accuracy(job, place, bar)) for job, place in places.items()]
    measured = dict(processes.gather(done))
    rows = [
        evaluation.row(*line, [measured[Job(*line, seed)] for seed in range(recipe.evaluate.seeds)]) for line in lines
    ]
    fresh = {(set_of(row), row["arch"]) for row in rows}
    rows = [row for row in results(folder) if (set_of(row), row["arch"]) not in fresh] + rows
    crossed = cross_architecture(rows, recipe.network.arch)
    report = {
        "results": rows,
        "cross_architecture": crossed,
        "differences": differences([*rows, *crossed]),
        "scores": scores(rows),
        "normalisation": {"mean": images.mean.tolist(), "std": images.std.tolist()},
    }
    processes.wait_for_everyone()  # all have read what was there before
    if main:
        write_json(folder / "evaluation.json", {"run": recipe.name, **report})
    processes.wait_for_everyone()
    for job, place in places.items():  # its own only: another evaluation of the run may be under way
        if job.trained_on not in BASELINES:
            place.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or another process was first
        (folder / "evaluating").rmdir()
    return {"run": str(folder), **report}, main


def found(rows: Iterable[Row], how: Recipe, trained_on: str, arch: str, split: str) -> Row | None:
    """The row of a set's networks, if as many as a recipe asks for were trained as it says."""
    scorer = how.data.scorer.model_dump()
    asked = trained_on, arch, split, protocol.said(how, arch), how.evaluate.seeds, scorer
    for row in rows:
        count = len(row["accuracies"])
        said = row["trained_on"], row["arch"], row["split"], row["protocol"], count, row.get("scorer", scorer)
        if said == asked:
            return row
    return None


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
        theirs = load_recipe(folder).data
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
    return {(name, augment): protocol.training(recipe, name, augment) for name, augment in dict.fromkeys(wanted)}
