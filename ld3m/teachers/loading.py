"""The teacher that a recipe names, its classes matched to the set's, and tested before it labels anything."""

import sys
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import BaseModel, Field

from ld3m.data.prepared import ImageSet
from ld3m.data.selection.testing import is_permuted, tested
from ld3m.errors import UserError
from ld3m.files import ANOTHER_CACHE, cache_folder, cache_key, writable, write_json
from ld3m.machine.lock import hold
from ld3m.networks.speed import quick_on_cpus
from ld3m.reading import read_json_if_whole
from ld3m.recipe import Recipe
from ld3m.teachers.classes import columns_of
from ld3m.teachers.sources import source_of
from ld3m.teachers.teacher import Teacher

LAYOUT = 1
"""Version of how teachers are tested; part of the key under which their accuracy is kept."""
LOOK_AT = (
    "look at the order of its classes (teacher.classes), its normalisation (teacher.mean, teacher.std) and its size "
    "(teacher.resolution), or train it longer"
)


def load(recipe: Recipe, images: ImageSet, device: torch.device, say: bool = True) -> Teacher:
    """The teacher of a recipe, tested on the real test images.

    Args:
        images: the real images of the set, whose classes it must know.
        say: whether to print what was matched and assumed, and how good it is.

    Raises:
        UserError: if there is none, it is damaged, does not know a class, cannot see the images, or is no better than
            guessing.
    """
    source, kind = source_of(recipe)
    kind.check(source)
    found = kind.load(source, recipe.teacher, images)
    if recipe.teacher.resolution:
        found = replace(found, resolution=recipe.teacher.resolution)
    columns, matched = columns_of(found, images)
    if len(images.mean) not in (1, len(found.mean)):
        raise UserError(
            f"teacher.source: {found.name} sees grey images, and data.channels is {len(images.mean)}; give another "
            "teacher, or train one of these images: ld3m train-teacher"
        )
    found.network.to(device).eval().requires_grad_(False)
    if device.type == "cpu":  # ConvNets and ResNets take 0.83 to 0.97 of the time, and round otherwise
        quick_on_cpus(found.network)
    teacher = _tested(Teacher(found, images, columns), device)
    if say:
        notes = [*teacher.classifier.notes, matched]
        if images.resolution != found.resolution:
            notes.append(f"images of {images.resolution} pixels are resized to {found.resolution}")
        count = sum(images.counts[images.judging])
        notes.append(f"{teacher.accuracy:.1f} % of {count:,} {images.judging} images are classified correctly")
        print(f"teacher {found.name}: {'; '.join(notes)}", file=sys.stderr)
    return teacher


class Accuracy(BaseModel):
    """What the cache keeps of a teacher."""

    accuracy: Annotated[float, Field(ge=0, le=100)]
    at_chance: bool
    reassigned: Annotated[float, Field(ge=0, le=100)]
    """If its classes were renamed, one for one, to the best."""

    def hint(self, classes: int, images: int) -> str | None:
        """That its classes are in another order than assumed, if so many images of so many classes look so."""
        if not is_permuted(self.accuracy, self.reassigned, classes, images):
            return None
        return (
            f"renamed one for one, {self.reassigned:.1f} % would be right, so its classes may be in another order than "
            "assumed (teacher.classes)"
        )


def _tested(teacher: Teacher, device: torch.device) -> Teacher:
    """The teacher with its accuracy, which the cache keeps.

    Raises:
        UserError: if it is no better than guessing.
    """
    own, images = teacher.classifier, teacher.images
    how = [own.mean.tolist(), own.std.tolist(), own.resolution, teacher.columns.tolist()]
    path = cache_folder() / "teachers" / f"{cache_key([LAYOUT, own.digest, images.folder.name, how])}.json"
    writable(path.parent, ANOTHER_CACHE)
    with hold(path.with_suffix(".lock"), doing="tests the same teacher"):
        known = read_json_if_whole(path, Accuracy, "it is measured again")
        if known is None:
            measured = tested(teacher, images, images.judging, device)
            renamed = round(measured.reassigned or 0.0, 2)
            known = Accuracy(accuracy=round(measured.accuracy, 2), at_chance=measured.at_chance, reassigned=renamed)
            write_json(path, known.model_dump())
    hint = known.hint(len(images.classes), sum(images.counts[images.judging]))
    if known.at_chance:
        raise UserError(
            f"teacher.source: {own.name} classifies {known.accuracy:.1f} % of the {images.judging} images of "
            f"{len(images.classes)} classes correctly, no better than guessing; {hint or LOOK_AT}"
        )
    return replace(
        teacher, accuracy=known.accuracy, classifier=replace(own, notes=[*own.notes, *([hint] if hint else [])])
    )
