"""What published cards and other packages import stays where it was, and the program on a card runs."""

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, distilled

DOORS = {
    "ld3m.augment": ["draw"],
    "ld3m.formation": ["shown"],
    "ld3m.networks": ["build", "Shape", "averaged"],
    "ld3m.recipe": ["NetworkRecipe"],
    "ld3m.objectives": ["Objective"],
    "ld3m.priors": ["ClassConditionalLDM"],
    "ld3m.randomness": ["generator"],
    "ld3m.sources": ["Example", "Source"],
}
"""What cards (the first four) and plug-ins import, by module."""


@pytest.mark.parametrize(("door", "name"), [(door, name) for door, names in DOORS.items() for name in names])
def test_doors_open(door: str, name: str) -> None:
    assert getattr(importlib.import_module(door), name).__name__ == name


@pytest.mark.parametrize(("factor", "augment"), [(2, True), pytest.param(1, False, marks=pytest.mark.slow)])
def test_the_program_of_a_card_runs(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    factor: int, augment: bool,
) -> None:  # fmt: skip
    """As it is printed, and as somebody runs it who has the data set and the package but not the run."""
    folder = distilled(recipe_file, tmp_path / "run", "distill.iterations=0", f"distill.factor={factor}")
    settings = ("evaluate.epochs=2", f"evaluate.augment={augment}")
    assert (measured := ld3m("evaluate", folder, "--seeds", "1", *settings)).code == 0, measured.err
    assert (pushed := ld3m("push-to-hub", folder, "--to", "me/shapes", "--dry-run")).code == 0, pushed.err
    shutil.copytree(folder / "hub", tmp_path / "elsewhere" / "me" / "shapes")  # load_dataset takes a folder of the name
    card = (folder / "hub" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([^/\s)]+)", card)) == {"arxiv.org"}, "no package index among others"
    (program,) = re.findall(r"```python\n(import math.*?)```", card, re.DOTALL)
    assert ("formation.shown" in program) == (factor > 1)
    assert ("augment.draw" in program) == augment
    monkeypatch.chdir(tmp_path / "elsewhere")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(program, names)
    images = 2 * factor**2  # of each class
    labels = [label for label in range(3) for _ in range(images)]
    assert names["inputs"].shape == (3 * images, 1, 16, 16)
    assert names["targets"].tolist() == labels
    assert names["network"](names["inputs"]).shape == (3 * images, 3)
