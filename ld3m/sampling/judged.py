"""Sampled images as the scorer of real images (`data.scorer`) sees them: what choices and guides judge by."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.data.selection import coresets
from ld3m.images.multi_formation import enlarge
from ld3m.machine.out_of_memory import in_parts
from ld3m.recipe import SampleRecipe
from ld3m.sampling.approach import ClassTask

SCORED = ("confident", "least-confident", "subgroup")
"""Choices that look at the scorer's outputs or features."""
CHUNK = 100
"""Images that the scorer sees at a time."""
ADVICE = "data.scorer.width: memory ran out while judging a single image; give a smaller network, or more memory"


def needs_scores(settings: SampleRecipe) -> bool:
    """Whether the real images must be opened with the scorer's losses and features."""
    return settings.choose in SCORED or (settings.method == "igd" and settings.igd.networks == "scorer")


def scoring_network(task: ClassTask) -> Any:
    """The scorer, in evaluation mode; `embed` gives features, `classifier` logits of these."""
    assert task.images.scores, "the set was not opened for scores"
    return coresets.scoring_network(task.images.scores, task.images, task.recipe.data.scorer, task.device)


def seen(task: ClassTask, pixels: Tensor) -> Tensor:
    """Rendered pixels in [0, 1] as networks see them: enlarged, if several are in an image, and normalised."""
    return task.images.normalise(enlarge(pixels, task.recipe.distill.factor))


@dataclass(frozen=True)
class Judged:
    """What the scorer makes of images, on the CPU."""

    logits: Tensor
    """[n, classes]."""
    features: Tensor
    """[n, d], each of length one."""

    @classmethod
    def of(cls, task: ClassTask, latents: Tensor) -> "Judged":
        """Of the images of clean latents [n, *latent_shape]."""
        network = scoring_network(task)

        @torch.no_grad()
        def look(chunk: Tensor) -> Tensor:
            features = network.embed(seen(task, chunk.to(task.device)))
            return torch.cat([network.classifier(features), features], 1).float().cpu()

        classes = len(task.images.classes)
        logits, features = in_parts(look, task.decode(latents), CHUNK, ADVICE).tensor_split([classes], 1)
        return cls(logits, functional.normalize(features, dim=1))


def real_centroids(task: ClassTask) -> Tensor:
    """Of each class the mean of its real images' features, which have length one, made as long: [classes, d]."""
    of_class = (task.images.scored("features", label) for label in range(len(task.images.classes)))
    means = [functional.normalize(features, dim=1).mean(0) for features in of_class]
    return functional.normalize(torch.stack(means), dim=1)
