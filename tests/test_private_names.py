"""Tests use no private name of the package: what they hold to is what users and other rooms may use."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def private(name: str) -> bool:
    """Whether a name begins with one underscore; `__version__` and its like are public."""
    return name.startswith("_") and not name.startswith("__")


def root(node: ast.expr) -> str:
    """The name at the left end of `name.attribute.attribute`, or nothing."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_names(source: str) -> Iterator[str]:
    """Private names of the package that a program imports, reads, or replaces by `setattr(module, "_name", …)`."""
    tree = ast.parse(source)
    ours = set()  # names that an import binds to something of the package
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias for alias in node.names if alias.name.split(".")[0] == "ld3m"]
            ours |= {alias.asname or "ld3m" for alias in modules}
            yield from (alias.name for alias in modules if any(map(private, alias.name.split("."))))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ld3m":
            ours |= {alias.asname or alias.name for alias in node.names}
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if any(map(private, name.split("."))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and root(node) in ours:
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and len(node.args) > 1 and root(node.args[0]) in ours:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and private(name.value):
                yield f"{ast.unparse(node.args[0])}.{name.value}"


def programs(path: Path) -> Iterator[str]:
    """A file's source, and the programs that it holds as strings, for processes of their own."""
    source = path.read_text(encoding="utf-8")
    yield source
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\nimport " in node.value:
            try:
                ast.parse(node.value)
            except SyntaxError:  # one that is completed before it runs
                continue
            yield node.value


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_private_name_is_used(path: Path) -> None:
    assert [name for program in programs(path) for name in private_names(program)] == []


def test_private_names_are_found() -> None:
    lines = [
        "import torch",
        "import ld3m.files",
        "from ld3m import priors, __version__",
        "from ld3m.sizing import auto as solver",
        "from ld3m.sizing.auto import _flat",
        "ld3m.files._flush()",
        "solver._graphs(priors.__name__, torch._C, torch.nn._reduction)",
        "monkeypatch.setattr(priors, '_load', None)",
    ]
    assert sorted(private_names("\n".join(lines))) == [
        "ld3m.files._flush",
        "ld3m.sizing.auto._flat",
        "priors._load",
        "solver._graphs",
    ]
