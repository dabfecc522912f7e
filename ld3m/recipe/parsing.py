"""YAML as people mean it: no key twice, nothing but texts, numbers, lists and sections, and no more than fits."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

LONGEST = 10**6
"""The most characters of a file."""
MOST = 10**5
"""The most values of a file, counted as often as they are referred to: a few lines of aliases can mean millions."""
DEEPEST = 20
"""The most sections and lists within each other."""
NOT_UTF8 = "it is not UTF-8, and safetensors opens no file of such a name; rename it"
TOO_DEEP = f"it has more than {DEEPEST} sections or lists within each other"


class _Loader(yaml.SafeLoader):
    """Refuses what YAML takes for something else without a word: keys given twice, of which it keeps the last, and
    numbers such as 010 and 1:30, which are 8 and 90 to it; and nesting without end.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(TOO_DEEP)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                line = key.start_mark.line + 1
                raise ValueError(f"{key.value} is given twice, the first time in line {line}; leave one of them out")
        return super().construct_mapping(node, deep)


def _plain_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    number = int(loader.construct_yaml_int(node))
    if ":" in node.value or re.fullmatch(r"[-+]?0[0-7_]+", node.value):
        raise ValueError(
            f"{node.value} is {number} to YAML; put a name in quotes, and give a number without zeros first"
        )
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _plain_int)


def is_utf8(text: str) -> bool:
    """Whether a text is one: a name of a file or an argument that is not UTF-8 has surrogates for what is not."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def parse(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        ValueError: if it is not YAML, has a key twice, a value that is no text, number, list or section, or too much.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST:,} characters")
    if not is_utf8(text):
        raise ValueError(NOT_UTF8)
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem}{at}") from None
    except yaml.YAMLError as error:  # a control character
        raise ValueError(" ".join(str(error).split())) from None
    _check(content)
    return content


def _check(content: Any) -> None:
    """Walks through a content, and stops as soon as there is too much of it."""
    rest, count = [(content, 0)], 0
    while rest:
        value, depth = rest.pop()
        count += 1
        if count > MOST:
            raise ValueError(f"it has more than {MOST:,} values")
        if depth > DEEPEST:
            raise ValueError(TOO_DEEP)
        if isinstance(value, dict):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"the key {wrong[0]!r} is no text")
            rest += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            rest += [(each, depth + 1) for each in value]
        elif isinstance(value, int) and abs(value) > 10**100:
            raise ValueError("it has a number of more than 100 digits")
        elif isinstance(value, str) and not is_utf8(value):
            raise ValueError(NOT_UTF8)
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"{value!s:.100} is a {type(value).__name__} to YAML; put it in quotes")
