"""The recipe of a distillation: every key with its type, range, default and meaning."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ld3m.recipe import values
from ld3m.recipe.data import DistilledDataRecipe
from ld3m.recipe.evaluation import EvaluateRecipe
from ld3m.recipe.networks import ExpertsRecipe, NetworkRecipe, TeacherRecipe
from ld3m.recipe.objectives import DC_LOOPS, LARS_RATE, LEARNING_RATES, DcRecipe, DmRecipe, LgmRecipe, MttRecipe
from ld3m.recipe.rendering import SamplerRecipe
from ld3m.recipe.sampling import SampleRecipe
from ld3m.recipe.values import Section


class DistillRecipe(Section):
    """What is learnt, and how."""

    objective: str = "dm"
    """The matching loss: dm (distribution matching), dc (gradient matching), mtt (trajectory matching), lgm (linear
    gradient matching), or one of an installed package; `recipes/OBJECTIVES.md` has them all."""
    images_per_class: int = Field(1, ge=1, le=10**5)
    """Synthetic images of each class (IPC)."""
    factor: int = Field(1, ge=1, le=1024)
    """Each image holds factor × factor smaller ones side by side, which networks see enlarged (the multi-formation of
    IDC); each has a latent of its own. It must divide `data.resolution`."""
    iterations: int = Field(1000, ge=0, le=10**8)
    """Steps of the optimiser; 0 keeps what `distill.init` gives. A finished run resumes if the number is raised."""
    init: str = "real"
    """What Z starts as: encodings of random real images of the class (real); standard normal noise; k-means centres of
    the class's encodings (prototype); encodings of the images that herding, k-center, easy or hard chooses; clean
    latents that the prior samples as the section `sample` says (sample); or Z and c of a finished run, given by its
    folder or `hub:<id>`."""
    learn: Literal["both", "latents", "conditioning"] = "both"
    """Whether Z and c are learnt, Z alone (latents), or c alone (conditioning). Left out with `prior.source=pixels` or
    `prior.steps=0`: latents. A prior without classes needs latents too."""
    lr_latents: float = Field(1.0, gt=0, le=1e38)
    """Learning rate of Z; left out: 1 for dm, 0.1 for dc, 1000 for mtt, which are the authors', and 1000 for lgm. Their
    gradient of mtt is half the true one, which is taken here, so that 500 makes their steps. With
    `distill.optimiser=lars` 0.1 for all."""
    lr_conditioning: float = Field(1.0, gt=0, le=1e38)
    """Learning rate of c; left out: what is taken for a left out `lr_latents`."""
    optimiser: Literal["sgd", "adam", "lars"] = "sgd"
    """The optimiser of Z and c. Adam's steps are as large as the learning rate, whatever the gradient is: rates of 0.01
    to 0.1 suit it. lars is SGD whose rates are shares of the norm of what they move: the gradient of each latent, and
    of each c, is scaled to its norm first, so that neither the skip nor the images per class change how far a step
    goes (with `prior.skip=paper` 0.3 was better than 0.1 on Fashion-MNIST). Use it with
    `distill.schedule=cosine`, as its steps do not shrink with the gradient."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """Momentum of SGD and LARS, or the first of Adam's two decay rates."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Whether the learning rates stay, or fall to 0 at the last iteration; then `distill.iterations` cannot be raised
    later."""
    networks: Annotated[str, AfterValidator(values.matching_networks)] = "random"
    """Which networks dm, dc and lgm match in: fresh random ones; the experts after a randomly drawn epoch, which are
    the trained networks of IDM (Zhao et al., CVPR 2023); or, for dm and lgm, `timm/<model>`, the features of a
    pre-trained model of the timm library (`timm/<model>.<tag>`: others of its weights)."""
    real_batch: int = Field(256, ge=1, le=10**6)
    """Real images of each class in an iteration."""
    checkpoint_every: int = Field(100, ge=1, le=10**9)
    """Iterations between checkpoints, from which an interrupted run resumes."""
    log_every: int = Field(1, ge=1, le=10**9)
    """Iterations between those that are logged in metrics.jsonl; a GPU is waited for in these alone."""
    pictures: int = Field(20, ge=0, le=10**4)
    """The most pictures of the images to keep while they are learnt, for evolution.gif and the report."""
    dm: DmRecipe = DmRecipe()
    dc: DcRecipe = DcRecipe()
    mtt: MttRecipe = MttRecipe()
    lgm: LgmRecipe = LgmRecipe()
    options: dict[str, Any] = Field(default_factory=dict)
    """Keys of an objective that another package provides, which reads them itself."""

    @property
    def backbone(self) -> str | None:
        """The pre-trained model of `networks`, if it names one."""
        return self.networks if self.networks.startswith(values.BACKBONE) else None

    @property
    def unread(self) -> dict[str, Any]:
        """Keys that have no part and are younger than digests of recipes, which stay as they were without them."""
        unread: dict[str, Any] = {} if self.objective == "lgm" else {"lgm": True}
        unread |= {} if self.dm.match == "characteristic" else {"dm": {"frequencies", "amplitude", "phase"}}
        return unread | ({"dc": {"match"}} if self.dc.match == "rows" else {})

    @property
    def latents_per_class(self) -> int:
        """Latents, and so rendered images, of a class."""
        return self.images_per_class * self.factor**2

    @model_validator(mode="after")
    def _one_image_has_no_deviation(self) -> "DistillRecipe":
        if self.objective == "dm" and self.dm.match == "moments" and self.latents_per_class == 1:
            raise ValueError(
                "dm.match: moments takes the standard deviation of a class's images, and there is one; "
                "give more distill.images_per_class, distill.factor=2 or distill.dm.match=mean"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, content: Any) -> Any:
        """Writes out the learning rates, and gradient matching's loops for the images per class."""
        if not isinstance(content, dict):
            return content
        by_objective = LEARNING_RATES.get(str(content.get("objective")), 1.0)
        rate = LARS_RATE if content.get("optimiser") == "lars" else by_objective
        filled = {"lr_latents": rate, "lr_conditioning": rate, **content}
        count, dc = content.get("images_per_class", 1), content.get("dc") or {}
        if isinstance(count, int) and isinstance(dc, dict):
            outer, inner = next((loops for least, *loops in DC_LOOPS if count >= least), (1, 1))
            filled["dc"] = {"outer": outer, "inner": inner, **dc}
        return filled


