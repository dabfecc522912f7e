"""The keys of a recipe as data: names, types, ranges, defaults and meanings, from which recipes/KEYS.md is made."""

import difflib
import fnmatch
import textwrap
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ld3m.errors import UserError
from ld3m.recipe.prior import PriorRecipe
from ld3m.recipe.schema import Recipe

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
"""How bounds are written, by their name in pydantic."""
NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", dict: "mapping"}
"""How types are called."""
LINE = 100
"""Characters of a line of explanation."""
LIST_THEM = "ld3m keys lists all of them"
HEAD = """# Keys of a recipe

Every key with its values, its default and its meaning. A file gives them as sections (`distill:` and below it
`iterations: 200`), a command line as `distill.iterations=200`; `ld3m distill RECIPE --dry-run` prints a recipe with all
of them. This page is made from the docstrings of `ld3m/recipe/` by `python tests/keys.py`.
"""


@dataclass(frozen=True)
class Key:
    """One key of a recipe."""

    name: str
    """With the sections it is in: `distill.dm.pool`."""
    type: str
    """What its value may be, such as `integer or auto`; the words of a choice are separated by commas."""
    range: str
    """Bounds of a number, such as `≥ 0, < 1`; empty if there are none."""
    default: str | None
    """As YAML; None if the key must be given, empty if `text` says what holds when it is left out."""
    text: str
    """Its docstring, in one line."""

    @property
    def values(self) -> str:
        """Type and range, such as `integer, ≥ 1`."""
        return ", ".join(part for part in (self.type, self.range) if part)


def keys(kind: type[BaseModel], sections: bool = False) -> list[str]:
    """The names of all keys of a kind of recipe, in the order in which a resolved recipe has them.

    Args:
        kind: `Recipe`, `PriorRecipe`, or a section of one.
        sections: whether the sections themselves are listed too, each before its keys.
    """
    names = []
    for name, field in kind.model_fields.items():
        section = _section(field)
        if section is None or sections:
            names.append(name)
        names += [f"{name}.{key}" for key in keys(section, sections)] if section else []
    return names


def described(kind: type[BaseModel], prefix: str = "") -> list[Key]:
    """All keys of a kind of recipe with what a user must know of each.

    Args:
        kind: `Recipe`, `PriorRecipe`, or a section of one.
        prefix: what stands before the names, such as `distill.`.
    """
    listed = []
    for name, field in kind.model_fields.items():
        if section := _section(field):
            listed += described(section, f"{prefix}{name}.")
        else:
            listed.append(_key(prefix + name, field))
    return listed


def listing(pattern: str = "") -> str:
    """What a user must know of the keys that match, for a terminal.

    Args:
        pattern: a part of a key, with * for any characters; if no key has it, of what is said about one.

    Raises:
        UserError: if nothing matches.
    """
    distillation, prior = described(Recipe), described(PriorRecipe)
    groups = {
        "Keys of ld3m distill and most other commands": distillation,
        "Keys of ld3m train-prior": [key for key in prior if key not in distillation],
    }
    for text_of in (lambda key: key.name, lambda key: f"{key.type} {key.text}"):
        found = {title: [key for key in group if _has(text_of(key), pattern)] for title, group in groups.items()}
        if any(found.values()):
            break
    else:
        near = difflib.get_close_matches(pattern, [key.name for key in distillation + prior], n=1)
        raise UserError(f"{pattern!r} is in no key and no explanation; {f'{near[0]} is near' if near else LIST_THEM}")
    parts = [
        "\n\n".join([f"{title}:", *(_entry(key) for key in group)])
        for title, group in found.items() if group
    ]  # fmt: skip
    return "\n\n".join(parts)


def _has(text: str, pattern: str) -> bool:
    """Whether a text has a pattern somewhere, whatever their case."""
    return fnmatch.fnmatchcase(text.lower(), f"*{pattern.lower()}*")


