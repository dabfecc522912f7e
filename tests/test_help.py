"""The help of every command."""

from collections.abc import Callable

import pytest
import typer
from conftest import Outcome

from ld3m.cli import app

COMMANDS = typer.main.get_command(app).commands


def test_every_command_is_listed_with_what_it_does(ld3m: Callable[..., Outcome]) -> None:
    said = ld3m("--help").out
    assert all(name in said for name in COMMANDS)
    assert all(command.help and command.help.split(maxsplit=1)[0] in said for command in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_no_word_is_lost_and_no_line_is_broken_early(
    ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Markdown takes <words> for HTML, which it drops unless they are code; other modes keep the source's line ends."""
    monkeypatch.setenv("COLUMNS", "3000")  # so that nothing is broken at all
    said = ld3m(name, "--help").out
    command = COMMANDS[name]
    written = [*command.help.split("\n\n"), *(option.help for option in command.params)]
    for paragraph in written:
        assert " ".join(paragraph.split()).replace("`", "") in said
