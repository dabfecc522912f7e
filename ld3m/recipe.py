"""Recipes: the YAML files that say everything about a run, typed, validated and resolved."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ld3m.errors import UserError, one_line

PACKAGED_PRIORS = {"fashion-mnist": Path(__file__).parent / "assets" / "prior-fashion-mnist"}
"""Priors that come with the package, by the name a recipe's `prior.source` may give."""

NAMED_DATA = ("fashion-mnist", "fashion-mnist-small")
"""Data sources known by name; all others are folders, Parquet files or `hub:<id>`."""

NORM_GROUPS = 16
"""Normalisation groups of the networks of a prior; their channel counts are multiples of it."""


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
    init: Literal["real", "noise"] = "real"
    """Z starts as the encoding of a random real image of the class, or as standard normal noise."""
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
    data: DataRecipe
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


class AutoencoderRecipe(Section):
    """The VQ autoencoder of a prior and its training."""

    channels: list[PositiveInt] = Field([32, 64, 64], min_length=1)
    """Channels of each level; every level but the last halves the resolution."""
    latent_channels: int = Field(3, ge=1)
    codes: int = Field(512, ge=2)
    steps: int = Field(6000, ge=1)
    batch: int = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> "AutoencoderRecipe":
        if bad := [count for count in self.channels if count % NORM_GROUPS]:
            raise ValueError(f"channels: {bad[0]} is not a multiple of {NORM_GROUPS}, the normalisation groups")
        return self


class DenoiserRecipe(Section):
    """The class-conditional UNet of a prior and its training."""

    channels: list[PositiveInt] = Field([64, 96], min_length=1)
    """Channels of each level; the latents are halved between levels."""
    layers: int = Field(1, ge=1)
    attention: list[bool] = [False, True]
    """Whether a level has attention (to itself and to the class); at least one must."""
    heads: int = Field(4, ge=1)
    class_width: int = Field(64, ge=1)
    """Width of the class embedding."""
    null_share: float = Field(0.1, ge=0, lt=1)
    """How often training sees the null class, which guidance needs."""
    ema: float = Field(0.9995, ge=0, lt=1)
    steps: int = Field(30000, ge=1)
    batch: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _levels_agree(self) -> "DenoiserRecipe":
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention: has {len(self.attention)} entries for {len(self.channels)} channels; give one a level"
            )
        if not any(self.attention):
            raise ValueError("attention: at least one level must attend, or the class would not be seen")
        if bad := [count for count in self.channels if count % NORM_GROUPS or count % self.heads]:
            raise ValueError(f"channels: {bad[0]} is not a multiple of {NORM_GROUPS} and of heads ({self.heads})")
        return self


class PriorEvaluateRecipe(Section):
    """How a trained prior judges itself."""

    samples: int = Field(1000, ge=1)
    steps: int = Field(20, ge=1, le=999)
    guidance: list[float] = [1.0, 3.0]
    classifier_epochs: int = Field(3, ge=1)
    classifier_width: int = Field(64, ge=1)


class PriorRecipe(Section):
    """Everything about training a small class-conditional latent diffusion model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    output: str | None = None
    """The folder of the prior; left out: priors/<name>."""
    data: DataRecipe
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    checkpoint_every: int = Field(1000, ge=1)
    evaluate: PriorEvaluateRecipe = PriorEvaluateRecipe()

    @model_validator(mode="after")
    def _latents_divide(self) -> "PriorRecipe":
        halvings = len(self.autoencoder.channels) + len(self.denoiser.channels) - 2
        if self.data.resolution % 2**halvings:
            raise ValueError(f"data.resolution: {self.data.resolution} cannot be halved {halvings} times")
        return self

    @property
    def folder(self) -> Path:
        """Where the prior lives."""
        return Path(self.output or f"priors/{self.name}")


AnyRecipe = TypeVar("AnyRecipe", Recipe, PriorRecipe)


def find(name: str) -> Path:
    """The file that a recipe's name means: a path, or NAME for recipes/NAME.yaml here or in the package."""
    package = Path(__file__).parent
    folders = [Path("recipes"), package / "recipes", package.parent / "recipes"]
    for path in [Path(name), *(folder / f"{name}.yaml" for folder in folders)]:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(f"{name}: there is no such recipe; give a YAML file or one of {', '.join(known)}")


