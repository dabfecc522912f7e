"""What values of a recipe may be: sections of keys, and functions that give a value as recipes keep it.

Either says what would be right.
"""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from ld3m import registry
from ld3m.errors import one_line
from ld3m.files import ASSETS

PACKAGED_PRIORS = {
    "digits": ASSETS / "prior-digits",
    "fashion-mnist": ASSETS / "prior-fashion-mnist",
    "pixels": ASSETS / "prior-pixels",
}
"""Priors that come with the package, by the name a recipe's `prior.source` may give; "pixels" is none at all."""

NAMED_DATA = ("digits", "fashion-mnist", "fashion-mnist-small", "imagenet")
"""Our data sources known by name; all others are folders, Parquet files, `hub:<id>`, or other packages'."""


class Section(BaseModel):
    """Unknown keys are mistakes, and a validated recipe never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_not_1(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes`, `on` and `true` are no numbers, although Python counts with them."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"{value!r} is not right: this is not a key to switch on and off")
        return value


def existing_data(source: str) -> str:
    """`data.source`: a known name, a path that is there, `hub:<id>`, or another package's."""
    if source in NAMED_DATA or source.startswith("hub:") or "*" in source or Path(source).exists():
        return source
    offered = registry.plugins("ld3m.sources")
    if source in offered:
        return source
    known = ", ".join([*NAMED_DATA, *sorted(offered)])
    raise ValueError(f"{source!r} is not there; give a folder, Parquet files, hub:<id>, or one of {known}")


def existing_root(root: str) -> str:
    """`data.root`: a folder, or `hub:<id>`."""
    if root.startswith("hub:") or Path(root).is_dir():
        return root
    raise ValueError(f"{root!r} is not a folder; give one that has train/ and val/, or hub:<id>")


def classes(subset: Any) -> Any:
    """What `data.subset` says, numbers as strings; a file is read here, so that a resolved recipe holds its classes."""
    if isinstance(subset, str) and subset.endswith((".txt", ".json")):
        subset = _listed(Path(subset))
    if subset is None or isinstance(subset, str):
        return subset
    if not isinstance(subset, list) or not subset:
        raise ValueError(f"{subset!r} is not right: give a list of at least 1 class, a file of one, or a subset's name")
    for entry in subset:
        if isinstance(entry, bool) or not isinstance(entry, str | int | float):
            raise ValueError(f"{entry!r} is not right: a class is a string or a number")
    return [str(entry) for entry in subset]


def _listed(path: Path) -> Any:
    """The classes in a file: a JSON list, or one a line."""
    try:
        text = path.read_text(encoding="utf-8")
        return (
            json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.split("\n") if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as a list of classes ({one_line(error)})") from None


def existing_prior(source: str) -> str:
    """`prior.source`: a packaged prior, a folder with a model_index.json, or `hub:<id>`."""
    if source in PACKAGED_PRIORS or source.startswith("hub:"):
        return source
    if (Path(source) / "model_index.json").is_file():
        return source
    raise ValueError(
        f"{source!r} is not a folder with a model_index.json; make one with ld3m train-prior or convert-prior, "
        f"or give hub:<id> or one of {', '.join(PACKAGED_PRIORS)}"
    )


STARTS = ("real", "noise", "prototype", "herding", "k-center", "easy", "hard")
"""What `distill.init` may be besides a finished run."""


def known_start(init: str) -> str:
    """`distill.init`: one of `STARTS`, a finished run, or `hub:<id>`."""
    if init in STARTS or init.startswith("hub:") or (Path(init) / "latents.safetensors").is_file():
        return init
    raise ValueError(
        f"{init!r} is not right: give one of {', '.join(STARTS)}, the folder of a finished run, or hub:<id>"
    )


def with_a_place(prompt: str) -> str:
    """`prior.prompt`: a text with one {} for the name of the class."""
    try:
        named = prompt.format("\0")
    except (LookupError, ValueError):
        named = ""
    if named.count("\0") != 1:
        raise ValueError(f"{prompt!r} has not one {{}} for the name of the class, as in 'a photo of a {{}}'")
    return prompt


def steps_or_all(value: Any) -> Any:
    """`prior.keep_graph_steps`: a number, all, or auto."""
    if value in ("all", "auto") or (isinstance(value, int) and value >= 0):
        return value
    raise ValueError(f"{value!r} is not right: give a number of steps, 0 or more, or all, or auto")


def images_or_auto(value: Any) -> Any:
    """`prior.micro_batch`: a number, or auto."""
    if value == "auto" or (isinstance(value, int) and value >= 1):
        return value
    raise ValueError(f"{value!r} is not right: give a number of images, 1 or more, or auto")


def rate_or_learnt(value: Any) -> Any:
    """`evaluate.lr`: a number, learnt, or nothing for the protocol's."""
    if value is None or value == "learnt":
        return value
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if 0 < rate < math.inf:
        return rate
    raise ValueError(f"{value!r} is not right: give a number greater than 0, or learnt")


def one_or_more(names: Any) -> Any:
    """A list, also of a single name."""
    return [names] if isinstance(names, str) else names
