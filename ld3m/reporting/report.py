"""A run as one web page that holds everything it shows: images over iterations, curves, accuracies, recipe, cost."""

import base64
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

from ld3m.evaluation import rows
from ld3m.evaluation.blocks import Block, blocks
from ld3m.evaluation.tables import accuracy_text, difference_caption, difference_text, score_text
from ld3m.files import write_text
from ld3m.images import grids
from ld3m.reporting import charts, svg, webp
from ld3m.runs import metrics, sources
from ld3m.runs.folder import classes, document, image_paths, iterations_done, load_recipe, progress

LARGEST = 5_000_000
"""Bytes that a page has at most."""
MOST_PAIRS = 20
"""Images that are shown side by side as they were first and last."""
TABLE_ROWS = 25
"""Iterations in the table of a page's curves."""
GRADIENTS = {"latents Z": "grad_z", "conditioning c": "grad_c"}
"""Keys of gradient norms, by the name in the legend."""


def report(folder: Path, output: Path | None = None) -> Path:
    """Writes a run, finished or not, as one HTML file that loads nothing else.

    Args:
        folder: of the run; the page says what is not in it yet.
        output: the file to write; None: `report.html` in the folder.

    Returns:
        The file.

    Raises:
        UserError: if the folder is not a run, or a file in it cannot be read.
    """
    recipe = load_recipe(folder).model_dump(mode="json")
    logged, evaluation = metrics.read(folder), rows.read(folder)
    wanted, done = recipe["distill"]["iterations"], progress(folder, logged)
    content: dict[str, Any] = {
        "folder": folder.name or str(folder.resolve()),
        "recipe": recipe,
        "recipe_text": (folder / "recipe.yaml").read_text(encoding="utf-8"),
        "done": done,
        "finished": iterations_done(folder) == wanted,
        "curves": _curves(logged.rows),
        "table": _logged_iterations(logged.rows),
        "logged": len(logged.rows),
        "damaged": logged.damaged,
        "accuracies": _accuracies(evaluation),
        "cost": _cost(logged.rows, done),
        "prior": sources.read_prior(folder),
        "origin": document(folder, "origin.json"),
        "images": None,
    }
    sheets, names = _sheets(folder, recipe, wanted), classes(folder)
    if sheets and names:
        content["images"] = images = Images.first(names, recipe["distill"]["images_per_class"])
        room = LARGEST - len(_page(content).encode()) - 200 * len(sheets)  # an image's element without its content
        shrunk = webp.fit(sheets, images.columns, room * 3 // 4)  # base64 takes four characters for three bytes
        images.frames.extend(Frame(iteration, _data_uri(picture)) for iteration, picture in shrunk.items())
    path = output or folder / "report.html"
    write_text(path, _page(content))
    return path


def _page(content: Mapping[str, Any]) -> str:
    """The filled template, with its style and its script inside."""
    assets = jinja2.PackageLoader("ld3m", "assets/report")
    environment = jinja2.Environment(
        loader=assets, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "accuracy": accuracy_text,
        "difference": difference_text,
        "difference_caption": difference_caption,
        "duration": metrics.duration,
        "number": svg.number,
        "score": score_text,
    }
    style, script = (Markup(assets.get_source(environment, name)[0]) for name in ("style.css", "script.js"))
    return environment.get_template("page.html").render(content, style=style, script=script)


# --- what the run folder holds -----------------------------------------------------------------------------


def _sheets(folder: Path, recipe: Mapping[str, Any], last: int) -> dict[int, Path | Image.Image]:
    """The pictures of all images by iteration; if none were drawn, the run's images as the picture of the last."""
    if drawn := grids.frames(folder):
        return dict(drawn)
    names = classes(folder)
    if not (folder / "images").is_dir() or not names:
        return {}
    count, each = grids.shown(len(names), recipe["distill"]["images_per_class"])
    columns, images = grids.columns(count, each), []
    for name in names[:count]:
        for path in image_paths(folder, name)[:each]:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
    if len(images) != count * each:
        return {}
    edge = images[0].width
    sheet = Image.new("RGB", (edge * columns, edge * math.ceil(len(images) / columns)), "white")
    for index, pixels in enumerate(images):
        sheet.paste(pixels, (index % columns * edge, index // columns * edge))
    return {last: sheet}


# --- what the page shows of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """All images of the page, at one iteration."""

    iteration: int
    uri: str


@dataclass(frozen=True)
class Images:
    """Which images the page shows, and how they lie in a frame: in rows, class by class."""

    classes: list[str]
    each: int
    columns: int
    all_classes: int
    images_per_class: int
    frames: list[Frame]

    @classmethod
    def first(cls, classes: Sequence[str], images_per_class: int) -> "Images":
        """As many as a run's pictures show."""
        count, each = grids.shown(len(classes), images_per_class)
        return cls(list(classes[:count]), each, grids.columns(count, each), len(classes), images_per_class, [])

    @property
    def pairs(self) -> list[tuple[int, str]]:
        """The images to show as they were first and last, the first of each class: index in a frame, and class."""
        return [(label * self.each, name) for label, name in enumerate(self.classes[:MOST_PAIRS])]

    @property
    def rows(self) -> int:
        """Rows of images in a frame."""
        return math.ceil(len(self.classes) * self.each / self.columns)

    @property
    def small(self) -> int:
        """Pixels of an edge up to which an image is shown without smoothing."""
        return webp.SMALL


def _data_uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


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
    kept = [(name, title, {label: line for label, line in lines.items() if line}) for name, title, lines in drawings]
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
    of = f"{images} of the {block.split} split, networks trained for {block.protocol['epochs']} epochs{augmented}"
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
        "memory": max(row.get("peak_memory", 0) for row in rows) / 2**30,
    }
