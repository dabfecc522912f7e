"""The `sample` section of a recipe: how latents are drawn from the prior, by which method, and which are kept."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ld3m.recipe.values import Section


class Mgd3Recipe(Section):
    """Guidance to modes of the class (`sample.method=mgd3`)."""

    scale: float = Field(0.1, ge=0, le=10**6)
    """λ, how strongly each image is drawn to its mode; 0 is plain sampling."""
    stop: float = Field(0.5, ge=0, le=1)
    """The share of the steps, at the end of the chain, that is left to the prior alone."""


class CodaRecipe(Section):
    """CoDA's guidance to real latents (`sample.method=coda`)."""

    scale: float = Field(0.05, ge=0, le=10**6)
    """γ, how strongly each image is drawn to its real latent; 0 is plain sampling."""
    guided: float = Field(0.9, ge=0, le=1)
    """The share of the steps, from the first, that is guided."""


class D3hrRecipe(Section):
    """Draws from the class's inverted latents (`sample.method=d3hr`)."""

    groups: int = Field(1000, ge=1, le=10**6)
    """Groups of latents that are drawn, of which the one with the nearest moments is denoised."""
    images: int | None = Field(None, ge=2, le=10**7)
    """Real images of each class that are inverted; left out: all."""
    calls: int = Field(30, ge=1, le=1000)
    """Calls of the denoiser for each step backwards, at most; 1 is what the published code does, and less exact."""
    source: str | None = None
    """The folder of a run of d3hr whose means and deviations are taken, so that nothing is inverted."""


class IgdRecipe(Section):
    """Influence guidance (`sample.method=igd`)."""

    scale: float = Field(5, ge=0, le=10**6)
    """k, how strongly images are drawn to what the real images' gradients ask for."""
    deviation: float = Field(120, ge=0, le=10**6)
    """γ, how strongly an image is kept away from the nearest of those before it, for latents of 4,096 numbers; others
    are moved by the same share. With both 0 it is plain sampling."""
    low: float = Field(0.6, ge=0, le=1)
    """The share of the steps, at the end of the chain, that is left to the prior alone."""
    high: float = Field(0.9, ge=0, le=1)
    """The share of the steps before whose end none is guided, counted from the end of the chain, too."""
    networks: Literal["experts", "scorer"] = "experts"
    """Whose gradients are compared: snapshots of the first of `experts`, or `data.scorer`."""
    snapshots: int = Field(4, ge=1, le=1000)
    """Snapshots of the expert, at equal distances from before its training on."""
    real: int = Field(200, ge=1, le=10**7)
    """Real images of each class whose gradient is compared with."""

    @model_validator(mode="after")
    def _guided_from_high_to_low(self) -> "IgdRecipe":
        if self.low > self.high:
            raise ValueError(f"low: {self.low:g} is above high, {self.high:g}, so that no step is guided; swap them")
        return self


class CgsRecipe(Section):
    """Guidance of a class as a set (`sample.method=cgs`)."""

    mean: float = Field(30, ge=0, le=10**6)
    """η, how strongly the mean of the images is drawn to that of the real latents."""
    diversity: float = Field(1, ge=0, le=10**6)
    """How strongly images are driven apart, by the logarithm of the determinant of their cosines. With both 0 it is
    plain sampling."""


class SubgroupRecipe(Section):
    """The best of several groups (`sample.choose=subgroup`)."""

    closeness: float = Field(0.4, ge=0, le=10**6)
    """α, the weight of being near to the real images of the class."""
    separation: float = Field(0.9, ge=0, le=10**6)
    """β, the weight of being far from those of other classes."""


class SampleRecipe(Section):
    """How `ld3m sample` and `distill.init=sample` draw latents from the prior. No other run reads these keys."""

    method: str = "plain"
    """plain (the prior's own samples), d4m (from prototypes of the class), ddoq (these, with weights), mgd3 or coda
    (guided to modes of the class), d3hr (from draws in mid-chain), igd (guided by networks' gradients), cgs (guided as
    a set), or one of an installed package."""
    start: Literal["noise", "real", "prototype", "herding", "k-center", "easy", "hard"] | None = None
    """Where the chains start: at noise, or at latents noised to `sample.strength`, with the words of `distill.init`;
    left out: prototype for d4m, noise for the others."""
    strength: float = Field(0.7, gt=0, le=1)
    """The share of the steps, from the end of the chain, that latents go through which do not start at noise."""
    steps: int = Field(50, ge=1, le=1000)
    """Steps of the whole chain; `prior.steps` are those that a distillation renders with."""
    guidance: float | None = Field(None, ge=-1000, le=1000)
    """Scale of classifier-free guidance; left out: `prior.guidance`."""
    eta: float = Field(0, ge=0, le=1)
    """The share of DDPM's noise that each step adds: 0 is DDIM, 1 DDPM."""
    draws: int = Field(1, ge=1, le=1000)
    """How many times as many images are drawn as are kept, by `sample.choose`."""
    choose: str | None = None
    """Which of the images drawn are kept: those that cover all of them best (k-center), that `data.scorer` gets right
    and is surest or least sure of (confident, least-confident), the best of `sample.draws` groups by their place among
    the classes (subgroup) or by their moments (moments), or as an installed package says."""
    mgd3: Mgd3Recipe = Mgd3Recipe()
    coda: CodaRecipe = CodaRecipe()
    d3hr: D3hrRecipe = D3hrRecipe()
    igd: IgdRecipe = IgdRecipe()
    cgs: CgsRecipe = CgsRecipe()
    subgroup: SubgroupRecipe = SubgroupRecipe()
    options: dict[str, Any] = Field(default_factory=dict)
    """Keys of a method or choice that another package provides, which reads them itself."""

    @model_validator(mode="after")
    def _what_is_drawn_is_chosen_from(self) -> "SampleRecipe":
        if self.draws > 1 and not self.choose:
            raise ValueError(
                f"draws: {self.draws} times as many images are drawn as are kept, and nothing says which; "
                "give sample.choose, such as k-center, or sample.draws=1"
            )
        if self.draws == 1 and self.choose:
            raise ValueError(
                f"choose: {self.choose!r} has nothing to choose from if all images that are drawn are kept; "
                "give sample.draws=4, or leave sample.choose out"
            )
        return self

    @property
    def takes_experts(self) -> bool:
        """Whether the method compares gradients in experts."""
        return self.method == "igd" and self.igd.networks == "experts"

    @property
    def unread(self) -> set[str]:
        """The names of sections that neither the method nor the choice reads, as they are named after both."""
        fields = type(self).model_fields
        return {name for name in fields if isinstance(getattr(self, name), Section)} - {self.method, self.choose}

    def text(self, guidance: float) -> str:
        """How latents are sampled, in words, under so much classifier-free guidance."""
        steps = {0.0: "DDIM", 1.0: "DDPM"}.get(self.eta, f"η {self.eta:g}")
        start = f", from {self.start}" if self.start else ""
        chosen = f", {self.draws} × as many drawn, kept by {self.choose}" if self.choose else ""
        return f"{self.method}, {self.steps} steps of {steps}, guidance {guidance:g}{start}{chosen}"
