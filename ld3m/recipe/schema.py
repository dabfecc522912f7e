"""What a recipe of a distillation may say: every key with its type, range and default."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ld3m.recipe import values
from ld3m.recipe.objectives import DC_LOOPS, LEARNING_RATES, DcRecipe, DmRecipe, MttRecipe
from ld3m.recipe.values import Section


class DataRecipe(Section):
    """Which images, and what becomes of them."""

    source: Annotated[str, AfterValidator(values.existing_data)]
    """A folder, Parquet files (a folder or pattern), `hub:<id>`, or a known name."""
    root: Annotated[str, AfterValidator(values.existing_root)] | None = None
    """Where `source: imagenet` is: a folder, or `hub:<id>`; left out: $LD3M_IMAGENET, else hub:ILSVRC/imagenet-1k."""
    subset: Annotated[list[str] | str | None, BeforeValidator(values.classes)] = None
    """The classes to use, in this order; all where left out.

    A list of names, WordNet ids (of ImageNet) or numbers in the source's order, from 0; a .txt or .json file of such a
    list; or the name of a subset of ImageNet: imagenette, imagewoof, a to e, birds, cats, fruits, yellow, …
    """
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
    workers: int | None = Field(None, ge=1)
    """Threads that read images when they are prepared; left out: one a core, 8 at most."""

    @model_validator(mode="after")
    def _only_imagenet_has_a_root(self) -> "DataRecipe":
        if self.root and self.source != "imagenet":
            raise ValueError(
                f"root: {self.root!r} is only for data.source=imagenet; give data.source the folder itself"
            )
        return self


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

    source: Annotated[str, AfterValidator(values.existing_prior)]
    """A diffusers-style folder, `hub:<id>`, or the name of a packaged prior."""
    denoiser: Literal["trained", "random"] = "trained"
    """Whether the denoiser has its own weights or random ones, the paper's ablation of what the prior knows."""
    skip: Literal["paper", "reference", "none"] = "reference"
    """Where the decaying skip enters: Eq. 7 of the paper, the authors' code, or nowhere."""
    prompt: Annotated[str, AfterValidator(values.with_a_place)] = "a photo of a {}"
    """Of a prior that is conditioned on text: what each class's c starts as, its name in the place of {}."""
    resolution: int | None = Field(None, ge=8)
    """Height and width in pixels of what it renders, which are resized to data.resolution; left out: its own."""
    scaling_factor: float | None = Field(None, gt=0)
    """What encodings are multiplied by to have unit variance; left out: as the autoencoder's configuration says."""
    steps: int = Field(10, ge=0, le=1000)
    """DDIM steps S; 0 is the autoencoder alone, without noise or denoiser."""
    guidance: float = 3.0
    """Classifier-free guidance scale g; at 1 the null class is not evaluated."""
    noise: Literal["fresh", "fixed"] = "fresh"
    """Whether the noise of an image is drawn anew each iteration or once for the run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    micro_batch: Annotated[int | Literal["auto"], BeforeValidator(values.images_or_auto)] = 64
    """Images that go through the prior at a time; auto: as many as fit, which may round otherwise where memory is
    another."""
    keep_graph_steps: Annotated[int | Literal["all", "auto"], BeforeValidator(values.steps_or_all)] = "all"
    """How many of the last steps keep their graph: more is faster, fewer saves memory; 0 is flat in S; auto: as many as
    fit beside the micro-batch."""
    compile: bool = False
    """Whether torch.compile makes kernels of the denoiser: the first iteration takes minutes, rounding is another."""

    @property
    def images_at_a_time(self) -> int:
        """`micro_batch` as a number; 64 for an "auto" that is not settled."""
        return 64 if self.micro_batch == "auto" else self.micro_batch

    @property
    def kept_steps(self) -> int:
        """`keep_graph_steps` as a number of steps; 0 for an "auto" that is not settled."""
        keep = {"all": self.steps, "auto": 0}.get(str(self.keep_graph_steps), self.keep_graph_steps)
        return min(int(keep), self.steps)


class DistillRecipe(Section):
    """What is learnt, and how."""

    objective: str = "dm"
    """The matching loss."""
    images_per_class: int = Field(1, ge=1)
    factor: int = Field(1, ge=1)
    """Each image holds factor × factor smaller ones side by side, which networks see enlarged (IDC's multi-formation);
    a latent for each."""
    iterations: int = Field(1000, ge=0)
    init: Annotated[str, AfterValidator(values.known_start)] = "real"
    """What Z starts as: encodings of random real images of the class (real), standard normal noise, k-means centres of
    the class's encodings (prototype), encodings of the images that herding, k-center, easy or hard takes; or Z and c
    of a finished run, its folder or `hub:<id>`."""
    learn: Literal["both", "latents", "conditioning"] = "both"
    lr_latents: float = Field(1.0, gt=0)
    """Left out: 1 for dm, 0.1 for dc, 1000 for mtt."""
    lr_conditioning: float = Field(1.0, gt=0)
    """Left out: 1 for dm, 0.1 for dc, 1000 for mtt."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Of Z and c. Adam's steps are of the rate's own size, whatever the gradient's: rates of 0.01 to 0.1 suit it."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """Of SGD, or the first of Adam's two."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rates: as they are, or falling to 0 at the last iteration, which then cannot be raised later."""
    networks: Literal["random", "experts"] = "random"
    """Which networks dm and dc match in: fresh random ones, as published, or the experts as they were after an epoch
    that is drawn each time, the trained networks of IDM (Zhao et al., CVPR 2023)."""
    real_batch: int = Field(256, ge=1)
    """Real images per class and iteration."""
    checkpoint_every: int = Field(100, ge=1)
    log_every: int = Field(1, ge=1)
    """Iterations from one that is logged to the next; a GPU is waited for in these alone."""
    pictures: int = Field(20, ge=0)
    """Pictures of the images on their way, at most, for evolution.gif and the report."""
    dm: DmRecipe = DmRecipe()
    dc: DcRecipe = DcRecipe()
    mtt: MttRecipe = MttRecipe()
    options: dict[str, Any] = Field(default_factory=dict)
    """Whatever an objective of another package wants to know."""

    @property
    def latents_per_class(self) -> int:
        """Latents, and so rendered images, of a class."""
        return self.images_per_class * self.factor**2

    @model_validator(mode="after")
    def _one_image_has_no_deviation(self) -> "DistillRecipe":
        if self.objective == "dm" and self.dm.match == "moments" and self.latents_per_class == 1:
            raise ValueError(
                "dm.match: moments takes the standard deviation of a class's images, and there is one; "
                "give more distill.images_per_class, or distill.factor=2"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, content: Any) -> Any:
        """Writes out the learning rates of the objective, and gradient matching's loops for the images per class."""
        if not isinstance(content, dict):
            return content
        rate = LEARNING_RATES.get(str(content.get("objective")), 1.0)
        filled = {"lr_latents": rate, "lr_conditioning": rate, **content}
        count, dc = content.get("images_per_class", 1), content.get("dc") or {}
        if isinstance(count, int) and isinstance(dc, dict):
            outer, inner = next((loops for least, *loops in DC_LOOPS if count >= least), (1, 1))
            filled["dc"] = {"outer": outer, "inner": inner, **dc}
        return filled


class NetworkRecipe(Section):
    """The network that the objective matches in."""

    arch: str = "convnet"
    """convnet, resnet18, vgg11, alexnet, vit, timm/<model>, or another package's."""
    depth: int | None = Field(None, ge=1)
    """Blocks of the ConvNet; left out: 3 at 32 px, 5 at 128 px, 6 at 256 px."""
    width: int = Field(128, ge=1)
    """Channels of the ConvNet's blocks."""
    norm: Literal["instance", "batch", "group", "layer", "none"] = "instance"
    """Of the ConvNet, ResNet18 and VGG11."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """What halves the images after each block of the ConvNet; "none" keeps the full resolution."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the network's passes in an objective; weights, losses and what is learnt are float32, experts are trained in
    it. A CPU without instructions for bfloat16 takes many times longer by it."""

    @model_validator(mode="after")
    def _groups_divide_width(self) -> "NetworkRecipe":
        if self.norm == "group" and self.width % 4:
            raise ValueError(f"width: {self.width} is not a multiple of 4, the groups of norm group")
        return self


class ExpertsRecipe(Section):
    """Networks trained on the real images, a snapshot an epoch; for mtt and for `distill.networks: experts`."""

    folder: str | None = None
    """Where they are; left out: experts/<name>."""
    count: int = Field(100, ge=1)
    epochs: int = Field(15, ge=1)
    batch: int = Field(256, ge=1)
    lr: float = Field(0.01, gt=0)
    augment: bool = True
    dtype: Literal["float32", "float16"] = "float32"
    """Of the snapshots on disk."""
    together: int = Field(1, ge=1)
    """Networks that a process trains at once, as one stack."""


class EvaluateRecipe(Section):
    """How networks are trained on the distilled set; the defaults are GLaD's protocol."""

    arch: list[str] = Field(["convnet"], min_length=1)
    seeds: int = Field(5, ge=1)
    epochs: int = Field(1000, ge=1)
    batch: int = Field(256, ge=1)
    lr: Annotated[float | Literal["learnt"] | None, BeforeValidator(values.rate_or_learnt)] = None
    """Peak learning rate, or the step size that trajectory matching learnt; left out: 0.001, and 0.0001 for VGG11."""
    ema: float = Field(0.995, ge=0, lt=1)
    """Decay of the weights' average over epochs, which is what is tested."""
    augment: bool = True
    full_epochs: int | None = Field(None, ge=1)
    """Passes over all real images, of `--against full` and `--scores`; left out: `epochs`."""


class HubRecipe(Section):
    """Where `ld3m push-to-hub` sends the result."""

    repo_id: str | None = None
    """`user/name`; left out: `ld3m-` and the name of the run, of whoever is logged in."""
    private: bool = False
    licence: str | None = None
    """Of the result, as the Hub names it, such as cc-by-4.0; left out: those of the real images and of the prior."""


class Recipe(Section):
    """Everything about a distillation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    output: str | None = None
    """The run folder; left out: runs/<name>."""
    log_with: Annotated[list[str], BeforeValidator(values.one_or_more)] = Field(default_factory=list)
    """Trackers that get the numbers and pictures too: tensorboard, trackio, wandb, or another of Accelerate's."""
    tf32: bool = False
    """Whether NVIDIA's GPUs convolve and multiply float32 in TF32, of 11 significant bits; other devices know no such
    thing."""
    data: DistilledDataRecipe
    prior: SamplerRecipe
    distill: DistillRecipe = DistillRecipe()
    network: NetworkRecipe = NetworkRecipe()
    experts: ExpertsRecipe = ExpertsRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    hub: HubRecipe = HubRecipe()

    @model_validator(mode="after")
    def _blocks_halve(self) -> "Recipe":
        depth, resolution = self.network.depth, self.data.resolution
        halves = self.network.arch == "convnet" and self.network.pooling != "none"
        if halves and depth and resolution < 2**depth:
            raise ValueError(
                f"network.depth: {depth} blocks halve {resolution} pixels to nothing; "
                f"give {resolution.bit_length() - 1} or fewer, or a larger data.resolution"
            )
        return self

    @model_validator(mode="after")
    def _images_fit_side_by_side(self) -> "Recipe":
        factor, resolution = self.distill.factor, self.data.resolution
        if resolution % factor:
            raise ValueError(
                f"distill.factor: {factor} does not divide {resolution}; give a divisor, or another data.resolution"
            )
        return self

    @model_validator(mode="after")
    def _pixels_have_no_denoiser(self) -> "Recipe":
        if self.prior.source == "pixels" and (self.prior.steps or self.prior.resolution):
            raise ValueError(
                "prior.source: pixels has neither denoiser nor size; set prior.steps=0, no prior.resolution"
            )
        return self

    @model_validator(mode="after")
    def _trajectories_start_from_experts(self) -> "Recipe":
        if self.distill.objective == "mtt" and self.distill.networks == "experts":
            raise ValueError(
                "distill.networks: experts is for dm and dc, as mtt matches experts anyway; give no distill.networks"
            )
        return self

    @model_validator(mode="after")
    def _experts_go_far_enough(self) -> "Recipe":
        mtt = self.distill.mtt
        needed = mtt.max_start_epoch + mtt.expert_epochs
        if self.distill.objective == "mtt" and self.experts.epochs < needed:
            raise ValueError(
                f"experts.epochs: {self.experts.epochs}, but distill.mtt.max_start_epoch + expert_epochs is {needed}; "
                "give as many epochs, or lower these"
            )
        return self

    @property
    def rendered_size(self) -> int:
        """Height and width of a rendered image."""
        return self.data.resolution // self.distill.factor

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def needs_experts(self) -> bool:
        """Whether a run takes the experts that `ld3m experts` trains."""
        return self.distill.objective == "mtt" or self.distill.networks == "experts"

    @property
    def experts_folder(self) -> Path:
        """Where the experts are."""
        return Path(self.experts.folder or f"experts/{self.name}")
