"""Evaluation: other networks, trained from scratch on the distilled set only, tested on real images."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from tqdm import tqdm

from ld3m import networks
from ld3m.data import coresets
from ld3m.data.prepared import ImageSet, prepare
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
from ld3m.runs import sources
from ld3m.runs.folder import is_run, load_recipe

LAYOUT = 1
"""Version of how networks are trained and tested; part of the key under which accuracies are kept."""
NOT_THE_SPLIT = {"source", "root", "on_corrupt", "keep", "keep_order", "scorer"}
"""Keys of a data recipe in which two runs may differ and still have the same training and test images; `data.source`
is compared by content."""


class Training(NamedTuple):
    """One network to train and to test."""

    trained_on: str
    augment: bool
    arch: str
    seed: int

    @property
    def is_shared(self) -> bool:
        """Whether other evaluations use its accuracy too: that of real images does not depend on the run."""
        return self.trained_on in BASELINES


@dataclass(frozen=True)
class Evaluation:
    """What the networks of an evaluation have in common."""

    folder: Path
    """Of the run."""
    images: ImageSet
    split: str
    """Of the images, to test on."""
    sets: TrainingSets
    recipes: dict[tuple[str, bool], Recipe]
    """The recipe that says how networks are trained, by training set and augmentation."""
    device: torch.device

    def recipe(self, training: Training) -> Recipe:
        """The recipe that says how a network is trained."""
        return self.recipes[training.trained_on, training.augment]

    def path(self, training: Training) -> Path:
        """The file that keeps a network's accuracy: in the cache if it is shared, else in the run's folder."""
        recipe, (pixels, _) = self.recipe(training), self.sets.seen(training.trained_on, training.seed)
        description = [
            LAYOUT,
            recipe.seed,
            self.images.folder.name,
            protocol.settings(recipe),
            training.trained_on,
            training.arch,
            training.seed,
            self.split,
        ]
        folder = cache_folder() / "baselines" if training.is_shared else self.folder / "evaluating"
        return folder / f"{cache_key(description, pixels.numpy().tobytes())}.json"

    def accuracy(self, training: Training, path: Path, bar: tqdm) -> float:
        """A network's accuracy in percent: read from its file, or measured and written there."""
        recipe = self.recipe(training)
        others_wait = (
            FileLock(path.with_suffix(".lock")) if training.is_shared and not path.is_file() else nullcontext()
        )
        with others_wait:
            if path.is_file():
                bar.update(recipe.evaluate.epochs)
                return float(json.loads(path.read_text(encoding="utf-8"))["accuracy"])
            chosen = self.sets.seen(training.trained_on, training.seed)
            network = train(training.arch, *chosen, self.images, recipe, training.seed, self.device, bar)
            percent = accuracy(network, self.images, self.split, self.device)
            write_json(path, {"accuracy": percent})
            return percent

    def row(self, trained_on: str, augment: bool, arch: str, accuracies: Sequence[float]) -> dict[str, Any]:
        """The row of evaluation.json for networks that differ by their seeds alone."""
        recipe = self.recipes[trained_on, augment]
        row = {
            "trained_on": trained_on,
            "arch": arch,
            "split": self.split,
            **figures(accuracies),
            "images": self.sets.size(trained_on),
            "tested_on": sum(self.images.counts[self.split]),
            "protocol": protocol.row_protocol(recipe, arch),
        }
        return row | {"scorer": recipe.data.scorer.model_dump()} if trained_on in coresets.SELECTIONS else row


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

    Networks are dealt to the processes of an `accelerate launch`. Each accuracy is kept until all are measured, so that
    an interrupted evaluation resumes with the network that it was training: those of baselines for good, in the cache,
    for other runs of the same data and seed; the others in the run's `evaluating/`. The results are added to the run's
    `evaluation.json`, and replace earlier ones of the same set, architecture, split and augmentation.

    A network is tested once, after its last epoch: nothing is chosen by the images it is tested on. No prior is needed.

    Args:
        folder: a finished run.
        recipe: its recipe; `evaluate` says how networks are trained.
        against: names of `BASELINES`, and folders of other finished runs of the same data; trained in the same way.
        split: "test", or "validation" if the recipe holds out a share of the training images.
        with_scores: whether to measure all that DD-Ranking's scores need: "random" and "full", and the distilled and
            the random images with and without augmentation.
        again: whether to measure again what evaluation.json has by the same protocol.

    Returns:
        The report, and whether this process is the one to print it.

    Raises:
        UserError: for an unknown architecture, baseline or split, an architecture that does not fit the images, or
            another run of other data.
    """
    others = _others(against, recipe, folder)
    _check_archs(recipe)  # mistakes are reported before data is prepared
    keep_freed_memory()
    with repeatable(processes.device, recipe.tf32, warn_only=True):  # networks of other packages may not be repeatable
        evaluation = _prepare(processes, folder, recipe, others, split, with_scores)
        groups = _groups(evaluation, recipe, again)
        trainings = [Training(*group, seed) for group in groups for seed in range(recipe.evaluate.seeds)]
        own = {training: evaluation.path(training) for training in processes.shard(trainings)}
        accuracies = _measure(processes, evaluation, own)
    rows = [
        evaluation.row(*group, [accuracies[Training(*group, seed)] for seed in range(recipe.evaluate.seeds)])
        for group in groups
    ]
    report = _report(evaluation, recipe, rows)
    processes.wait_for_everyone()  # all have read the earlier rows
    if processes.is_main_process:
        write_json(folder / "evaluation.json", {"run": recipe.name, **report})
    processes.wait_for_everyone()
    _clean_up(folder, own)
    return {"run": str(folder), **report}, processes.is_main_process


def _check_archs(recipe: Recipe) -> None:
    """Checks that networks of all architectures can be built; the number of classes does not matter."""
    shape = networks.Shape(recipe.data.channels, recipe.data.resolution, 2)
    for arch in recipe.evaluate.arch:
        networks.check(arch, shape, NetworkRecipe(), "--arch")


def _prepare(
    processes: Processes,
    folder: Path,
    recipe: Recipe,
    others: Mapping[str, Path | None],
    split: str,
    with_scores: bool,
) -> Evaluation:
    """Prepares the real images, and everything that networks are trained on."""
    images = prepare(recipe.data, progress=processes.is_main_process)
    if split not in images.counts:
        raise UserError(
            f"--split: there is no {split!r}, only {', '.join(images.counts)}; "
            "data.validation_share=0.1 would hold out some for validation"
        )
    if recipe.evaluate.lr == "learnt":
        recipe = protocol.with_learnt_rate(recipe, folder)
    recipes = _recipes(recipe, others, with_scores)
    compared = {name: others.get(name) for name, _ in recipes if name != "distilled"}
    sets = TrainingSets.of(recipe, folder, compared, images, processes.device)
    return Evaluation(folder, images, split, sets, recipes, processes.device)


def _groups(evaluation: Evaluation, recipe: Recipe, again: bool) -> list[tuple[str, bool, str]]:
    """Training set, augmentation and architecture of the networks to train, for each of several seeds."""
    earlier = results(evaluation.folder)
    return [
        (trained_on, augment, arch)
        for (trained_on, augment), how in evaluation.recipes.items()
        for arch in dict.fromkeys(recipe.evaluate.arch)
        if again or not matching_row(earlier, how, trained_on, arch, evaluation.split)
    ]


def _measure(processes: Processes, evaluation: Evaluation, own: Mapping[Training, Path]) -> dict[Training, float]:
    """Trains and tests this process's networks; the accuracies of all processes' networks, in percent."""
    for training, path in own.items():  # before hours of training
        if not path.is_file():
            writable(path.parent, ANOTHER_CACHE if training.is_shared else "copy the run to a folder that is writable")
    epochs = sum(evaluation.recipe(training).evaluate.epochs for training in own)
    with tqdm(desc="evaluating", total=epochs, unit="epoch", disable=not processes.is_main_process) as bar:
        measured = [(training, evaluation.accuracy(training, path, bar)) for training, path in own.items()]
    return dict(processes.gather(measured))


def _report(evaluation: Evaluation, recipe: Recipe, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What evaluation.json holds once rows are added: they replace earlier ones of the same networks."""
    replaced = {(set_of(row), row["arch"]) for row in rows}
    kept = [row for row in results(evaluation.folder) if (set_of(row), row["arch"]) not in replaced]
    everything = [*kept, *rows]
    crossed = cross_architecture(everything, recipe.network.arch)
    images = evaluation.images
    return {
        "results": everything,
        "cross_architecture": crossed,
        "differences": differences([*everything, *crossed]),
        "scores": scores(everything),
        "normalisation": {"mean": images.mean.tolist(), "std": images.std.tolist()},
    }


