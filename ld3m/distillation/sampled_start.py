"""Z sampled from the prior (`distill.init=sample`): each process its own, kept as they are done, drawn on the way.

How a class is sampled is `sampling.sampled`; here are a run's folder, its pictures and its note of what it took.
"""

import shutil
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ld3m.distillation.latents import unmoved
from ld3m.distillation.setup import Setup
from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.images import grids
from ld3m.images.multi_formation import stored
from ld3m.machine import memory
from ld3m.priors import sharding
from ld3m.runs.folder import SAMPLING, SAMPLING_PARTS
from ld3m.sampling.approach import ClassTask
from ld3m.sampling.sampled import Sampled, sample_class


def sampled_states(setup: Setup) -> list[dict[str, Tensor]]:
    """The state of each class of this process, as `starts.initial_state` gives it; one of zeros if it has none.

    Images are kept in the run's folder as they are done, until `forget_parts`. If nothing is learnt afterwards, the
    run's evolution shows the sampling: what the prior expects of the images after each step.

    Raises:
        UserError: for a denoiser that processes share, or latents that are not finite.
    """
    recipe, processes = setup.recipe, setup.processes
    if sharding.wanted(processes.accelerator):
        raise UserError(
            "distill.init: sample needs a whole denoiser on each process, and this launch shards it; sample without "
            "launch/zero3.yaml or FSDP, and start from that run: distill.init=FOLDER"
        )
    frames, classes, each = _frames(setup)
    done = []
    drawn = recipe.distill.latents_per_class * recipe.sample.draws
    hidden = not processes.is_main_process
    with tqdm(desc=f"sampling by {recipe.sample.method}", total=len(setup.own) * drawn, disable=hidden) as bar:
        for label in setup.own:
            shown = frames if label < classes else ()
            done.append(sample_class(_task(setup, label), shown, recipe.folder / SAMPLING_PARTS, bar.update))
    _draw_on_the_way(setup, done, frames, classes, each)
    took = processes.gather([(each.seconds, each.drawn) for each in done])
    if any(processes.gather([each.unguided for each in done])):
        method, steps = recipe.sample.method, recipe.sample.steps
        processes.print(f"sample.method: {method} guided none of {steps} steps, so that its images are plain samples")
    peak = max(processes.gather([memory.peak(processes.device)]))
    if processes.is_main_process:
        seconds, images = (sum(column) for column in zip(*took, strict=True))
        about = {"images": images, "seconds": seconds, "processes": processes.num_processes, "peak_memory": peak}
        write_json(recipe.folder / SAMPLING, about)
    if not done:
        shapes = setup.prior.latent_shape, setup.prior.conditioning_shape
        count = recipe.distill.latents_per_class
        zeros = (torch.zeros(count, *shape, device=processes.device) for shape in shapes)
        return [unmoved(recipe.distill, *zeros)]
    return [_state(setup, label, each) for label, each in zip(setup.own, done, strict=True)]


def forget_parts(setup: Setup) -> None:
    """Removes the images that were kept one by one, once a checkpoint has them all."""
    setup.processes.wait_for_everyone()
    if setup.processes.is_main_process:
        shutil.rmtree(setup.recipe.folder / SAMPLING_PARTS, ignore_errors=True)


def _task(setup: Setup, label: int) -> ClassTask:
    return ClassTask(setup.recipe, setup.prior, setup.images, setup.embeddings[label], label, setup.processes.device)


def _state(setup: Setup, label: int, sampled: Sampled) -> dict[str, Tensor]:
    c = setup.embeddings[label].expand(len(sampled.z), *setup.prior.conditioning_shape).clone()
    state = unmoved(setup.recipe.distill, sampled.z.to(setup.processes.device), c)
    return (
        state
        if sampled.weights is None
        else state | {"weight": (sampled.weights / sampled.weights.mean()).to(c.device)}
    )


def _frames(setup: Setup) -> tuple[Sequence[int], int, int]:
    """The steps after which the images are drawn, and of how many classes and how many images of each."""
    settings = setup.recipe.distill
    classes, each = grids.shown(len(setup.images.classes), settings.images_per_class)
    if settings.iterations or not settings.pictures:
        return (), classes, each
    steps = setup.recipe.sample.steps
    return range(0, steps, -(-steps // settings.pictures)), classes, each


def _draw_on_the_way(setup: Setup, done: Sequence[Sampled], frames: Sequence[int], classes: int, each: int) -> None:
    """A picture of the run's evolution for each of `frames` that the chains went through."""
    recipe, factor = setup.recipe, setup.recipe.distill.factor
    own = {}
    for label, sampled in zip(setup.own, done, strict=True):
        if frames and label < classes:
            way = sampled.on_the_way[: each * factor**2]
            pixels = _task(setup, label).decode(way.flatten(0, 1)).unflatten(0, way.shape[:2])
            own[label] = stored(pixels.transpose(0, 1), factor)  # [frames, images, …]
    everyone = dict(sorted(setup.processes.gather(list(own.items()))))
    if setup.processes.is_main_process and everyone:
        by_frame = torch.stack(list(everyone.values()), 1)
        for step, images in zip(frames[len(frames) - len(by_frame) :], by_frame, strict=True):
            grids.write_frame(recipe.folder, step, images)
