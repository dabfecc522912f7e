"""Files of classes that `data.subset` names, in the forms that people pass around."""

import json
import re
from pathlib import Path
from typing import Any

from ld3m.errors import UserError, one_line
from ld3m.reading import read_text

ADVICE = "give a list of classes, a .txt file with one of them per line, or a .json file of them"
_WORDNET_ID = re.compile(r"(?<![a-zA-Z0-9])n\d{8}(?!\d)")
_NUMBERED = re.compile(r"(\d+)[\s,:;]+(\S.*)")


def is_class_list(name: str) -> bool:
    """Whether `data.subset` names a file, by its ending."""
    return name.lower().endswith((".txt", ".json"))


def read_class_list(path: Path) -> list[Any]:
    """The classes of a file; validating the recipe says whether each can be one.

    Text has a class per line, with its WordNet id or number beside it or not (ImageNet's LOC_synset_mapping.txt,
    CUB's classes.txt); lines that begin with # are comments. JSON is a list, or an object from ids, names or numbers to
    what they mean (Kaggle's Labels.json, Keras' imagenet_class_index.json, torchvision's class_to_idx).

    Raises:
        UserError: if the file cannot be read, or holds no list of classes.
    """
    text = read_text(path, ADVICE, f"'{path}'")
    if path.name.lower().endswith(".json"):
        try:
            return _from_json(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{path}' cannot be read as a list of classes ({one_line(error)}); {ADVICE}") from None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    numbers = [int(match[1]) for match in numbered if match]
    if lines and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        lines = [match[2] for match in numbered if match]
    return _wordnet_ids(lines) or lines


def _from_json(content: Any) -> list[Any]:
    """The classes of a JSON document."""
    if isinstance(content, list):
        return _wordnet_ids(content) or content
    if not isinstance(content, dict) or not content:
        raise ValueError(f"it holds {json.dumps(content)[:40]}, no list of classes")
    keys, values = list(content), list(content.values())
    if len(values) == 1 and isinstance(values[0], list):
        return _from_json(values[0])
    if all(isinstance(value, int) for value in values):  # a class's name to its number
        return sorted(content, key=content.__getitem__)
    if all(key.isdecimal() for key in keys):  # a number to what it means
        values = [content[key] for key in sorted(keys, key=int)]
        names = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
        return _wordnet_ids(names) or names
    return _wordnet_ids(keys) or keys


def _wordnet_ids(names: list[Any]) -> list[str]:
    """The WordNet ids in names; empty unless each has exactly one."""
    found = [wordnet_id(name) if isinstance(name, str) else None for name in names]
    return [each for each in found if each] if all(found) else []


def wordnet_id(name: str) -> str | None:
    """The WordNet id in a class's name, such as that of "n02085620-Chihuahua"; None unless there is exactly one."""
    found = set(_WORDNET_ID.findall(name))
    return found.pop() if len(found) == 1 else None
