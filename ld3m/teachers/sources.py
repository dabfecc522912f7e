"""The kinds of teachers that `teacher.source` may name: how each is looked for, loaded and known again in results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError
from ld3m.networks import timm
from ld3m.recipe import Recipe, TeacherRecipe
from ld3m.teachers import folder, pretrained, weights_file
from ld3m.teachers.classes import given_classes
from ld3m.teachers.pretrained import TIMM, TORCHVISION
from ld3m.teachers.teacher import Classifier
from ld3m.training.folder import TRAINING

STORED = "stored"
"""`teacher.source` for the labels that are stored with a set, which need no teacher."""
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""How names of files of weights end."""
INSTEAD = "give torchvision/<model>, timm/<model>, a folder of ld3m train-teacher, or a .pt or .safetensors file"


@dataclass(frozen=True)
class Kind:
    """A kind of teachers, each of which a text names: a library's model, or a path."""

    check: Callable[[str], object]
    """Raises a UserError if there is no teacher of this name, or not the library that has it; loads nothing."""
    load: Callable[[str, TeacherRecipe, ImageSet], Classifier]
    is_known_as: Callable[[str, TeacherRecipe, Mapping[str, Any]], bool]
    """Whether `Teacher.about` may be of the teacher of this name, as far as that is known without loading it."""


def source_of(recipe: Recipe) -> tuple[str, Kind]:
    """The name of a recipe's teacher, and its kind; whether it is there, `Kind.check` says."""
    source = recipe.teacher.source or ""
    if source.startswith(TORCHVISION):
        return source, OF_TORCHVISION
    if source.startswith(TIMM):
        return source, OF_TIMM
    path = folder_of(recipe)
    return str(path), TRAINED if folder.is_teacher(path) else FILE


def folder_of(recipe: Recipe) -> Path:
    """The folder that `ld3m train-teacher` writes for a recipe, and that a recipe takes which names no teacher."""
    return Path(recipe.teacher.source or f"teachers/{recipe.name}")


def check_source(recipe: Recipe) -> None:
    """Checks that there is something by the name of a recipe's teacher, and the library that has it; loads nothing.

    Raises:
        UserError: if there is not, or its training is unfinished.
    """
    source, kind = source_of(recipe)
    kind.check(source)


def is_named(recipe: Recipe, about: Mapping[str, Any]) -> bool:
    """Whether a recipe names the teacher of a row of results, as far as that is known without loading it.

    Args:
        about: as `Teacher.about` has it, or stored labels' note.
    """
    if about.get("stored"):
        return recipe.teacher.source in (None, STORED)
    source, kind = source_of(recipe)
    return kind.is_known_as(source, recipe.teacher, about)


# --- the kinds ---------------------------------------------------------------------------------------------


def _is_model(source: str, _: TeacherRecipe, about: Mapping[str, Any]) -> bool:
    return source in (about["teacher"], about["teacher"].partition("@")[0])


def _is_trained(source: str, _: TeacherRecipe, about: Mapping[str, Any]) -> bool:
    return folder.read_note(Path(source)).sha256.startswith(about["weights"])


def _is_file(source: str, settings: TeacherRecipe, about: Mapping[str, Any]) -> bool:
    return bool(about["teacher"] == f"{Path(source).name} ({settings.arch})")


def _check_file(source: str) -> None:
    path = Path(source)
    if path.is_dir():
        begun = (path / TRAINING).is_dir()
        what = "is unfinished; the command that began it resumes" if begun else f"has no {folder.NOTE}"
        raise UserError(f"teacher.source: {path} {what}; or {INSTEAD}")
    if not path.is_file():
        raise UserError(
            f"teacher.source: there is no {path}; ld3m train-teacher with the same recipe trains one, or {INSTEAD}"
        )


OF_TORCHVISION = Kind(
    check=lambda source: pretrained.torchvision(source, "teacher.source"),
    load=lambda source, settings, images: pretrained.torchvision_classifier(source),
    is_known_as=_is_model,
)
OF_TIMM = Kind(
    check=lambda source: timm.library(source, "teacher.source"),
    load=lambda source, settings, images: pretrained.timm_classifier(source, given_classes(settings)),
    is_known_as=_is_model,
)
TRAINED = Kind(
    check=lambda source: None,
    load=lambda source, settings, images: folder.read_classifier(Path(source)),
    is_known_as=_is_trained,
)
FILE = Kind(
    check=_check_file,
    load=lambda source, settings, images: weights_file.read_classifier(Path(source), settings, images),
    is_known_as=_is_file,
)
