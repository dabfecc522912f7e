"""The rooms of the package: no import runs upward, none runs between rooms of one floor."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ld3m"
FLOORS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"api"},
    {"ablation"},
    {"distillation"},
    {"sizing", "prior_training", "reporting", "publishing"},
    {"sampling", "evaluation"},
    {"priors", "objectives", "runs"},
    {"data"},
    {"networks"},
    {"images"},
    {"recipe", "machine"},
    {"files", "randomness", "registry"},
    {"errors"},
]
"""From the top."""
DOORS = {"augment", "formation", "sources"}
"""Modules that only open others, for what published cards and plug-ins import."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    """The room of a dotted name below ld3m."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> Iterator[str]:
    """The modules of ld3m that a file imports anywhere, by their dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ld3m")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ld3m":
            names = [f"ld3m.{alias.name}" for alias in node.names]
            yield from names if node.module == "ld3m" else [str(node.module)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_upward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in DOORS:
        return
    wrong = [name for name in imports(path) if (other := room(name)) != own and FLOOR.get(other, -1) <= FLOOR[own]]
    assert [name for name in wrong if name != "ld3m.__version__"] == []
