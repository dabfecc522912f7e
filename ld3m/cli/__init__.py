"""The command line: a file per command, and what they share. What a command does is in the other packages."""

from ld3m.cli.app import app

__all__ = ["app"]
