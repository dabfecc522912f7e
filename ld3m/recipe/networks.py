"""The keys of the networks that an objective compares images in, of their experts, and of teachers."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ld3m.recipe import values
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


Levels = Annotated[list[Annotated[float, Field(ge=-1000, le=1000)]], Field(min_length=1, max_length=3)]
"""A number for each channel."""


class TeacherRecipe(Section):
    """A network whose outputs are soft labels: which one, and how `ld3m train-teacher` trains it on the real images."""

    source: str | None = None
    """torchvision/<model> or timm/<model>, with its pre-trained weights; a folder of `ld3m train-teacher`; a file
    (.safetensors, .pt) with weights of `teacher.arch`; or stored: the labels that `ld3m label` stored with the set.
    Left out: the labels of the set, if it has some, else the folder `teachers/<name>` of `ld3m train-teacher`."""
    arch: str = "resnet18"
    """The architecture that is trained, or whose weights a file has: as for `network.arch`, or torchvision/<model>."""
    norm: Literal["batch", "instance", "group", "layer", "none"] = "batch"
    """Normalisation in a ConvNet, ResNet18 or VGG11."""
    width: int = Field(128, ge=1, le=10**4)
    """Channels of a ConvNet's blocks."""
    depth: int | None = Field(None, ge=1, le=100)
    """Blocks of a ConvNet; left out: as for `network.depth`."""
    classes: Annotated[list[str] | str | None, BeforeValidator(values.class_list)] = None
    """The classes of a file's outputs, in their order: a list of names or WordNet ids, a .txt or .json file of one, or
    by-position: those of the real images. Left out: those that the file names, or ImageNet's if it has 1,000
    outputs."""
    mean: Levels | None = None
    """What a file's network subtracts from each channel, in units of [0, 1]; left out: ImageNet's if it has 1,000
    outputs, else the mean of the training images."""
    std: Levels | None = None
    """What it divides by then; left out: as for `teacher.mean`."""
    resolution: int | None = Field(None, ge=8, le=4096)
    """Height and width that images are resized to for a teacher; left out: those it was trained on, as far as that is
    known, else `data.resolution`."""
    epochs: int = Field(30, ge=1, le=10**5)
    """Passes over the real images in training."""
    batch: int = Field(128, ge=1, le=10**6)
    """Real images of a training step."""
    lr: float = Field(1e-3, gt=0, le=10**9)
    """Peak learning rate of AdamW, which rises over the first tenth of the steps and falls by a cosine."""
    augment: bool = True
    """Whether differentiable Siamese augmentation changes the real images in training."""
    checkpoint_every: int = Field(1000, ge=1, le=10**9)
    """Training steps between checkpoints, from which a killed training resumes; there is one every five minutes at
    least."""

    @property
    def network(self) -> NetworkRecipe:
        """The keys that its architecture depends on."""
        return NetworkRecipe(norm=self.norm, width=self.width, depth=self.depth)

    @model_validator(mode="after")
    def _mean_and_std_belong_together(self) -> "TeacherRecipe":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean: and std belong together; give a number of each for every channel, or neither")
        if any(value <= 0 for value in self.std or ()):
            raise ValueError(f"std: {self.std} is invalid: images are divided by it; give numbers greater than 0")
        return self
