"""The keys of each objective, and the defaults that depend on the objective."""

from typing import Literal

from pydantic import Field

from ld3m.recipe.values import Section


class DmRecipe(Section):
    """Distribution matching (`distill.objective=dm`)."""

    augment: bool = True
    """Whether differentiable Siamese augmentation changes real and synthetic images, both alike."""
    match: Literal["mean", "moments", "characteristic"] = "mean"
    """What the features of real and synthetic images should have in common: their mean, as published; the mean and the
    standard deviation of each feature (moments); or the characteristic function of their directions, at random
    frequencies, which is NCFM (Wang et al., CVPR 2025). The mean alone leaves the images of a class free to be
    alike."""
    frequencies: int = Field(4096, ge=1, le=10**6)
    """Random frequencies of the characteristic function, others in each iteration."""
    amplitude: float = Field(0.5, ge=0, le=1)
    """Weight of the difference of amplitudes of the characteristic function, the α of NCFM: how varied images are."""
    phase: float = Field(0.5, gt=0, le=1)
    """Weight of the difference of phases, its β: how images are on average."""
    pool: int | None = Field(None, ge=1, le=10**5)
    """Networks that take turns, each of which sees its real images once, under one augmentation: `distill.real_batch`
    may be large then. Left out: another network in each iteration, as published."""


class DcRecipe(Section):
    """Gradient matching (`distill.objective=dc`)."""

    augment: bool = True
    """Whether differentiable Siamese augmentation changes real and synthetic images, and those of the inner loop."""
    match: Literal["rows", "orthogonal"] = "rows"
    """How gradients are compared: by the cosine of each output's weights, as published (rows), or as whole matrices
    with all singular values set to one, which is OGM (Bo et al., CVPR 2026)."""
    outer: int = Field(1, ge=1, le=10**4)
    """Matches that one network goes through; left out: 1 at 1 image per class, 10 at 10, 50 at 50."""
    inner: int = Field(1, ge=0, le=10**4)
    """Epochs that the network trains on the synthetic set between matches; left out: 1 at 1 image per class, 50 at 10,
    10 at 50."""
    lr_network: float = Field(0.01, gt=0, le=10**9)
    """Learning rate of that training."""
    batch: int = Field(256, ge=1, le=10**6)
    """Synthetic images of a step of the inner loop."""


class LgmRecipe(Section):
    """Linear gradient matching (`distill.objective=lgm`)."""

    augment: bool = True
    """Whether differentiable Siamese augmentation changes real and synthetic images, both alike."""


class MttRecipe(Section):
    """Trajectory matching (`distill.objective=mtt`)."""

    augment: bool = True
    """Whether differentiable Siamese augmentation changes the synthetic images, each differently."""
    syn_steps: int = Field(10, ge=1, le=10**4)
    """Steps that the student network takes on synthetic images."""
    expert_epochs: int = Field(2, ge=1, le=10**4)
    """Epochs of the expert that these steps should make up for."""
    max_start_epoch: int = Field(2, ge=0, le=10**4)
    """The latest epoch of an expert from which a student starts, included; the authors' code stops one before it."""
    batch_syn: int | None = Field(None, ge=1, le=10**6)
    """Synthetic images of one of these steps; left out: all."""
    step_size: float = Field(0.01, gt=0, le=10**9)
    """The student's step size at the start; it is learnt."""
    lr_step_size: float = Field(1e-6, ge=0, le=10**9)
    """Learning rate of the step size; 0 keeps it as it is."""


LEARNING_RATES = {"dm": 1.0, "dc": 0.1, "mtt": 1000.0, "lgm": 1000.0}
"""Learning rates of Z and c by objective: the authors', but for lgm, whose authors use Adam."""

LARS_RATE = 0.1
"""Learning rate of Z and c with LARS, whatever the objective: about the share that tuned SGD moves Z by in a step."""

DC_LOOPS = ((50, 50, 10), (40, 40, 15), (30, 30, 20), (20, 20, 25), (10, 10, 50), (1, 1, 1))
"""(fewest images per class, outer loop, inner loop), from the code of Zhao et al."""
