"""A run as one web page that holds everything it shows: images on their way, curves, accuracies, recipe, cost."""

import base64
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from PIL import Image

from ld3m.errors import UserError, one_line, user_error_if_damaged
from ld3m.evaluation.rows import difference, score, set_name
from ld3m.files import write_text
from ld3m.images import grids as pictures
from ld3m.reporting import svg as charts
from ld3m.reporting import webp as sheets
from ld3m.runs import checkpoints
from ld3m.runs import folder as run

LARGEST = 5_000_000
"""Bytes that a page has at most."""
MOST_PAIRS = 20
"""Images that are shown at the beginning and at the end side by side."""
TABLE_ROWS = 25
"""Iterations in the table of a page's curves."""
KNOWN = ("iteration", "loss", "grad_z", "grad_c", "peak_memory", "seconds")
"""Keys of metrics.jsonl that every objective has; others are numbers that one learns."""
GRADIENTS = {"latents Z": "grad_z", "conditioning c": "grad_c"}
"""Keys of gradient norms by what they are of."""


def report(folder: Path, output: Path | None = None) -> Path:
    """Writes a run, finished or not, as one HTML file that loads nothing else.

    Args:
        folder: of the run; what is not in it yet is left out of the page, which says so.
        output: the file to write; `report.html` in the folder where left out.

    Returns:
        The file.

    Raises:
        UserError: where the folder is not a run, or a file in it cannot be read.
    """
    recipe_text, recipe = _recipe(folder)
    metrics, evaluation = _metrics(folder), _json(folder / "evaluation.json")
    last = metrics[-1]["iteration"] + 1 if metrics else 0
    wanted, finished = recipe["distill"]["iterations"], run.iterations_done(folder)
    done = wanted if finished == wanted else max(last, checkpoints.saved(folder), finished or 0)
    parts: dict[str, Any] = {
        "folder": folder.name or str(folder.resolve()),
        "recipe": recipe,
        "recipe_text": recipe_text,
        "done": done,
        "finished": finished == wanted,
        "curves": _curves(metrics),
        "table": _table(metrics),
        "logged": len(metrics),
        "accuracies": _accuracies(evaluation),
        "cost": _cost(metrics, done),
        "prior": _json(folder / "prior.json"),
        "origin": _json(folder / "origin.json"),
        "images": None,
    }
    found, classes = _sheets(folder, recipe, wanted), run.classes(folder)
    if found and classes:
        parts["images"] = images = Images.of(classes, recipe["distill"]["images_per_class"])
        room = LARGEST - len(_page(parts).encode()) - 200 * len(found)  # what a picture takes beside its content
        shrunk = sheets.fit(found, images.columns, room * 3 // 4)  # base64 takes four characters for three bytes
        images.frames.extend(Frame(iteration, _data_uri(content)) for iteration, content in shrunk.items())
    path = output or folder / "report.html"
    write_text(path, _page(parts))
    return path


def _page(parts: Mapping[str, Any]) -> str:
    """The filled template, with its style and its script inside."""
    assets = jinja2.PackageLoader("ld3m", "assets/report")
    environment = jinja2.Environment(
        loader=assets, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = charts.number
    environment.filters["duration"] = _duration
    environment.filters |= {"difference": difference, "score": score}
    style, script = (Markup(assets.get_source(environment, name)[0]) for name in ("style.css", "script.js"))
    return environment.get_template("page.html").render(parts, style=style, script=script)


# --- what the run folder holds -----------------------------------------------------------------------------


def _recipe(folder: Path) -> tuple[str, dict[str, Any]]:
    """The recipe as it was resolved; its data and prior need not be here, so it is not checked again."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"RUN: {folder} is not a run (it has no recipe.yaml)")
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
        int(recipe["distill"]["iterations"]), int(recipe["distill"]["images_per_class"])
        _ = recipe["name"], recipe["data"]["source"], recipe["prior"]["source"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        raise UserError(f"RUN: {path} is not the resolved recipe of a run ({one_line(error)})") from None
    return text, recipe


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that is still being written does not count."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    with user_error_if_damaged(f"RUN: {path}", "move it away to do without"):
        return [json.loads(line) for line in lines]


def _json(path: Path) -> Any:
    """What a JSON file of the run says, or None where there is none."""
    if not path.is_file():
        return None
    with user_error_if_damaged(f"RUN: {path}", "move it away to do without"):
        return json.loads(path.read_text(encoding="utf-8"))


def _sheets(folder: Path, recipe: Mapping[str, Any], last: int) -> dict[int, Path | Image.Image]:
    """The run's evolution; where there is none, its images put together as the end of one."""
    if found := pictures.frames(folder):
        return dict(found)
    if not (folder / "images").is_dir() or not run.classes(folder):
        return {}
    classes, each = pictures.shown(len(run.classes(folder)), recipe["distill"]["images_per_class"])
    columns, images = pictures.columns(each), []
    for name in run.classes(folder)[:classes]:
        for path in run.image_paths(folder, name)[:each]:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
    if len(images) != classes * each:
        return {}
    edge = images[0].width
    sheet = Image.new("RGB", (edge * columns, edge * math.ceil(len(images) / columns)), "white")
    for place, pixels in enumerate(images):
        sheet.paste(pixels, (place % columns * edge, place // columns * edge))
    return {last: sheet}


# --- what the page shows of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """All images shown, at one iteration."""

    iteration: int
    uri: str


@dataclass(frozen=True)
class Images:
    """Which images the page shows, in which order they lie in a frame."""

    classes: list[str]
    each: int
    columns: int
    all_classes: int
    images_per_class: int
    frames: list[Frame]

    @classmethod
    def of(cls, classes: Sequence[str], images_per_class: int) -> "Images":
        """Those that a run's pictures show."""
        count, each = pictures.shown(len(classes), images_per_class)
        return cls(list(classes[:count]), each, pictures.columns(each), len(classes), images_per_class, [])

    @property
    def pairs(self) -> list[tuple[int, str]]:
        """Places in a frame, and names, of the images to show at both ends: the first of each class."""
        return [(label * self.each, name) for label, name in enumerate(self.classes[:MOST_PAIRS])]

    @property
    def rows(self) -> int:
        """Rows of images in a frame."""
        return math.ceil(len(self.classes) * self.each / self.columns)

    @property
    def small(self) -> int:
        """Pixels of an edge up to which an image is shown without smoothing."""
        return sheets.SMALL


def _data_uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Loss, gradient norms, time, and what the objective learnt, each over iterations."""
    if not metrics:
        return []
    drawn = [
        ("loss", "Loss", {"loss": _line(metrics, "loss")}),
        ("gradients", "Gradient norms", {name: _line(metrics, key) for name, key in GRADIENTS.items()}),
        ("seconds", "Seconds an iteration", _laps(metrics)),
    ]
    for place, key in enumerate(key for key in metrics[-1] if key not in KNOWN):
        name = key.replace("_", " ")
        drawn.append((f"learnt-{place}", name.capitalize(), {name: _line(metrics, key)}))
    kept = [(name, title, {label: line for label, line in lines.items() if line}) for name, title, lines in drawn]
    return [charts.curves(name, title, lines) for name, title, lines in kept if lines]


def _line(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """A number over iterations, or nothing where a row lacks it."""
    values = [row.get(key) for row in metrics]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return []
    return [(row["iteration"], float(row[key])) for row in metrics]


def _laps(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Seconds over iterations of each part of an iteration that all rows have, and of them all."""
    rows = [row.get("seconds", {}) for row in metrics]
    names = [part for part in rows[0] if all(part in row for row in rows)] if rows else []
    laps = {part.replace("_", " "): [(row["iteration"], row["seconds"][part]) for row in metrics] for part in names}
    if names:
        laps["all"] = [(row["iteration"], sum(row["seconds"][part] for part in names)) for row in metrics]
    return laps


def _table(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Some logged iterations as rows of names and values."""
    rows = []
    for place in sheets.evenly(range(len(metrics)), TABLE_ROWS):
        row = {key: value for key, value in metrics[place].items() if isinstance(value, int | float)}
        rows.append(row | {f"{part}, s": value for part, value in metrics[place].get("seconds", {}).items()})
    return rows


def _accuracies(evaluation: Any) -> dict[str, Any] | None:
    """The chart and the table of evaluation.json: a row a training set, a column an architecture."""
    if not evaluation or not evaluation.get("results"):
        return None
    results = [row | {"set": _set(row)} for row in evaluation["results"]]
    crossed = [row | {"set": _set(row)} for row in evaluation.get("cross_architecture", ())]
    archs = list(dict.fromkeys(row["arch"] for row in results))
    bars = [
        charts.Bar(arch, row["set"], row["mean"], row["std"], row["accuracies"])
        for arch in archs
        for row in results
        if row["arch"] == arch
    ]
    bars += [
        charts.Bar(f"mean without {r['without']}", r["set"], r["mean"], r["std"], r["accuracies"]) for r in crossed
    ]
    protocols = list(dict.fromkeys(yaml.safe_dump(row["protocol"], sort_keys=False) for row in results))
    return {
        "chart": charts.bars("accuracies", "Test accuracy in %, mean ± standard deviation", bars, ""),
        "archs": archs,
        "sets": {
            name: {
                "images": next(row["images"] for row in results if row["set"] == name),
                "cells": {row["arch"]: row for row in results if row["set"] == name},
                "crossed": next((row for row in crossed if row["set"] == name), None),
            }
            for name in dict.fromkeys(row["set"] for row in results)
        },
        "crossed": crossed,
        "matching": crossed[0]["without"] if crossed else None,
        "protocols": protocols,
        "differences": [row | {"set": _set(row)} for row in evaluation.get("differences", ())],
        "scores": [row | {"set": _set(row | {"trained_on": row["score"]})} for row in evaluation.get("scores", ())],
    }


def _set(row: Mapping[str, Any]) -> str:
    return set_name(row) if row["split"] == "test" else f"{set_name(row)} ({row['split']})"


def _cost(metrics: Sequence[Mapping[str, Any]], done: int) -> dict[str, Any] | None:
    """Mean seconds an iteration by part, and of all iterations done at that rate; the peak memory in GiB."""
    laps = _laps(metrics)
    if not laps:
        return None
    means = {part: statistics.fmean(seconds for _, seconds in points) for part, points in laps.items()}
    whole = means.pop("all")
    rate = float(f"{1 / whole:.2g}") if whole else 0.0
    return {
        "parts": means,
        "iteration": whole,
        "rate": rate,
        "total": whole * done,
        "measured": len(metrics),
        "memory": max(row.get("peak_memory", 0) for row in metrics) / 2**30,
    }


def _duration(seconds: float) -> str:
    """Seconds in the units that people would use."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:,.1f} h"
