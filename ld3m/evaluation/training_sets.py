"""What networks are trained on: the images of runs, and as many real ones."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.data.prepared import ImageSet, Rows
from ld3m.data.selection import coresets, mosaics
from ld3m.errors import UserError
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.rows import FILE
from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.runs.folder import load_recipe
from ld3m.runs.labels import has_labels
from ld3m.runs.result import read_images
from ld3m.runs.training_set import seen_images, set_digest, stored_weights
from ld3m.teachers.loading import load
from ld3m.teachers.sources import STORED, check_source, is_named
from ld3m.teachers.teacher import Teacher

SCORED = (*coresets.SELECTIONS, "rded")
"""Baselines that are chosen by `data.scorer`, mosaics unless a teacher chooses them."""
BASELINES = ("random", *SCORED, "full")
"""Sets of real training images, or of mosaics of them (rded): as many of each class as the distilled set has, or all
of them."""

HELD = 2**30
"""Bytes of all real images up to which they are held in memory; more are read from disk, batch by batch."""


@dataclass(frozen=True)
class TrainingSets:
    """The distilled images, those of other runs, and real ones, by their names in the results."""

    stored: dict[str, tuple[Tensor, Tensor]]
    """Images of the runs and their labels, as stored in their folders, and mosaics."""
    fixed: dict[str, tuple[Tensor | Rows, Tensor]]
    """What networks of all seeds are trained on: all sets but "random". Many real images stay on disk."""
    labels: Tensor
    """Of the first run: baselines have as many images of each class."""
    real: coresets.Coreset
    recipe: Recipe
    factor: int
    """Of the first run: images on a side of each of its images."""
    folders: dict[str, Path]
    """Of the runs."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Of the images that networks are trained on, float32 [N], in the runs whose images do not all count the same."""
    teacher: Teacher | None = None
    """Who chose the crops of mosaics, if not `data.scorer`; the same gives soft labels."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        sets: Mapping[str, Path | None],
        images: ImageSet,
        device: torch.device,
        say: bool = True,
    ) -> "TrainingSets":
        """Reads runs, and selects the real images that they are compared with.

        Args:
            recipe: of the data and protocol by which they are measured.
            sets: folders of runs by name, one or more; None for the baselines, of `BASELINES`.
            device: for the network that scores real images, or the teacher, if a baseline needs one.
            say: whether to print what a teacher is taken for.
        """
        folders = {name: folder for name, folder in sets.items() if folder}
        shape = images.classes, recipe.data.channels, recipe.data.resolution
        stored = {name: read_images(path, *shape) for name, path in folders.items()}
        baselines = {name for name, folder in sets.items() if folder is None}
        real = coresets.open_whole(images, recipe.data, baselines, device)
        labels = next(iter(stored.values()))[1]
        fixed: dict[str, tuple[Tensor | Rows, Tensor]] = {
            name: seen_images(*stored[name], load_recipe(path).distill.factor) for name, path in folders.items()
        }
        for name in baselines - {"random", "rded"}:
            on_disk = Rows(real, "train")
            if name == "full" and on_disk.nbytes > HELD:
                fixed[name] = on_disk, on_disk.labels
            else:
                fixed[name] = real_images(name, real, labels, recipe, 0)
        factor = load_recipe(next(iter(folders.values()))).distill.factor
        teacher = None
        if "rded" in baselines:
            judge, teacher = _judge(recipe, images, device, say)
            counts = torch.bincount(labels, minlength=len(images.classes))
            tiles = mosaics.factor_at(images.resolution, factor)
            made = mosaics.mosaics(images, counts.tolist(), tiles, judge, recipe.seed)
            stored["rded"] = torch.cat(made), torch.arange(len(made)).repeat_interleave(counts)
            fixed["rded"] = seen_images(*stored["rded"], factor)
        weights = {
            name: own for name, path in folders.items() if (own := stored_weights(path, images.classes)) is not None
        }
        return cls(stored, fixed, labels, real, recipe, factor, folders, weights, teacher)

    def seen(self, name: str, seed: int) -> tuple[Tensor | Rows, Tensor]:
        """Images and labels that a network of a seed is trained on; "random" ones differ from seed to seed."""
        return self.fixed.get(name) or real_images(name, self.real, self.labels, self.recipe, seed)

    def chosen_by(self, name: str) -> dict[str, Any]:
        """How the images of a baseline were chosen, for its row; {} if nothing but the seed decided."""
        by_scorer = name in SCORED and (name != "rded" or self.teacher is None)
        by = {"scorer": self.recipe.data.scorer.model_dump()} if by_scorer else {}
        tiles = mosaics.factor_at(self.real.resolution, self.factor)
        about = self.teacher.about if self.teacher else {"teacher": None, "weights": None}
        made = mosaics.description(tiles, about["teacher"], about["weights"])
        return by | ({"mosaics": made} if name == "rded" else {})

    def weighted(self, name: str) -> dict[str, Any]:
        """What the row of a set says of its images' weights; {} if all count the same."""
        values = self.weights.get(name)
        return {} if values is None else {"weights": [round(float(values.min()), 4), round(float(values.max()), 4)]}

    def digest(self, name: str) -> str:
        """A digest of what networks are trained on; of "random" images, of those of the first seed."""
        return set_digest(*self.seen(name, 0), self.weights.get(name))

    def size(self, name: str) -> int:
        """Number of images of a set; of a run, as they are stored."""
        sets: dict[str, tuple[Tensor | Rows, Tensor]] = {**self.fixed, **self.stored}
        return len(sets[name][0] if name in sets else self.labels)


