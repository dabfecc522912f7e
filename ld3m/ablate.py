"""Ablations: the product of recipes and axes of values, each cell a run of its own, their accuracies one table."""

import hashlib
import itertools
import json
import re
import signal
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ld3m import ablation_chart, ablation_table, environment, lock, networks, parallel, run
from ld3m.ablation_table import text
from ld3m.allocator import keep_freed_memory
from ld3m.distill import SIGNALS, distill
from ld3m.errors import UserError, one_line
from ld3m.evaluate import BASELINES, cross_architecture, evaluate, learning_rate
from ld3m.files import write_json, write_text
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.recipe_file import find, load

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,60}")
"""Values that stand in a folder's name as they are; others have a digest behind them."""
CROSSED = "cross-architecture"
"""The name of the mean over all networks but the matching one, where it stands beside architectures."""
LONGEST = 200
"""Characters of a folder's name that say its cell; file systems end at 255."""


@dataclass(frozen=True)
class Cell:
    """One run of an ablation."""

    stem: str
    """Of its recipe's file."""
    settings: dict[str, Any]
    """Values of the axes as the recipe resolves them; that of the axis `seed` is among them."""
    recipe: Recipe

    @property
    def name(self) -> str:
        """What it is called where people read."""
        return " ".join([self.stem, *(f"{key}={text(value)}" for key, value in self.settings.items())])


@dataclass(frozen=True)
class Ablation:
    """What is to be compared: cells, the baselines beside them, the split to test on."""

    folder: Path
    axes: list[str]
    """Keys, in the order given."""
    cells: list[Cell]
    against: list[str]
    split: str

    @classmethod
    def of(
        cls,
        recipes: Sequence[str],
        overrides: Sequence[str],
        axes: Sequence[str],
        folder: Path | None = None,
        against: Sequence[str] = (),
        split: str = "test",
    ) -> "Ablation":
        """Resolves every cell and looks for all mistakes that do not need the data; nothing is written.

        Args:
            recipes: files or names.
            overrides: `KEY=VALUE` for all of them.
            axes: `KEY=VALUE,VALUE…`; a list in brackets is one value, and `seed` the seeds to pool.
            folder: of the results; `ablations/<name of the first recipe>` where left out.
            against: names of `BASELINES`.
            split: as `evaluate` takes it.

        Raises:
            UserError: a line for each mistake.
        """
        if not recipes:
            raise UserError("RECIPE: name one or more, such as ld3m ablate quickstart --axis prior.steps=2,5")
        stems = [find(name).stem for name in recipes]
        if again := [stem for stem in stems if stems.count(stem) > 1]:
            raise UserError(f"RECIPE: {again[0]} is named twice, and folders are called as the files are; name it once")
        values = dict(_axis(axis) for axis in axes)
        keys = [key for key in values if [_axis(axis)[0] for axis in axes].count(key) > 1]
        taken = keys + [key for key in values if any(override.startswith(f"{key}=") for override in overrides)]
        if taken:
            raise UserError(f"--axis: {taken[0]} is given twice; give all its values to one --axis")
        if "output" in values or any(override.startswith("output=") for override in overrides):
            raise UserError("output: each cell has a folder of its own; give --output DIR for the folder of them all")
        mistakes: list[str] = []
        resolved = []
        for name in recipes:
            for chosen in itertools.product(*values.values()):
                pairs = [f"{key}={value}" for key, value in zip(values, chosen, strict=True)]
                try:
                    resolved.append((find(name).stem, load(Recipe, name, [*overrides, *pairs])))
                except UserError as error:
                    mistakes += error.lines
        if mistakes:
            raise UserError(*dict.fromkeys(mistakes))
        folder = folder or Path("ablations") / resolved[0][1].name
        ablation = cls(
            folder=folder,
            axes=list(values),
            cells=[_cell(folder, stem, recipe, list(values)) for stem, recipe in resolved],
            against=list(dict.fromkeys(against)),
            split=split,
        )
        ablation.check()
        return ablation

    def check(self) -> None:
        """That folders can go on, networks are known and fit the images, and there are such baselines and a split."""
        if unknown := [name for name in self.against if name not in BASELINES]:
            raise UserError(f"--against: {unknown[0]!r} is not known; known are {', '.join(BASELINES)}")
        if self.split not in ("test", "validation"):
            raise UserError(f"--split: {self.split!r} is not right: give test or validation")
        if self.split == "validation" and not all(cell.recipe.data.validation_share for cell in self.cells):
            raise UserError("--split: there is no 'validation'; data.validation_share=0.1 would hold out some for it")
        folders = [cell.recipe.output for cell in self.cells]
        if same := [cell for cell in self.cells if folders.count(cell.recipe.output) > 1]:
            raise UserError(f"--axis: two cells are the same ({same[0].name}); give each value once")
        shapes = {
            (arch, networks.Shape(cell.recipe.data.channels, cell.recipe.data.resolution, 2))
            for cell in self.cells
            for arch in cell.recipe.evaluate.arch
        }
        for arch, shape in shapes:
            networks.check(arch, shape, NetworkRecipe(), "--arch")
        for cell in self.cells:
            run.check_goes_on(cell.recipe)


