"""Ablations: every cell distilled and evaluated as a run of its own, and all their accuracies in one table."""

import json
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from ld3m.ablation import chart, table
from ld3m.ablation.cells import Ablation, Cell
from ld3m.distillation.loop import SIGNALS, distill
from ld3m.errors import UserError, user_error_if_damaged
from ld3m.evaluation import protocol
from ld3m.evaluation.cross_architecture import cross_architecture
from ld3m.evaluation.evaluate import evaluate, matching_row
from ld3m.evaluation.rows import Row, results
from ld3m.files import write_json, write_text
from ld3m.machine import environment, lock
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.runs import metrics
from ld3m.runs.folder import iterations_done

CROSSED = "cross-architecture"
"""The name of the mean over all networks but the matching one, where it stands beside architectures."""
NOT_OF_BASELINES = {"keep", "keep_order"}
"""Keys of `data` that baselines, which take all real images, do not depend on."""


@watched_command
def ablate(processes: Processes, ablation: Ablation, command: str) -> tuple[dict[str, Any], bool]:
    """Distils and evaluates every cell, and writes `ablation.json`, `.md` and `.svg` anew after each.

    What is there already is not made again: finished runs, and accuracies in their `evaluation.json` that were
    measured by the same protocol. Baselines are measured with the first cell whose images, number of images and
    protocol are theirs. On one process a cell that fails, as by a loss that is not finite, does not stop the others.

    Args:
        ablation: of which all mistakes have been told.
        command: the command line, which stands with the results.

    Returns:
        What `ablation.json` holds, and whether this process is the one to print it.

    Raises:
        UserError: once all is done, a line for each cell that failed.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1.
    """
    main, alone = processes.is_main_process, processes.num_processes == 1
    keep_freed_memory()  # as evaluation does: from the first cell on, so that the seconds of all may be compared
    here = environment.machine() | {"processes": processes.num_processes}
    measured: set[str] = set()
    failed: list[dict[str, str]] = []
    with ExitStack() as entered:
        entered.enter_context(_ending_on_signals())
        if main:
            entered.enter_context(lock.claim(ablation.folder))
        machines = _earlier_machines(ablation.folder / "ablation.json")
        parts = {  # what was done before stands in the table from the first
            number: _parts(ablation, cell, ["distilled"], machines[cell.subfolder])
            for number, cell in enumerate(ablation.cells)
            if cell.subfolder in machines and _is_distilled(cell) and not _missing(cell, ["distilled"], ablation.split)
        }
        for number, cell in enumerate(ablation.cells):
            if main:
                print(f"cell {number + 1} of {len(ablation.cells)}: {cell.name}", file=sys.stderr, flush=True)
            own = {name: _baseline(cell, name) for name in ablation.against}
            against = [name for name, key in own.items() if key not in measured]
            if not _is_distilled(cell) or cell.subfolder not in machines:
                machines[cell.subfolder] = here
            try:
                with redirect_stdout(sys.stderr):  # standard output is for the table
                    _measure(cell, against, ablation.split)
            except UserError as error:
                if not alone:  # the others may not know
                    raise
                print(f"ld3m: {cell.name}: {error}", file=sys.stderr, flush=True)
                failed.append({"cell": cell.name, "folder": cell.subfolder, "why": str(error)})
            else:
                measured |= {own[name] for name in against}
                parts[number] = _parts(ablation, cell, ["distilled", *against], machines[cell.subfolder])
            report = {
                "command": command,
                "axes": [key for key in ablation.axes if key != "seed"],
                "split": ablation.split,
                "cells": len(ablation.cells),
                "done": len(parts),
                "failed": failed,
                "rows": table.pooled([part for number in sorted(parts) for part in parts[number]]),
            }
            if main:
                write_json(ablation.folder / "ablation.json", report)
                write_text(ablation.folder / "ablation.md", table.markdown(report))
                write_text(ablation.folder / "ablation.svg", chart.draw(report))
    if failed:
        raise UserError(*(f"{cell['cell']}: {cell['why']}" for cell in failed))
    return report, main


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Ends the command as `distill` ends it, also between its iterations; what is done is on the disk."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {int(number): signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measure(cell: Cell, against: Sequence[str], split: str) -> None:
    """Distils and evaluates what is missing of a cell."""
    recipe = cell.recipe
    if not _is_distilled(cell):
        distill(recipe)
    if _missing(cell, ["distilled", *against], split):
        evaluate(recipe.folder, recipe, against, split, again=False)


