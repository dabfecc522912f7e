"""The command line: one function a command; whatever is heavy is imported inside."""

from ld3m.cli import ablating, making, results
from ld3m.cli.app import app

__all__ = ["ablating", "app", "making", "results"]
