"""Images and latents of a run as tensors: how they are written so that nothing is lost, and read back."""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ld3m.errors import UserError
from ld3m.files import write_folder, write_tensors
from ld3m.images.grids import to_image
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest
from ld3m.runs import checkpoints
from ld3m.runs.folder import EXACT_PIXELS, has_result, image_paths, metadata

NEW_IMAGES = ".images"
"""Folder in which the processes of a run write its images until all are there."""


def begin_images(folder: Path) -> None:
    """Removes images that a killed process left behind; call it on one process before `write_images`."""
    shutil.rmtree(folder / NEW_IMAGES, ignore_errors=True)


def write_images(folder: Path, name: str, pixels: Tensor) -> None:
    """Writes the images of one class, uint8 [n, channels, H, W]; `replace_images` puts them in their place."""

    def fill(target: Path) -> None:
        for index, image in enumerate(pixels):
            to_image(image).save(target / f"{index}.png")

    write_folder(folder / NEW_IMAGES / name, fill)


def replace_images(folder: Path) -> None:
    """Replaces a run's images, and removes their accuracies, once all processes have written theirs."""
    (folder / "evaluation.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)
    (folder / NEW_IMAGES).rename(folder / "images")


def write_result(
    recipe: Recipe,
    classes: Mapping[str, int],
    states: Sequence[dict[str, Tensor]],
    noise_iteration: int,
    learnt: dict[str, float],
) -> None:
    """Replaces the images, then writes the latents, whose presence says that the run is finished.

    Args:
        recipe: of the run.
        classes: the number of each class among all classes of the source, by name.
        states: of each class, as its checkpoint holds them.
        noise_iteration: keys the noise of the rendered images.
        learnt: numbers that the objective learnt beside the latents.
    """
    folder = recipe.folder
    (folder / "latents.safetensors").unlink(missing_ok=True)  # latents and images always agree
    replace_images(folder)
    about = {
        "format": checkpoints.FORMAT,
        "iteration": str(recipe.distill.iterations),
        "recipe": digest(recipe),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "class_ids": json.dumps(list(classes.values())),
        "noise": recipe.prior.noise,
        "noise_iteration": str(noise_iteration),
        "seed": str(recipe.seed),
        "learnt": json.dumps(learnt),
        "versions": json.dumps({name: version(name) for name in ("ld3m", "torch", "diffusers", "accelerate")}),
    }
    z, c = (torch.cat([state[name] for state in states]).float() for name in ("z", "c"))
    labels = torch.arange(len(classes)).repeat_interleave(recipe.distill.latents_per_class)
    write_tensors(folder / "latents.safetensors", {"z": z, "c": c, "labels": labels}, about)


def read_latents(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a finished run (`z` and `c`, float32 [N, …], `labels`, int64 [N]) and their metadata.

    Raises:
        UserError: if there are none, or the file is damaged.
    """
    if not has_result(folder):
        raise UserError(f"{folder} has no latents.safetensors; give the folder of a finished run")
    about = metadata(folder)
    return safetensors.torch.load_file(folder / "latents.safetensors"), about


def read_images(folder: Path, classes: Sequence[str], channels: int, resolution: int) -> tuple[Tensor, Tensor]:
    """The images of a run and their labels, int64 [N].

    Images are uint8 [N, channels, H, W], or float32 in units of [0, 1] if the set has more than 8 bits.

    Raises:
        UserError: if a class has no images, or one cannot be read or has another size.
    """
    if unknown := sorted({path.name for path in (folder / "images").iterdir()} - set(classes)):
        raise UserError(f"RUN: {folder / 'images' / unknown[0]} is none of the recipe's classes: {', '.join(classes)}")
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = image_paths(folder, name)
        if not paths:
            raise UserError(f"RUN: {folder / 'images' / name} has no images")
        for path in paths:
            try:
                pixels = np.array(Image.open(path).convert("L" if channels == 1 else "RGB"))
            except OSError as error:
                raise UserError(f"RUN: cannot read {path} ({error}); distil again with --no-resume") from None
            if pixels.shape[:2] != (resolution, resolution):
                raise UserError(
                    f"RUN: {path} has {pixels.shape[0]} rows and {pixels.shape[1]} columns, not {resolution} as "
                    f"data.resolution says"
                )
            images.append(torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)))
            labels.append(label)
    stacked = torch.stack(images)
    if (exact := folder / EXACT_PIXELS).is_file():
        stacked = safetensors.torch.load_file(exact)["images"]
    return stacked, torch.tensor(labels)
