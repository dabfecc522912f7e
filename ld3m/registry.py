"""Things found by name: ours in a dictionary, those of other packages through their entry points.

A package adds, say, an objective by a line in its pyproject.toml, and recipes may name it once it is installed:

    [project.entry-points."ld3m.objectives"]
    my-matching = "my_package:MyMatching"

Groups: `ld3m.networks`, `ld3m.objectives`, `ld3m.sources`, `ld3m.priors`, `ld3m.protocols`, `ld3m.sampling_methods`,
`ld3m.sampling_choices`.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from ld3m.errors import UserError, one_line

Thing = TypeVar("Thing")


def plugins(group: str) -> dict[str, EntryPoint]:
    """What the installed packages offer in an entry-point group, by name; nothing of it is imported."""
    return {entry.name: entry for entry in entry_points(group=group)}


def find(group: str, builtin: Mapping[str, Thing], name: str, key: str) -> Thing:
    """What a name stands for: one of ours, else one that an installed package offers.

    Args:
        group: the entry-point group.
        builtin: ours, which no other package can replace.
        name: what the user gave.
        key: the recipe's key or the option that gave it, for messages.

    Raises:
        UserError: if nobody has the name, or the package that has it cannot be imported.
    """
    if name in builtin:
        return builtin[name]
    offered = plugins(group)
    if name not in offered:
        raise UserError(f"{key}: {name!r} is not known; known are {', '.join([*builtin, *sorted(offered)])}")
    try:
        return offered[name].load()
    except Exception as error:  # another package's module can raise anything
        origin = offered[name].value
        raise UserError(f"{key}: {name!r} cannot be loaded from {origin} ({one_line(error)})") from None
