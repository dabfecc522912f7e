"""Axes of a search: which values a key may take, and with which values of other keys it is searched at all.

prior.skip=none,paper                              a list
distill.lr_latents=0.03..3                         a range, by its logarithm from a factor of ten on
prior.steps=5..20:log                              integers, as the key is one; `:log` or `:linear` as one wants
prior.skip=paper:distill.lr_latents=5..500         only where prior.skip is paper; `→` and `->` mean the same
prior.skip=paper:distill.learn=both:…              both conditions
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ld3m.errors import UserError
from ld3m.recipe import Recipe
from ld3m.recipe.keys import described
from ld3m.recipe.parsing import parse
from ld3m.recipe.varied import split_values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Settings = Mapping[str, str]
"""Values of keys, as a command line has them."""
Parameters = Mapping[str, str | int | float]
"""What was drawn, by the names of the axes."""

KEY = r"[A-Za-z_]\w*(?:\.\w+)*"
ARROW = re.compile(rf"\s*(?::|->|→)\s*(?={KEY}\s*=)")
"""Between a condition and what holds under it; a colon inside a value is not followed by `KEY=`."""
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?:\s*:\s*(log|linear))?")
FORM = "give KEY=A,B,… or KEY=LOW..HIGH, such as prior.skip=paper:distill.lr_latents=5..500"
LOG_FROM = 10
"""The factor between the ends of a range from which on it is searched by its logarithm."""
DIGITS = 3
"""Significant digits of a number that is drawn."""
NOT_SEARCHED = {
    **dict.fromkeys(("name", "output"), "each run has a name and a folder of its own"),
    "seed": "a seed is no setting; candidates that are close get several",
    **dict.fromkeys(
        ("evaluate.arch", "evaluate.seeds", "evaluate.best", "evaluate.protocol"),
        "all candidates must be measured in one way; give it as an override",
    ),
    **dict.fromkeys(
        (
            *("data.source", "data.root", "data.subset", "data.resolution", "data.channels", "data.range"),
            *("data.test_share", "data.validation_share", "data.read_test"),
        ),
        "all candidates must be measured on the same images; give it as an override",
    ),
}
"""Keys that are no axes, and why."""


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included."""

    low: float
    high: float
    log: bool
    integer: bool


