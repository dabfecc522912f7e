"""`evaluate`: the protocol by which networks are trained on a distilled set and tested, and what a user may change."""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ld3m.recipe import values
from ld3m.recipe.values import Section


class EvaluateRecipe(Section):
    """How networks are trained on the distilled set and tested: a protocol, and what is to differ from it.

    A key that is left out has the protocol's own value; `recipes/PROTOCOLS.md` lists them.
    """

    protocol: str = Field("glad", min_length=1, max_length=100)
    """glad, minimax, idc, rded, rd3, rethinkdc, custom (plain training), or one of an installed package."""
    arch: list[str] = Field(["convnet"], min_length=1, max_length=100)
    """The architectures to train, as for `network.arch`."""
    seeds: int = Field(5, ge=1, le=10**4)
    """Networks of each architecture, which differ by their seed alone."""
    best: bool = False
    """Whether the best of the protocol's own test points is noted beside the accuracy after the last epoch. It is
    chosen by the test images, as most published figures are."""
    epochs: int | None = Field(None, ge=1, le=10**6)
    """Passes over the distilled set; left out: the protocol's, 1000 for glad."""
    batch: int | None = Field(None, ge=1, le=10**6)
    """Images of a training step; left out: the protocol's, 256 for glad."""
    lr: Annotated[
        Annotated[float, Field(gt=0, le=10**9)]
        | Literal["learnt"]
        | Annotated[dict[str, Annotated[float, Field(gt=0, le=10**9)]], Field(max_length=100)]
        | None,
        BeforeValidator(values.rates_or_learnt),
    ] = None
    """Peak learning rate of all networks but those for which the protocol has another, as glad has for VGG11; or the
    step size that trajectory matching learnt (learnt); or a rate by network, as in `{vgg11: 0.001, others: 0.01}`; left
    out: the protocol's, for glad 0.001, and 0.0001 for VGG11."""
    ema: float | None = Field(None, ge=0, lt=1)
    """Decay of the running average of the weights, which is updated each epoch and is what is tested; 0: no average;
    left out: the protocol's, 0.995 for glad."""
    augment: Annotated[bool | dict[str, bool | float | list[float]] | None, BeforeValidator(values.augmentation)] = None
    """How images are changed in training: false for not at all, true for the protocol's way, or any of these, in this
    order: dsa (differentiable Siamese augmentation), idc (colours, and a shift, scaling or rotation; both are of
    normalised images, and come last), shuffle (patches a side), crop (smallest and largest share of the
    area, which becomes the image), flip (share), jitter (brightness, contrast, saturation), lighting (deviation). For
    example `{crop: [0.5, 1], flip: 0.5}`."""
    cutmix: float | None = Field(None, ge=0, le=1000)
    """β of CutMix, by which a rectangle of another image is put into each image of a batch; 0: none."""
    cutmix_share: float | None = Field(None, gt=0, le=1)
    """The share of batches that CutMix mixes; left out: the protocol's, all but for idc."""
    optimiser: Literal["sgd", "adam", "adamw"] | None = None
    """The optimiser of the networks' weights."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Momentum of SGD, or the first of Adam's two decay rates."""
    weight_decay: float | None = Field(None, ge=0, le=1000)
    """Weight decay; Adam adds it to the gradient, AdamW does not."""
    decay_all: bool | None = None
    """Whether biases and the weights of norms decay too."""
    schedule: Literal["warmup-cosine", "step", "half-cosine", "cosine", "constant"] | None = None
    """The learning rate over the epochs: up for half of them and down by a cosine; × 0.2 at 2/3 and 5/6 of them; half a
    cosine, which ends at half the rate; a cosine to 0; or constant."""
    labels: Literal["hard", "soft"] | None = None
    """Whether networks learn the set's classes, or what a teacher makes of each batch (soft)."""
    temperature: float | None = Field(None, gt=0, le=10**6)
    """Temperature of soft labels, by which logits are divided on both sides."""
    temperature_squared: bool | None = None
    """Whether the divergence from soft labels is multiplied by the temperature's square, which keeps the size of its
    gradient."""
    soft_loss: Literal["divergence", "squared"] | None = None
    """How far a network is from soft labels: the divergence of its shares of the classes, or half of the squared
    distance of its logits, at no temperature, as FRePo has it; left out: divergence."""
    whitening: Literal["zca", "frepo"] | None = None
    """What networks see in place of images normalised by mean and deviation, real and synthetic alike: images whitened
    by ZCA, whose transform is fitted on the real training images, as MTT and its successors do (zca), or as FRePo and
    KIP do (frepo)."""
    test_resize: int | None = Field(None, ge=1, le=10**5)
    """Side to which test images are resized before their centre is cut out in `data.resolution`; no less than that."""
    tests: Literal["last", "hundredths", "last-fifth", "fifties"] | None = None
    """The test points of `evaluate.best`: the last epoch; each hundredth of them; each tenth epoch of the last fifth;
    or each fiftieth. The last is always one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of convolutions and matrix products in training and testing; bfloat16 is faster on GPUs. Weights
    stay in float32."""
    together: bool = False
    """Whether all processes of a launch train each network, each on its share of every batch, which equals one process
    up to rounding; by default each process trains networks of its own. Dropout is drawn by share."""
    mosaics: Literal["teacher", "scorer"] | None = None
    """Who says which crops of real images are easiest, of which `--against rded` is made: the teacher of soft labels,
    as in RDED, or `data.scorer`; left out: the teacher if labels are soft, else the scorer."""
    full_epochs: int | None = Field(None, ge=1, le=10**6)
    """Passes over all real images, for `--against full` and `--scores`; left out: as many as over the distilled set, or
    what the protocol has for so many images."""

    @property
    def before_a_run(self) -> "EvaluateRecipe":
        """With the protocol's own rate for a learnt one, which is not known before the run is there."""
        return self.changed({"lr": None}) if self.lr == "learnt" else self


KEPT = {"protocol", "arch", "seeds", "best", "whitening", "together", "dtype", "mosaics"}
"""Keys that say what is measured, or of what, and not how a protocol trains; or how fast."""


def from_own_values(overrides: Sequence[str], protocol: str | None) -> list[str]:
    """Overrides of a recipe by which another protocol starts from its own values.

    A recipe's changes are those of its own protocol.

    Args:
        overrides: `KEY=VALUE`, which change the values of the protocol.
        protocol: the protocol, if it is not in `overrides`.
    """
    named = [] if protocol is None else [f"evaluate.protocol={json.dumps(protocol)}"]
    if not named and not any(override.startswith("evaluate.protocol=") for override in overrides):
        return [*overrides]
    own = [f"evaluate.{key}=null" for key in EvaluateRecipe.model_fields if key not in KEPT]
    return [*own, *named, *overrides]