def _clean_up(folder: Path, own: Mapping[Training, Path]) -> None:
    """Removes this process's accuracies from the run's folder; another evaluation of the run may be under way."""
    for training, path in own.items():
        if not training.is_shared:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or another process was first
        (folder / "evaluating").rmdir()


def matching_row(rows: Iterable[Row], recipe: Recipe, trained_on: str, arch: str, split: str) -> Row | None:
    """The row of a training set, if as many networks as a recipe asks for were trained as it says."""
    scorer = recipe.data.scorer.model_dump()
    wanted = trained_on, arch, split, protocol.row_protocol(recipe, arch), recipe.evaluate.seeds, scorer
    for row in rows:
        seeds = len(row["accuracies"])
        if wanted == (row["trained_on"], row["arch"], row["split"], row["protocol"], seeds, row.get("scorer", scorer)):
            return row
    return None


def _others(against: Sequence[str], recipe: Recipe, run: Path) -> dict[str, Path | None]:
    """What to compare with, by its name in the results: baselines (None), and the folders of other runs."""
    others: dict[str, Path | None] = {}
    for name in dict.fromkeys(against):
        if name in BASELINES:
            others[name] = None
            continue
        folder = Path(name)
        if not is_run(folder) or not (folder / "images").is_dir():
            known = ", ".join(BASELINES)
            raise UserError(f"--against: {name!r} is not known; known are {known}, and the folder of a finished run")
        _check_same_data(folder, recipe, run)
        label = f"run {folder.resolve().name}"  # without the path, which says something of this machine
        if label in others:
            raise UserError(f"--against: two runs are called {folder.name}; give one at a time")
        others[label] = folder
    return others


