"""How far trials got, and which of them are worth a longer run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]
"""What a run got: `mean`, the accuracy in %, `accuracies` by architecture, `seconds`, `iterations`, `epochs`, `seed`,
`folder`, `tested_on` images; or `mean` 0 and why it `failed`."""


@dataclass(frozen=True)
class Note:
    """What the journal says of a trial."""

    number: int
    settings: dict[str, str]
    parameters: dict[str, Any]
    figures: dict[int, Figure]
    """By rung."""
    state: str
    """complete, pruned (until it is promoted, if ever), running, or failed."""
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (Li et al., 2020): the best 1/eta of the runs of a rung get longer ones."""

    rungs: int
    eta: int
    highest: int
    """The highest rung, from 0, for which there is time."""
    least: int
    """Trials that are promoted from each rung at least: 0 as long as there are more to come, 1 at the end."""

    def promoted(self, notes: Sequence[Note]) -> int | None:
        """The trial to promote, from the highest rung that has one; the recipe as it is has all rungs anyway."""
        for rung in range(min(self.rungs - 1, self.highest) - 1, -1, -1):
            measured = [note for note in notes if rung in note.figures and "failed" not in note.figures[rung]]
            measured.sort(key=lambda note: -note.figures[rung]["mean"])
            as_it_is = [note for note in measured if note.number == 0]
            others = [note for note in measured if note.number != 0]
            for note in [*as_it_is, *others[: max(self.least, len(others) // self.eta)]]:
                if note.state == "pruned" and rung + 1 not in note.figures:
                    return note.number
        return None
