"""The rooms of the package: no import runs upward or between rooms of one floor, and files have one subject each."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ld3m"
FLOORS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"api"},
    {"ablation", "automatic", "comparison", "rehearsal", "tuning"},
    {"distillation"},
    {"sizing", "prior_training", "reporting", "publishing"},
    {"sampling", "evaluation"},
    {"teachers"},
    {"priors", "objectives", "runs", "training"},
    {"data"},
    {"networks"},
    {"images"},
    {"recipe", "machine"},
    {"files", "launched", "markdown", "randomness", "reading", "registry"},
    {"errors"},
]
"""From the top."""
DOORS = {"augment", "formation", "sources"}
"""Modules that only open others, for what published cards and plug-ins import."""
REGISTRIES = {"protocols", "methods", "choices"}
"""Folders of a function per file, found by name."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    """The room of a dotted name below ld3m."""
    name = module.split(".")[1] if "." in module else "__init__"
    return "__init__" if name == "__version__" else name


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
    assert wrong == []


def test_importing_the_loop_loads_only_what_it_needs() -> None:
    """Neither the planner, the evaluation, the card nor what talks to the Hub."""
    program = "import sys, ld3m.distillation.loop; print(*(name for name in sys.modules if name.startswith('ld3m.')))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "ld3m.sampling.pull_back" in loaded
    needless = ("sizing", "evaluation", "publishing", "reporting", "prior_training", "ablation", "rehearsal", "cli")
    assert [name for name in loaded if room(name) in needless] == []
    others = {"ld3m.distillation.plan", "ld3m.distillation.profile", "ld3m.machine.hub", "ld3m.runs.download"}
    assert others.isdisjoint(loaded)


def test_files_are_neither_long_nor_fragments() -> None:
    """At most 400 lines; under 40 only what several import, faces, doors, commands and functions found by name."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {path.name: count for path, count in lines.items() if count > 400} == {}
    importers = Counter[str]()
    for path in PACKAGE.rglob("*.py"):
        importers.update(set(every_import(path)))
    fragments = []
    for path, count in lines.items():
        name = ".".join(("ld3m", *path.relative_to(PACKAGE).with_suffix("").parts))
        apart = path.stem in DOORS or path.stem == "__main__" or room(name) == "cli" or path.parent.name in REGISTRIES
        if count < 40 and not apart and importers[name] < 2:
            fragments.append(name)
    assert fragments == []


def every_import(path: Path) -> Iterator[str]:
    """The modules that a file imports, whether by their names or as names of their packages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_windows_lacks_is_not_imported_at_once(path: Path) -> None:
    """Only where it is used, and behind a question; else not even ld3m --help would start there."""
    missing = {"resource", "fcntl", "pwd", "grp", "termios", "posix", "syslog"}
    top = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for each in ast.walk(top) if isinstance(each, ast.FunctionDef) for node in ast.walk(each)}
    for node in ast.walk(top):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert id(node) in inner or missing.isdisjoint(names)


def test_nothing_else_lies_at_the_top() -> None:
    """What a test or a command left in the checkout is not committed."""
    if not (PACKAGE.parent / ".git").exists():
        pytest.skip("not a checkout of git")
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    tracked = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split("\n")
    folders = {".ci", "launch", "ld3m", "recipes", "tests"}
    files = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml", ".gitignore"}
    assert {path.partition("/")[0] for path in tracked if path} == folders | files
