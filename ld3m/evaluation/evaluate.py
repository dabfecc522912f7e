"""Evaluation: other networks, trained from scratch on the distilled set only, tested on real images."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m import networks
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection.testing import Tested
from ld3m.errors import UserError
from ld3m.evaluation.blocks import blocks
from ld3m.evaluation.measure import Evaluation, Training, Work, announce, clean_up, measure
from ld3m.evaluation.protocols import OTHERS, Protocol, Task, augments, protocol
from ld3m.evaluation.rows import FILE, Row, figures, gathered, is_same, merged, read, set_name
from ld3m.evaluation.tables import accuracy_text
from ld3m.evaluation.training_sets import BASELINES, TrainingSets, check_content, check_teacher, judged_alike
from ld3m.files import writable, write_json
from ld3m.machine.determinism import repeatable
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.runs import sources
from ld3m.runs.folder import document, is_run, learnt, load_recipe
from ld3m.teachers.sources import is_named

NOT_THE_SPLIT = {"source", "root", "on_corrupt", "keep", "keep_order", "scorer", "read_test"}
"""Keys of a data recipe in which two runs may differ and still have the same training and test images; `data.source`
is compared by content."""


@watched_command
def evaluate(
    processes: Processes,
    folder: Path,
    recipe: Recipe,
    against: Sequence[str] = (),
    split: str = "test",
    with_scores: bool = False,
    again: bool = False,
    output: Path | None = None,
) -> tuple[dict[str, Any], bool]:
    """Trains `recipe.evaluate.seeds` networks of each architecture on a run's images and on the baselines.

    Networks are dealt to the processes of an `accelerate launch`. Each accuracy is kept until all are measured, so that
    an interrupted evaluation resumes with the network that it was training: those of baselines for good, in the cache,
    for other runs of the same data and seed; the others in the run's `evaluating/`. The results are added to the run's
    `evaluation.json`, and what that has by the same protocol, for the same images, is not measured again.

    A network is tested once, after its last epoch: nothing is chosen by the images it is tested on. No prior is needed.

    Args:
        recipe: its recipe; `evaluate` says how networks are trained.
        against: names of `BASELINES`, and folders of other finished runs of the same data; trained in the same way.
        split: "test", or "validation" if the recipe holds out a share of the training images.
        with_scores: whether to measure all that DD-Ranking's scores need: "random" and "full", and the distilled and
            the random images with and without augmentation.
        again: whether to measure everything again, baselines included.
        output: the folder for evaluation.json and what is kept until it is written; None: the run's.

    Returns:
        The report, and whether this process is the one to print it.

    Raises:
        UserError: for an unknown architecture, baseline or split, an architecture that does not fit the images, or
            another run of other data; if evaluation.json is damaged, or that in `output` is of other images.
        SystemExit: after an interrupt; the same call resumes.
    """
    elsewhere = output if output and output.resolve() != folder.resolve() else None
    if elsewhere and is_run(elsewhere):
        raise UserError(f"--output: {elsewhere} is a run; give a folder of your own for what is measured")
    target, unread = elsewhere or folder, list[str]()
    before = read(target)  # it is added to, so that it must be readable
    earlier = gathered(folder, elsewhere, unread) if elsewhere else before
    for line in unread if processes.is_main_process else ():
        print(f"left out: {line}", file=sys.stderr)
    others = _others(against, recipe, folder)
    check_archs(recipe)  # mistakes are reported before data is prepared
    check_teacher(recipe, [folder, *filter(None, others.values())], others)
    keep_freed_memory()
    with repeatable(processes.device, recipe.tf32, warn_only=True):  # networks of other packages may not be repeatable
        evaluation = _prepare(processes, folder, target, recipe, others, split, with_scores)
        if elsewhere:
            check_content(elsewhere, before, evaluation.digests["distilled"], folder)
        ((rows, own),) = measure_rows(processes, [(evaluation, earlier.get("results", []))], recipe, again)
    imported = document(folder, "origin.json").get("classes")
    report, lost = _report(evaluation, recipe, earlier, rows, imported)
    processes.wait_for_everyone()  # all have read the earlier rows
    if processes.is_main_process:
        for row in lost:
            name = f"{set_name(row)}, {row['arch']}, {row['split']} split, {json.dumps(row['protocol'])}"
            print(f"measured again: {name}; it was {accuracy_text(row)}", file=sys.stderr)
        if own or lost or before.get("results") != report["results"]:
            write_json(target / FILE, report)
            if elsewhere:
                print(f"written to {target / FILE}; ld3m report {folder} -o {target} shows it", file=sys.stderr)
    processes.wait_for_everyone()
    clean_up(target, own)
    wanted = [number for number, row in enumerate(report["results"]) if any(is_same(row, each) for each in rows)]
    return report | {"run": str(folder), "asked": wanted}, processes.is_main_process


def measure_rows(
    processes: Processes, asked: Iterable[tuple[Evaluation, Sequence[Row]]], recipe: Recipe, again: bool
) -> list[tuple[list[dict[str, Any]], Mapping[Training, Path]]]:
    """Trains what is missing of the networks of evaluations, dealt to the processes; says first what all will take.

    Args:
        asked: each evaluation, and rows of results; those that were measured in the same way, on the same images, are
            reused.
        recipe: its `evaluate` section has architectures and seeds.

    Returns:
        Of each evaluation a row of results for each set and architecture, and the files that keep this process's
        networks meanwhile.
    """
    parts = [_part(processes, evaluation, recipe, () if again else earlier, again) for evaluation, earlier in asked]
    if processes.is_main_process:
        announce(processes, [work for work, _, _ in parts])
    found = []
    for work, known, groups in parts:
        networks = known | measure(processes, work)
        seeds = range(recipe.evaluate.seeds)
        rows = [work.evaluation.row(*group, [networks[Training(*group, seed)] for seed in seeds]) for group in groups]
        found.append((rows, work.own))
    return found


def _part(
    processes: Processes, evaluation: Evaluation, recipe: Recipe, earlier: Sequence[Row], again: bool
) -> tuple[Work, dict[Training, Tested], list[tuple[str, bool, str]]]:
    """What this process has to measure of an evaluation, what is known of it, and what its rows are of."""
    known = _known(evaluation, recipe, earlier)
    trainings = [Training(*group, seed) for group in evaluation.protocols for seed in range(recipe.evaluate.seeds)]
    missing = [training for training in trainings if training not in known]
    if missing:  # before hours of training
        writable(evaluation.folder, evaluation.instead)
    mine = missing if evaluation.together else processes.shard(missing)
    own = {training: evaluation.path(training) for training in mine}
    work = Work.of(evaluation, own, len(trainings) - len(missing), again)
    return work, known, list(evaluation.protocols)


def check_archs(recipe: Recipe) -> None:
    """Checks that the protocol is known and networks of all architectures can be built, whatever the classes are."""
    protocol(recipe.evaluate.before_a_run, Task("", 2, 2, recipe.data.resolution))
    shape = networks.Shape(recipe.data.channels, recipe.data.resolution, 2)
    for arch in recipe.evaluate.arch:
        networks.check(arch, shape, NetworkRecipe(), "--arch")
    rates = recipe.evaluate.lr if isinstance(recipe.evaluate.lr, dict) else {}
    for arch in rates.keys() - {*recipe.evaluate.arch, OTHERS}:  # a misspelt name would be without effect
        networks.check(arch, shape, NetworkRecipe(), "evaluate.lr")


def _prepare(
    processes: Processes,
    folder: Path,
    target: Path,
    recipe: Recipe,
    others: Mapping[str, Path | None],
    split: str,
    with_scores: bool,
) -> Evaluation:
    """Prepares the real images, and everything that networks are trained on."""
    images = prepare_to_test(recipe, split, processes.is_main_process)
    if recipe.evaluate.lr == "learnt":
        recipe = with_learnt_rate(recipe, folder)
    wanted = _wanted(recipe, others, with_scores)
    folders = {**others, "distilled": folder}
    of_runs = {name: folders.get(name) for name, _ in wanted}
    sets = TrainingSets.of(recipe, of_runs, images, processes.device, processes.is_main_process)
    return Evaluation.of(target, images, split, sets, wanted, recipe, processes)


def prepare_to_test(recipe: Recipe, split: str, progress: bool) -> ImageSet:
    """The real images of a recipe, prepared.

    Raises:
        UserError: if they have no such split, or as `prepare` does.
    """
    images = prepare(recipe.data, progress=progress)
    if split == "test" and split not in images.counts:
        raise UserError("--split: test images are left alone by data.read_test=false; give data.read_test=true")
    if split not in images.counts:
        raise UserError(
            f"--split: there is no {split!r}, only {', '.join(images.counts)}; "
            "data.validation_share=0.1 would hold out some for validation"
        )
    return images


def with_learnt_rate(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the step size that the run learnt in place of `evaluate.lr: learnt`."""
    step_size = learnt(folder).get("step_size")
    if step_size is None:
        raise UserError(f"evaluate.lr: {folder} has learnt no step size (objective mtt does); give a number")
    return recipe.changed({"evaluate.lr": step_size})


