"""Building blocks of the schemas: a section of keys, and validators that return a value as a recipe keeps it.

All are pure: they look at the value alone, never at the disk or the network. Each error says what would be right.
"""

import math
from collections.abc import Mapping
from string import Formatter
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

STARTS = ("real", "noise", "prototype", "herding", "k-center", "easy", "hard", "sample")
"""The words that `distill.init` may be; anything else is a finished run."""

LONGEST = 4096
"""The most characters of a text in a recipe; no system takes longer paths."""


class Section(BaseModel):
    """Keys that belong together. Unknown keys are mistakes, and a validated recipe never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    removed_keys: ClassVar[dict[str, tuple[Any, str]]] = {}
    """Keys that this section used to have: what was written out where they were left out, and why they went and what
    to do instead. Old recipes that have them stay valid, since every run wrote out all its keys."""

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values of keys, such as `{"distill.iterations": 20}`, which are not validated."""
        copy = self
        for key, value in values.items():
            first, _, rest = key.partition(".")
            copy = copy.model_copy(update={first: getattr(copy, first).changed({rest: value}) if rest else value})
        return copy

    @model_validator(mode="before")
    @classmethod
    def _without_removed_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if key not in cls.removed_keys}

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes`, `on` and `true` are not numbers, although Python counts with them."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
            raise ValueError(f"{value!r} is invalid: this is not a key to switch on and off")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _texts_that_a_system_takes(cls, value: Any) -> Any:
        """Texts are names and paths: without NUL, and no longer than the longest path."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and ("\0" in text or len(text) > LONGEST):
                shown = f"{text[:20]!r}…" if len(text) > 20 else repr(text)
                raise ValueError(f"{shown} is invalid: give at most {LONGEST:,} characters, none of them NUL")
        return value


def class_list(subset: Any) -> Any:
    """`data.subset`: the name of a subset, or a list of classes, whose numbers become strings."""
    if subset is None or isinstance(subset, str):
        return subset
    if not isinstance(subset, list) or not subset:
        raise ValueError(
            f"{subset!r} is invalid: give a list of at least 1 class, a .txt or .json file of one, or a subset's name"
        )
    for entry in subset:
        if isinstance(entry, bool) or not isinstance(entry, str | int | float):
            raise ValueError(f"{entry!r} is invalid: a class is a string or a number")
    return [str(entry) for entry in subset]


BACKBONE = "timm/"
"""What precedes the name of a pre-trained model in `distill.networks`."""


def prompt_with_class(prompt: str) -> str:
    """`prior.prompt`: a text with one {} for the name of the class."""
    try:
        fields = [tuple(field) for _, *field in Formatter().parse(prompt) if field[0] is not None]
    except ValueError:  # a brace alone
        fields = []
    if fields not in ([("", "", None)], [("0", "", None)]):  # a width, such as {:>1000000000}, would fill memory
        raise ValueError(f"{prompt!r} has not one {{}} for the name of the class, as in 'a photo of a {{}}'")
    return prompt


def matching_networks(value: str) -> str:
    """`distill.networks`: random, experts, or a pre-trained model of timm."""
    if value in ("random", "experts") or (value.startswith(BACKBONE) and len(value) > len(BACKBONE)):
        return value
    raise ValueError(f"{value!r} is invalid: give random, experts, or {BACKBONE}<model>, as in timm/resnet18")


def steps_or_all(value: Any) -> Any:
    """`prior.keep_graph_steps`: a number, all, or auto."""
    if value in ("all", "auto") or (isinstance(value, int) and value >= 0):
        return value
    raise ValueError(f"{value!r} is invalid: give a number of steps, 0 or more, or all, or auto")


def images_or_auto(value: Any) -> Any:
    """`prior.micro_batch`: a number, or auto."""
    if value == "auto" or (isinstance(value, int) and value >= 1):
        return value
    raise ValueError(f"{value!r} is invalid: give a number of images, 1 or more, or auto")


def switch_or_auto(value: Any) -> Any:
    """`prior.compile`: on, off, or auto."""
    switches = {"on": True, "off": False, "true": True, "false": False, "auto": "auto"}
    if str(value).lower() in switches:
        return switches[str(value).lower()]
    raise ValueError(f"{value!r} is invalid: give on, off or auto")


def rates_or_learnt(value: Any) -> Any:
    """`evaluate.lr`: a number, numbers by architecture, learnt, or None for the protocol's."""
    if value is None or value == "learnt":
        return value
    rates = {name: _rate(each) for name, each in (value if isinstance(value, dict) else {"": value}).items()}
    if rates and None not in rates.values() and all(isinstance(name, str) for name in rates):
        return rates if isinstance(value, dict) else rates[""]
    raise ValueError(
        f"{value!r} is invalid: give a number greater than 0, or learnt, or a number by network, as in "
        "{vgg11: 0.001, others: 0.01}"
    )


def _rate(value: Any) -> float | None:
    """A learning rate; None if it is none."""
    try:
        rate = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return rate if 0 < rate < math.inf else None


OPERATIONS = {"dsa": 0, "idc": 0, "shuffle": 1, "crop": 2, "flip": 1, "jitter": 3, "lighting": 1}
"""Operations of `evaluate.augment` in the order in which they are applied, and how many numbers each takes."""


def augmentation(value: Any) -> Any:
    """`evaluate.augment`: true or false, or operations with their numbers, in the order in which they are applied."""
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, dict) or not value or (unknown := [name for name in value if name not in OPERATIONS]):
        what = f"{unknown[0]!r} is not known" if isinstance(value, dict) and value else f"{value!r} is invalid"
        raise ValueError(f"{what}: give true, false, or any of {', '.join(OPERATIONS)}, as in {{flip: 0.5}}")
    return {name: _operation(name, value[name]) for name in OPERATIONS if name in value}


def _operation(name: str, value: Any) -> Any:
    """The numbers of an operation, which are true for one that takes none."""
    wanted = OPERATIONS[name]
    numbers = value if isinstance(value, list) else [value]
    are_numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers)
    if wanted == 0 and value is True:
        return True
    if wanted and len(numbers) == wanted and are_numbers:
        fits = {
            "shuffle": numbers[0] >= 1 and numbers[0] == int(numbers[0]),
            "crop": 0 < numbers[0] <= numbers[-1] <= 1,
            "flip": 0 <= numbers[0] <= 1,
        }
        if fits.get(name, all(0 <= each < math.inf for each in numbers)):
            return numbers if wanted > 1 else numbers[0]
    right = {
        "dsa": "true",
        "idc": "true",
        "shuffle": "a whole number of patches, 1 or more",
        "crop": "the smallest and the largest share of the area, as in [0.5, 1]",
        "flip": "a share from 0 to 1",
        "jitter": "three numbers of 0 or more, as in [0.4, 0.4, 0.4]",
        "lighting": "a deviation of 0 or more",
    }
    raise ValueError(f"{name}: {value!r} is invalid: give {right[name]}")


def one_or_more(names: Any) -> Any:
    """A list; a single name becomes a list of one."""
    return [names] if isinstance(names, str) else names
