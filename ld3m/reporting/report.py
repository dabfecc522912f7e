"""A run as one web page that holds everything it shows: images over iterations, curves, accuracies, recipe, cost."""

import base64
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from ld3m.errors import counted
from ld3m.evaluation import rows
from ld3m.evaluation.blocks import Block, blocks
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.tables import accuracy_text, difference_caption, difference_text, score_text
from ld3m.files import writable, write_text
from ld3m.reading import read_text, unless_unreadable
from ld3m.recipe import EvaluateRecipe, Recipe
from ld3m.reporting import charts, svg, webp
from ld3m.reporting.page import page
from ld3m.reporting.pictures import Images
from ld3m.runs import metrics, sources, weights
from ld3m.runs.folder import SAMPLING, classes, document, iterations_done, load_recipe, progress

LARGEST = 5_000_000
"""Bytes that a page has at most."""
TABLE_ROWS = 25
"""Iterations in the table of a page's curves."""
GRADIENTS = {"latents Z": "grad_z", "conditioning c": "grad_c"}
"""Keys of gradient norms, by the name in the legend."""


def report(folder: Path, output: Path | None = None) -> Path:
    """Writes a run, finished or not, as one HTML file that loads nothing else.

    Args:
        folder: of the run; the page says what is not in it yet.
        output: the file to write, or a folder for `report.html`, whose evaluation.json the page shows too if there is
            one, as `evaluate` leaves it there; None: the run's folder.

    Returns:
        The file.

    Raises:
        UserError: if the folder is not a run, if `output` has accuracies of another one, or if the page cannot be
            written. Files that cannot be read are left out, which the page and a line on stderr say.
    """
    settings, unread = load_recipe(folder), list[str]()
    recipe = settings.model_dump(mode="json")
    name = str(folder.name if folder.is_absolute() else folder)
    path = (output or folder) / "report.html" if output is None or output.is_dir() else output
    logged = unless_unreadable(unread, metrics.Metrics([], 0), metrics.read, folder)
    evaluation = rows.gathered(folder, _elsewhere(folder, output, unread), unread)
    results = evaluation.get("results", [])
    wanted, done = recipe["distill"]["iterations"], progress(folder, logged, unread)
    prior = unless_unreadable(unread, None, sources.read_prior, folder)
    data = unless_unreadable(unread, None, sources.read_data, folder)
    origin = unless_unreadable(unread, {}, document, folder, "origin.json")
    text = read_text(folder / "recipe.yaml", "distil again with another --output")
    content: dict[str, Any] = {
        "folder": shlex.quote(name),
        "recipe": recipe,
        "recipe_text": text,
        "recipe_link": f"data:text/yaml;base64,{base64.b64encode(text.encode()).decode()}",
        "done": done,
        "sampling": settings.sampling_text,
        "sampled": unless_unreadable(unread, {}, document, folder, SAMPLING),
        "unit": "iteration" if wanted or not settings.samples else "step",
        "finished": unless_unreadable([], None, iterations_done, folder) == wanted,
        "curves": _curves(logged.rows),
        "table": _logged_iterations(logged.rows),
        "logged": len(logged.rows),
        "damaged": logged.damaged,
        "accuracies": _accuracies(evaluation),
        "cost": _cost(logged.rows, done),
        "prior": prior,
        "origin": origin.get("source"),
        "weights": unless_unreadable(unread, None, _weights, folder),
        "trained_on": sum(each["images"] for each in data["classes"].values()) if data else None,
        "tested_on": max((row["tested_on"] for row in results if row["split"] == "test"), default=None),
        "evaluations": _evaluations(name, settings, results),
        "images": None,
        "unread": unread,
    }
    seen = Images.of(folder, recipe["distill"]["images_per_class"], wanted, unread)
    unread[:] = [line.replace(f"{folder}/", "").removeprefix("RUN: ") for line in dict.fromkeys(unread)]
    if seen:
        content["images"] = seen
        content["images"] = seen.compressed(LARGEST - len(_page(content).encode()))
    for line in unread:
        print(f"not shown: {line}", file=sys.stderr)
    writable(path.parent, "give --output FOLDER, such as -o .")
    write_text(path, _page(content).encode(errors="replace").decode())  # names may hold what UTF-8 does not
    return path


def _weights(folder: Path) -> str | None:
    """How the images of a run count in training, if not all the same."""
    found = weights.of_run(folder, classes(folder))
    return weights.text(found) if found else None


def _elsewhere(folder: Path, output: Path | None, unread: list[str]) -> Path | None:
    """The folder beside the run's with accuracies of it, if the page goes to one."""
    if output is None or not (output / rows.FILE).is_file() or output.resolve() == folder.resolve():
        return None
    from ld3m.evaluation.training_sets import check_content  # which imports torch
    from ld3m.runs.training_set import stored_digest

    measured = unless_unreadable([], {}, rows.read, output)
    if digest := unless_unreadable(unread, None, stored_digest, folder):
        check_content(output, measured, digest, folder)
    return output


def _page(content: Mapping[str, Any]) -> str:
    filters: dict[str, Callable[..., str]] = {
        "accuracy": accuracy_text,
        "difference": difference_text,
        "difference_caption": difference_caption,
        "duration": metrics.duration,
        "number": svg.number,
        "score": score_text,
    }
    return page("page.html", content, filters)