def _entry(key: Key) -> str:
    default = {None: "must be given", "": "may be left out"}.get(key.default, f"default {key.default}")
    about = textwrap.fill(key.text, LINE, initial_indent="    ", subsequent_indent="    ")
    return f"{key.name}  ({key.values}; {default})\n{about}"


def commented(recipe: BaseModel, indent: str = "") -> str:
    """A recipe as YAML, with what each key may be and means above it; loading it gives the same recipe."""
    parts, content = [], recipe.model_dump(mode="json")
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, BaseModel):
            about, text = type(value).__doc__ or "", f"{name}:\n{commented(value, '  ')}"
        else:
            key = _key(name, field)
            about = f"{key.text} ({key.values})"
            text = yaml.safe_dump({name: content[name]}, sort_keys=False, allow_unicode=True)
        parts += [f"# {line}\n" for line in textwrap.wrap(" ".join(about.split()), LINE, break_on_hyphens=False)]
        parts.append(text)
    return textwrap.indent("".join(parts), indent)


def markdown() -> str:
    """recipes/KEYS.md: a table for each section of both kinds of recipe."""
    distillation, prior = described(Recipe), described(PriorRecipe)
    common = [key for key in prior if key in distillation]
    shared = ", ".join(f"`{key.name}`" for key in common)
    return "".join(
        [
            HEAD,
            "\n## Distillation\n",
            "\nFor `ld3m distill` and most other commands.\n",
            *_tables(Recipe, distillation),
            "\n## Training a prior\n",
            f"\nFor `ld3m train-prior`. As above: {shared}.\n",
            *_tables(PriorRecipe, [key for key in prior if key not in common]),
        ]
    )


def _tables(kind: type[BaseModel], listed: list[Key], section: str = "") -> list[str]:
    """The Markdown of the keys that are directly in a section, and then of the sections in it."""
    direct = [key for key in listed if key.name.rpartition(".")[0] == section]
    parts = []
    if direct:
        about = " ".join((kind.__doc__ or "").split())
        parts.append(f"\n### {f'`{section}`' if section else 'The recipe'}\n\n{about}\n\n")
        parts.append("| key | values | default | meaning |\n| --- | --- | --- | --- |\n")
        parts += [_row(key) for key in direct]
    for name, field in kind.model_fields.items():
        if below := _section(field):
            parts += _tables(below, listed, f"{section}.{name}".removeprefix("."))
    return parts


def _row(key: Key) -> str:
    default = "required" if key.default is None else f"`{key.default}`" if key.default else ""
    cells = [f"`{key.name}`", key.values, default, key.text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _key(name: str, field: FieldInfo) -> Key:
    bounds = _bounds(field.metadata) or _inner_bounds(field.annotation)
    return Key(name, _type(field.annotation), bounds, _default(field), " ".join((field.description or "").split()))


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field is, if it is one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each).replace(", ", " or ") for each in arguments if each is not type(None))
    if origin is list:
        return f"list of {_type(arguments[0])}"
    return NAMES[origin or annotation]


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    """Bounds in a type's or a field's metadata, in words."""
    bounds = []
    for each in metadata:
        inner = each.metadata if isinstance(each, FieldInfo) else [each]
        bounds += [
            f"{sign} {_number(getattr(bound, name))}"
            for bound in inner
            for name, sign in SIGNS.items()
            if hasattr(bound, name)
        ]
    return ", ".join(bounds)


def _number(bound: float) -> str:
    """A bound as people write it: 2^63 and 1,000,000."""
    if bound == 2**63:
        return "2^63"
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _inner_bounds(annotation: Any) -> str:
    """Bounds of the members of a union or a list."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _bounds(metadata) or _inner_bounds(inner)
    return ", ".join(dict.fromkeys(filter(None, map(_inner_bounds, get_args(annotation)))))


def _default(field: FieldInfo) -> str | None:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    if value is None:
        return ""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