class HubRecipe(Section):
    """Where `ld3m push-to-hub` sends the result."""

    repo_id: str | None = None
    """The data set, `user/name`; left out: `ld3m-` and the name of the run, under whoever is logged in."""
    private: bool = False
    """Whether only its owner sees the data set; it counts when the data set is created."""
    licence: str | None = None
    """Licence of the result as the Hub names it, such as cc-by-4.0; left out: those of the real images and the
    prior."""


class Recipe(Section):
    """Everything about a distillation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """The name of the run: letters, digits, and after the first also `.`, `_` and `-`; 100 characters at most."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of every random draw; the same recipe with the same seed gives the same result."""
    output: str | None = None
    """The run folder; left out: `runs/<name>`."""
    log_with: Annotated[list[str], BeforeValidator(values.one_or_more)] = Field(default_factory=list)
    """Trackers that get the numbers and pictures too: tensorboard, trackio, wandb, or another of Accelerate's."""
    reproducible: bool = False
    """Whether any number of processes gives the same result bit for bit: then no batch of the prior has images of two
    classes, and with few images per class a run takes longer (see `launch/README.md`)."""
    tf32: bool = False
    """Whether NVIDIA GPUs convolve and multiply float32 numbers in TF32, with 11 significant bits, which is faster;
    other devices ignore it."""
    data: DistilledDataRecipe
    prior: SamplerRecipe
    sample: SampleRecipe = SampleRecipe()
    distill: DistillRecipe = DistillRecipe()
    network: NetworkRecipe = NetworkRecipe()
    experts: ExpertsRecipe = ExpertsRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    hub: HubRecipe = HubRecipe()

    @model_validator(mode="before")
    @classmethod
    def _without_denoiser_only_latents_are_learnt(cls, content: Any) -> Any:
        """Writes out `distill.learn` if it is left out and the denoiser, through which c acts, is too."""
        prior = content.get("prior") if isinstance(content, dict) else None
        distill = (content.get("distill") or {}) if isinstance(content, dict) else None
        if not isinstance(prior, dict) or not isinstance(distill, dict):
            return content
        implied = 0 if prior.get("source") == "pixels" else None
        if prior.get("steps", implied) == 0:
            return {**content, "distill": {"learn": "latents", **distill}}
        return content

    @model_validator(mode="before")
    @classmethod
    def _reproducible_batches_are_of_one_class(cls, content: Any) -> Any:
        """Writes out a micro-batch that is no larger than the images of a class."""
        if not isinstance(content, dict) or content.get("reproducible") is not True:
            return content
        prior, distill = content.get("prior"), content.get("distill") or {}
        if not isinstance(prior, dict) or not isinstance(distill, dict):
            return content
        numbers = distill.get("images_per_class", 1), distill.get("factor", 1), prior.get("micro_batch", 64)
        if not all(type(number) is int for number in numbers):
            return content
        each, factor, given = numbers
        return {**content, "prior": {**prior, "micro_batch": min(given, each * factor**2)}}

    @model_validator(mode="after")
    def _batches_divide_a_reproducible_class(self) -> "Recipe":
        given, each = self.prior.micro_batch, self.distill.latents_per_class
        if self.reproducible and (given == "auto" or each % given):
            why = "depends on free memory" if given == "auto" else f"does not divide the {each} images of a class"
            raise ValueError(f"prior.micro_batch: {given} {why}, as reproducible: true needs; give a divisor of {each}")
        return self

    @model_validator(mode="after")
    def _pixels_cannot_be_sampled(self) -> "Recipe":
        if self.prior.source == "pixels" and self.distill.init == "sample":
            raise ValueError(
                "distill.init: sample, but prior.source=pixels has no denoiser to sample with; give a prior, or "
                "distill.init=real"
            )
        return self

    @model_validator(mode="after")
    def _c_has_a_gradient(self) -> "Recipe":
        sampler = self.prior
        if (
            sampler.steps
            and sampler.pull_back != "exact"
            and not sampler.differentiated
            and self.distill.learn != "latents"
        ):
            raise ValueError(
                f"prior.differentiated: 0 leaves c without a gradient, but distill.learn is {self.distill.learn}; "
                "give 1 or more, or distill.learn=latents"
            )
        return self

    @model_validator(mode="after")
    def _blocks_halve_the_image(self) -> "Recipe":
        depth, resolution = self.network.depth, self.data.resolution
        halves = self.network.arch == "convnet" and self.network.pooling != "none"
        if halves and depth and resolution < 2**depth:
            raise ValueError(
                f"network.depth: {depth} blocks halve {resolution} pixels to nothing; "
                f"give {resolution.bit_length() - 1} or fewer, or a larger data.resolution"
            )
        return self

    @model_validator(mode="after")
    def _factor_divides_the_resolution(self) -> "Recipe":
        factor, resolution = self.distill.factor, self.data.resolution
        if resolution % factor:
            raise ValueError(
                f"distill.factor: {factor} does not divide {resolution}; give a divisor, or another data.resolution"
            )
        return self

    @model_validator(mode="after")
    def _networks_fit_the_objective(self) -> "Recipe":
        objective, networks = self.distill.objective, self.distill.networks
        if objective == "mtt" and networks == "experts":
            raise ValueError(
                "distill.networks: experts is for dm, dc and lgm, as mtt matches experts anyway; "
                "give no distill.networks"
            )
        if objective in ("dc", "mtt") and self.distill.backbone:
            raise ValueError(
                f"distill.networks: {networks} has features alone, and {objective} compares the weights of whole "
                "networks; give random or, for dc, experts, or distill.objective=lgm or dm"
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
    def samples(self) -> bool:
        """Whether Z starts as latents that the prior samples."""
        return self.distill.init == "sample"

    @property
    def sampling_guidance(self) -> float:
        """Scale of classifier-free guidance while latents are sampled."""
        return self.prior.guidance if self.sample.guidance is None else self.sample.guidance

    @property
    def sampling_text(self) -> str:
        """How Z is sampled, in words; empty if it is not."""
        return self.sample.text(self.sampling_guidance) if self.samples else ""

    @property
    def rendered_size(self) -> int:
        """Height and width of a rendered image."""
        return self.data.resolution // self.distill.factor

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def needs_experts(self) -> bool:
        """Whether a run takes the experts that `ld3m experts` trains."""
        matched = self.distill.objective == "mtt" or self.distill.networks == "experts"
        return matched or (self.samples and self.sample.takes_experts)

    @property
    def experts_folder(self) -> Path:
        """The folder of the experts."""
        return Path(self.experts.folder or f"experts/{self.name}")
