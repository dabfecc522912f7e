"""The `data` section of a recipe: which real images, how they are prepared, and which share of them is distilled."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ld3m.recipe import values
from ld3m.recipe.values import Section


def _ascending(values: list[float]) -> list[float]:
    """`data.range`: black first."""
    black, white = values
    if black >= white:
        raise ValueError(f"{values} is invalid: give [black, white] with the smaller value first, such as [0, 4095]")
    return values


class DataRecipe(Section):
    """The real images, and how they are prepared."""

    removed_keys: ClassVar[dict[str, tuple[Any, str]]] = {
        "workers": (None, "as many threads read images as there are processor cores to use, 8 at most; leave it out")
    }

    source: str
    """Where the images are: a folder (`train/<class>/…` and `test/<class>/…`, or `<class>/…` alone), Parquet files (a
    file, folder or pattern), `hub:<id>`, or one of digits, fashion-mnist, fashion-mnist-small, imagenet; installed
    packages may add names."""
    root: str | None = None
    """Where `data.source=imagenet` is: a folder in any layout that recipes/DATA.md lists (class folders, Kaggle's, the
    official tars, Parquet files, …), or `hub:<id>`; left out: $LD3M_IMAGENET, else a usual place (`imagenet` or
    `data/imagenet` here or in the home folder, /data/imagenet, …), else `hub:ILSVRC/imagenet-1k`."""
    subset: Annotated[list[str] | str | None, BeforeValidator(values.class_list)] = None
    """The classes to use, in this order; left out: all. A list of names, WordNet ids (of ImageNet) or numbers in the
    source's order, from 0; a .txt file (one class per line) or .json file of such a list, which the resolved recipe
    holds in its place; or the name of a subset of ImageNet: imagenette, imagewoof, a to e, birds, cats, fruits,
    yellow and others."""
    resolution: int = Field(32, ge=8, le=1024)
    """Height and width in pixels: the short side is resized to it, then the centre is cropped."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour; images of any mode are converted."""
    range: (
        Annotated[
            list[Annotated[float, Field(ge=-(10**12), le=10**12)]],
            Field(min_length=2, max_length=2),
            AfterValidator(_ascending),
        ]
        | None
    ) = None
    """The values that become black and white in images of more than 8 bits per value, such as `[0, 4095]`; left out:
    found once for the whole source and printed. Images of 8 bits are 0 to 255."""
    max_pixels: int = Field(178_956_970, ge=1, le=10**12)
    """The largest image that is read, in pixels, since a small file can claim to hold an enormous one; Pillow's own
    limit. Each thread that reads holds one image in memory."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What to do about files that cannot be read: stop, or leave them out. They are named either way."""
    image_column: str | None = None
    """The column of images in Parquet files or a Hub data set; left out: the first that holds images, or is called
    image or img."""
    label_column: str | None = None
    """The column of classes in Parquet files or a Hub data set; left out: the first of type ClassLabel, or one called
    label, labels, class, fine_label, class_id or target."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """The share of each class's images that is held out for testing if the source has no test split."""
    validation_share: float = Field(0, ge=0, lt=1)
    """The share of each class's training images that is held out for tuning (`ld3m evaluate --split validation`)."""

    @model_validator(mode="after")
    def _only_imagenet_has_a_root(self) -> "DataRecipe":
        if self.root and self.source != "imagenet":
            raise ValueError(
                f"root: {self.root!r} is only for data.source=imagenet; give data.source the folder itself"
            )
        return self


class ScorerRecipe(Section):
    """The network that orders real images by its losses, and whose features herding and k-center use."""

    arch: str = "convnet"
    """Its architecture, as for `network.arch`."""
    width: int = Field(64, ge=1, le=10**4)
    """Channels of a ConvNet; other architectures have sizes of their own."""
    epochs: int = Field(3, ge=1, le=10**4)
    """Passes over the training images."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of its weights and batches, apart from the recipe's `seed`, so that runs with other seeds share its
    scores."""
    source: str | None = None
    """A safetensors file with weights of this architecture, which are used as they are; left out: it is trained."""


class DistilledDataRecipe(DataRecipe):
    """The real images, how they are prepared, and which share of them is distilled ("prune first, distil after")."""

    read_test: bool = True
    """Whether the source's test images are read; false leaves them alone, as `ld3m tune` does until its end. Those that
    are held out of the training images, if the source has no test split, are prepared with these, and not used."""
    keep: float = Field(1, gt=0, le=1)
    """The share of each class's training images that is distilled; test and validation images are all kept."""
    keep_order: Literal["easy", "hard", "random", "herding", "k-center"] = "easy"
    """Which of them: those of lowest loss (easy) or highest (hard), random ones, or those that herding or k-center
    chooses to cover the features of the class."""
    scorer: ScorerRecipe = ScorerRecipe()
