"""What evaluation.json has: the shape of its rows, which `rows.read` checks.

Importing this module imports no torch.
"""

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Len, MinLen
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1)]


class SoftLabels(TypedDict):
    """Whose soft labels are."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    teacher: str
    accuracy: NotRequired[Percent]
    """Of the teacher, on all real test images; none of labels that were learnt with the images."""
    weights: str
    """The beginning of the digest of its weights."""
    stored: NotRequired[bool]
    """Whether they are stored with the set; all below is of stored ones."""
    per: NotRequired[Literal["image", "epoch"]]
    epochs: NotRequired[Count]
    top: NotRequired[Count]
    dtype: NotRequired[str]
    bytes: NotRequired[Count]


class Protocol(TypedDict):
    """How the networks of a row were trained; those of other protocols than glad have all of its details."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    name: NotRequired[str]
    """None for glad."""
    epochs: Count
    batch: Count
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    augment: bool | dict[str, Any]
    labels: NotRequired[Literal["hard", "soft"]]
    temperature: NotRequired[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    teacher: NotRequired[SoftLabels | None]
    changed: NotRequired[dict[str, Any]]
    """The protocol's own values of what the user changed."""


class Best(TypedDict):
    """The best accuracies of a row's networks over several tests during training, chosen by the test images."""

    tests: str
    """When they were tested: a name of `protocols.details.TESTS`."""
    accuracies: Annotated[list[Percent | None], MinLen(1)]
    """Of the seeds 0, 1, …; None if it was not asked for."""


class Result(TypedDict):
    """Networks of one architecture that differ by their seeds alone, trained on one set by one protocol."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    trained_on: str
    """distilled, a baseline's name, or "run NAME"."""
    arch: str
    split: str
    """Of the real images, that the networks were tested on."""
    mean: Percent
    std: Percent | None
    """Population standard deviation over the networks; None for one network."""
    accuracies: Annotated[list[Percent], MinLen(1)]
    """Of the seeds 0, 1, …"""
    images: Count
    tested_on: Count
    protocol: Protocol
    seed: NotRequired[int]
    """Of the recipe: with another one, networks and random images are others."""
    content: NotRequired[str]
    """A digest of the images and labels that the networks were trained on."""
    own_rate: NotRequired[bool]
    """True if `evaluate.lr` names a rate for this architecture."""
    classes: NotRequired[str]
    """A digest of the names of the classes in the order of their labels."""
    bytes: NotRequired[dict[str, int]]
    """Of the set: `images`, a byte for each value of a pixel; and `labels`, if soft ones are stored with it."""
    best: NotRequired[Best]
    at_chance: NotRequired[list[int]]
    """Seeds whose networks are no better than guessing."""
    scorer: NotRequired[dict[str, Any]]
    """`data.scorer`, by which a core-set was chosen."""
    reassigned: NotRequired[list[Percent]]
    """What the accuracies would be if each class were renamed to the best: noted if labels must have been permuted."""
    weights: NotRequired[Annotated[list[float], Len(2, 2)]]
    """The least and the largest weight of its images, if they do not all count the same."""
    mosaics: NotRequired[dict[str, Any]]
    """How RDED's mosaics were made: images and crops that were tried, crops on a side, and whose choice."""


class Normalisation(TypedDict):
    """Mean and standard deviation of the real images' channels, in units of [0, 1]."""

    mean: list[float]
    std: list[float]


class Evaluation(TypedDict):
    """What evaluation.json must have; all else in it follows from the results."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    results: list[Result]
    matching: NotRequired[str]
    """The architecture of the matching network."""
    cross_architecture: NotRequired[list[dict[str, Any]]]
    """Means of an older version, which noted the matching network there alone."""
    normalisation: NotRequired[Normalisation]
    imported: NotRequired[str]
    """How the classes of a set of somebody else were matched."""
    caveat: NotRequired[str]
    """Why accuracies are not what readers may take them for, such as those on a test split of Imagenette."""
