"""What a recipe of a distillation may say: every key with its type, range and default."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

PACKAGED_PRIORS = {"fashion-mnist": Path(__file__).parent / "assets" / "prior-fashion-mnist"}
"""Priors that come with the package, by the name a recipe's `prior.source` may give."""

NAMED_DATA = ("fashion-mnist", "fashion-mnist-small")
"""Data sources known by name; all others are folders, Parquet files or `hub:<id>`."""


def _existing_data(source: str) -> str:
    if source in NAMED_DATA or source.startswith("hub:") or "*" in source or Path(source).exists():
        return source
    raise ValueError(
        f"{source!r} is not there; give a folder, Parquet files, hub:<id>, or one of {', '.join(NAMED_DATA)}"
    )


def _existing_prior(source: str) -> str:
    if source in PACKAGED_PRIORS or source.startswith("hub:"):
        return source
    if (Path(source) / "model_index.json").is_file():
        return source
    raise ValueError(
        f"{source!r} is not a folder with a model_index.json; train one with ld3m train-prior, "
        f"or give hub:<id> or one of {', '.join(PACKAGED_PRIORS)}"
    )


def _steps_or_all(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and value >= 0):
        return value
    raise ValueError(f"{value!r} is not right: give a number of steps, 0 or more, or all")


class Section(BaseModel):
    """Unknown keys are mistakes, and a validated recipe never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_not_1(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes`, `on` and `true` are no numbers, although Python counts with them."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"{value!r} is not right: this is not a key to switch on and off")
        return value


class DataRecipe(Section):
    """Which images, and what becomes of them."""

    source: Annotated[str, AfterValidator(_existing_data)]
    """A folder, Parquet files (a folder or pattern), `hub:<id>`, or a known name."""
    subset: list[Annotated[str, Field(coerce_numbers_to_str=True)]] | None = Field(None, min_length=1)
    """Names of the classes to use, in this order; all where left out."""
    resolution: int = Field(32, ge=8, le=1024)
    """Height and width in pixels: the short side is resized to it, the centre cropped."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour; every image mode is converted."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What to do about files that cannot be read; they are named either way."""
    image_column: str | None = None
    label_column: str | None = None
    test_share: float = Field(0.1, gt=0, lt=1)
    """The share of each class held out for testing where the source has no test split."""
    validation_share: float = Field(0, ge=0, lt=1)
    """The share of each class's training images held out, to tune on (`ld3m evaluate --split validation`)."""


class ScorerRecipe(Section):
    """The network whose losses order real images and whose features herding and k-center look at."""

    arch: str = "convnet"
    width: int = Field(64, ge=1)
    """Channels of a ConvNet; other networks have sizes of their own."""
    epochs: int = Field(3, ge=1)
    """Passes over the training images."""
    seed: int = Field(0, ge=0)
    """Its own, so that runs with other seeds share its scores."""
    source: str | None = None
    """Weights of a given network of this kind, a safetensors file; nothing is trained then."""


class DistilledDataRecipe(DataRecipe):
    """The data of a distillation, and the core-set of it that is distilled ("prune first, distil after")."""

    keep: float = Field(1, gt=0, le=1)
    """The share of each class's training images that is kept; test and validation images all are."""
    keep_order: Literal["easy", "hard", "random", "herding", "k-center"] = "easy"
    """Which are kept: of lowest or highest loss, any, or those that cover the features of the class."""
    scorer: ScorerRecipe = ScorerRecipe()


class SamplerRecipe(Section):
    """The frozen model and how it is sampled."""

    source: Annotated[str, AfterValidator(_existing_prior)]
    """A diffusers-style folder, `hub:<id>`, or the name of a packaged prior."""
    skip: Literal["paper", "reference", "none"] = "reference"
    """Where the decaying skip enters: Eq. 7 of the paper, the authors' code, or nowhere."""
    steps: int = Field(10, ge=1, le=999)
    """DDIM steps S."""
    guidance: float = 3.0
    """Classifier-free guidance scale g; at 1 the null class is not evaluated."""
    noise: Literal["fresh", "fixed"] = "fresh"
    """Whether the noise of an image is drawn anew each iteration or once for the run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    micro_batch: int = Field(64, ge=1)
    """Images that go through the prior at a time."""
    keep_graph_steps: Annotated[int | Literal["all"], BeforeValidator(_steps_or_all)] = "all"
    """How many of the last steps keep their graph: more is faster, fewer saves memory; 0 is flat in S."""


class DmRecipe(Section):
    """Keys of distribution matching."""

    augment: bool = True
    """Differentiable Siamese augmentation of both sides."""


class DistillRecipe(Section):
    """What is learnt, and how."""

    objective: str = "dm"
    """The matching loss."""
    images_per_class: int = Field(1, ge=1)
    iterations: int = Field(1000, ge=0)
    init: Literal["real", "noise", "prototype", "herding", "k-center", "easy", "hard"] = "real"
    """Z starts as encodings of random real images of the class, as standard normal noise, as k-means centres of the
    class's encodings, or as encodings of the images that the named selection takes."""
    learn: Literal["both", "latents", "conditioning"] = "both"
    lr_latents: float = Field(1.0, gt=0)
    lr_conditioning: float = Field(1.0, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1)
    real_batch: int = Field(256, ge=1)
    """Real images per class and iteration."""
    checkpoint_every: int = Field(100, ge=1)
    log_every: int = Field(1, ge=1)
    dm: DmRecipe = DmRecipe()


class NetworkRecipe(Section):
    """The network that the objective matches in."""

    arch: str = "convnet"
    depth: int | None = Field(None, ge=1)
    """Blocks of the ConvNet; left out: 3 at 32 px, 5 at 128 px, 6 at 256 px."""
    width: int = Field(128, ge=1)
    norm: Literal["instance", "batch", "group", "layer", "none"] = "instance"

    @model_validator(mode="after")
    def _groups_divide_width(self) -> "NetworkRecipe":
        if self.norm == "group" and self.width % 4:
            raise ValueError(f"width: {self.width} is not a multiple of 4, the groups of norm group")
        return self


class EvaluateRecipe(Section):
    """How networks are trained on the distilled set; the defaults are GLaD's protocol."""

    arch: list[str] = Field(["convnet"], min_length=1)
    seeds: int = Field(5, ge=1)
    epochs: int = Field(1000, ge=1)
    batch: int = Field(256, ge=1)
    lr: float | None = Field(None, gt=0)
    """Peak learning rate; left out: 0.001, and 0.0001 for VGG11."""
    ema: float = Field(0.995, ge=0, lt=1)
    """Decay of the weights' average over epochs, which is what is tested."""
    augment: bool = True


class HubRecipe(Section):
    """Where `ld3m push-to-hub` sends the result."""

    repo_id: str | None = None
    private: bool = False


class Recipe(Section):
    """Everything about a distillation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    output: str | None = None
    """The run folder; left out: runs/<name>."""
    data: DistilledDataRecipe
    prior: SamplerRecipe
    distill: DistillRecipe = DistillRecipe()
    network: NetworkRecipe = NetworkRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    hub: HubRecipe = HubRecipe()

    @model_validator(mode="after")
    def _blocks_halve(self) -> "Recipe":
        depth, resolution = self.network.depth, self.data.resolution
        if depth and resolution < 2**depth:
            raise ValueError(
                f"network.depth: {depth} blocks halve {resolution} pixels to nothing; "
                f"give {resolution.bit_length() - 1} or fewer, or a larger data.resolution"
            )
        return self

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.output or f"runs/{self.name}")
