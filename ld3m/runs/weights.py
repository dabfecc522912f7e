"""Weights of a set's images, by which each counts in the loss of networks that are trained on it: `weights.json`.

The file has a list for each class, in the order of its images. Only ratios count: networks are trained with weights
whose mean over the set is one, so that a learning rate means the same with and without them. Importing this module
imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.reading import read_json
from ld3m.runs.folder import image_paths

FILE = "weights.json"
Weights = Mapping[str, Sequence[float]]
"""By class, a number for each image, of mean one over the set."""


def write(folder: Path, weights: Weights | None) -> None:
    """Writes the weights of a set's images; without any, or if all are the same, removes those that are there."""
    if weights is None or _all_same(weights):
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_json(folder / FILE, {name: list(values) for name, values in weights.items()})


def of_run(folder: Path, classes: Sequence[str]) -> Weights | None:
    """The weights of a run's images, as `read` gives them.

    Raises:
        UserError: as `read` does.
    """
    return read(folder, {name: len(image_paths(folder, name)) for name in classes})


def read(folder: Path, counts: Mapping[str, int]) -> Weights | None:
    """The weights of a set's images; None if it has none, or all are the same.

    Args:
        folder: of a run, or one in another layout.

    Raises:
        UserError: if they are not one number, zero or above, for each image of each class.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    advice = "correct it, or move it away, and all images count the same"
    weights = read_json(path, dict[str, list[float]], advice)
    if unknown := sorted(set(weights) - set(counts)):
        raise UserError(f"{path} has weights of the class {unknown[0]!r}, which the set has not; {advice}")
    for name, count in counts.items():
        values = weights.get(name, [])
        if len(values) != count:
            raise UserError(f"{path} has {len(values)} weights for the {count} images of class {name!r}; {advice}")
        if wrong := [value for value in values if not (math.isfinite(value) and value >= 0)]:
            raise UserError(f"{path} has the weight {wrong[0]} in class {name!r}, not a number from 0; {advice}")
    if not (total := math.fsum(value for values in weights.values() for value in values)):
        raise UserError(f"{path} has no weight above 0; {advice}")
    if _all_same(weights):
        return None
    mean = total / sum(counts.values())
    return {name: [value / mean for value in values] for name, values in weights.items()}


def text(weights: Weights) -> str:
    """Weights in a few words, for people."""
    values = [value for of_class in weights.values() for value in of_class]
    return f"images count by weights from {min(values):.3g} to {max(values):.3g}, 1 on average"


def _all_same(weights: Weights) -> bool:
    return len({value for values in weights.values() for value in values}) <= 1
