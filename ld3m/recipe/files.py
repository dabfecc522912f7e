"""Recipe files: found by name, read with overrides, every mistake told at once; written back, and told apart."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ld3m.errors import UserError, one_line
from ld3m.files import PACKAGE
from ld3m.recipe import Recipe
from ld3m.recipe.prior import PriorRecipe

AnyRecipe = TypeVar("AnyRecipe", Recipe, PriorRecipe)


FOLDERS = (Path("recipes"), PACKAGE / "recipes", PACKAGE.parent / "recipes")
"""Where recipes are found by name: the working folder, the installed package, a checkout of it."""


def find(name: str) -> Path:
    """The file that a recipe's name means: a path, or NAME for recipes/NAME.yaml here or in the package."""
    for path in [Path(name), *(folder / f"{name}.yaml" for folder in FOLDERS)]:
        if path.is_file():
            return path
    raise UserError(f"{name}: there is no such recipe; give a YAML file or one of {', '.join(shipped())}")


def shipped() -> list[str]:
    """The names by which `find` knows recipes, sorted."""
    return sorted(
        {path.relative_to(folder).with_suffix("").as_posix() for folder in FOLDERS for path in folder.rglob("*.yaml")}
    )


def load(kind: type[AnyRecipe], name: str, overrides: list[str] | None = None) -> AnyRecipe:
    """Reads and validates a recipe. One that begins with `extends: NAME` is that other with its own keys over it.

    Args:
        kind: `Recipe` or `PriorRecipe`.
        name: a file, or the name of a shipped recipe.
        overrides: `KEY=VALUE` with dots in KEY and YAML in VALUE.

    Raises:
        UserError: with one line for each mistake in the file and in the overrides.
    """
    path = find(name)
    content = _read(path)
    mistakes: list[str] = []
    for override in overrides or []:
        try:
            _apply(content, override)
        except UserError as error:
            mistakes += error.lines
    try:
        recipe = kind.model_validate(content)
    except ValidationError as error:
        mistakes += [f"{path}: {_explain(kind, mistake)}" for mistake in error.errors()]
    if mistakes:
        raise UserError(*mistakes)
    return recipe


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a file and of those that it extends; `above` are those that extend it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-01
        raise UserError(f"{path}: cannot be read as YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: has no keys; a recipe is made of lines such as name: my-run")
    if (base := content.pop("extends", None)) is None:
        return content
    found = next((near for name in (base, f"{base}.yaml") if (near := path.parent / str(name)).is_file()), None)
    found = found or find(str(base))
    if found.resolve() in (each.resolve() for each in (path, *above)):
        raise UserError(f"{path}: extends: {base} extends this recipe itself; leave one of the two out")
    return _merged(_read(found, (path, *above)), content)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Section by section."""
    sections = [key for key in base if isinstance(base[key], dict) and isinstance(over.get(key), dict)]
    return {**base, **over, **{key: _merged(base[key], over[key]) for key in sections}}


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override}: overrides have the form KEY=VALUE, such as distill.iterations=200")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{override}: {text!r} is not a YAML value") from None
    *sections, last = key.split(".")
    for name in sections:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise UserError(f"{override}: {name} is a value, not a section with keys of its own")
    content[last] = value


def _explain(kind: type[BaseModel], mistake: Any) -> str:
    """One line for one of pydantic's errors: the key, the value, what would be right."""
    key, value, message = ".".join(map(str, mistake["loc"])), mistake["input"], mistake["msg"]
    match mistake["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; {_right_key(kind, key)}"
        case "missing":
            return f"{key}: is missing"
        case "model_type":
            known = [name.removeprefix(f"{key}.") for name in keys(kind) if name.rpartition(".")[0] == key]
            return f"{key}: {value!r} is not right: give a section with some of {', '.join(known)}"
        case "value_error":  # one of ours; that of a whole section names the key below it
            section = f"{key}." if key and isinstance(value, BaseModel | dict) else f"{key}: " if key else ""
            return section + message.removeprefix("Value error, ")
    return f"{key}: {value!r} is not right: {message[0].lower()}{message[1:]}"


def _right_key(kind: type[BaseModel], key: str) -> str:
    """The nearest key of the same section, or keys of that name in others, or all that the section has."""
    section, dot, last = key.rpartition(".")
    known = [name.rpartition(".")[2] for name in keys(kind) if name.rpartition(".")[0] == section]
    near = [f"{section}{dot}{name}" for name in difflib.get_close_matches(last, known, n=1)]
    found = near or [name for name in keys(kind) if name.rpartition(".")[2] == last]
    return f"did you mean {' or '.join(found)}?" if found else f"known are {', '.join(known)}"


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a recipe, with the sections it is in before it."""
    names = []
    for name, field in kind.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += keys(field.annotation, f"{prefix}{name}.")
    return names


def to_yaml(recipe: Recipe | PriorRecipe) -> str:
    """The resolved recipe, every default written out; loading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def deciding(recipe: Recipe | PriorRecipe) -> dict[str, Any]:
    """All keys that decide the path of the optimisation, as nested sections.

    Left out is what an unfinished run may resume with other values of: how far it goes, what it saves, logs and draws
    on the way, how memory and processors are used, what is done with the result, and where data and prior are. If the
    learning rates fall towards the last iteration, the number of iterations does decide.
    """
    content = _without_upkeep(recipe)
    if isinstance(recipe, Recipe):
        for section in (content["data"], content["data"]["scorer"], content["prior"]):
            del section["source"]
    return content


def digest(recipe: Recipe | PriorRecipe) -> str:
    """A hash of all that decides the path of the optimisation; where data and prior are has no part in it."""
    return _hash(deciding(recipe))


def digest_with_paths(recipe: Recipe) -> str:
    """The digest that older versions noted, of which `data.source` and `prior.source` were a part."""
    return _hash(_without_upkeep(recipe))


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _without_upkeep(recipe: Recipe | PriorRecipe) -> dict[str, Any]:
    """A recipe without the keys that change the result of no run."""
    path = {"checkpoint_every", "log_every", "pictures"}
    if isinstance(recipe, Recipe) and recipe.distill.schedule == "constant":
        path.add("iterations")
    return recipe.model_dump(
        mode="json",
        exclude={
            "name": True,
            "output": True,
            "log_with": True,
            "evaluate": True,
            "hub": True,
            "checkpoint_every": True,
            "experts": {"folder", "together"},
            "data": {"root", "workers"},
            "prior": {"micro_batch", "keep_graph_steps", "compile"},
            "distill": path,
        },
    )
