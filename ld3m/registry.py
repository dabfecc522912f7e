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


class Registry(dict[str, Thing]):
    """Our things by name, which no other package can replace; `find` knows those of installed packages too.

    Args:
        group: the entry-point group by which other packages add theirs.
        key: the recipe's key that gives the name, for messages.
        ours: by name.
    """

    def __init__(self, group: str, key: str, ours: Mapping[str, Thing]) -> None:
        super().__init__(ours)
        self.group, self.key = group, key

    @property
    def offered(self) -> dict[str, EntryPoint]:
        """What installed packages offer, by name; nothing of it is imported."""
        return {entry.name: entry for entry in entry_points(group=self.group)}

    @property
    def names(self) -> list[str]:
        """All names, ours first."""
        return [*self, *sorted(self.offered)]

    def find(self, name: str, key: str | None = None) -> Thing:
        """What a name stands for: one of ours, else one that an installed package offers.

        Args:
            key: what gave it, if it is not `self.key`.

        Raises:
            UserError: if nobody has the name, or the package that has it cannot be imported.
        """
        if name in self:
            return self[name]
        offered = self.offered.get(name)
        if offered is None:
            raise UserError(f"{key or self.key}: {name!r} is not known; known are {', '.join(self.names)}")
        try:
            thing: Thing = offered.load()
        except Exception as error:  # another package's module can raise anything
            why = f"cannot be loaded from {offered.value} ({one_line(error)})"
            raise UserError(f"{key or self.key}: {name!r} {why}") from None
        return thing
