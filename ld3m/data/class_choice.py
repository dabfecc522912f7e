"""Which classes of a source `data.subset` means."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from ld3m.data.examples import Source
from ld3m.errors import UserError, some


def choose_from(source: Source, subset: str | Sequence[str] | None) -> list[int]:
    """The classes of a source that `data.subset` means, by their numbers; without one, its default or all.

    Raises:
        UserError: as `choose` does.
    """
    if subset is None and source.default is not None:
        return list(source.default)
    return choose(subset, source.classes, source.aliases, source.subsets)


def choose(
    subset: str | Sequence[str] | None,
    classes: Sequence[str],
    aliases: Mapping[str, int] | None = None,
    subsets: Mapping[str, Sequence[int]] | None = None,
) -> list[int]:
    """The classes that `data.subset` means, by their numbers in `classes`, in the order it gives.

    Each entry of a list is the name of a class, else another name of it, else its number in the source's order, from
    0; if the names are numbers themselves (10, 20, …), a number is a name and nothing else.

    Raises:
        UserError: for a subset, name or number that is not known, or a class named twice.
    """
    if subset is None:
        return list(range(len(classes)))
    subsets = subsets or {}
    if isinstance(subset, str):
        if subset not in subsets:
            one_of = f", or one of {', '.join(subsets)}" if subsets else ""
            raise UserError(f"data.subset: {subset!r} is not a known subset; give a list of classes{one_of}")
        return list(subsets[subset])
    numbered = not any(name.isdigit() for name in classes)
    known = {str(number): number for number in range(len(classes))} if numbered else {}
    known |= {**(aliases or {}), **{name: label for label, name in enumerate(classes)}}
    for entry in subset:
        if entry in known:
            continue
        if numbered and entry.removeprefix("-").isdigit():
            raise UserError(f"data.subset: {entry} is not the number of a class; numbers are 0 to {len(classes) - 1}")
        near = difflib.get_close_matches(entry, classes, n=3) if len(classes) > 20 else []
        advice = f"did you mean {' or '.join(near)}?" if near else f"the classes are {some(classes, 20)}"
        raise UserError(f"data.subset: {entry!r} is not a class; {advice}")
    chosen = [known[entry] for entry in subset]
    if twice := [label for label, count in Counter(chosen).items() if count > 1]:
        raise UserError(f"data.subset: names the class {classes[twice[0]]!r} twice; name each once")
    return chosen
