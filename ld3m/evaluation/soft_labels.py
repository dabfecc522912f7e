"""What labels the batches of soft protocols: a teacher as they come, or labels that are stored with the set."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Typed

import torch
from torch import Tensor

from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError
from ld3m.evaluation.protocols import Protocol
from ld3m.evaluation.protocols.details import written
from ld3m.evaluation.training_sets import has_stored_labels
from ld3m.images.transforms import CutMix
from ld3m.machine.transfer import send
from ld3m.recipe import Recipe
from ld3m.runs import labels as stored
from ld3m.teachers.loading import load
from ld3m.teachers.teacher import Teacher

View = tuple[int, int, int]
"""What keys all draws of an epoch: the recipe's seed, the network's, and the epoch."""


class SoftLabels(Typed):
    """What labels the batches of a training with soft labels: a teacher, or what one said before."""

    @property
    def about(self) -> dict[str, Any]:
        """Whose they are and how good that is, for rows."""

    def check(self, how: Protocol) -> None:
        """Checks that they fit a protocol.

        Raises:
            UserError: saying what differs.
        """

    def view(self, view: View) -> View:
        """What keys the draws of an epoch, given what would if labels did not depend on it."""

    def __call__(
        self, images: Tensor, indices: Tensor, epoch: int, mix: CutMix | None, own: Tensor | None = None
    ) -> Tensor:
        """Logits [n, classes] for a batch.

        Args:
            images: as the network sees them, [n, channels, H, W]: augmented, normalised, and mixed by CutMix.
            indices: of the images in the training set, int64 [n], on the CPU.
            epoch: from 0.
            mix: how they were mixed with each other; None if they were not.
            own: the places in the batch that `images` and the result are of, as processes share it; None: all.
        """


@dataclass(frozen=True)
class Online:
    """A teacher's labels of each batch as the network sees it."""

    teacher: Teacher

    @property
    def about(self) -> dict[str, Any]:
        return self.teacher.about

    def check(self, how: Protocol) -> None:
        pass

    def view(self, view: View) -> View:
        return view

    def __call__(
        self, images: Tensor, indices: Tensor, epoch: int, mix: CutMix | None, own: Tensor | None = None
    ) -> Tensor:
        return self.teacher(images)


@dataclass
class OfImages:
    """One stored label for each image, whatever is done to it; labels of mixed images are mixed by area."""

    run: Path
    note: stored.Note
    temperature: float
    """At which labels are mixed: the protocol's."""
    squared: bool = False
    """Whether the loss is a squared error, for which labels are mixed as they are."""

    def __post_init__(self) -> None:
        self.logits = stored.read_view(self.run, self.note, 0)

    @property
    def about(self) -> dict[str, Any]:
        return self.note.about

    def check(self, how: Protocol) -> None:
        _check_temperature(self.note, how)

    def view(self, view: View) -> View:
        return view

    def __call__(
        self, images: Tensor, indices: Tensor, epoch: int, mix: CutMix | None, own: Tensor | None = None
    ) -> Tensor:
        logits = send(self.logits[indices], images.device)
        if mix and self.squared:
            logits = mix.labels(logits)
        elif mix:
            shares = (logits / self.temperature).softmax(1)
            logits = self.temperature * mix.labels(shares).clamp_min(torch.finfo(shares.dtype).tiny).log()
        return logits if own is None else logits[send(own, logits.device)]


@dataclass
class OfEpochs:
    """A stored label for each image as it is seen in each of some epochs, which come round again after the last.

    The order of images, and all that changes them, is that of the network for whose seed they were stored; networks of
    other seeds differ in their initial weights.
    """

    run: Path
    note: stored.Note
    read: dict[int, Tensor] = field(default_factory=dict)
    """The labels of the epoch that was asked for last."""

    @property
    def about(self) -> dict[str, Any]:
        return self.note.about

    def check(self, how: Protocol) -> None:
        _check_temperature(self.note, how)
        wanted = views(how)
        for key, value in ({"cutmix_share": 1.0} | wanted).items():
            had = ({"cutmix_share": 1.0} | (self.note.views or {})).get(key)
            if had != value:
                raise UserError(
                    f"evaluate.{key}: {value}, but the labels of {self.run / stored.FOLDER} are of views with {had}; "
                    f"give evaluate.{key}={had}, or store labels of these: ld3m label --again"
                )

    def view(self, view: View) -> View:
        return int((self.note.views or {})["seed"]), 0, view[2] % self.note.epochs

    def __call__(
        self, images: Tensor, indices: Tensor, epoch: int, mix: CutMix | None, own: Tensor | None = None
    ) -> Tensor:
        number = epoch % self.note.epochs
        if number not in self.read:
            self.read = {number: stored.read_view(self.run, self.note, number)}
        return send(self.read[number][indices if own is None else indices[own]], images.device)


def views(how: Protocol) -> dict[str, Any]:
    """What of a protocol decides how images are seen in an epoch, by the keys of `evaluate`."""
    unusual = {"cutmix_share": how.cutmix_share} if how.cutmix_share != 1 else {}
    return {"augment": written(how.augment), "cutmix": how.cutmix, "batch": how.batch} | unusual


def _check_temperature(note: stored.Note, how: Protocol) -> None:
    """Of labels of which some classes were left out, what is left is right at one temperature alone."""
    if note.top and note.temperature != how.temperature:
        raise UserError(
            f"evaluate.temperature: {how.temperature:g}, but the stored labels have their top {note.top} classes and "
            f"what is left at {note.temperature:g}; give evaluate.temperature={note.temperature:g}, or label it again"
        )


# --- those of a recipe -------------------------------------------------------------------------------------


@dataclass
class Labels:
    """The soft labels of the sets of an evaluation, found when a protocol asks for them."""

    recipe: Recipe
    images: ImageSet
    folders: Mapping[str, Path]
    """Of the runs, by the name of the set."""
    device: torch.device
    say: bool = True
    teacher: Teacher | None = None

    def of(self, name: str, content: str, how: Protocol) -> SoftLabels:
        """Those of a set, which fit its protocol.

        Args:
            content: a digest of its images.

        Raises:
            UserError: if the recipe names stored labels and the set has none, or of other images, classes or views; or
                as `load` does for its teacher.
        """
        if has_stored_labels(self.recipe, self.folders.values()):
            found = self._stored(name, self.folders.get(name), content, how)
        else:
            self.teacher = self.teacher or load(self.recipe, self.images, self.device, self.say)
            found = Online(self.teacher)
        found.check(how)
        return found

    def _stored(self, name: str, folder: Path | None, content: str, how: Protocol) -> SoftLabels:
        if folder is None:
            raise UserError(
                f"teacher.source: stored labels are of a set's own images, and {name} has none; name the teacher, "
                "such as teacher.source=teachers/NAME, or leave it out of --against"
            )
        if not stored.has_labels(folder):
            raise UserError(
                f"teacher.source: {folder} has no stored labels; ld3m label {folder} stores some, or name a teacher"
            )
        note = stored.read_note(folder)
        where = f"teacher.source: {folder / stored.FOLDER}"
        if note.content != content:
            raise UserError(f"{where} has labels of other images than {folder} has now; {stored.ADVICE}")
        stored.check_complete(folder, note)
        if note.classes != self.images.classes:
            raise UserError(f"{where} has labels of other classes than data.subset, or another order; {stored.ADVICE}")
        if self.say:
            print(f"labels of {folder}: {stored.text(note)}", file=sys.stderr)
        if note.epochs:
            return OfEpochs(folder, note)
        return OfImages(folder, note, how.temperature, how.soft_loss == "squared")
