"""Ablations: every cell distilled and evaluated as a run of its own, and all their accuracies in one table."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ld3m.ablation import chart, table
from ld3m.ablation.cells import Ablation, Cell
from ld3m.data.prepared import notes_once
from ld3m.distillation.measured import cost, is_distilled, is_measured, make, result
from ld3m.errors import UserError
from ld3m.evaluation.cross_architecture import cross_architecture
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.protocols.glad import LEARNING_RATES
from ld3m.evaluation.rows import Row
from ld3m.evaluation.training_sets import depends_on_teacher
from ld3m.files import write_json, write_text
from ld3m.machine import environment, lock, signals
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.reading import read_json
from ld3m.recipe import Recipe
from ld3m.runs.folder import classes

CROSSED = "cross-architecture"
"""The column of the mean over all networks but the matching one, beside those of architectures."""
NOT_OF_BASELINES = {"keep", "keep_order"}
"""Keys of `data` that do not change the accuracies of baselines, which take all real images."""


@watched_command
def ablate(processes: Processes, ablation: Ablation, command: str) -> tuple[dict[str, Any], bool]:
    """Distils and evaluates every cell, and rewrites `ablation.json`, `.md` and `.svg` after each.

    Finished runs are not made again, nor are accuracies in their `evaluation.json` measured again by the same protocol.
    Baselines are measured with the first cell that has their images, number of images and protocol. On one process, a
    cell that fails, for example with a loss that is not finite, does not stop the others.

    Returns:
        What `ablation.json` holds, and whether this process is the one to print it.

    Raises:
        UserError: after the last cell, a line for each cell that failed.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1.
    """
    main, alone = processes.is_main_process, processes.num_processes == 1
    keep_freed_memory()  # as evaluation does, but from the first cell on, so that the seconds of all are comparable
    here = environment.machine() | {"processes": processes.num_processes}
    measured: set[str] = set()
    failed: list[dict[str, str]] = []
    with ExitStack() as entered:
        entered.enter_context(signals.exiting())
        entered.enter_context(notes_once())
        if main:
            entered.enter_context(lock.claim(ablation.folder))
        machines = _earlier_machines(ablation.folder / "ablation.json")
        measurements = {  # the table has what was done before from the start
            number: _measurements(ablation, cell, ["distilled"], machines[cell.subfolder])
            for number, cell in enumerate(ablation.cells)
            if cell.subfolder in machines
            and is_distilled(cell.recipe)
            and is_measured(cell.recipe, ["distilled"], ablation.split)
        }
        for number, cell in enumerate(ablation.cells):
            if main:
                print(f"cell {number + 1} of {len(ablation.cells)}: {cell.name}", file=sys.stderr, flush=True)
            baselines = {name: _baseline_key(cell, name) for name in ablation.against}
            against = [name for name, key in baselines.items() if key not in measured]
            if not is_distilled(cell.recipe) or cell.subfolder not in machines:
                machines[cell.subfolder] = here
            try:
                with redirect_stdout(sys.stderr):  # standard output is for the table
                    make(cell.recipe, ["distilled", *against], ablation.split)
            except UserError as error:
                if not alone:  # other processes may not have failed
                    raise
                print(f"ld3m: {cell.name}: {error}", file=sys.stderr, flush=True)
                failed.append({"cell": cell.name, "folder": cell.subfolder, "why": str(error)})
            else:
                measured |= {baselines[name] for name in against}
                measurements[number] = _measurements(ablation, cell, ["distilled", *against], machines[cell.subfolder])
            report = {
                "command": command,
                "axes": [key for key in ablation.axes if key != "seed"],
                "split": ablation.split,
                "cells": len(ablation.cells),
                "done": len(measurements),
                "failed": failed,
                "rows": table.pooled([each for number in sorted(measurements) for each in measurements[number]]),
            }
            if main:
                write_json(ablation.folder / "ablation.json", report)
                write_text(ablation.folder / "ablation.md", table.markdown(report))
                write_text(ablation.folder / "ablation.svg", chart.draw(report))
    if failed:
        raise UserError(*(f"{cell['cell']}: {cell['why']}" for cell in failed))
    return report, main


def _baseline_key(cell: Cell, name: str) -> str:
    """All that a baseline's accuracies depend on besides the seed: cells with the same key share them."""
    recipe = cell.recipe
    depends_on = [
        name,
        recipe.data.model_dump(mode="json", exclude=NOT_OF_BASELINES),
        recipe.distill.images_per_class if name != "full" else None,
        recipe.distill.factor if name == "rded" else None,
        recipe.teacher.model_dump(mode="json") if depends_on_teacher(recipe, name) else None,
        recipe.evaluate.model_dump(),
        recipe.output if recipe.evaluate.lr == "learnt" else None,
    ]
    return json.dumps(depends_on)


