"""The cells of an ablation: the product of recipes and axes of values, each with a run folder of its own."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ld3m.distillation.inputs import check_inputs
from ld3m.errors import UserError
from ld3m.evaluation.training_sets import BASELINES
from ld3m.recipe import Recipe
from ld3m.recipe.files import find_recipe
from ld3m.recipe.varied import load_varied, split_values, value_of, value_text
from ld3m.runs.resume import check_resumable

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,60}")
"""Values that are written into a folder's name unchanged; others get a digest."""
LONGEST = 200
"""Characters of a folder's name before it is cut; file systems allow 255."""


@dataclass(frozen=True)
class Cell:
    """One run of an ablation."""

    stem: str
    """The name of its recipe's file."""
    settings: dict[str, Any]
    """Values of the axes, `seed` included, as the recipe resolves them."""
    recipe: Recipe
    subfolder: str
    """Its run's folder, relative to the ablation's: `<recipe>/<key=value,…>`."""

    @property
    def name(self) -> str:
        """The name that people read: recipe and settings."""
        return " ".join([self.stem, *(f"{key}={value_text(value)}" for key, value in self.settings.items())])


@dataclass(frozen=True)
class Ablation:
    """What to compare: cells and baselines, and the split to test on."""

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
        """Resolves every cell and reports all mistakes that can be found without the data; writes nothing.

        Args:
            axes: `KEY=VALUE,VALUE…`; a list in brackets is one value; seeds of the axis `seed` are pooled.
            folder: for the results; None: `ablations/<name of the first recipe>`.
            against: names of `BASELINES`.

        Raises:
            UserError: a line for each mistake.
        """
        if not recipes:
            raise UserError("RECIPE: name one or more, such as ld3m ablate quickstart --axis prior.steps=2,5")
        stems = [find_recipe(name).stem for name in recipes]
        if repeated := [stem for stem in stems if stems.count(stem) > 1]:
            raise UserError(f"RECIPE: {repeated[0]} is the name of two recipes, and of their folders; name each once")
        values = dict(_axis(axis) for axis in axes)
        given = [word.partition("=")[0] for word in (*axes, *overrides)]
        if repeated := [key for key in values if given.count(key) > 1]:
            raise UserError(f"--axis: {repeated[0]} is given twice; give all its values to one --axis")
        if "output" in values or any(override.startswith("output=") for override in overrides):
            raise UserError("output: each cell has a folder of its own; give --output DIR for the folder of them all")
        mistakes: list[str] = []
        resolved = []
        for name in recipes:
            for chosen in itertools.product(*values.values()):
                try:
                    recipe = load_varied(name, overrides, list(zip(values, chosen, strict=True)))
                    check_inputs(recipe)
                    resolved.append((find_recipe(name).stem, recipe))
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
        """Checks that runs can be resumed, and baselines and the split exist."""
        if unknown := [name for name in self.against if name not in BASELINES]:
            raise UserError(f"--against: {unknown[0]!r} is not known; known are {', '.join(BASELINES)}")
        if self.split not in ("test", "validation"):
            raise UserError(f"--split: {self.split!r} is invalid: give test or validation")
        if self.split == "validation" and not all(cell.recipe.data.validation_share for cell in self.cells):
            raise UserError("--split: there is no 'validation'; data.validation_share=0.1 would hold out images for it")
        folders = [cell.recipe.output for cell in self.cells]
        if same := [cell for cell in self.cells if folders.count(cell.recipe.output) > 1]:
            raise UserError(f"--axis: two cells are the same ({same[0].name}); give each value once")
        for cell in self.cells:
            try:
                check_resumable(cell.recipe)
            except UserError as error:  # its advice names an option that ablate does not have
                mistake = str(error).partition(";")[0]
                raise UserError(f"{mistake}; give another --output, or remove that folder") from None


def _axis(option: str) -> tuple[str, list[str]]:
    """KEY=V1,V2,… as a key and values; commas in brackets or braces do not separate."""
    key, equals, listed = option.partition("=")
    values = split_values(listed)
    if not key or not equals or not all(values):
        raise UserError(f"--axis: {option!r} is invalid: give KEY=VALUE,VALUE,… such as prior.steps=5,10,20")
    return key, values


def _cell(folder: Path, stem: str, recipe: Recipe, axes: Sequence[str]) -> Cell:
    """A cell; its folder's name depends only on the recipe's file and the axes' values."""
    settings = {key: value_of(recipe, key) for key in axes}
    name = ",".join(f"{key}={_in_folder_name(settings[key])}" for key in sorted(settings)) or "default"
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{_digest(name)}"
    in_folder = recipe.changed({"output": str(folder / stem / name)})
    return Cell(stem, settings, in_folder, f"{stem}/{name}")


def _in_folder_name(value: Any) -> str:
    """A value of an axis as a part of a folder's name, different for each value."""
    if isinstance(value, list) and all(PLAIN.fullmatch(value_text(entry)) for entry in value):
        return "+".join(value_text(entry) for entry in value)
    text = value_text(value)
    return text if PLAIN.fullmatch(text) else f"{re.sub('[^A-Za-z0-9._]+', '-', text)[:40]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
