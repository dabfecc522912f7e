"""A run that is distilled and evaluated as far as it has not been, and what its folder says of both."""

import statistics
from collections.abc import Sequence
from typing import Any

from ld3m.distillation.loop import distill
from ld3m.evaluation.evaluate import evaluate, matching_row, with_learnt_rate
from ld3m.evaluation.protocols import Protocol, Task, protocol
from ld3m.evaluation.rows import Row, results
from ld3m.evaluation.training_sets import check_teacher
from ld3m.recipe import Recipe
from ld3m.runs import metrics
from ld3m.runs.folder import SAMPLING, classes, document, iterations_done
from ld3m.runs.training_set import stored_digest


def make(recipe: Recipe, sets: Sequence[str], split: str) -> None:
    """Distils and evaluates a run as far as that has not been done.

    Args:
        sets: "distilled" and baselines, to train networks on.

    Raises:
        UserError: as `distill` and `evaluate` do.
    """
    if not is_distilled(recipe):
        check_teacher(recipe, (), sets)
        distill(recipe)
    if not is_measured(recipe, sets, split):
        evaluate(recipe.folder, recipe, [name for name in sets if name != "distilled"], split)


def is_distilled(recipe: Recipe) -> bool:
    """Whether a run is finished."""
    return iterations_done(recipe.folder) == recipe.distill.iterations


def is_measured(recipe: Recipe, sets: Sequence[str], split: str) -> bool:
    """Whether the accuracies of a run's architectures on these training sets are known."""
    return all(result(recipe, name, arch, split) for name in sets for arch in recipe.evaluate.arch)


def result(recipe: Recipe, trained_on: str, arch: str, split: str) -> Row | None:
    """The row of a run's evaluation.json, if it was measured as the recipe asks, and on the images that the run has."""
    rows = results(recipe.folder)
    if rows and recipe.evaluate.lr == "learnt":
        recipe = with_learnt_rate(recipe, recipe.folder)
    for row in rows:
        how = _protocol(recipe, row, trained_on, arch)
        if found := matching_row([row], recipe, how, trained_on, arch, split):
            of_others = trained_on == "distilled" and row.get("content") not in (None, stored_digest(recipe.folder))
            return None if of_others else found
    return None


def _protocol(recipe: Recipe, row: Row, trained_on: str, arch: str) -> Protocol:
    """How a recipe wants networks trained on a set of which a row says how many images it has."""
    seen = row["images"] * (recipe.distill.factor**2 if trained_on == "distilled" else 1)
    task = Task(arch, len(classes(recipe.folder)), seen, recipe.data.resolution)
    return protocol(recipe.evaluate, task, trained_on)


def cost(recipe: Recipe) -> dict[str, Any]:
    """What a finished distillation took, from its metrics.jsonl.

    Returns:
        iterations, the last logged loss, `seconds_per_iteration` (the median of those logged), `seconds` (their mean
        times the iterations, without what happens between iterations, and what sampling took before, over all
        processes), and `peak_memory` of the process in bytes, which on CPUs includes the runs before it.
    """
    rows, iterations = metrics.read(recipe.folder).rows, recipe.distill.iterations
    seconds = [metrics.seconds(row) for row in rows]
    sampling = document(recipe.folder, SAMPLING).get("seconds", 0.0)
    return {
        "iterations": iterations,
        "loss": rows[-1]["loss"] if rows else None,
        "seconds_per_iteration": round(statistics.median(seconds), 5) if seconds else None,
        "seconds": round(sampling + (statistics.fmean(seconds) * iterations if seconds else 0.0), 2),
        "peak_memory": max((row["peak_memory"] for row in rows if row.get("peak_memory")), default=None),
    }