def _axis(given: str) -> tuple[str, list[str]]:
    """KEY=V1,V2,… as a key and values; commas in brackets or braces divide nothing."""
    key, equals, listed = given.partition("=")
    values, depth = [""], 0
    for letter in listed:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    values = [value.strip() for value in values]
    if not key or not equals or not all(values):
        raise UserError(f"--axis: {given!r} is not right: give KEY=VALUE,VALUE,… such as prior.steps=5,10,20")
    return key, values


def _cell(folder: Path, stem: str, recipe: Recipe, axes: Sequence[str]) -> Cell:
    """A cell and its folder, whose name depends on nothing but the recipe's file and the axes' values."""
    resolved = recipe.model_dump(mode="json")
    settings = {}
    for key in axes:
        value: Any = resolved
        for name in key.split("."):
            value = value[name]
        settings[key] = value
    name = ",".join(f"{key}={_part(settings[key])}" for key in sorted(settings)) or "default"
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{_digest(name)}"
    return Cell(stem, settings, recipe.model_copy(update={"output": str(folder / stem / name)}))


def _part(value: Any) -> str:
    """A value of an axis as a part of a folder's name; no two values have the same."""
    if isinstance(value, list) and all(PLAIN.fullmatch(text(entry)) for entry in value):
        return "+".join(text(entry) for entry in value)
    said = text(value)
    return said if PLAIN.fullmatch(said) else f"{re.sub('[^A-Za-z0-9._]+', '-', said)[:40]}-{_digest(said)}"


def _digest(said: str) -> str:
    return hashlib.sha256(said.encode()).hexdigest()[:8]


# --- the work ----------------------------------------------------------------------------------------------


def ablate(ablation: Ablation, command: str) -> tuple[dict[str, Any], bool]:
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
    accelerator = parallel.start()
    main, alone = accelerator.is_main_process, accelerator.num_processes == 1
    keep_freed_memory()  # as evaluation does: from the first cell on, so that the seconds of all may be compared
    here = environment.machine() | {"processes": accelerator.num_processes}
    measured: set[str] = set()
    parts: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with ExitStack() as entered:
        entered.enter_context(_ending_on_signals())
        if main:
            entered.enter_context(_claimed(ablation.folder))
        machines = _earlier_machines(ablation.folder / "ablation.json")
        for number, cell in enumerate(ablation.cells, 1):
            if main:
                print(f"cell {number} of {len(ablation.cells)}: {cell.name}", file=sys.stderr, flush=True)
            place = cell.recipe.folder.relative_to(ablation.folder).as_posix()
            own = {name: _baseline(cell, name) for name in ablation.against}
            against = [name for name, key in own.items() if key not in measured]
            try:
                with redirect_stdout(sys.stderr):  # standard output is for the table
                    worked = _measure(cell, against, ablation.split)
            except UserError as error:
                if not alone:  # the others may not know
                    raise
                print(f"ld3m: {cell.name}: {error}", file=sys.stderr, flush=True)
                failed.append({"cell": cell.name, "folder": place, "why": str(error)})
            else:
                measured |= {own[name] for name in against}
                if worked or place not in machines:
                    machines[place] = here
                spent = {"folder": place, "seed": cell.recipe.seed, **_spent(cell), "machine": machines[place]}
                parts += [_part_of_row(cell, name, ablation.split, spent) for name in ("distilled", *against)]
            report = {
                "command": command,
                "axes": [key for key in ablation.axes if key != "seed"],
                "split": ablation.split,
                "cells": len(ablation.cells),
                "done": number - len(failed),
                "failed": failed,
                "rows": ablation_table.pooled(parts),
            }
            if main:
                write_json(ablation.folder / "ablation.json", report)
                write_text(ablation.folder / "ablation.md", ablation_table.markdown(report))
                write_text(ablation.folder / "ablation.svg", ablation_chart.svg(report))
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


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other ablations out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {folder} ({error.strerror}); give another") from None
    with lock.hold(folder):
        yield