def has_soft_labels(recipe: Recipe) -> bool:
    """Whether networks are trained with soft labels, by its protocol or as the recipe says."""
    task = Task(recipe.evaluate.arch[0], 2, 2, recipe.data.resolution)
    return protocol(recipe.evaluate.before_a_run, task).labels == "soft"


def judged_by_teacher(recipe: Recipe) -> bool:
    """Whether the recipe's teacher, and not `data.scorer`, chooses the crops of mosaics."""
    return (recipe.evaluate.mosaics or ("teacher" if has_soft_labels(recipe) else "scorer")) == "teacher"


def depends_on_teacher(recipe: Recipe, baseline: str) -> bool:
    """Whether a baseline's accuracies depend on the recipe's teacher."""
    return has_soft_labels(recipe) or (baseline == "rded" and judged_by_teacher(recipe))


def has_stored_labels(recipe: Recipe, folders: Collection[Path]) -> bool:
    """Whether soft labels of these runs are those stored with them: as the recipe says, or as it names no teacher."""
    source = recipe.teacher.source
    return source == STORED or (source is None and bool(folders) and all(map(has_labels, folders)))


def check_teacher(recipe: Recipe, folders: Collection[Path], baselines: Collection[str]) -> None:
    """Checks that the teacher is there which an evaluation will want, before anything is prepared or trained for it.

    Args:
        recipe: names it, or has hard labels.
        folders: of the runs that are evaluated; none of them: one that is still to be made.
        baselines: with them.

    Raises:
        UserError: if there is none, as `check_source`; or stored labels alone, where crops of real images want one; or
            networks see whitened images, which no teacher has learnt.
    """
    judges = "rded" in baselines and judged_by_teacher(recipe)
    if judges and recipe.teacher.source == STORED:
        raise UserError(
            "evaluate.mosaics: stored labels say nothing of crops of real images; name their teacher, such as "
            "teacher.source=teachers/NAME, or leave rded out of --against"
        )
    labels = has_soft_labels(recipe) and not has_stored_labels(recipe, folders)
    if labels and recipe.evaluate.whitening:
        raise UserError(
            f"evaluate.whitening: {recipe.evaluate.protocol} has soft labels, whose teacher has not learnt whitened "
            "images; leave it out, give evaluate.labels=hard, or labels that are stored with the set"
        )
    if not judges and not labels:
        return
    try:
        check_source(recipe)
    except UserError as error:
        if any(map(has_labels, folders)):
            raise UserError(f"{error}; or take those stored with the set: teacher.source=stored") from None
        raise


def judged_alike(row: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether the mosaics of a row, if it is of mosaics, were made as a recipe has it, and chosen by whom it names.

    Args:
        row: of evaluation.json; an older one says which weights a teacher had only if it gave the soft labels, too.
        recipe: its teacher is not loaded.
    """
    if row["trained_on"] != "rded":
        return True
    made = row.get("mosaics", {})
    if made.get("factor") != mosaics.factor_at(recipe.data.resolution, recipe.distill.factor):
        return False
    by_teacher, judge = judged_by_teacher(recipe), made.get("judge")
    if not by_teacher or not judge:
        return by_teacher == bool(judge)
    weights = made.get("weights") or (row["protocol"].get("teacher") or {}).get("weights", "unknown")
    return is_named(recipe, {"teacher": judge, "weights": weights})


def _judge(recipe: Recipe, images: ImageSet, device: torch.device, say: bool) -> tuple[mosaics.Judge, Teacher | None]:
    """Who chooses the crops of mosaics, and the teacher, if it is that."""
    if not judged_by_teacher(recipe):
        return mosaics.by_scorer(images, recipe.data.scorer, device), None
    teacher = load(recipe, images, device, say)
    return mosaics.Judge(teacher, images.normalise, f"teacher {teacher.classifier.digest}", device), teacher


def check_content(place: Path, evaluation: Mapping[str, Any], digest: str, folder: Path) -> None:
    """Checks that some accuracies in a folder are of a run's images; older versions did not note of which.

    Args:
        evaluation: as `rows.read` gives it.
        digest: of what networks are trained on, as `TrainingSets.digest` gives it.

    Raises:
        UserError: if they are of others, of another run or of this one before its images changed.
    """
    results = evaluation.get("results", ())
    contents = {row.get("content", digest) for row in results if row["trained_on"] == "distilled"}
    if contents and digest not in contents:
        raise UserError(
            f"--output: {place / FILE} has accuracies of other images than {folder} has now; give another folder"
        )


def real_images(
    selection: str, images: coresets.Coreset, labels: Tensor, recipe: Recipe, draw: int
) -> tuple[Tensor, Tensor]:
    """As many real training images of each class as `labels` has, or all if there are fewer, and their labels.

    Args:
        selection: of `BASELINES`, but no mosaics.
        labels: int64 [N], of the distilled images.
        recipe: its `seed` counts.
        draw: its number; another draw of "random" gives other images, other selections always give the same.
    """
    chosen = []
    for label, count in enumerate(torch.bincount(labels, minlength=len(images.classes)).tolist()):
        draws = generator(recipe.seed, "random images", draw, label)
        chosen.append(images.images("train", label)[images.select(selection, label, count, draws)])
    sizes = torch.tensor([len(part) for part in chosen])
    return torch.cat(chosen), torch.arange(len(chosen)).repeat_interleave(sizes)
