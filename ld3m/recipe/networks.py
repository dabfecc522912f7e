"""The keys of the networks that an objective compares images in, and of their experts."""

from typing import Literal

from pydantic import Field, model_validator

from ld3m.recipe.values import Section


class NetworkRecipe(Section):
    """The matching network, in which the objective compares real and synthetic images."""

    arch: str = "convnet"
    """convnet, resnet18, vgg11, alexnet, vit; convnet6, resnetap10 and resnet18_idc, as IDC and Minimax have them;
    `timm/<model>`, or one of an installed package."""
    depth: int | None = Field(None, ge=1, le=100)
    """Blocks of the ConvNet, each of which halves the image; left out: 3 at 32 px and one more
    for each doubling: 5 at 128 px, 6 at 256 px."""
    width: int = Field(128, ge=1, le=10**4)
    """Channels of the ConvNet's blocks; a multiple of 4 with `network.norm=group`."""
    norm: Literal["instance", "batch", "group", "layer", "none"] = "instance"
    """Normalisation in all networks but AlexNet, ViT and timm's."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """What halves the images after each block of the ConvNet; none keeps the full resolution."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's passes in an objective, and of the training of experts; weights, losses and what is
    learnt stay in float32. Many times slower on a CPU without instructions for bfloat16."""

    @model_validator(mode="after")
    def _groups_divide_width(self) -> "NetworkRecipe":
        if self.norm == "group" and self.width % 4:
            raise ValueError(f"width: {self.width} is not a multiple of 4, the groups of norm group")
        return self


class ExpertsRecipe(Section):
    """Networks trained on the real images with a snapshot per epoch, for mtt and for `distill.networks=experts`."""

    folder: str | None = None
    """The folder they are in; left out: `experts/<name>`."""
    count: int = Field(100, ge=1, le=10**5)
    """How many there are; a larger number adds to those already trained."""
    epochs: int = Field(15, ge=1, le=10**4)
    """Passes of each over the real images; at least `distill.mtt.max_start_epoch` + `distill.mtt.expert_epochs`."""
    batch: int = Field(256, ge=1, le=10**6)
    """Real images of a training step."""
    lr: float = Field(0.01, gt=0, le=10**9)
    """Learning rate of plain SGD, without momentum."""
    augment: bool = True
    """Whether differentiable Siamese augmentation changes the real images in training."""
    dtype: Literal["float32", "float16"] = "float32"
    """Precision of the snapshots on disk; float16 takes half the space."""
    together: int = Field(1, ge=1, le=1000)
    """Networks that a process trains at once, as one stack."""