def _is_distilled(cell: Cell) -> bool:
    return iterations_done(cell.recipe.folder) == cell.recipe.distill.iterations


def _missing(cell: Cell, sets: Sequence[str], split: str) -> bool:
    """Whether an architecture has not yet been trained on all of some training sets."""
    return not all(_result(cell, name, arch, split) for name in sets for arch in cell.recipe.evaluate.arch)


def _result(cell: Cell, trained_on: str, arch: str, split: str) -> Row | None:
    """The row of a run's evaluation.json, if it was measured as the cell asks for."""
    recipe, rows = cell.recipe, results(cell.recipe.folder)
    if rows and recipe.evaluate.lr == "learnt":
        recipe = protocol.with_learnt_rate(recipe, recipe.folder)
    how = protocol.training(recipe, trained_on, recipe.evaluate.augment)
    return matching_row(rows, how, trained_on, arch, split)


def _baseline(cell: Cell, name: str) -> str:
    """What a baseline's accuracies depend on beside the seed; cells of one such key share them."""
    recipe = cell.recipe
    on = [
        name,
        recipe.data.model_dump(mode="json", exclude=NOT_OF_BASELINES),
        recipe.distill.images_per_class if name != "full" else None,
        recipe.evaluate.model_dump(),
        recipe.output if recipe.evaluate.lr == "learnt" else None,
    ]
    return json.dumps(on)


def _parts(ablation: Ablation, cell: Cell, sets: Sequence[str], machine: Any) -> list[dict[str, Any]]:
    """What a finished cell measured of some training sets, as `table.pooled` takes it."""
    recipe, spent = (
        cell.recipe,
        {"folder": cell.subfolder, "seed": cell.recipe.seed, **_spent(cell), "machine": machine},
    )
    parts = []
    for trained_on in sets:
        measured = [_result(cell, trained_on, arch, ablation.split) for arch in dict.fromkeys(recipe.evaluate.arch)]
        rows = [row for row in measured if row]
        crossed = [{**row, "arch": CROSSED} for row in cross_architecture(rows, recipe.network.arch)]
        settings = {key: value for key, value in cell.settings.items() if key != "seed"}
        if trained_on != "distilled":
            settings = {key: value for key, value in settings.items() if _counts(key, trained_on)}
        parts.append(
            {
                "trained_on": trained_on,
                "recipe": cell.stem,
                "settings": settings,
                "images_per_class": recipe.distill.images_per_class if trained_on != "full" else None,
                "images": rows[0]["images"],
                "run": spent,
                "results": rows + crossed,
            }
        )
    return parts


def _counts(key: str, baseline: str) -> bool:
    """Whether a key of the recipe has a part in a baseline's accuracies; `_baseline` says the same of values."""
    if key == "distill.images_per_class":
        return baseline != "full"
    return key.startswith(("data.", "evaluate.")) and key.removeprefix("data.") not in NOT_OF_BASELINES


def _spent(cell: Cell) -> dict[str, Any]:
    """What a finished distillation took, as its metrics.jsonl says.

    Returns:
        iterations, the last logged loss, `seconds_per_iteration` (the median of those logged), `seconds` (their mean
        times the iterations; what lies between iterations does not count), and `peak_memory` in bytes, of the process
        that made it: on CPUs not less than that of the cells before it.
    """
    rows, iterations = metrics.read(cell.recipe.folder).rows, cell.recipe.distill.iterations
    laps = [metrics.seconds(row) for row in rows]
    return {
        "iterations": iterations,
        "loss": rows[-1]["loss"] if rows else None,
        "seconds_per_iteration": round(statistics.median(laps), 5) if laps else None,
        "seconds": round(statistics.fmean(laps) * iterations, 2) if laps else 0.0,
        "peak_memory": max(row["peak_memory"] for row in rows) if rows else None,
    }


def _earlier_machines(path: Path) -> dict[str, Any]:
    """Where the runs of an ablation that is gone on with were made, by their folders."""
    if not path.is_file():
        return {}
    with user_error_if_damaged(path, "move it away to do without"):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {spent["folder"]: spent["machine"] for row in rows for spent in row["runs"]}
