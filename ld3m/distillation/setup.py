"""A recipe made ready on this process: its data and prior, checked to fit each other, and the classes it has."""

import math
from dataclasses import dataclass

from torch import Tensor

from ld3m import networks, objectives, priors
from ld3m.data import coresets
from ld3m.data import prepared as data
from ld3m.distillation.inputs import check_inputs
from ld3m.errors import UserError
from ld3m.machine import memory
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes
from ld3m.objectives import Objective
from ld3m.priors import Prior, sharding
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.recipe.values import STARTS
from ld3m.sampling.room import MemoryBudget
from ld3m.sampling.sampler import Schedule
from ld3m.sizing.auto import solve_auto
from ld3m.sizing.bench import Bench


@dataclass(frozen=True)
class Job:
    """A recipe made ready on this process."""

    recipe: Recipe
    processes: Processes
    images: coresets.Coreset
    prior: Prior
    schedule: Schedule
    objective: Objective
    own: list[int]
    """The classes of this process; none where there are more processes than classes."""
    embeddings: Tensor
    """Conditioning of all classes, [classes, *conditioning_shape], as the prior has it."""
    padding: int
    """Images without a class that this process renders too, so that all make the same calls of a sharded denoiser."""
    room: MemoryBudget
    """How many images go through the prior at a time."""

    @classmethod
    def prepare(cls, processes: Processes, recipe: Recipe, resumes: bool = False) -> "Job":
        """Loads data and prior, deals the classes, and finds what `auto` is here.

        Args:
            processes: of this launch.
            recipe: of the run.
            resumes: whether the run resumes from a checkpoint, and needs no start.
        """
        check_inputs(recipe, resumes)
        keep_freed_memory()
        prior, images, embeddings = materials(recipe, processes)
        own = processes.shard(range(len(images.classes)))
        most = -(-len(images.classes) // processes.num_processes)
        sharded = sharding.wanted(processes.accelerator)
        padding = (most - len(own)) * recipe.distill.latents_per_class if sharded else 0
        rendered = len(own) * recipe.distill.latents_per_class + padding
        recipe = _settled(Bench(recipe, prior, images, own, processes.device), processes, rendered)
        settings = recipe.prior
        if settings.compile:  # after `auto`, which counts the denoiser's operations one by one
            priors.compile_denoiser(prior, processes.device, sharded)
        return cls(
            recipe=recipe,
            processes=processes,
            images=images,
            prior=prior,
            schedule=Schedule.of(prior.noise_schedule, settings.steps, settings.skip, settings.guidance),
            objective=objectives.build(recipe, images, own, processes),
            own=own,
            embeddings=embeddings,
            padding=padding,
            room=MemoryBudget.of(recipe, rendered, together=sharded, process=processes.label),
        )

    @property
    def classes(self) -> dict[str, int]:
        """The place of each class among all of the source, by name."""
        return dict(zip(self.images.classes, self.images.ids, strict=True))

    def by_class(self, images: Tensor) -> Tensor:
        """[images, …] to [classes, latents per class, …]."""
        return images.unflatten(0, (len(self.own), self.recipe.distill.latents_per_class))


def materials(recipe: Recipe, processes: Processes) -> tuple[Prior, coresets.Coreset, Tensor]:
    """The prior, the images and the embeddings of their classes, checked to fit each other and the recipe."""
    # First: a mistake here should not cost hours of reading. What is to be sharded may be too large for a device.
    sharded = sharding.wanted(processes.accelerator)
    denoiser_device = "cpu" if sharded else processes.device
    prior = priors.for_images(
        recipe.prior, recipe.data.channels, recipe.rendered_size, processes.device, denoiser_device
    )
    if sharded:
        sharding.shard_denoiser(prior, recipe.prior, processes.accelerator)
    prepared = data.prepare(recipe.data, progress=processes.is_main_process)
    embeddings = prior.class_embeddings(prepared.classes)  # says which class it does not know
    _check(recipe, prepared, prior)
    images = coresets.open_kept(prepared, recipe.data, recipe.seed, [recipe.distill.init], processes.device)
    return prior, images, embeddings


def _settled(bench: Bench, processes: Processes, images: int) -> Recipe:
    """The recipe with what `auto` is for so many images on this process; the same on all that share a denoiser."""
    sampler, sharded = bench.recipe.prior, sharding.wanted(processes.accelerator)
    if "auto" not in (sampler.micro_batch, sampler.keep_graph_steps):
        return bench.recipe
    room = memory.free(processes.device)
    if sharded:
        room = min(processes.gather([room]))
    recipe = solve_auto(bench, processes.num_processes, images, room, sharded)
    found = recipe.prior
    if sharded:  # what was measured may differ by what a library keeps
        found = found.model_copy(update={"micro_batch": min(processes.gather([found.micro_batch]))})
        recipe = recipe.model_copy(update={"prior": found})
    processes.print(
        f"prior.micro_batch={found.micro_batch} prior.keep_graph_steps={found.keep_graph_steps}: "
        f"found for the {room / 2**30:,.1f} GiB that are free"
    )
    return recipe


def _check(recipe: Recipe, images: data.ImageSet, prior: Prior) -> None:
    """Mistakes that only the data and the prior show."""
    channels, count = recipe.data.channels, recipe.distill.latents_per_class
    networks.check(recipe.network.arch, images.shape, recipe.network)
    for arch in recipe.evaluate.arch:
        networks.check(arch, images.shape, NetworkRecipe(), "evaluate.arch")
    _check_learnable(recipe, prior)
    if prior.image_channels != channels:
        raise UserError(
            f"data.channels: {channels}, but the prior's images have {prior.image_channels}; "
            f"set data.channels={prior.image_channels} or choose another prior.source"
        )
    found = min(images.counts["train"])
    fewest = coresets.kept_count(recipe.data, found)
    if recipe.distill.init in STARTS and recipe.distill.init != "noise" and fewest < count:
        name = images.classes[images.counts["train"].index(found)]
        kept = f" ({found} before data.keep={recipe.data.keep:g})" if fewest < found else ""
        raise UserError(
            f"distill.images_per_class: {recipe.distill.images_per_class}; Z starts from {count} images, but class "
            f"{name!r} has only {fewest} training "
            f"images{kept}; set fewer{', keep more' if kept else ''}, or distill.init=noise"
        )


def _check_learnable(recipe: Recipe, prior: Prior) -> None:
    """That what the recipe learns has a part in the images."""
    sampler, learn = recipe.prior, recipe.distill.learn
    conditional = bool(math.prod(prior.conditioning_shape))
    if not conditional and sampler.guidance != 1:
        raise UserError(
            f"prior.guidance: {sampler.guidance:g}, but {sampler.source} is unconditional and has no classes to guide "
            "to; set prior.guidance=1"
        )
    if learn != "latents" and not conditional:
        raise UserError(
            f"distill.learn: {learn!r}, but {sampler.source} is unconditional and only Z has a part; "
            "set distill.learn=latents"
        )
    (_, first, _), *_ = prior.noise_schedule.walk(sampler.steps or 1)
    if learn != "conditioning" and sampler.steps and sampler.skip != "reference" and first.signal == 0:
        raise UserError(
            f"prior.skip: {sampler.skip!r}, but the first step of this prior's noise schedule is noise alone and Z "
            "has no part in the images; set prior.skip=reference"
        )
