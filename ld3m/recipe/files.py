"""Recipe files: found by name, read with overrides, with every mistake reported at once; written back; compared."""

import hashlib
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ld3m.errors import UserError
from ld3m.files import PACKAGE
from ld3m.launched import say_once
from ld3m.reading import read_text
from ld3m.recipe import Recipe
from ld3m.recipe.class_lists import is_class_list, read_class_list
from ld3m.recipe.mistakes import KeyPath, Mistake, Origins, shown, validation_mistakes
from ld3m.recipe.parsing import parse
from ld3m.recipe.prior import PriorRecipe
from ld3m.recipe.values import Section

AnyRecipe = TypeVar("AnyRecipe", Recipe, PriorRecipe)

FOLDERS = (Path("recipes"), PACKAGE / "recipes", PACKAGE.parent / "recipes")
"""Where recipes are found by name: the working folder, the installed package, a checkout of it."""

LONGEST_NAME = 26
"""The column in which lists of recipes begin to say what each is."""
ADVICE = "give a YAML file or the name of a shipped recipe"


def shipped() -> list[str]:
    """The names that recipes are found by."""
    names = {path.relative_to(folder).with_suffix("") for folder in FOLDERS for path in folder.rglob("*.yaml")}
    return sorted(name.as_posix() for name in names)


def about_recipes() -> str:
    """The names that recipes are found by, each with the first sentence of the comment that its file opens with."""
    priors = [name for name in shipped() if name.startswith("prior-")]
    groups = {
        "Recipes of ld3m distill NAME and most other commands": [name for name in shipped() if name not in priors],
        "Recipes of ld3m train-prior NAME": priors,
    }
    parts = []
    for title, names in groups.items():
        parts.append(f"{title}:\n")
        for name in names:
            head = f"  {name}  ".ljust(LONGEST_NAME)
            parts.append(textwrap.fill(head + _opening(find_recipe(name)), 110, subsequent_indent=" " * LONGEST_NAME))
        parts.append("")
    return "\n".join(parts).rstrip()


def _opening(path: Path) -> str:
    """The first sentence of the comment at the top of a file."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), read_text(path, ADVICE).splitlines())
    text = " ".join(line[2:].strip() for line in lines)
    return re.split(r"(?<=[.?])\s+(?=[A-Z])", text)[0]


def find_recipe(name: str) -> Path:
    """The file that a recipe's name means: a path, or NAME for recipes/NAME.yaml here or in the package.

    Raises:
        UserError: if there is none.
    """
    for path in [Path(name), *(folder / f"{name}.yaml" for folder in FOLDERS)]:
        try:
            if path.is_file():
                return path
        except OSError as error:  # no access to the folder, or a name that is too long
            raise UserError(f"{shown(name)}: cannot be read ({error.strerror}); {ADVICE}") from None
    if (Path(name) / "recipe.yaml").is_file():
        raise UserError(f"{name}: is a run's folder; give {name}/recipe.yaml to distil its recipe")
    raise UserError(f"{name}: there is no such recipe; give a YAML file or one of {', '.join(shipped())}")


def load(kind: type[AnyRecipe], name: str, overrides: list[str] | None = None) -> AnyRecipe:
    """Reads and validates a recipe. The keys of one that begins with `extends: NAME` are laid over those of NAME.

    If `data.subset` names a file of classes, that is read too, so that the recipe holds the classes. Nothing else is
    looked for: those who use the data, the prior or a start check whether it exists.

    Args:
        name: a file, or the name of a shipped recipe.
        overrides: `KEY=VALUE` with dots in KEY and YAML in VALUE.

    Raises:
        UserError: with one line for each mistake in the file and in the overrides.
    """
    path = find_recipe(name)
    content, files = _read(path)
    removed = _removed(kind, content)
    mistakes: list[str] = []
    applied: dict[KeyPath, str] = {}
    for override in overrides or []:
        try:
            applied[_apply(content, override)] = override
        except UserError as error:
            mistakes += error.lines
    _leave_to_pixels(content, applied)
    for key, (_, why) in _removed(kind, content).items():
        if key in applied:
            mistakes.append(f"override {shown(applied[key])}: there is no such key any more; {why}")
    origins = Origins(path, files, applied)
    wrong = _read_class_list(content) + validation_mistakes(kind, content)

    @cache
    def without_overrides() -> list[Mistake]:
        unchanged, _ = _read(path)
        return _read_class_list(unchanged) + validation_mistakes(kind, unchanged)

    mistakes += [origins.line(each, without_overrides) for each in wrong]
    if mistakes:
        raise UserError(*mistakes)
    for key, (value, why) in removed.items():
        if _at(content, key) != value:
            say_once(f"{path}: {'.'.join(key)} is ignored: there is no such key any more; {why}")
    return kind.model_validate(content)


def _read(path: Path, extending: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[KeyPath, Path]]:
    """The keys of a file and of those that it extends, and the file that each is from.

    `extending` are the files that extend this one.
    """
    text = read_text(path, ADVICE)
    try:
        content = parse(text)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: has no keys; a recipe is made of lines such as name: my-run")
    base = content.pop("extends", None)
    files = dict.fromkeys(_key_paths(content), path)
    if base is None:
        return content, files
    beside = (path.parent / name for name in (str(base), f"{base}.yaml"))
    extended = next((file for file in beside if file.is_file()), None) or find_recipe(str(base))
    if extended.resolve() in (each.resolve() for each in (path, *extending)):
        raise UserError(f"{path}: extends: {base} extends this recipe itself; leave one of the two out")
    base_content, base_files = _read(extended, (path, *extending))
    return _merged(base_content, content), base_files | files


def _key_paths(content: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key and section of a recipe's content."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield (path := (*prefix, str(name)))
            yield from _key_paths(value, path)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section."""
    sections = [key for key in base if isinstance(base[key], dict) and isinstance(over.get(key), dict)]
    return {**base, **over, **{key: _merged(base[key], over[key]) for key in sections}}


