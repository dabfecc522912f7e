"""An iteration of one process, and parts of it to run: on the meta device they are counted, elsewhere timed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ld3m import objectives
from ld3m.data.prepared import ImageSet
from ld3m.images import augment
from ld3m.machine.processes import Processes
from ld3m.networks.flat import FlatNetwork
from ld3m.objectives import mtt
from ld3m.objectives.dc import train_inner_loop
from ld3m.objectives.draws import Draws
from ld3m.priors import Prior
from ld3m.randomness import generator
from ld3m.recipe import DistillRecipe, Recipe, SamplerRecipe
from ld3m.sampling import Schedule
from ld3m.sampling.noise import Noise


@dataclass(frozen=True)
class Bench:
    """What an iteration of one process needs; with neither weights nor images if the prior is a meta model."""

    recipe: Recipe
    prior: Prior
    images: ImageSet
    own: Sequence[int]
    """The classes of the process that has the most."""
    device: torch.device

    @property
    def schedule(self) -> Schedule:
        """The steps, skip and guidance of the run."""
        sampler = self.recipe.prior
        return Schedule.of(self.prior.noise_schedule, sampler.steps, sampler.skip, sampler.guidance, sampler.steps_made)

    @property
    def sampling_schedule(self) -> Schedule:
        """The steps by which Z is sampled; none if it is not."""
        steps = self.recipe.sample.steps if self.recipe.samples else 0
        return Schedule.of(self.prior.noise_schedule, steps, "none", self.recipe.sampling_guidance, key="sample.steps")

    @property
    def everyone(self) -> int:
        """Synthetic images of all processes."""
        return len(self.images.classes) * self.recipe.distill.latents_per_class

    @property
    def units(self) -> int:
        """Parts of the objective: the process's classes, or for "mtt" the student's steps, at most 256 images each."""
        settings = self.recipe.distill
        if settings.objective == "mtt":
            return settings.mtt.syn_steps * -(-(settings.mtt.batch_syn or self.everyone) // mtt.CHUNK)
        return len(self.own)

    @property
    def shown(self) -> int:
        """Images of a unit of "mtt"."""
        return min(self.recipe.distill.mtt.batch_syn or self.everyone, mtt.CHUNK)

    @property
    def batches(self) -> int:
        """Steps of the inner loop of "dc" in an iteration that has one."""
        settings = self.recipe.distill
        inner = settings.objective == "dc" and settings.dc.outer > 1
        return settings.dc.inner * -(-self.everyone // settings.dc.batch) if inner else 0

    @property
    def gathered_features(self) -> int:
        """Features of an image in the matching network, if the objective is "lgm", which gathers them; else 0."""
        if self.recipe.distill.objective != "lgm":
            return 0
        seen = self.images.normalise(self.pixels(1))
        return int(self.draws.network(0).embed(seen).shape[1])

    @property
    def without_experts(self) -> Recipe:
        """The recipe with random matching networks for experts, which cost what trained ones do and need no files."""
        if self.recipe.distill.networks != "experts":
            return self.recipe
        return self.recipe.changed({"distill.networks": "random"})

    @property
    def on_average(self) -> "Bench":
        """With as many real images as an iteration passes on average if the networks of a pool take turns."""
        changes = {"distill.real_batch": real_images(self.recipe.distill), "distill.dm.pool": None}
        return replace(self, recipe=self.recipe.changed(changes))

    @property
    def draws(self) -> Draws:
        """What the objective draws, with random networks for experts."""
        return objectives.draws_of(self.without_experts, self.images, Processes(self.device))

    @property
    def noise(self) -> Noise:
        """The noise of the run's latents."""
        return Noise(self.recipe.seed, True, self.recipe.distill.latents_per_class, self.prior.latent_shape)

    def pixels(self, *count: int) -> Tensor:
        """As many noise images as the counts say, [*count, channels, H, W]."""
        return torch.rand(*count, self.images.shape.channels, *(self.images.resolution,) * 2, device=self.device)

    def match(self, iteration: int, units: int) -> None:
        """Some units of the objective, on noise; gathers nothing and needs no experts."""
        recipe = self.without_experts
        if recipe.distill.objective == "mtt":
            self._follow(iteration, units)
            return
        if self.device.type == "meta":  # which operation augments is chance; what is counted should not be
            recipe = recipe.changed({f"distill.{name}.augment": False for name in ("dm", "dc", "lgm")})
        objective = objectives.build(recipe, self.images, self.own[:units], Processes(self.device))
        pixels = self.pixels(units, recipe.distill.latents_per_class)
        objective.match(iteration * recipe.distill.dc.outer, pixels)

    def _follow(self, iteration: int, steps: int) -> None:
        """Steps of a student of "mtt" on at most 256 images, its own those of the process's classes."""
        settings, count = self.recipe.distill.mtt, self.shown
        labels = torch.arange(count) % len(self.images.classes)
        own = torch.isin(labels, torch.tensor(self.own))  # dealt like cards, as it is
        student = FlatNetwork(self.draws.network(0))
        start, target = torch.randn(2, student.count, device=self.device).mul(0.01).unbind()

        def show(step: int, indices: Tensor, images: Tensor) -> Tensor:
            images = self.images.normalise(images)
            if not settings.augment or self.device.type == "meta":
                return images
            numbers = generator(self.recipe.seed, "augmentation", iteration, step)
            return augment.draw(numbers, images.shape[-1], count).of(indices)(images)

        batches = [torch.arange(count)] * steps
        with torch.enable_grad():
            mtt.match_trajectory(
                student, start, target, settings.step_size, batches, show, self.pixels(count), labels, own
            )

    def train(self, iteration: int, batches: int) -> None:
        """Steps of the inner loop of "dc", on noise."""
        settings = self.recipe.distill.dc
        size = min(settings.batch, self.everyone)
        augmented = settings.augment and self.device.type != "meta"
        changed = settings.changed({"inner": batches, "batch": size, "augment": augmented})
        targets = torch.arange(size, device=self.device) % len(self.images.classes)
        train_inner_loop(self.draws.network(iteration), changed, self.pixels(size), targets, 0, iteration)


def real_images(recipe: DistillRecipe) -> int:
    """Real images of each class that an iteration passes through its network, on average over the run."""
    pool = recipe.dm.pool if recipe.objective == "dm" else None
    share = min(1.0, pool / max(1, recipe.iterations)) if pool else 1.0
    return max(1, round(recipe.real_batch * share))


def calls(recipe: SamplerRecipe) -> int:
    """Denoiser calls of one chain: one per step, except the paper's first, whose answer would have weight 0."""
    return recipe.steps_made - (recipe.skip == "paper" and recipe.steps_made == recipe.steps > 0)


def differentiated_calls(recipe: SamplerRecipe) -> int:
    """Denoiser calls of one chain that its pull-back goes through."""
    return calls(recipe) if recipe.pull_back == "exact" else min(recipe.differentiated, calls(recipe))
