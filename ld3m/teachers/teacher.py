"""A teacher of a set: a classifier that sees images as it was trained to, and its outputs for the set's classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ld3m.data.prepared import ImageSet
from ld3m.machine.transfer import send


@dataclass(frozen=True)
class Classifier:
    """A trained network, and how it must be shown images."""

    name: str
    """For people: torchvision/resnet18, or the folder's or file's name with the architecture."""
    network: nn.Module
    """In evaluation mode; [n, channels, H, W] to logits [n, outputs]."""
    classes: Sequence[str] | None
    """Of its outputs; None: those of the real images in their order, as the user says."""
    mean: Tensor
    """[channels], what it subtracts from pixels in [0, 1]."""
    std: Tensor
    """[channels], what it divides by then."""
    resolution: int
    """Height and width of what it sees."""
    digest: str
    """Of its weights."""
    notes: Sequence[str] = ()
    """What was assumed of it, for people."""


@dataclass(frozen=True)
class Teacher:
    """A classifier whose outputs are put in the order of a set's classes."""

    classifier: Classifier
    images: ImageSet
    """The real images of the set, by which batches are normalised."""
    columns: Tensor
    """int64 [classes of the set], the output of each."""
    accuracy: float = 0.0
    """Percent of the real test images."""

    @property
    def about(self) -> dict[str, Any]:
        """What rows, card and stored labels say of it."""
        return {"teacher": self.classifier.name, "accuracy": self.accuracy, "weights": self.classifier.digest[:16]}

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of the set's classes, float32 [n, classes].

        Args:
            inputs: [n, channels, H, W], normalised as the set's images are (`ImageSet.normalise`), mixed or not.
        """
        seen, own = inputs, self.classifier
        if not self._sees_them_as_they_are(inputs):
            seen = self.images.seen_by(inputs, own.mean, own.std, own.resolution)
        logits: Tensor = own.network(seen)
        return logits.float().index_select(1, send(self.columns, logits.device))

    def _sees_them_as_they_are(self, inputs: Tensor) -> bool:
        """Whether its own normalisation and size are the set's: one that was trained on the same images."""
        own = self.classifier
        same = torch.equal(own.mean, self.images.mean) and torch.equal(own.std, self.images.std)
        return same and inputs.shape[-1] == own.resolution