def _known(evaluation: Evaluation, recipe: Recipe, earlier: Sequence[Row]) -> dict[Training, Tested]:
    """Networks that were measured before, on the same images."""
    known = {}
    for (trained_on, augment, arch), how in evaluation.protocols.items():
        for row in (row for row in earlier if _is_of(row, recipe, how, trained_on, arch, evaluation.split)):
            if row.get("content") == evaluation.digests[trained_on]:
                best = row.get("best", {})
                bests = dict(enumerate(best["accuracies"] if best.get("tests") == how.tests else ()))
                for seed, accuracy in enumerate(row["accuracies"]):
                    if bests.get(seed) is not None or not recipe.evaluate.best:
                        renamed = dict(enumerate(row.get("reassigned", ())))
                        chance = seed in row.get("at_chance", ())
                        of_seed = Tested(accuracy, chance, bests.get(seed), renamed.get(seed))
                        known[Training(trained_on, augment, arch, seed)] = of_seed
    return known


def _report(
    evaluation: Evaluation,
    recipe: Recipe,
    earlier: Mapping[str, Any],
    rows: list[dict[str, Any]],
    imported: str | None = None,
) -> tuple[dict[str, Any], list[Row]]:
    """What evaluation.json holds once rows are added, and the earlier rows that they replace."""
    everything, lost = merged(earlier.get("results", []), rows)
    images = evaluation.images
    report: dict[str, Any] = {"run": recipe.name, "matching": recipe.network.arch, "results": everything}
    if images.caveat:
        report["caveat"] = images.caveat
    if imported:
        report["imported"] = imported
    tables = blocks(report)
    return {
        **{key: value for key, value in earlier.items() if key not in report},
        **report,
        "cross_architecture": [row for table in tables for row in table.crossed],
        "differences": [row for table in tables for row in table.differences],
        "scores": [row for table in tables for row in table.scores],
        "normalisation": {"mean": images.mean.tolist(), "std": images.std.tolist()},
    }, lost


