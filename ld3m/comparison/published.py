"""Figures that others published, as somebody types them in: shown beside what is measured, never tested against it."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ld3m.errors import UserError
from ld3m.evaluation.differences import CONFIDENCE, LEAST_PAIRS
from ld3m.reading import read_text
from ld3m.recipe.parsing import parse

EXAMPLE = "{name: Minimax, arch: resnet18, accuracy: 45.2, std: 0.3, networks: 3, protocol: minimax, source: 'URL'}"
"""An entry, for messages."""
Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1, max_length=500)]


class Figure(BaseModel):
    """One published accuracy."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: Text
    """Of the set or method."""
    arch: Text
    """The network, in whose column it stands; as `--arch` names it."""
    accuracy: Percent
    std: Annotated[float, Field(ge=0, le=50)] | None = None
    """Population standard deviation, as the literature's code computes it, over `networks`."""
    networks: Annotated[int, Field(ge=1)] | None = None
    """How many it is the mean of."""
    images_per_class: Annotated[int, Field(ge=1)] | None = None
    protocol: Text
    """How the networks were trained, in a few words."""
    source: Text
    """Where it is printed: paper and table, or an address."""

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean in percent, Student's, as that of what is measured; None if too little is said.

        The standard error is std / √(networks − 1), as std is that of a population.
        """
        from scipy.special import stdtrit  # which takes a while

        if self.std is None or self.networks is None or self.networks < LEAST_PAIRS:
            return None
        freedom = self.networks - 1
        margin = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * self.std / math.sqrt(freedom)
        return max(0.0, self.accuracy - margin), min(100.0, self.accuracy + margin)


def read_figures(path: Path, taken: Iterable[str]) -> list[Figure]:
    """The figures of a YAML or JSON file: a list of entries with the keys of `Figure`.

    Args:
        taken: names of sets, which a figure must not have too.

    Raises:
        UserError: if it cannot be read, or for the first entry that is wrong.
    """
    advice = f"give a list of entries such as {EXAMPLE}"
    try:
        content = parse(read_text(path, advice, f"--published: {path}"))
        figures = TypeAdapter(list[Figure]).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        number, key = [*first["loc"], "", ""][:2]
        place = f"entry {int(number) + 1}: {key}" if first["loc"] else "it"
        raise UserError(f"--published: {path}: {place}: {first['msg']}; {advice}") from None
    except ValueError as error:
        raise UserError(f"--published: {path}: cannot be read as YAML: {error}") from None
    if not figures:
        raise UserError(f"--published: {path} has no figures; {advice}")
    seen = set[tuple[str, str]]()
    for figure in figures:
        if figure.name in taken:
            raise UserError(f"--published: {path}: {figure.name!r} is the name of a set too; give it another")
        if (figure.name, figure.arch) in seen:
            raise UserError(f"--published: {path}: {figure.name!r} has two figures for {figure.arch}; give one")
        seen.add((figure.name, figure.arch))
    return figures