# --- what the page shows of it -----------------------------------------------------------------------------


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Loss, gradient norms, time, and the numbers that the objective learns, each over iterations."""
    if not rows:
        return []
    drawings = [
        ("loss", "Loss", {"loss": _line(rows, "loss")}),
        ("gradients", "Gradient norms", {name: _line(rows, key) for name, key in GRADIENTS.items()}),
        ("seconds", "Seconds per iteration", _seconds_by_part(rows)),
    ]
    for number, key in enumerate(key for key in rows[-1] if key not in metrics.COMMON):
        name = key.replace("_", " ")
        drawings.append((f"learnt-{number}", name.capitalize(), {name: _line(rows, key)}))
    kept = [
        (name, title, {label: line for label, line in lines.items() if any(y for _, y in line)})  # pixels have no c
        for name, title, lines in drawings
    ]
    return [charts.curves(name, title, lines) for name, title, lines in kept if lines]


def _line(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """A number over iterations, or nothing if a row lacks it."""
    values = [row.get(key) for row in rows]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return []
    return [(row["iteration"], float(row[key])) for row in rows]


def _seconds_by_part(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Seconds over iterations: of each part of an iteration that all rows have, and their sum as "all"."""
    timed = [row.get("seconds", {}) for row in rows]
    names = [part for part in timed[0] if all(part in seconds for seconds in timed)] if timed else []
    seconds = {part.replace("_", " "): [(row["iteration"], row["seconds"][part]) for row in rows] for part in names}
    if names:
        seconds["all"] = [(row["iteration"], sum(row["seconds"][part] for part in names)) for row in rows]
    return seconds


def _logged_iterations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Some logged iterations as rows of names and numbers."""
    table = []
    for index in webp.evenly(range(len(rows)), TABLE_ROWS):
        row = {key: value for key, value in rows[index].items() if isinstance(value, int | float)}
        table.append(row | {f"{part}, s": seconds for part, seconds in rows[index].get("seconds", {}).items()})
    return table


def _accuracies(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A chart and the tables of each protocol: a row per training set, a column per architecture or mean of several."""
    return [_accuracy_block(block, number) for number, block in enumerate(blocks(evaluation))]


def _accuracy_block(block: Block, number: int) -> dict[str, Any]:
    columns = [*block.archs, *block.means]
    bars = [
        charts.Bar(name, line.label, row["mean"], row["std"] or 0.0, row["accuracies"])
        for name in columns
        for line in block.lines
        if (row := line.cells.get(name))
    ]
    images = f" of {block.tested_on:,} images" if block.tested_on else ""
    augmented = "" if block.protocol.get("augment", True) else ", without augmentation"
    named = f" by {name}" if (name := rows.protocol_text(block.protocol)) else ""
    epochs = block.protocol["epochs"]
    trained = f"networks trained{named} for {counted(epochs, 'epoch')}{augmented}"
    of = f"{images} of the {block.split} split, {trained}"
    return {
        "chart": charts.bars(f"accuracies-{number}", f"Accuracy in %{of}, mean ± standard deviation", bars),
        "title": f"Accuracy in %{of}",
        "columns": columns,
        "lines": block.lines,
        "protocol": yaml.safe_dump(block.protocol, sort_keys=False),
        "differences": block.differences,
        "scores": block.scores,
        "notes": block.notes,
    }


def _evaluations(name: str, recipe: Recipe, results: Sequence[rows.Row]) -> list[str]:
    """The command lines that measure again what was measured, one for each table."""
    commands = []
    for group in rows.by_protocol(results):
        first = next((row for row in group if row["trained_on"] != "full"), group[0])
        archs = dict.fromkeys(row["arch"] for row in group)
        sets = dict.fromkeys(row["trained_on"] for row in group)
        against = [each for each in sets if each != "distilled" and not each.startswith("run ")]
        named, changes = _changes(recipe.evaluate, first, {row["arch"]: row["protocol"]["lr"] for row in group})
        words = ["ld3m", "evaluate", name, *(["--protocol", named] if named else []), "--arch", ",".join(archs)]
        words += ["--seeds", str(max(len(row["accuracies"]) for row in group))]
        words += ["--against", ",".join(against)] if against else []
        words += ["--split", first["split"]] if first["split"] != "test" else []
        words += ["--best"] if any("best" in row for row in group) else []
        commands.append(shlex.join([*words, *(f"evaluate.{key}={json.dumps(changes[key])}" for key in changes)]))
    return commands


def _changes(settings: EvaluateRecipe, row: rows.Row, rates: dict[str, float]) -> tuple[str, dict[str, Any]]:
    """What a command says to train as a row has it: a protocol, "" for the recipe's, and keys.

    Args:
        rates: learning rates by architecture.
    """
    how = row["protocol"]
    if name := how.get("name", ""):
        return name, {key: rates if key == "lr" else how[key] for key in how.get("changed", ())}
    is_glad = settings.protocol == "glad"
    own = settings if is_glad else EvaluateRecipe()
    usual = {arch: protocol(own.before_a_run, Task(arch, 1, 1, 1)) for arch in rates}
    shared = usual[row["arch"]].row()
    changes = {key: how[key] for key in how if key not in ("lr", "teacher") and how[key] != shared.get(key)}
    if own.lr != "learnt" and any(usual[arch].lr != rates[arch] for arch in rates):
        changes["lr"] = rates
    return "" if is_glad else "glad", changes


def _cost(rows: Sequence[Mapping[str, Any]], done: int) -> dict[str, Any] | None:
    """Mean seconds per iteration by part, and of all iterations done at that rate; the peak memory in GiB."""
    seconds = _seconds_by_part(rows)
    if not seconds:
        return None
    means = {part: statistics.fmean(y for _, y in points) for part, points in seconds.items()}
    whole = means.pop("all")
    rate = float(f"{1 / whole:.2g}") if whole else 0.0
    return {
        "parts": means,
        "iteration": whole,
        "rate": rate,
        "total": whole * done,
        "measured": len(rows),
        "memory": max(row.get("peak_memory") or 0 for row in rows) / 2**30,
    }