def matching_row(
    rows: Iterable[Row], recipe: Recipe, how: Protocol, trained_on: str, arch: str, split: str
) -> Row | None:
    """The row of a training set with as many networks as a recipe asks for, if so many were trained as it says.

    Nothing is loaded: what a row notes of its images must be what the recipe says.
    It has the best of each if the recipe asks for that, and none of it otherwise.
    """
    seeds = recipe.evaluate.seeds
    for row in rows:
        alike = _is_of(row, recipe, how, trained_on, arch, split) and judged_alike(row, recipe)
        if alike and len(row["accuracies"]) >= seeds:
            at_chance = [seed for seed in row.get("at_chance", ()) if seed < seeds]
            found = {**row, **figures(row["accuracies"][:seeds]), "at_chance": at_chance}
            best = found.pop("best", {"tests": None})
            if not recipe.evaluate.best:
                return found
            if best["tests"] == how.tests and None not in best["accuracies"][:seeds]:
                return {**found, "best": {**best, "accuracies": best["accuracies"][:seeds]}}
    return None


def _is_of(row: Row, recipe: Recipe, how: Protocol, trained_on: str, arch: str, split: str) -> bool:
    """Whether a row is of networks that were trained on a set as a recipe and its protocol say."""
    scorer, theirs, teacher = recipe.data.scorer.model_dump(), row["protocol"], row["protocol"].get("teacher")
    if how.teacher is None and teacher and is_named(recipe, teacher):  # it was not looked for
        theirs = {**theirs, "teacher": None}
    wanted = trained_on, arch, split, how.row(), recipe.seed, scorer
    had = (row[key] for key in ("trained_on", "arch", "split"))
    return wanted == (*had, theirs, row.get("seed", recipe.seed), row.get("scorer", scorer))


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


def _wanted(recipe: Recipe, others: Iterable[str], with_scores: bool) -> list[tuple[str, bool]]:
    """The sets to train on, and whether with augmentation."""
    augment = augments(recipe.evaluate)
    wanted = [(name, augment) for name in ("distilled", *others)]
    if with_scores:
        wanted += [(name, augment) for name in ("distilled", "random") for augment in (True, False)]
        wanted.append(("full", augment))
    return list(dict.fromkeys(wanted))