def _check_same_data(other: Path, recipe: Recipe, run: Path) -> None:
    """Checks that another run is of the same data: by content if both runs note it, else by `data.source`.

    Raises:
        UserError: naming the key in which they differ.
    """
    theirs = load_recipe(other).data
    values = recipe.data.model_dump(exclude=NOT_THE_SPLIT)
    (_, our_note), (_, their_note) = sources.read(run), sources.read(other)
    if not our_note or not their_note or our_note["classes"] != their_note["classes"]:
        values["source"] = recipe.data.source
    for key, value in values.items():
        if (their_value := getattr(theirs, key)) != value:
            raise UserError(
                f"--against: {other} has data.{key}={their_value}, not {value}; give a run of the same data"
            )


def _recipes(recipe: Recipe, others: Iterable[str], with_scores: bool) -> dict[tuple[str, bool], Recipe]:
    """The recipe that says how networks are trained, by training set and augmentation."""
    augment = recipe.evaluate.augment
    wanted = [(name, augment) for name in ("distilled", *others)]
    if with_scores:
        wanted += [(name, augment) for name in ("distilled", "random") for augment in (True, False)]
        wanted.append(("full", augment))
    return {(name, augment): protocol.training(recipe, name, augment) for name, augment in dict.fromkeys(wanted)}
