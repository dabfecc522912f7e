"""What a sampling method is given and what it answers: a class to sample, and how its chains start, are guided, kept.

A method is a function of a `ClassTask` that returns an `Approach`; `chains` follows it, and knows no method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ld3m.data.selection.coresets import Coreset
from ld3m.errors import UserError
from ld3m.priors import Prior
from ld3m.randomness import generator
from ld3m.recipe import Recipe, SampleRecipe
from ld3m.sampling.algorithm import Schedule, Step, decoded
from ld3m.sampling.encodings import ClassEncodings, class_encodings, prototypes, starting_latents


@dataclass(frozen=True)
class ClassTask:
    """A class whose images are to be sampled, and what there is to do it with."""

    recipe: Recipe
    prior: Prior
    images: Coreset
    """The real images of all classes."""
    embedding: Tensor
    """The prior's conditioning of the class, [*conditioning_shape]."""
    label: int
    device: torch.device

    @property
    def settings(self) -> SampleRecipe:
        """The section `sample` of the recipe."""
        return self.recipe.sample

    @property
    def count(self) -> int:
        """Latents that are wanted."""
        return self.recipe.distill.latents_per_class

    @property
    def drawn(self) -> int:
        """Latents that `sample.draws` asks for, from which `sample.choose` chooses: `count` of them, several times."""
        return self.count * self.settings.draws

    @property
    def micro_batch(self) -> int:
        """Images that go through the prior at a time; no result depends on it, but for rounding."""
        return self.recipe.prior.images_at_a_time

    @cached_property
    def schedule(self) -> Schedule:
        """All steps of the chain, the noisiest first, without a skip, and the guidance."""
        settings = self.settings
        return Schedule.of(
            self.prior.noise_schedule, settings.steps, "none", self.recipe.sampling_guidance, key="sample.steps"
        )

    def draws(self, purpose: str, *key: int) -> torch.Generator:
        """A generator keyed by the seed, a purpose, the class and what else is given, such as an image and a step."""
        return generator(self.recipe.seed, f"sample {purpose}", self.label, *key)

    def encodings(self) -> Tensor:
        """Latents [n, *latent_shape], on the CPU, of all real training images of the class."""
        return self._encodings.latents

    @cached_property
    def _encodings(self) -> ClassEncodings:
        return class_encodings(self.images, self.prior, self.label, self.micro_batch, self.device)

    @property
    def earlier_seconds(self) -> float:
        """What encoding the class took, if it was encoded by an earlier run and is used here."""
        return self._encodings.earlier_seconds if "_encodings" in vars(self) else 0.0

    def latents(self, start: str) -> Tensor:
        """Clean latents [count, *latent_shape] by a word of `distill.init`, which are those of the same word there.

        Raises:
            UserError: if the class has fewer real images.
        """
        there = self.images.counts["train"][self.label]
        if start != "noise" and there < self.count:
            instead = "leave sample.start out" if self.settings.method == "plain" else "sample.method=plain"
            raise UserError(
                f"distill.images_per_class: {self.recipe.distill.images_per_class}; {self.settings.method} takes "
                f"{self.count} real latents, but class {self.images.classes[self.label]!r} has only {there} training "
                f"images; set fewer, or {instead}"
            )
        draws = generator(self.recipe.seed, "init", self.label)
        if start == "prototype":  # of encodings that a method may look at, too
            return prototypes(self.encodings(), self.count, draws).to(self.device)
        return starting_latents(
            start, self.images, self.prior, self.label, self.count, draws, self.micro_batch, self.device
        )

    def starting_at(self, default: str) -> "Approach":
        """Chains that start where `sample.start` says, or at `default`, and are not guided.

        From noise they go through all steps, from clean latents through the share of `sample.strength`, counted as
        diffusers' image-to-image pipelines do: the last ⌊strength · steps⌋, one at least.

        Raises:
            UserError: for a strength that has no part, and as `latents` does.
        """
        start, strength = self.settings.start or default, self.settings.strength
        if start == "noise" and strength not in (1, type(self.settings).model_fields["strength"].default):
            raise UserError(
                f"sample.strength: {strength:g} has no part, as the chains of {self.settings.method} start at noise; "
                "give sample.start=real or prototype beside it, or leave it out"
            )
        if start == "noise":
            return Approach()
        return Approach(start=self.latents(start), first=self.first_step)

    @property
    def first_step(self) -> int:
        """The step at which chains start that go through the share of `sample.strength`."""
        steps = self.settings.steps
        return steps - max(1, int(steps * self.settings.strength + 1e-9))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pixels [n, channels, H, W] in [0, 1], on the CPU, of clean latents on any device."""
        size = self.recipe.rendered_size
        parts = [decoded(self.prior, part.to(self.device), size).cpu() for part in z.split(self.micro_batch)]
        return torch.cat(parts)


def rows(tensor: Tensor, images: Sequence[int]) -> Tensor:
    """The row of each image: row i modulo as many as there are, so that an over-draw goes through all several times."""
    return tensor[[image % len(tensor) for image in images]]


@dataclass(frozen=True)
class Moment:
    """Chains of a class at one step: after the denoiser has answered, before they move on."""

    index: int
    """Of the step, from 0, the noisiest of the whole chain."""
    steps: int
    """Of the whole chain."""
    step: Step
    """Its time, its level and the next."""
    sigma: float
    """Standard deviation of the noise that the step adds; 0 for DDIM."""
    images: Sequence[int]
    """The numbers of the images, by which draws are keyed and rows are taken."""
    z: Tensor
    """The noisy latents [n, *latent_shape]."""
    clean: Tensor
    """x̂0, under classifier-free guidance."""
    noise: Tensor
    """ε̂, under classifier-free guidance."""
    own_clean: Tensor
    """x̂0 of the class alone, without classifier-free guidance."""
    earlier: Tensor
    """Clean latents [images before the first of these, *latent_shape] that are finished; for `Approach.together`."""


@dataclass(frozen=True)
class Correction:
    """What a guide changes in a step."""

    noise: Tensor | None = None
    """ε̂ in the place of the denoiser's, from which x̂0 follows; steps from noise alone keep the denoiser's."""
    shift: Tensor | None = None
    """What is added to the next latents."""


Guide = Callable[[Moment], Correction | None]
"""What a method changes in a step; None for nothing. Called without a graph; one may be made inside."""


@dataclass(frozen=True)
class Kept:
    """What a choice keeps of the images drawn."""

    images: Tensor
    """int64 [count], their numbers, each once."""
    weights: Tensor | None = None
    """float32 [count], in the place of the approach's."""


Choice = Callable[[ClassTask, Tensor], Kept]
"""(class, clean latents [drawn, *latent_shape] on the CPU) to those that are kept."""


@dataclass(frozen=True)
class Approach:
    """How a method samples a class; all defaults are plain sampling from noise."""

    start: Tensor | None = None
    """Latents [n, *latent_shape] that chains start from, image i from row i modulo n; None: noise."""
    first: int = 0
    """The step at which the chains start."""
    noisy: bool = False
    """Whether `start` has the noise of that step already; else it is clean, and noised to it."""
    guide: Guide | None = None
    drawn: int | None = None
    """Images that are drawn; None: as many as `sample.draws` says."""
    together: int | None = None
    """Images whose chains go side by side, if the guide looks at several or at earlier ones; None: it does not, and
    they go as many at a time as memory has room for."""
    weights: Tensor | None = None
    """float32 [drawn], by which the images count in training; None: all alike."""
    choose: Choice | None = None
    """What chooses from the images drawn; None: as `sample.choose` says."""


Method = Callable[[ClassTask], Approach]
"""What `sample.method` names."""