@dataclass(frozen=True)
class Axis:
    """A key, its values, and the conditions under which it is searched."""

    key: str
    values: tuple[str, ...] | Range
    when: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Keys, each with the values of which it must have one."""

    @property
    def name(self) -> str:
        """Different for all axes of a search: the key, after its conditions."""
        return "".join(f"{key}={','.join(values)}:" for key, values in self.when) + self.key

    @property
    def ends(self) -> tuple[str, ...]:
        """The values of a list, or the ends of a range, as texts."""
        values = self.values
        return tuple(map(self.text, (values.low, values.high))) if isinstance(values, Range) else values

    @property
    def options(self) -> Sequence[str | int] | None:
        """All values, if they can be counted."""
        if not isinstance(self.values, Range):
            return self.values
        return range(int(self.values.low), int(self.values.high) + 1) if self.values.integer else None

    @property
    def distribution(self) -> "BaseDistribution":
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        values = self.values
        if not isinstance(values, Range):
            return CategoricalDistribution(values)
        if values.integer:
            return IntDistribution(int(values.low), int(values.high), log=values.log)
        return FloatDistribution(values.low, values.high, log=values.log)

    def text(self, value: str | int | float) -> str:
        """A value as a command line has it, a drawn number to `DIGITS` digits."""
        if isinstance(value, str):
            return value
        if isinstance(self.values, Range) and self.values.integer:
            return str(int(value))
        return f"{float(f'{value:.{DIGITS}g}'):g}"

    def parameter(self, value: Any) -> str | int | float | None:
        """What would have to be drawn for the key to have a value of a recipe; None if it cannot be."""
        values = self.values
        if not isinstance(values, Range):
            return next((text for text in values if among((text,), value)), None)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return value if numeric and values.low <= value <= values.high else None

    def apart(self, value: Any, others: Sequence[Any]) -> float:
        """How far a value is from all of some others: in a list, how seldom it is among them."""
        if not isinstance(self.values, Range):
            return -others.count(value)
        scaled = math.log if self.values.log else float
        return min((abs(scaled(value) - scaled(other)) for other in others), default=0.0)

    def applies(self, value_of: Callable[[str], Any]) -> bool:
        """Whether its conditions hold, by the values of other keys."""
        return all(among(values, value_of(key)) for key, values in self.when)


def among(texts: Sequence[str], value: Any) -> bool:
    """Whether a value of a recipe is one of those that a command line gives as texts."""
    return value in [parse(text) for text in texts]


def parse_axis(option: str) -> Axis:
    """An axis, from what is described above.

    Raises:
        UserError: naming the axis and what is wrong with it.
    """
    *conditions, last = ARROW.split(option.strip())
    when = []
    for condition in conditions:
        key, listed = _key_and_values(condition, option)
        when.append((key, tuple(_values(listed, option))))
    key, listed = _key_and_values(last, option)
    if why := NOT_SEARCHED.get(key):
        raise UserError(f"--axis {key}: {why}")
    if found := RANGE.fullmatch(listed):
        return Axis(key, _range(key, *found.groups()), tuple(when))
    values = _values(listed, option)
    if repeated := [value for value in values if values.count(value) > 1]:
        raise UserError(f"--axis {key}={listed}: {repeated[0]} is given twice; give each value once")
    return Axis(key, tuple(values), tuple(when))


def _key_and_values(part: str, option: str) -> tuple[str, str]:
    key, equals, values = (word.strip() for word in part.partition("="))
    if not equals or not re.fullmatch(KEY, key) or not values:
        raise UserError(f"--axis: {option!r} is invalid: {FORM}")
    return key, values


def _values(listed: str, option: str) -> list[str]:
    """The values of a list, all of them YAML."""
    values = split_values(listed)
    if not all(values):
        raise UserError(f"--axis: {option!r} is invalid: {FORM}")
    for text in values:
        try:
            parse(text)
        except ValueError as error:
            raise UserError(f"--axis: {option!r}: {text!r} is not a YAML value: {error}") from None
    return values


def _range(key: str, first: str, last: str, scale: str | None) -> Range:
    low, high, written = float(first), float(last), f"--axis {key}={first}..{last}"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{written}: its ends must be finite numbers")
    if low == high:
        raise UserError(f"{written}: both ends are the same; give {key}={first} as an override")
    if low > high:
        raise UserError(f"{written}: the low end comes first; give {key}={last}..{first}, or one value as an override")
    if scale == "log" and low <= 0:
        raise UserError(f"{written}:log: a logarithmic range begins above 0; give another low end, or :linear")
    whole, type_of = low.is_integer() and high.is_integer(), _types().get(key)
    written_whole = re.fullmatch(r"[-+]?\d+", first) and re.fullmatch(r"[-+]?\d+", last)
    integer = bool(written_whole) if type_of is None else "integer" in type_of and "number" not in type_of
    if integer and not whole:
        raise UserError(f"{written}: {key} is an integer; give whole numbers")
    log = scale == "log" or (scale is None and low > 0 and high >= LOG_FROM * low)
    return Range(low, high, log, integer)


@cache
def _types() -> dict[str, str]:
    """What the values of each key of a recipe may be."""
    return {key.name: key.type for key in described(Recipe)}


def ordered(axes: Sequence[Axis]) -> list[Axis]:
    """The axes, each after those on which its conditions depend.

    Raises:
        UserError: if an axis is given twice, or some depend on each other.
    """
    names = [axis.name for axis in axes]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--axis: {repeated[0]} is given twice; give all its values to one --axis")
    left, done = list(axes), list[Axis]()
    while left:
        keys = {axis.key for axis in left}
        free = [axis for axis in left if not keys & {key for key, _ in axis.when}]
        if not free:
            raise UserError(f"--axis: {left[0].name} and {left[-1].name} depend on each other; take a condition away")
        done += free
        left = [axis for axis in left if axis not in free]
    return done


def draw(
    axes: Sequence[Axis], base: Callable[[str], Any], choose: Callable[[Axis], str | int | float]
) -> tuple[dict[str, str], dict[str, str | int | float]]:
    """Settings and parameters of one candidate.

    Args:
        axes: as `ordered` gives them.
        base: the values of keys that no axis has set, for conditions.
        choose: a value of an axis whose conditions hold.

    Raises:
        UserError: if two axes of one key apply at once.
    """
    settings: dict[str, str] = {}
    parameters: dict[str, str | int | float] = {}
    for axis in axes:
        if not applies(axis, settings, base):
            continue
        value = choose(axis)
        settings[axis.key], parameters[axis.name] = axis.text(value), value
    return settings, parameters


def applies(axis: Axis, settings: Settings, base: Callable[[str], Any]) -> bool:
    """Whether an axis is searched, given what has been drawn before.

    Raises:
        UserError: if another of the same key was.
    """
    if not axis.applies(lambda key: parse(settings[key]) if key in settings else base(key)):
        return False
    if axis.key in settings:
        with_which = " ".join(f"{key}={value}" for key, value in settings.items())
        raise UserError(f"--axis {axis.name}: another axis of {axis.key} holds too with {with_which}; add conditions")
    return True


def combinations(
    axes: Sequence[Axis], base: Callable[[str], Any], settings: Settings | None = None
) -> Iterator[tuple[dict[str, str], dict[str, str | int | float]]]:
    """All candidates in the order of the axes' values; none if one has values without number."""
    if not axes:
        yield dict(settings or {}), {}
        return
    axis, *later = axes
    if not applies(axis, settings or {}, base):
        yield from combinations(later, base, settings)
        return
    for value in axis.options or ():
        for chosen, parameters in combinations(later, base, {**(settings or {}), axis.key: axis.text(value)}):
            yield chosen, {axis.name: value, **parameters}
