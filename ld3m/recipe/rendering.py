"""The `prior` section of a recipe: the frozen diffusion model, and how images are rendered through it."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ld3m.recipe import values
from ld3m.recipe.values import Section


class SamplerRecipe(Section):
    """The prior, which is the frozen diffusion model, and how it is sampled."""

    source: str
    """A known name: cin256-v2, ffhq256, celebahq256, dit-xl-2-256, dit-xl-2-512, sd-1.5, sd-2.1, which the first run
    fetches (`ld3m priors` lists them), or of the package digits, fashion-mnist; a folder in diffusers' layout, also of
    an autoencoder alone with `prior.steps=0`; `hub:<id>` or `hub:<id>/<folder>@<revision>`; or pixels: none, images are
    learnt pixel by pixel, which implies `prior.steps=0`, `prior.guidance=1`, `distill.learn=latents`."""
    denoiser: Literal["trained", "random"] = "trained"
    """Whether the denoiser has its own weights or random ones, the paper's ablation of what the prior knows."""
    skip: Literal["paper", "reference", "none"] = "reference"
    """Where the decaying skip enters: as in Eq. 7 of the paper, as in the authors' code, or nowhere."""
    prompt: Annotated[str, AfterValidator(values.prompt_with_class)] = "a photo of a {}"
    """For a prior that is conditioned on text: the text that each class's c starts as, with {} for the class's
    name."""
    resolution: int | None = Field(None, ge=8, le=4096)
    """Height and width in pixels of what the prior renders, before images are resized to `data.resolution`; left out:
    the prior's own."""
    scaling_factor: float | None = Field(None, gt=0, le=10**6)
    """What encodings are multiplied by to have unit variance; left out: the factor in the autoencoder's
    configuration."""
    steps: int = Field(10, ge=0, le=1000)
    """DDIM steps S. 0 is the autoencoder alone, without noise and denoiser, which implies `distill.learn=latents`;
    left out with `prior.source=pixels`: 0."""
    start: float = Field(1.0, gt=0, le=1)
    """The share of these steps that is made, as the strength of image-to-image: the last ⌈start · S⌉, from Z with the
    noise of the first of them. A flow-matching prior starts from noise alone: there 1 needs `prior.skip=reference`."""
    guidance: float = Field(3.0, ge=-1000, le=1000)
    """Scale g of classifier-free guidance; 1 leaves the null class out, which takes half as many calls of the denoiser.
    Left out with `prior.source=pixels`: 1."""
    noise: Literal["fresh", "fixed"] = "fresh"
    """Whether the noise of an image is drawn in each iteration, or once for the whole run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the denoiser's weights and passes; the autoencoder, Z and c are in float32."""
    micro_batch: Annotated[
        Annotated[int, Field(ge=1, le=10**6)] | Literal["auto"], BeforeValidator(values.images_or_auto)
    ] = 64
    """Images that go through the prior at a time; auto: as many as fit, so that rounding may differ between machines
    with different amounts of memory."""
    keep_graph_steps: Annotated[
        Annotated[int, Field(ge=0, le=1000)] | Literal["all", "auto"], BeforeValidator(values.steps_or_all)
    ] = "all"
    """How many of the last steps keep their graph for the gradient: more is faster and takes more memory, which with 0
    does not grow with S; auto: as many as fit beside the micro-batch."""
    pull_back: Literal["exact", "shortcut", "drawn", "last"] = "exact"
    """Which of the denoiser's calls Z's and c's gradient goes through: all S (exact); the last K of
    `prior.differentiated`, past the others by what is linear in them (shortcut); the same with K calls drawn in each
    iteration (drawn); or the last K alone, so that Z is reached by the skip (last). All but exact change the gradient,
    and so the result and the learning rates that suit it."""
    differentiated: int = Field(1, ge=0, le=1000)
    """K, the calls that keep a gradient; 0: none, c has no gradient. Not read with `prior.pull_back=exact`."""
    compile: Annotated[bool | Literal["auto"], BeforeValidator(values.switch_or_auto)] = "auto"
    """Whether torch.compile makes kernels for the denoiser (on, off): the first iteration takes minutes, and results
    round differently. auto is off, as no GPU has been timed with them yet."""

    @model_validator(mode="before")
    @classmethod
    def _what_pixels_imply(cls, content: Any) -> Any:
        """Writes out the keys for which only one value fits without a denoiser."""
        if isinstance(content, dict) and content.get("source") == "pixels":
            return {"steps": 0, "guidance": 1, **content}
        return content

    @model_validator(mode="after")
    def _pixels_have_no_denoiser(self) -> "SamplerRecipe":
        if self.source == "pixels" and (self.steps or self.resolution):
            raise ValueError(
                "source: pixels has neither denoiser nor size; set prior.steps=0 or leave it out, "
                "and leave out prior.resolution"
            )
        return self

    @model_validator(mode="after")
    def _the_last_calls_reach_z(self) -> "SamplerRecipe":
        least = {"paper": 1, "reference": 2, "none": self.steps_made}[self.skip]  # that have a share of the skip
        if self.pull_back == "last" and self.differentiated < least:
            raise ValueError(
                f"differentiated: {self.differentiated}, but with prior.skip={self.skip} so many last "
                f"calls leave Z without a gradient; give {least} or more, or prior.pull_back=shortcut"
            )
        return self

    @property
    def compiles(self) -> bool:
        """Whether the denoiser is compiled."""
        return self.compile is True

    @property
    def steps_made(self) -> int:
        """Steps from `start` to the image."""
        return math.ceil(round(self.start * self.steps, 6))  # 0.28 · 25 is 7.000000000000001

    @property
    def steps_text(self) -> str:
        """For people: "10 steps", "the last 5 of 10 steps"."""
        return f"the last {self.steps_made} of {self.steps} steps" if self.start < 1 else f"{self.steps} steps"

    @property
    def images_at_a_time(self) -> int:
        """`micro_batch` as a number; 64 for an "auto" that is not settled."""
        return 64 if self.micro_batch == "auto" else self.micro_batch

    @property
    def kept_steps(self) -> int:
        """`keep_graph_steps` as a number of steps; 0 for an "auto" that is not settled."""
        keep = {"all": self.steps_made, "auto": 0}.get(str(self.keep_graph_steps), self.keep_graph_steps)
        return min(int(keep), self.steps_made)
