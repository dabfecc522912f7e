"""What a recipe of a distillation may say of each objective, and defaults that depend on which it is."""

from typing import Literal

from pydantic import Field

from ld3m.recipe.values import Section


class DmRecipe(Section):
    """Keys of distribution matching."""

    augment: bool = True
    """Differentiable Siamese augmentation of both sides."""
    match: Literal["mean", "moments"] = "mean"
    """What real and synthetic features are to have in common: their mean, as published, or mean and standard deviation
    of each; by the mean alone, images of a class are free to be alike."""
    pool: int | None = Field(None, ge=1)
    """Networks that take turns, each with real images and an augmentation of its own, passed once: `real_batch` may be
    large then. Left out: others in every iteration, as published."""


class DcRecipe(Section):
    """Keys of gradient matching."""

    augment: bool = True
    """Differentiable Siamese augmentation of both sides, and in the inner loop."""
    outer: int = Field(1, ge=1)
    """Matches that one network goes through; left out: 1 at 1 image per class, 10 at 10, 50 at 50."""
    inner: int = Field(1, ge=0)
    """Epochs the network trains on the synthetic set between matches; left out: 1, 50, 10."""
    lr_network: float = Field(0.01, gt=0)
    batch: int = Field(256, ge=1)
    """Synthetic images of one step of the inner loop."""


class MttRecipe(Section):
    """Keys of trajectory matching."""

    augment: bool = True
    """Augmentation of the synthetic images, other numbers for each."""
    syn_steps: int = Field(10, ge=1)
    """Steps of the student on synthetic images."""
    expert_epochs: int = Field(2, ge=1)
    """Epochs of the expert that these steps are to make up for."""
    max_start_epoch: int = Field(2, ge=0)
    """The latest epoch of an expert that a student starts from."""
    batch_syn: int | None = Field(None, ge=1)
    """Synthetic images of one step; left out: all."""
    step_size: float = Field(0.01, gt=0)
    """The student's step size at the start; it is learnt."""
    lr_step_size: float = Field(1e-6, ge=0)
    """0 keeps the step size as it is."""


LEARNING_RATES = {"dm": 1.0, "dc": 0.1, "mtt": 1000.0}
"""The authors' learning rates of Z and c, by objective."""

DC_LOOPS = ((50, 50, 10), (40, 40, 15), (30, 30, 20), (20, 20, 25), (10, 10, 50), (1, 1, 1))
"""(images per class from which it holds, outer loop, inner loop), of Zhao et al.'s code."""
