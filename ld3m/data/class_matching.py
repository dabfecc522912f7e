"""Which classes of a recipe somebody else's set means: by name, WordNet id or number; by position only if told."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ld3m.data.class_choice import choose
from ld3m.data.examples import Source
from ld3m.errors import UserError, some
from ld3m.recipe.class_lists import read_class_list, wordnet_id

FLAG = "--class-order FILE gives another order"
"""What helps if numbers mean other classes than is assumed."""


class Order(NamedTuple):
    """What classes are at the positions 0, 1, … of somebody else's set."""

    said_by: str
    """The file or option, for messages."""
    classes: Sequence[str] | None
    """Their names or ids; None: the recipe's classes in their order."""


class Matched(NamedTuple):
    """Whose classes are whose."""

    numbers: list[int]
    """Of each of their classes, the number in the source of the real images."""
    text: str
    """How they were matched, in a line."""


def read_order(path: Path) -> Order:
    """The order that a file gives: names or ids of classes in the forms of `data.subset`'s files.

    Raises:
        UserError: if it cannot be read, or holds no list of classes.
    """
    try:
        return Order(f"--class-order {path}", [str(each) for each in read_class_list(path)])
    except UserError as error:
        raise UserError(f"--class-order: {error}") from None


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """The numbers in names of classes: 3, 00003, new003, class_3; None unless all are of one such form."""
    matches = [re.fullmatch(r"(\D*?)(\d+)", name) for name in names]
    numbers = [(match[1], int(match[2])) for match in matches if match]
    alike = len(numbers) == len(names) and len({prefix for prefix, _ in numbers}) == 1
    return [number for _, number in numbers] if alike else None


def match(theirs: Sequence[str], source: Source, chosen: Sequence[int], order: Order | None = None) -> Matched:
    """Matches the classes of a set with those of a source.

    Without an order, each goes by its name, else another name (such as a WordNet id), else its name up to case,
    punctuation, a number before it and synonyms after a comma; or all go by their numbers, if these can mean one thing
    only: the recipe has all classes of the source in its order, or exactly the classes of these numbers.

    Args:
        theirs: what the set calls its classes, in its order; labels without names are "0", "1", ….
        chosen: the numbers of the recipe's classes in the source, in the recipe's order.
        order: of the set's positions, if it is said.

    Raises:
        UserError: naming a class that is not known, or why numbers may mean several; it begins with what is wrong.
    """
    named = by_name(theirs, source.classes, source.aliases)
    if order:
        matched = _by_position(theirs, source, chosen, order)
        if len(named) == len(theirs) and [named[name] for name in theirs] != matched.numbers:
            wrong = next(name for name, number in zip(theirs, matched.numbers, strict=True) if named[name] != number)
            taken = source.classes[matched.numbers[theirs.index(wrong)]]
            raise UserError(f"names its classes, and {order.said_by} would take {wrong!r} for {taken!r}; leave it out")
    elif len(named) == len(theirs):
        matched = Matched([named[name] for name in theirs], _text("by name", theirs, named.values(), source))
    elif numbers := class_numbers(theirs):
        matched = _by_number(theirs, numbers, source, chosen)
    else:
        try:
            choose([name for name in theirs if name not in named], source.classes, source.aliases)
        except UserError as error:
            line = error.lines[0].removeprefix("data.subset: ")
            raise UserError(f"{line}; --class-order FILE says which theirs are") from None
        raise UserError(f"names classes by numbers in part: {some(theirs)}; give all of them names")
    if twice := [number for number, count in Counter(matched.numbers).items() if count > 1]:
        both = [name for name, number in zip(theirs, matched.numbers, strict=True) if number == twice[0]]
        raise UserError(f"has {' and '.join(both)}, which both mean the class {source.classes[twice[0]]!r}")
    return matched


