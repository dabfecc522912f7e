"""The help of every command: grouped, complete, quick, and in plain English."""

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from conftest import Outcome

from ld3m.cli import app

COMMANDS = typer.main.get_command(app).commands
PANELS = {
    "Make": ["distill", "auto", "sample", "plan", "train-prior", "train-teacher", "experts", "convert-prior", "launch"],
    "Measure": ["evaluate", "compare", "ablate", "tune"],
    "Share": ["report", "render", "label", "export", "push-to-hub"],
    "Inspect": ["status", "recipes", "keys", "env", "priors"],
}
QUAINT = re.compile(
    r"\b(anew|go(es|ing)? on|otherwise|is told|told|upon|alike|where there (is|are)|is not right|on their way"
    r"|an? \w+ a (line|class|epoch|process)|one a line|what is there|is no)\b"
)
"""Words that an engineer would not use to another; pages and docstrings are in the same plain English."""


def test_commands_are_grouped_in_the_order_of_a_users_day(ld3m: Callable[..., Outcome]) -> None:
    panels: dict[str, list[str]] = {}
    for line in ld3m("--help").out.splitlines():
        if title := re.match(r"╭─ (\w+) ─", line):
            names = panels.setdefault(title[1], [])
        elif name := re.match(r"│ ([a-z-]+)  ", line):
            names.append(name[1])
    assert list(panels) == ["Options", *PANELS]
    assert {title: panels[title] for title in PANELS} == PANELS
    assert list(COMMANDS) == [name for names in PANELS.values() for name in names]


def test_every_command_is_listed_in_one_line(ld3m: Callable[..., Outcome]) -> None:
    listed = [" ".join(line.strip("│ ").split()) for line in ld3m("--help").out.splitlines()]
    for name, command in COMMANDS.items():
        assert f"{name} {command.help.partition(chr(10))[0]}" in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_no_word_is_lost_and_no_line_is_broken_early(
    ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Markdown takes <words> for HTML, which it drops unless they are code; other modes keep the source's line ends."""
    monkeypatch.setenv("COLUMNS", "3000")  # so that nothing is broken at all
    page = ld3m(name, "--help").out
    command = COMMANDS[name]
    shown = [option.help for option in command.params if not getattr(option, "hidden", False)]
    for paragraph in [*command.help.split("\n\n"), *shown]:
        assert " ".join(paragraph.split()).replace("`", "") in page


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_plain_english(name: str) -> None:
    command = COMMANDS[name]
    text = " ".join(" ".join([command.help, *(option.help or "" for option in command.params)]).split())
    assert not [match[0] for match in QUAINT.finditer(text)]


def test_help_imports_nothing_heavy() -> None:
    """What makes it slow; how long it takes depends on the machine."""
    code = f"""
import contextlib, io, json, sys
from ld3m.cli import app

for name in {[*COMMANDS]}:
    with contextlib.redirect_stdout(io.StringIO()) as page:
        app([name, "--help"], standalone_mode=False)
    assert "Usage:" in page.getvalue()
print(json.dumps(sorted(sys.modules)))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    imported = set(json.loads(process.stdout))
    assert {f"ld3m.cli.{name.replace('-', '_')}" for name in COMMANDS} <= imported
    assert imported.isdisjoint({"torch", "numpy", "diffusers", "datasets", "accelerate", "huggingface_hub", "yaml"})


def test_help_takes_less_than_half_a_second() -> None:
    """Processor time; on a machine that is slower or busy, hardly more than typer itself takes for a small program."""
    ours = "from ld3m.__main__ import main; main()"
    typers = """
import typer

app = typer.Typer(rich_markup_mode="markdown")

@app.command()
def distill(recipe: str, output: str = "") -> None:
    "Help."

@app.command()
def plan(recipe: str) -> None:
    "Help."

app()
"""
    assert any(seconds(ours) < max(0.5, 1.5 * seconds(typers)) for _ in range(5))


def seconds(program: str) -> float:
    """Of the processor, for the help of a program's command."""
    timed = f"import atexit, sys, time; atexit.register(lambda: print(time.process_time(), file=sys.stderr)); {program}"
    command = [sys.executable, "-c", timed, "distill", "--help"]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "Usage:" in process.stdout
    return float(process.stderr)
