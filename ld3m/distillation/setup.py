"""What a recipe needs on this process: data and prior, checked to fit each other, and what the loop calls."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ld3m import networks, objectives, priors
from ld3m.data import prepared, sources
from ld3m.data.selection import coresets
from ld3m.distillation.inputs import check_inputs
from ld3m.errors import UserError
from ld3m.machine import memory
from ld3m.machine.processes import Processes
from ld3m.objectives import Objective
from ld3m.priors import Prior, sharding, stored
from ld3m.recipe import Recipe
from ld3m.recipe.values import STARTS
from ld3m.sampling import Schedule
from ld3m.sampling.differentiated import Differentiated
from ld3m.sampling.judged import needs_scores
from ld3m.sampling.memory_budget import MemoryBudget
from ld3m.sampling.noise import Noise
from ld3m.sampling.synthetic import SyntheticImages

LEAST_SIGNAL = 0.005
"""The least share of Z in the first latents; those of diffusions have 0.0125 and more, unless they have none."""


@dataclass(frozen=True)
class Setup:
    """A recipe ready to run on this process."""

    recipe: Recipe
    """With numbers in the place of "auto"."""
    processes: Processes
    images: coresets.Coreset
    """The real images."""
    prior: Prior
    embeddings: Tensor
    """The prior's conditioning of all classes, [classes, *conditioning_shape]."""
    own: list[int]
    """The classes of this process; none if there are more processes than classes."""
    synthetic: SyntheticImages
    objective: Objective

    @classmethod
    def load(cls, processes: Processes, recipe: Recipe, resumes: bool = False) -> "Setup":
        """Loads data and prior, deals the classes, and finds what "auto" is here.

        Args:
            resumes: whether the run resumes from a checkpoint, and needs no start.
        """
        check_inputs(recipe, resumes)
        memory.keep_freed_memory()
        prior, images, embeddings = load_prior_and_images(recipe, processes)
        own = processes.shard(range(len(images.classes)))
        per_class, sharded = recipe.distill.latents_per_class, sharding.wanted(processes.accelerator)
        most = -(-len(images.classes) // processes.num_processes)
        padding = (most - len(own)) * per_class if sharded else 0
        rendered = len(own) * per_class + padding
        _check_memory(recipe, prior, len(images.classes), rendered, processes)
        recipe = _with_numbers(recipe, prior, images, own, rendered, processes)
        if recipe.prior.compiles:  # after "auto", which counts the denoiser's operations one by one
            priors.compile_denoiser(prior, processes.device, sharded)
        synthetic = SyntheticImages(
            prior=prior,
            schedule=schedule_of(recipe, prior),
            noise=noise_of(recipe, prior),
            labels=own,
            resolution=recipe.rendered_size,
            budget=MemoryBudget.of(recipe, rendered, collective=sharded, label=processes.label),
            padding=padding,
            differentiated=Differentiated.of(recipe),
        )
        only_samples = recipe.samples and not recipe.distill.iterations  # which takes no experts
        objective = NoObjective() if only_samples else objectives.build(recipe, images, own, processes)
        if recipe.distill.factor > 1:
            objective = objectives.Enlarged(objective, recipe.distill.factor)
        return cls(recipe, processes, images, prior, embeddings, own, synthetic, objective)

    @property
    def class_ids(self) -> dict[str, int]:
        """The number of each class among all of the source, by name."""
        return dict(zip(self.images.classes, self.images.ids, strict=True))


class NoObjective(Objective):
    """What a run matches that only samples: nothing."""

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """No loss and no gradient."""
        return pixels.new_zeros(len(pixels)), torch.zeros_like(pixels)


def schedule_of(recipe: Recipe, prior: Prior) -> Schedule:
    """The steps, skip and guidance of a recipe, on a prior's noise schedule."""
    settings = recipe.prior
    return Schedule.of(prior.noise_schedule, settings.steps, settings.skip, settings.guidance, settings.steps_made)


def noise_of(recipe: Recipe, prior: Prior) -> Noise:
    """The noise of a recipe's latents."""
    return Noise(recipe.seed, recipe.prior.noise == "fresh", recipe.distill.latents_per_class, prior.latent_shape)


def load_prior_and_images(recipe: Recipe, processes: Processes) -> tuple[Prior, coresets.Coreset, Tensor]:
    """The prior, the images and the embeddings of their classes, checked to fit each other and the recipe."""
    if stored.is_to_be_fetched(recipe.prior.source):  # gigabytes, in vain if there are no images
        sources.check_access(recipe.data)
    # First: a mistake here should not cost hours of reading. What is to be sharded may be too large for a device.
    sharded = sharding.wanted(processes.accelerator)
    denoiser_device = "cpu" if sharded else processes.device
    prior = priors.for_images(
        recipe.prior, recipe.data.channels, recipe.rendered_size, processes.device, denoiser_device
    )
    if sharded:
        assert processes.accelerator
        sharding.shard_denoiser(prior, recipe.prior, processes.accelerator)
    images = prepared.prepare(recipe.data, progress=processes.is_main_process)
    embeddings = prior.class_embeddings(images.classes)  # names a class that it does not know
    _check(recipe, images, prior)
    starts = [recipe.distill.init, *([recipe.sample.start or ""] if recipe.samples else [])]
    if recipe.samples and needs_scores(recipe.sample):
        starts.append("easy")  # which looks at the scorer's losses
    kept = coresets.open_kept(images, recipe.data, recipe.seed, starts, processes.device)
    return prior, kept, embeddings


def _check_memory(recipe: Recipe, prior: Prior, classes: int, rendered: int, processes: Processes) -> None:
    """That what lasts for a whole iteration fits into the memory that is free, before the system ends the process."""
    from ld3m.sizing.cost import RunCost  # arithmetic alone, but beside what counts operations

    cost = RunCost(recipe, processes.num_processes, classes, prior.latent_shape, prior.conditioning_shape)
    needed, available = sum(cost.lasting(rendered, recipe.prior.steps_made).values()), memory.free(processes.device)
    if needed > available:
        raise UserError(
            f"distill.images_per_class: {recipe.distill.images_per_class:,}; the {rendered:,} latents and images of a "
            f"process take {needed / 2**30:,.1f} GiB, and {available / 2**30:,.1f} are free; "
            "give fewer, or more processes"
        )


def _with_numbers(
    recipe: Recipe, prior: Prior, images: coresets.Coreset, own: list[int], rendered: int, processes: Processes
) -> Recipe:
    """The recipe with what "auto" is for so many images here; the same on all processes that share a denoiser."""
    settings, sharded = recipe.prior, sharding.wanted(processes.accelerator)
    if "auto" not in (settings.micro_batch, settings.keep_graph_steps):
        return recipe
    from ld3m.sizing.auto import solve_auto  # only a recipe that says "auto" needs the counting of work and memory
    from ld3m.sizing.bench import Bench

    available = memory.free(processes.device)
    if sharded:
        available = min(processes.gather([available]))
    bench = Bench(recipe, prior, images, own, processes.device)
    recipe = solve_auto(bench, processes.num_processes, rendered, available, sharded)
    if sharded:  # what was measured may differ by what a library keeps
        recipe = recipe.changed({"prior.micro_batch": min(processes.gather([recipe.prior.micro_batch]))})
    processes.print(
        f"prior.micro_batch={recipe.prior.micro_batch} prior.keep_graph_steps={recipe.prior.keep_graph_steps}: "
        f"found for the {available / 2**30:,.1f} GiB that are free"
    )
    return recipe


def _check(recipe: Recipe, images: prepared.ImageSet, prior: Prior) -> None:
    """Mistakes that only the data and the prior show."""
    channels, count = recipe.data.channels, recipe.distill.latents_per_class
    networks.check(recipe.network.arch, images.shape, recipe.network)
    _check_learnable(recipe, prior)
    if recipe.samples:
        _check_sampling(recipe, prior)
    if prior.image_channels != channels:
        raise UserError(
            f"data.channels: {channels}, but the prior's images have {prior.image_channels}; "
            f"set data.channels={prior.image_channels} or choose another prior.source"
        )
    found = min(images.counts["train"])
    fewest = coresets.kept_count(recipe.data, found)
    if recipe.distill.init in STARTS and recipe.distill.init not in ("noise", "sample") and fewest < count:
        name = images.classes[images.counts["train"].index(found)]
        kept = f" ({found} before data.keep={recipe.data.keep:g})" if fewest < found else ""
        raise UserError(
            f"distill.images_per_class: {recipe.distill.images_per_class}; Z starts from {count} images, but class "
            f"{name!r} has only {fewest} training "
            f"images{kept}; set fewer{', keep more' if kept else ''}, or distill.init=noise"
        )


def check_guidance(recipe: Recipe, prior: Prior) -> None:
    """That a recipe guides to no class if the prior knows none.

    Raises:
        UserError: if it does.
    """
    sampler, conditional = recipe.prior, bool(math.prod(prior.conditioning_shape))
    if not conditional and sampler.steps and sampler.guidance != 1:
        raise UserError(
            f"prior.guidance: {sampler.guidance:g}, but {sampler.source} is unconditional and has no classes to guide "
            "to; set prior.guidance=1"
        )


def _check_sampling(recipe: Recipe, prior: Prior) -> None:
    """That the prior has a denoiser to sample with, and what guidance contrasts with."""
    if prior.denoiser is None:
        raise UserError(
            f"distill.init: sample, but {recipe.prior.source} has no denoiser to sample with; give another prior, or "
            "distill.init=real"
        )
    conditional = prior.null_embedding is not None and bool(math.prod(prior.conditioning_shape))
    if recipe.sampling_guidance != 1 and not conditional:
        raise UserError(
            f"sample.guidance: {recipe.sampling_guidance:g}, but {recipe.prior.source} has no null class to guide away "
            "from; set sample.guidance=1"
        )


def _check_learnable(recipe: Recipe, prior: Prior) -> None:
    """That what the recipe learns has a part in the images."""
    check_guidance(recipe, prior)
    sampler, learn, conditional = recipe.prior, recipe.distill.learn, bool(math.prod(prior.conditioning_shape))
    if learn != "latents" and not conditional:
        raise UserError(
            f"distill.learn: {learn!r}, but {sampler.source} is unconditional and only Z has a part; "
            "set distill.learn=latents"
        )
    signal = schedule_of(recipe, prior).start.signal
    if learn != "conditioning" and sampler.skip != "reference" and signal < LEAST_SIGNAL:
        raise UserError(
            f"prior.skip: {sampler.skip!r}, but the first step of this prior's noise schedule is noise alone and Z "
            "has no part in the images; set prior.skip=reference, or prior.start below 1"
        )
    if sampler.steps == 1 and sampler.skip == "paper":
        raise UserError(
            "prior.skip: 'paper' leaves out the denoiser's answer to the first step, and prior.steps=1 has no other; "
            "set prior.skip=reference or none"
        )