def by_name(theirs: Sequence[str], classes: Sequence[str], aliases: Mapping[str, int]) -> dict[str, int]:
    """The number of each class whose name or id is known; others are left out."""
    exact = {**aliases, **{name: number for number, name in enumerate(classes)}}
    loose: dict[str, set[int]] = {}
    for name, number in exact.items():
        for form in _forms(name):
            loose.setdefault(form, set()).add(number)
    found: dict[str, int] = {}
    for name in theirs:
        known = [exact[each] for each in (name, wordnet_id(name) or "") if each in exact]
        known += [number for form in _forms(name) if len(loose.get(form, ())) == 1 for number in loose[form]]
        if known:
            found[name] = known[0]
    return found


def _forms(name: str) -> Iterable[str]:
    """A name without case and punctuation: whole, without a number before it, and without synonyms after a comma."""
    for text in (name, name.partition(",")[0]):
        folded = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
        if folded and not folded.isdigit():
            yield folded
            if (bare := re.sub(r"^\d+ ", "", folded)) and not bare.isdigit():
                yield bare


def _by_position(theirs: Sequence[str], source: Source, chosen: Sequence[int], order: Order) -> Matched:
    row = list(chosen)
    if order.classes is not None:
        known = by_name(order.classes, source.classes, source.aliases)
        if unknown := [name for name in order.classes if name not in known]:
            raise UserError(f"{order.said_by} has {unknown[0]!r}, which is no class of data.source")
        row = [known[name] for name in order.classes]
    positions = class_numbers(theirs) or list(range(len(theirs)))
    if min(positions) == 1 and max(positions) == len(row):  # they count from 1
        positions = [position - 1 for position in positions]
    _check_range(positions, len(row), f"{order.said_by}: its" if order.classes else "the recipe's", "")
    numbers = [row[position] for position in positions]
    return Matched(numbers, _text(f"by position, as {order.said_by} says", theirs, numbers, source))


def _by_number(theirs: Sequence[str], numbers: Sequence[int], source: Source, chosen: Sequence[int]) -> Matched:
    whole = list(range(len(source.classes)))
    if all(name.isdigit() for name in source.classes):  # a number is a name
        by_value = {int(name): number for number, name in enumerate(source.classes)}
        if unknown := [number for number in numbers if number not in by_value]:
            raise UserError(f"has label {unknown[0]}, which is no class; the classes are {some(source.classes, 20)}")
        found = [by_value[number] for number in numbers]
        return Matched(found, _text("by name", theirs, found, source))
    if list(chosen) == whole:
        if sorted(numbers) == [number + 1 for number in whole]:
            raise UserError(
                f"counts its classes from 1; give --by-position if {theirs[numbers.index(1)]} is "
                f"{source.classes[0]!r}, the first of data.source, or --class-order FILE"
            )
        _check_range(numbers, len(whole), "the recipe's")
    elif set(numbers) != set(chosen) or set(numbers) == set(range(len(chosen))):
        _check_range(numbers, len(whole), "data.source's")
        names = [source.classes[number] for number in chosen]
        raise UserError(
            f"numbers its classes ({some(theirs, 3)}), and data.subset has an order of its own; give --by-position if "
            f"0, 1, … are {some(names, 3)}, or --class-order FILE with their names or ids"
        )
    return Matched(list(numbers), _text("by number, in the order of data.source", theirs, numbers, source, FLAG))


def _check_range(numbers: Sequence[int], count: int, whose: str, advice: str = f"; {FLAG}") -> None:
    if wrong := [number for number in numbers if not 0 <= number < count]:
        raise UserError(f"has label {wrong[0]}, but {whose} classes go from 0 to {count - 1}{advice}")


def _text(how: str, theirs: Sequence[str], numbers: Iterable[int], source: Source, advice: str = "") -> str:
    """Such as "classes: 10 by name (cat, dog, …)"; names that are not ours stand beside ours."""
    pairs = [(name, source.classes[number]) for name, number in zip(theirs, numbers, strict=True)]
    shown = [name if name == ours else f"{name} = {ours}" for name, ours in pairs]
    text = f"classes: {len(pairs)} {how} ({some(shown, 12)})"
    return f"{text}; {advice}" if advice else text
