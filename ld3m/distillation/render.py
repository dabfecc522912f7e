"""The latents of a finished run rendered differently: with other steps, another skip, guidance or prior."""

from pathlib import Path

import torch
from torch import Tensor

from ld3m import priors
from ld3m.distillation.setup import check_guidance, noise_of, schedule_of
from ld3m.errors import UserError
from ld3m.files import write_text
from ld3m.images import grids
from ld3m.images.multi_formation import stored
from ld3m.machine.determinism import repeatable
from ld3m.machine.processes import Processes, watched_command
from ld3m.priors import Prior
from ld3m.priors.source import check_prior_source
from ld3m.recipe import Recipe
from ld3m.recipe.files import to_yaml
from ld3m.runs import result, sources, weights
from ld3m.runs.folder import check_folder_names, has_result, load_recipe, note_classes
from ld3m.runs.resume import flat
from ld3m.sampling.memory_budget import MemoryBudget
from ld3m.sampling.synthetic import SyntheticImages

LATENTS_KEYS = ("seed", "sample.", "distill.", "network.", "experts.", "data.subset", "data.channels")
"""Beginnings of the keys that a run's latents and their noise stand for."""


@watched_command
def render_again(processes: Processes, folder: Path, recipe: Recipe, output: Path | None = None) -> Path:
    """Renders the latents of a run as another recipe's `prior` says, with the noise that its images have.

    Needs the prior and no data. Under `accelerate launch` the classes are dealt to the processes.

    Args:
        output: for images/, grid.png and the recipe; None: rendered/<steps, skip and guidance> in the run's folder.

    Returns:
        The folder, which `ld3m evaluate` takes.

    Raises:
        UserError: if the recipe differs from the run's in what its latents are, the prior's latents or conditioning
            have other shapes, or `output` holds something that this function did not write.
    """
    if not has_result(folder):
        raise UserError(f"RUN: {folder} has no latents to render, only images")
    if processes.is_main_process and output and output.exists():
        _check_replaceable(output)
    tensors, about = result.read_latents(folder)
    names = about.classes
    check_folder_names(names, f"RUN: {folder}")
    _check_same_latents(folder, len(tensors["labels"]), len(names), recipe)
    try:
        check_prior_source(recipe.prior.source)
    except UserError:
        raise UserError(
            f"prior.source: {recipe.prior.source!r} is not here; give where the prior of {folder} is: "
            "prior.source=FOLDER or prior.source=hub:USER/NAME"
        ) from None
    prior = priors.for_images(recipe.prior, recipe.data.channels, recipe.rendered_size, processes.device)
    _check_shapes(folder, tensors, recipe, prior)
    check_guidance(recipe, prior)
    used, noted = priors.provenance(recipe.prior.source), sources.read_prior(folder)
    if noted and noted["sha256"] != used["sha256"]:
        processes.print(
            f"prior.source: {recipe.prior.source} has other weights than the prior that {folder} was made with, "
            f"{noted['source']}: the images will not be the run's"
        )
    own = processes.shard(range(len(names)))
    images = _render_classes(own, tensors, about.noise_iteration, recipe, prior, processes)
    output = output or folder / "rendered" / _folder_name(recipe)
    if processes.is_main_process:
        result.begin_images(output)
    processes.wait_for_everyone()
    for label, of_class in zip(own, images, strict=True):
        result.write_images(output, names[label], of_class)
    classes, each = grids.shown(len(names), recipe.distill.images_per_class)
    seen = [(label, of_class[:each]) for label, of_class in zip(own, images, strict=True) if label < classes]
    everyone = sorted(processes.gather(seen), key=lambda item: item[0])
    if processes.is_main_process:
        result.replace_images(output)
        note_classes(output, about.ids)
        weights.write(output, weights.read(folder, dict.fromkeys(names, recipe.distill.images_per_class)))
        sources.write_prior(output, used)
        grids.write_grid(output, torch.stack([of_class for _, of_class in everyone]), about.classes)
        write_text(output / "recipe.yaml", to_yaml(recipe.changed({"output": str(output)})))
        print(f"{output}: {len(tensors['labels']) // recipe.distill.factor**2} images in images/, shown in grid.png")
    processes.wait_for_everyone()
    return output


def _render_classes(
    own: list[int],
    tensors: dict[str, Tensor],
    noise_iteration: int,
    recipe: Recipe,
    prior: Prior,
    processes: Processes,
) -> Tensor:
    """Images of some classes, uint8 [classes, images per class, channels, H, W]."""
    rows = torch.isin(tensors["labels"], torch.tensor(own))
    by_class = len(own), recipe.distill.latents_per_class
    z, c = (tensors[name][rows].unflatten(0, by_class).to(processes.device) for name in ("z", "c"))
    budget = MemoryBudget.of(recipe, z.shape[0] * z.shape[1], label=processes.label)
    budget.keep_graph_steps = 0
    synthetic = SyntheticImages(
        prior, schedule_of(recipe, prior), noise_of(recipe, prior), own, recipe.rendered_size, budget
    )
    with repeatable(processes.device, recipe.tf32):
        pixels, _ = synthetic.render(z, c, noise_iteration)
    return stored(pixels, recipe.distill.factor)


def _folder_name(recipe: Recipe) -> str:
    settings = recipe.prior
    start = f"-start{settings.start:g}" if settings.start < 1 else ""
    return f"steps{settings.steps}{start}-{settings.skip}-guidance{settings.guidance:g}"


def _check_same_latents(folder: Path, latents: int, classes: int, recipe: Recipe) -> None:
    """Checks that a recipe differs from the run's own only in what rendering may change."""
    before, now = (flat(each.model_dump(mode="json")) for each in (load_recipe(folder), recipe))
    for key in sorted(before.keys() | now.keys()):
        if key.startswith(LATENTS_KEYS) and before.get(key) != now.get(key):
            raise UserError(
                f"{key}: {now.get(key)}, but the latents of {folder} were learnt with {before.get(key)}; "
                "ld3m render changes how they are rendered (prior.*); distil again for others"
            )
    if latents != (wanted := classes * recipe.distill.latents_per_class):
        raise UserError(
            f"RUN: {folder} has {latents} latents of {classes} classes, but its recipe.yaml says {wanted}; "
            "give the recipe back that the run was made by"
        )


def _check_shapes(folder: Path, tensors: dict[str, Tensor], recipe: Recipe, prior: Prior) -> None:
    """Checks that a run's latents and conditioning are those of a prior, and its images those of the recipe."""
    if prior.image_channels != recipe.data.channels:
        raise UserError(
            f"prior.source: images of {recipe.prior.source} have {prior.image_channels} channels, but those of "
            f"{folder} have {recipe.data.channels}; give the prior that the run was made with"
        )
    for name, shape in (("z", prior.latent_shape), ("c", prior.conditioning_shape)):
        if tuple(tensors[name].shape[1:]) != tuple(shape):
            raise UserError(
                f"prior.source: {recipe.prior.source} takes {name} of shape {list(shape)}, "
                f"but {folder} has {list(tensors[name].shape[1:])}; give the prior that the run was made with"
            )


def _check_replaceable(output: Path) -> None:
    """Checks that a folder is empty, or holds nothing but what `render_again` wrote."""
    if not output.is_dir() or (any(output.iterdir()) and not (output / "recipe.yaml").is_file()):
        raise UserError(f"--output: {output} was not written by ld3m render; give another folder")
    if (output / "checkpoints").exists() or has_result(output):
        raise UserError(f"--output: {output} holds a run; give another folder")