def _measurements(ablation: Ablation, cell: Cell, sets: Sequence[str], machine: Any) -> list[dict[str, Any]]:
    """What was measured in a finished cell for each of these training sets, as `table.pooled` takes it."""
    recipe = cell.recipe
    run = {"folder": cell.subfolder, "seed": recipe.seed, **cost(recipe), "machine": machine}
    measurements = []
    for trained_on in sets:
        expected = [result(recipe, trained_on, arch, ablation.split) for arch in dict.fromkeys(recipe.evaluate.arch)]
        rows = [row for row in expected if row]
        rows += [{**row, "arch": CROSSED} for row in cross_architecture(rows, recipe.network.arch)]
        settings = {key: value for key, value in cell.settings.items() if key != "seed"}
        if trained_on != "distilled" and recipe.evaluate.lr != "learnt":  # which is each run's own
            settings = {key: value for key, value in settings.items() if _changes_baseline(key, trained_on, recipe)}
        measurements.append(
            {
                "trained_on": trained_on,
                "recipe": cell.stem,
                "settings": settings,
                "images_per_class": recipe.distill.images_per_class if trained_on != "full" else None,
                "images": rows[0]["images"],
                "run": run,
                "results": [{**row, "asked": _asked(recipe, row)} for row in rows],
            }
        )
    return measurements


def _asked(recipe: Recipe, row: Row) -> dict[str, Any]:
    """What results must share to stand in one column: the data, and how a cell wants networks trained.

    All real images may have epochs of their own, and a learnt rate is each run's own.
    """
    settings, data = recipe.evaluate, {"data": recipe.data.source, "data.subset": recipe.data.subset}
    count = len(classes(recipe.folder))
    task = Task(row["arch"], count, count * recipe.distill.latents_per_class, recipe.data.resolution)
    asked = protocol(settings.changed({"lr": None}), task).row()
    own = {key: value for key, value in row["protocol"].items() if key != "changed"}
    own |= {key: value for key, value in asked.items() if key in own and key != "lr"}
    if settings.lr == "learnt" and row["arch"] not in LEARNING_RATES and "lr" in own:
        own["lr"] = "learnt"
    return data | own


def _changes_baseline(key: str, baseline: str, recipe: Recipe) -> bool:
    """Whether a baseline's accuracies depend on a key of the recipe; `_baseline_key` has the same keys' values."""
    if key == "distill.images_per_class":
        return baseline != "full"
    if key == "distill.factor":
        return baseline == "rded"
    if key.startswith("teacher."):
        return depends_on_teacher(recipe, baseline)
    return key.startswith(("data.", "evaluate.")) and key.removeprefix("data.") not in NOT_OF_BASELINES


class _Run(TypedDict):
    folder: str
    machine: dict[str, Any]


class _Runs(TypedDict):
    runs: list[_Run]


class _Earlier(TypedDict):
    """What a resumed ablation takes from its ablation.json; all else is made again."""

    rows: list[_Runs]


def _earlier_machines(path: Path) -> dict[str, Any]:
    """The machines on which the runs of a resumed ablation were made, by the runs' folders."""
    if not path.exists():
        return {}
    rows = read_json(path, _Earlier, "move it away to continue without it")["rows"]
    return {run["folder"]: run["machine"] for row in rows for run in row["runs"]}
