"""The latents of a finished run rendered otherwise: with other steps, another skip, guidance or prior."""

import json
from pathlib import Path

import torch

from ld3m import priors
from ld3m.errors import UserError
from ld3m.files import write_text
from ld3m.images import grids as pictures
from ld3m.images.multi_formation import pack
from ld3m.images.ranges import unit_to_bytes
from ld3m.machine.determinism import repeatable
from ld3m.machine.processes import Processes, watched_command
from ld3m.recipe import Recipe
from ld3m.recipe.files import to_yaml
from ld3m.runs import folder as run
from ld3m.sampling.noise import draw_noise
from ld3m.sampling.room import MemoryBudget
from ld3m.sampling.sampler import Schedule, render


@watched_command
def render_again(processes: Processes, folder: Path, recipe: Recipe, output: Path | None = None) -> Path:
    """Renders the latents of a run as another recipe's `prior` says, with the noise that its images have.

    Under `accelerate launch` the classes are dealt to the processes.

    Args:
        folder: a finished run.
        recipe: its recipe, with overrides.
        output: where images/, grid.png and the recipe go; None: the run's rendered/<steps, skip and guidance>.

    Returns:
        The folder, which `ld3m evaluate` takes.

    Raises:
        UserError: where the prior's latents or conditioning have other shapes, or `output` holds something else than
            what this wrote before.
    """
    if not (folder / "latents.safetensors").is_file():
        raise UserError(f"RUN: {folder} has no latents to render, only images")
    if processes.is_main_process and output and output.exists():
        _check(output)
    settings = recipe.prior
    prior = priors.of(recipe, processes.device)
    tensors, metadata = run.read_latents(folder)
    for name, wanted in (("z", prior.latent_shape), ("c", prior.conditioning_shape)):
        if tuple(tensors[name].shape[1:]) != tuple(wanted):
            raise UserError(
                f"prior.source: {settings.source} takes {name} of shape {list(wanted)}, "
                f"but {folder} has {list(tensors[name].shape[1:])}"
            )
    output = output or folder / "rendered" / f"steps{settings.steps}-{settings.skip}-guidance{settings.guidance:g}"
    names, each = json.loads(metadata["classes"]), recipe.distill.images_per_class
    own = processes.shard(range(len(names)))
    ours = torch.isin(tensors["labels"], torch.tensor(own))
    schedule = Schedule.of(prior.noise_schedule, settings.steps, settings.skip, settings.guidance)
    z, c = (tensors[name][ours].to(processes.device) for name in ("z", "c"))
    noise = draw_noise(recipe, prior, own, int(metadata["noise_iteration"]), processes.device)
    room = MemoryBudget.of(recipe, len(z), process=processes.label)
    room.keep_graph_steps = 0
    with repeatable(processes.device, recipe.tf32):
        pixels, _ = room.render(
            lambda micro_batch, _: render(
                prior, schedule, z, c, noise, resolution=recipe.rendered_size, micro_batch=micro_batch
            )
        )
    images = pack(unit_to_bytes(pixels), recipe.distill.factor).unflatten(0, (len(own), each))
    if processes.is_main_process:
        run.begin_images(output)
    processes.wait_for_everyone()
    for label, of_class in zip(own, images, strict=True):
        run.write_images(output, names[label], of_class)
    classes, seen = pictures.shown(len(names), each)
    mine = [(label, of_class[:seen]) for label, of_class in zip(own, images, strict=True) if label < classes]
    everyone = sorted(processes.gather(mine), key=lambda item: item[0])
    if processes.is_main_process:
        run.place_images(output)
        places = json.loads(metadata.get("class_ids", "null")) or range(len(names))
        run.note_classes(output, dict(zip(names, places, strict=True)))
        pictures.write_grid(output, torch.stack([of_class for _, of_class in everyone]))
        write_text(output / "recipe.yaml", to_yaml(recipe.model_copy(update={"output": str(output)})))
        print(f"{output}: {len(names) * each} images in images/, a look at them in grid.png")
    processes.wait_for_everyone()
    return output


def _check(output: Path) -> None:
    """That nothing is lost where the images go."""
    if not output.is_dir() or (any(output.iterdir()) and not (output / "recipe.yaml").is_file()):
        raise UserError(f"--output: {output} is there and is not what ld3m render wrote; give another folder")
    if (output / "checkpoints").exists() or (output / "latents.safetensors").exists():
        raise UserError(f"--output: {output} holds a run; give another folder")