def _apply(content: dict[str, Any], override: str) -> KeyPath:
    """Writes an override into a recipe's content, and returns its key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {shown(override)}: must have the form KEY=VALUE, such as distill.iterations=200")
    try:
        value = parse(text)
    except ValueError as error:
        raise UserError(f"override {shown(override)}: {shown(text)!r} is not a YAML value: {error}") from None
    *sections, last = key.split(".")
    for name in sections:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise UserError(f"override {shown(override)}: {name} is a value, not a section with keys of its own")
    content[last] = value
    return (*sections, last)


def _leave_to_pixels(content: dict[str, Any], applied: Mapping[KeyPath, str]) -> None:
    """Removes what a file says of the prior if an override does without: `prior.source=pixels` implies one value."""
    if ("prior", "source") not in applied or content["prior"]["source"] != "pixels":
        return
    of_prior = [("prior", key) for key in ("steps", "guidance", "resolution", "scaling_factor")]
    for section, key in (*of_prior, ("distill", "learn")):
        if (section, key) not in applied and isinstance(content.get(section), dict):
            content[section].pop(key, None)


def _removed(kind: type[Section], content: Any, prefix: KeyPath = ()) -> dict[KeyPath, tuple[Any, str]]:
    """The removed keys in a recipe's content: their former default, and why they went (`Section.removed_keys`)."""
    if not isinstance(content, dict):
        return {}
    removed = {(*prefix, key): was for key, was in kind.removed_keys.items() if key in content}
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            removed |= _removed(field.annotation, content.get(name), (*prefix, name))
    return removed


def _at(content: Any, key: KeyPath) -> Any:
    """The value of a key."""
    for name in key:
        content = content[name]
    return content


def _read_class_list(content: dict[str, Any]) -> list[Mistake]:
    """If `data.subset` names a file, replaces the name by the classes in it; returns what is wrong with the file."""
    section = content.get("data")
    subset = section.get("subset") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(subset, str) or not is_class_list(subset):
        return []
    section["subset"] = None
    try:
        section["subset"] = read_class_list(Path(subset))
    except UserError as error:
        return [Mistake("data.subset", str(error))]
    return []


def to_yaml(recipe: Recipe | PriorRecipe) -> str:
    """The resolved recipe, every default written out; loading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def deciding(recipe: Recipe | PriorRecipe) -> dict[str, Any]:
    """All keys that decide the path of the optimisation, as nested sections.

    Left out is what an unfinished run may resume with other values of: how far it goes, what it saves, logs and draws
    on the way, how memory and processors are used, what is done with the result, where data and prior are, and what
    happens to unreadable files, as data is compared by content. If the learning rates fall towards the last iteration,
    the number of iterations does decide.
    """
    content = _without_upkeep(recipe)
    if isinstance(recipe, Recipe):
        for section in (content["data"], content["data"]["scorer"], content["prior"]):
            del section["source"]
        content["data"]["on_corrupt"] = "error"  # content tells which images there are
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
    exact = isinstance(recipe, Recipe) and recipe.prior.pull_back == "exact"
    whole = isinstance(recipe, Recipe) and recipe.prior.start == 1
    diffusion = isinstance(recipe, PriorRecipe) and not recipe.denoiser.flow
    data = {
        "root",
        "max_pixels",
        "read_test",
        *({"range"} if recipe.data.range is None else ()),
    }  # found, as it was before
    return recipe.model_dump(
        mode="json",
        exclude={
            "name": True,
            "output": True,
            "log_with": True,
            "reproducible": True,
            "evaluate": True,
            "teacher": True,
            "hub": True,
            "sample": recipe.sample.unread if isinstance(recipe, Recipe) and recipe.samples else True,
            "checkpoint_every": True,
            "experts": {"folder", "together"},
            "data": data,
            "prior": {
                "micro_batch",
                "keep_graph_steps",
                "compile",
                *(("pull_back", "differentiated") if exact else ()),
                *(("start",) if whole else ()),
            },
            "distill": dict.fromkeys(path, True) | (recipe.distill.unread if isinstance(recipe, Recipe) else {}),
            "denoiser": {"flow"} if diffusion else set(),
        },
    )