def _measure(cell: Cell, against: Sequence[str], split: str) -> bool:
    """Distils and evaluates what is missing of a cell; whether anything was."""
    recipe = cell.recipe
    distilled = run.iterations_done(recipe.folder) == recipe.distill.iterations
    if not distilled:
        distill(recipe)
    wanted = [(trained_on, arch) for trained_on in ("distilled", *against) for arch in recipe.evaluate.arch]
    missing = dict.fromkeys(arch for trained_on, arch in wanted if not _result(cell, trained_on, arch, split))
    if missing:
        settings = recipe.evaluate.model_copy(update={"arch": list(missing)})
        evaluate(recipe.folder, recipe.model_copy(update={"evaluate": settings}), against, split)
    return bool(missing) or not distilled


def _result(cell: Cell, trained_on: str, arch: str, split: str) -> dict[str, Any] | None:
    """The row of a run's evaluation.json, if it was measured as the cell asks for."""
    path, settings = cell.recipe.folder / "evaluation.json", cell.recipe.evaluate
    if not path.is_file():
        return None
    if settings.lr == "learnt":
        settings = settings.model_copy(update={"lr": run.learnt(cell.recipe.folder).get("step_size")})
    protocol = settings.model_dump(exclude={"arch", "seeds"}) | {"lr": learning_rate(arch, settings)}
    for row in json.loads(path.read_text(encoding="utf-8"))["results"]:
        asked = (row["trained_on"], row["arch"], row["split"]) == (trained_on, arch, split)
        if asked and len(row["accuracies"]) == settings.seeds and protocol.items() <= row["protocol"].items():
            return row
    return None


def _baseline(cell: Cell, name: str) -> str:
    """What a baseline's accuracies depend on beside the seed; cells of one such key share them."""
    recipe = cell.recipe
    on = [
        name,
        recipe.data.model_dump(mode="json", exclude={"keep", "keep_order", "workers"}),
        recipe.distill.images_per_class if name != "full" else None,
        recipe.evaluate.model_dump(),
        recipe.output if recipe.evaluate.lr == "learnt" else None,
    ]
    return json.dumps(on)


def _part_of_row(cell: Cell, trained_on: str, split: str, spent: Mapping[str, Any]) -> dict[str, Any]:
    """What one run measured of one training set, as `ablation_table.pooled` takes it."""
    found = [_result(cell, trained_on, arch, split) for arch in cell.recipe.evaluate.arch]
    results = [row for row in found if row]
    settings = {key: value for key, value in cell.settings.items() if key != "seed"}
    if trained_on != "distilled":
        ignored = {"data.keep", "data.keep_order"} | ({"distill.images_per_class"} if trained_on == "full" else set())
        of_baselines = ("data.", "evaluate.", "distill.images_per_class")
        settings = {
            key: value for key, value in settings.items() if key.startswith(of_baselines) and key not in ignored
        }
    return {
        "trained_on": trained_on,
        "recipe": cell.stem,
        "settings": settings,
        "images_per_class": cell.recipe.distill.images_per_class if trained_on != "full" else None,
        "images": results[0]["images"],
        "run": spent,
        "results": results + [row | {"arch": CROSSED} for row in cross_architecture(results, cell.recipe.network.arch)],
    }


def _spent(cell: Cell) -> dict[str, Any]:
    """What a finished distillation took, as its metrics.jsonl says.

    Returns:
        iterations, the last logged loss, `seconds_per_iteration` (the median of those logged), `seconds` (their mean
        times the iterations; what lies between iterations does not count), and `peak_memory` in bytes, of the process
        that made it: on CPUs not less than that of the cells before it.
    """
    path, iterations = cell.recipe.folder / "metrics.jsonl", cell.recipe.distill.iterations
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines]
    laps = [sum(row["seconds"].values()) for row in rows]
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
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {spent["folder"]: spent["machine"] for row in rows for spent in row["runs"]}
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); move it away to do without") from None