def load(kind: type[AnyRecipe], name: str, overrides: list[str] | None = None) -> AnyRecipe:
    """Reads and validates a recipe.

    Args:
        kind: `Recipe` or `PriorRecipe`.
        name: a file, or the name of a shipped recipe.
        overrides: `KEY=VALUE` with dots in KEY and YAML in VALUE.

    Raises:
        UserError: with one line for each mistake in the file and in the overrides.
    """
    path = find(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-01
        raise UserError(f"{path}: cannot be read as YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: has no keys; a recipe is made of lines such as name: my-run")
    mistakes: list[str] = []
    for override in overrides or []:
        try:
            _apply(content, override)
        except UserError as error:
            mistakes += error.lines
    try:
        recipe = kind.model_validate(content)
    except ValidationError as error:
        mistakes += [f"{path}: {_explain(kind, mistake)}" for mistake in error.errors()]
    if mistakes:
        raise UserError(*mistakes)
    return recipe


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override}: overrides have the form KEY=VALUE, such as distill.iterations=200")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{override}: {text!r} is not a YAML value") from None
    *sections, last = key.split(".")
    for name in sections:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise UserError(f"{override}: {name} is a value, not a section with keys of its own")
    content[last] = value


def _explain(kind: type[BaseModel], mistake: Any) -> str:
    """One line for one of pydantic's errors: the key, the value, what would be right."""
    key, value, message = ".".join(map(str, mistake["loc"])), mistake["input"], mistake["msg"]
    match mistake["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; {_right_key(kind, key)}"
        case "missing":
            return f"{key}: is missing"
        case "model_type":
            known = [name.removeprefix(f"{key}.") for name in _keys(kind) if name.rpartition(".")[0] == key]
            return f"{key}: {value!r} is not right: give a section with some of {', '.join(known)}"
        case "value_error":  # one of ours; that of a whole section names the key below it
            section = f"{key}." if key and isinstance(value, BaseModel | dict) else f"{key}: " if key else ""
            return section + message.removeprefix("Value error, ")
    return f"{key}: {value!r} is not right: {message[0].lower()}{message[1:]}"


def _right_key(kind: type[BaseModel], key: str) -> str:
    """The nearest key of the same section, or keys of that name in others, or all that the section has."""
    section, dot, last = key.rpartition(".")
    known = [name.rpartition(".")[2] for name in _keys(kind) if name.rpartition(".")[0] == section]
    near = [f"{section}{dot}{name}" for name in difflib.get_close_matches(last, known, n=1)]
    found = near or [name for name in _keys(kind) if name.rpartition(".")[2] == last]
    return f"did you mean {' or '.join(found)}?" if found else f"known are {', '.join(known)}"


def _keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a recipe, with the sections it is in before it."""
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{prefix}{name}.")
    return keys


def to_yaml(recipe: Recipe | PriorRecipe) -> str:
    """The resolved recipe, every default written out; loading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def digest(recipe: Recipe | PriorRecipe) -> str:
    """A hash of all that decides the path of the optimisation.

    How far it goes, what it saves on the way, how memory is spent and what is done with the result do not
    count: an unfinished run may go on with other values of those.
    """
    content = recipe.model_dump(
        mode="json",
        exclude={
            "name": True,
            "output": True,
            "evaluate": True,
            "hub": True,
            "checkpoint_every": True,
            "prior": {"micro_batch", "keep_graph_steps"},
            "distill": {"iterations", "checkpoint_every", "log_every"},
        },
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
