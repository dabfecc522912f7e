"""Which class each output of a teacher is: as the user says it, and matched to the classes of a set."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ld3m.data.class_matching import by_name
from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError, some
from ld3m.recipe import TeacherRecipe
from ld3m.recipe.class_lists import is_class_list, read_class_list
from ld3m.teachers.teacher import Classifier

BY_POSITION = "by-position"
"""`teacher.classes` for those of the real images in their order."""


def given_classes(settings: TeacherRecipe) -> list[str] | None:
    """The classes of the outputs that the user gives, if any; `BY_POSITION` is nobody's name."""
    if settings.classes is None or settings.classes == BY_POSITION:
        return None
    if isinstance(settings.classes, list):
        return settings.classes
    if not is_class_list(settings.classes):
        raise UserError(
            f"teacher.classes: {settings.classes!r} is invalid: give a list of names, a .txt or .json file of one, or "
            f"{BY_POSITION}"
        )
    try:
        return [str(each) for each in read_class_list(Path(settings.classes))]
    except UserError as error:
        raise UserError(f"teacher.classes: {error}") from None


def columns_of(found: Classifier, images: ImageSet) -> tuple[torch.Tensor, str]:
    """The output of each class of the set, and how they were matched.

    Raises:
        UserError: naming the classes that the teacher does not know.
    """
    count = len(images.classes)
    if found.classes is None:
        return torch.arange(count), f"its outputs are the {count} classes by position, as teacher.classes says"
    known = by_name(images.classes, found.classes, _other_names(found.classes))
    if missing := [name for name in images.classes if name not in known]:
        raise UserError(
            f"teacher.source: {found.name} has no class {some([repr(name) for name in missing], 3)} among its "
            f"{len(found.classes)} ({some(found.classes, 4)}); give a teacher of these classes, or the names of its "
            "outputs in their order by teacher.classes"
        )
    columns = [known[name] for name in images.classes]
    if len(set(columns)) < count:
        twice = next(number for number in columns if columns.count(number) > 1)
        same = [name for name in images.classes if known[name] == twice]
        raise UserError(
            f"teacher.source: {found.name} has one class for {' and '.join(same)}, {found.classes[twice]!r}"
        )
    pairs = [
        name if name == found.classes[column] else f"{name} = {found.classes[column]}"
        for name, column in zip(images.classes, columns, strict=True)
    ]
    of = "" if count == len(found.classes) else f"{count} of "
    how = "name" if pairs == images.classes else "name or WordNet id"
    return torch.tensor(columns), f"{of}its {len(found.classes):,} classes matched by {how} ({some(pairs, 4)})"


def _other_names(classes: Sequence[str]) -> dict[str, int]:
    """WordNet ids of ImageNet's classes by their English names, and the other way round."""
    ids = imagenet.numbers()
    english = {each.name: each.wordnet_id for each in imagenet.classes()}
    other = {name: imagenet.classes()[number].name for name, number in ids.items()} | english
    return {other[name]: column for column, name in enumerate(classes) if name in other}
