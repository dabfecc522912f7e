"""What a search will take: by a few iterations of its first run and steps of its networks, and later by its runs."""

import time
from collections.abc import Sequence
from statistics import median

from ld3m.data.prepared import prepare
from ld3m.distillation.loop import distill
from ld3m.distillation.measured import is_distilled
from ld3m.errors import counted
from ld3m.evaluation.effort import costs_of
from ld3m.evaluation.protocols import Task, protocol
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.runs import metrics
from ld3m.runs.metrics import duration
from ld3m.tuning.results import FINAL, MOST_CLOSE
from ld3m.tuning.search import Search

TIMED = 5.0
"""Seconds of iterations that are timed; the first run resumes after them."""
SEARCHED = 0.7
"""The part of the minutes in which new trials are made; the rest is for long runs and distillations of the best."""


def timed(search: Search, processes: Processes) -> list[float]:
    """Seconds of a run of the recipe as it is, on each rung.

    Its first iterations are those of the first run, which resumes after them. Networks are timed on hard labels.

    Raises:
        UserError: as the run would, for example if its loss is not finite.
    """
    first = search.run(0, {}, 0, 0)
    images = prepare(first.data)
    began, done = time.monotonic(), metrics.read(first.folder).iterations
    if not is_distilled(first):
        distill(first, seconds=TIMED)
    took, logged = time.monotonic() - began, metrics.read(first.folder)
    each = median(map(metrics.seconds, logged.rows)) if logged.rows else 0.0
    around = max(0.0, took - each * (logged.iterations - done))
    seen = len(images.classes) * first.distill.latents_per_class
    costs = costs_of(first.evaluate, seen, images, processes.device)
    tested = sum(images.counts["validation"])

    def whole(recipe: Recipe) -> float:
        tasks = [Task(arch, len(images.classes), seen, images.resolution) for arch in costs]
        networks = sum(costs[task.arch].seconds(seen, protocol(recipe.evaluate, task).epochs, tested) for task in tasks)
        return around + each * recipe.distill.iterations + recipe.evaluate.seeds * networks

    return [whole(search.run(0, {}, rung, 0)) for rung in range(search.budget.rungs)]


def forecast(search: Search, by_rung: Sequence[float], made: int, processes: int) -> str:
    """What is left of a search will take so long, in a line.

    Args:
        by_rung: seconds of a run on each rung.
        made: trials that are made.
        processes: that share them.
    """
    budget, whole, cheap = search.budget, by_rung[-1], len(by_rung) - 1
    runs = f"a run takes about {duration(whole)}"
    if cheap:
        shorter = ", ".join(map(duration, by_rung[:cheap]))
        runs = f"runs of the {len(by_rung)} rungs take about {shorter} and {duration(whole)}"
    parts = [runs]
    promoted = sum(seconds / budget.eta**rung for rung, seconds in enumerate(by_rung))
    if budget.wanted is None:
        assert budget.minutes is not None
        limit = 60 * budget.minutes
        trials = max(1, round(SEARCHED * limit * processes / promoted))
        parts[0] += f", so that there is time for about {counted(trials, 'trial')}"
        if whole > limit:
            parts.append(f"none of full length: that takes more than --minutes {budget.minutes:g}")
    elif (left := budget.wanted - made) > 0:
        each = left / min(processes, left)
        longest = f" ({duration(each * sum(by_rung))} if all went to the end)" if cheap else ""
        parts.append(f"{counted(left, 'trial')} about {duration(each * promoted)}{longest}")
    if budget.wanted and budget.minutes:
        parts.append(f"no more than {budget.minutes:g} minutes of it in this command")
    if budget.distillations > 1 and budget.minutes is None:
        further = MOST_CLOSE * (budget.distillations - 1) * whole / processes
        parts.append(f"further distillations up to {duration(further)}")
    if budget.final:
        parts.append(f"then {duration(FINAL * whole / processes)} for the final {FINAL}")
    return "; ".join(parts)
