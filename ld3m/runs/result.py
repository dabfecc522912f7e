"""Images and latents of a run as tensors: how they are written so that nothing is lost, and read back."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ld3m.errors import UserError, one_line
from ld3m.files import tensors_digest, write_folder, write_image, write_tensors
from ld3m.images import grids
from ld3m.images.grids import to_image
from ld3m.reading import TensorSpec, read_tensors
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest
from ld3m.runs import weights
from ld3m.runs.folder import (
    EXACT_PIXELS,
    LATENTS_ADVICE,
    METADATA_KEY,
    REAL,
    Metadata,
    has_result,
    image_paths,
    parse_metadata,
)
from ld3m.runs.manifests import FORMAT

if TYPE_CHECKING:
    from ld3m.data.prepared import ImageSet

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
    images = folder / "images"
    try:
        if images.exists():
            shutil.rmtree(images) if images.is_dir() else images.unlink()
    except OSError as error:
        raise UserError(f"cannot remove {images} ({error.strerror}); remove it, and repeat the command") from None
    (folder / NEW_IMAGES).rename(images)


def write_real(folder: Path, images: "ImageSet", images_per_class: int) -> None:
    """Writes a run's `real.png`: real images, laid out as the pictures of its evolution, to look at beside them.

    Args:
        images: prepared; the first training images of each class are taken, repeatedly if there are fewer.
    """
    count, each = grids.shown(len(images.classes), images_per_class)
    by_class = [images.images("train", label) for label in range(count)]
    first = [of_class[torch.arange(each) % len(of_class)] for of_class in by_class]
    write_image(folder / REAL, grids.side_by_side(torch.stack(first)))


def write_result(
    recipe: Recipe,
    classes: Mapping[str, int],
    states: Sequence[dict[str, Tensor]],
    noise_iteration: int,
    learnt: dict[str, float],
) -> None:
    """Replaces the images, then writes the latents, whose presence says that the run is finished.

    Args:
        classes: the number of each class among all classes of the source, by name.
        states: of each class, as its checkpoint holds them.
        noise_iteration: keys the noise of the rendered images.
        learnt: numbers that the objective learnt beside the latents.
    """
    folder = recipe.folder
    (folder / "latents.safetensors").unlink(missing_ok=True)  # latents and images always agree
    replace_images(folder)
    weights.write(folder, _weights(recipe, classes, states))
    z, c = (torch.cat([state[name] for state in states]).float() for name in ("z", "c"))
    labels = torch.arange(len(classes)).repeat_interleave(recipe.distill.latents_per_class)
    tensors = {"z": z, "c": c, "labels": labels}
    about = Metadata(
        format=FORMAT,
        iteration=recipe.distill.iterations,
        recipe=digest(recipe),
        classes=list(classes),
        class_ids=list(classes.values()),
        noise=recipe.prior.noise,
        noise_iteration=noise_iteration,
        seed=recipe.seed,
        learnt=learnt,
        versions={name: version(name) for name in ("ld3m", "torch", "diffusers", "accelerate")},
        sha256=tensors_digest(tensors),
    )
    write_tensors(folder / "latents.safetensors", tensors, {METADATA_KEY: about.model_dump_json()})


def _weights(
    recipe: Recipe, classes: Iterable[str], states: Sequence[dict[str, Tensor]]
) -> dict[str, list[float]] | None:
    """Weights of the images by class, each the mean of those of the latents in it; None if latents have none."""
    if not all("weight" in state for state in states):
        return None
    each = recipe.distill.factor**2
    of_images = [state["weight"].double().view(-1, each).mean(1).tolist() for state in states]
    rounded = [[round(value, 6) for value in of_class] for of_class in of_images]
    return dict(zip(classes, rounded, strict=True))


def read_latents(folder: Path) -> tuple[dict[str, Tensor], Metadata]:
    """The tensors of a finished run (`z` and `c`, float32 [N, …], `labels`, int64 [N]) and what it notes beside them.

    Raises:
        UserError: if there are none, or the file is damaged.
    """
    if not has_result(folder):
        raise UserError(f"{folder} has no latents.safetensors; give the folder of a finished run")
    path = folder / "latents.safetensors"
    tensors, raw = read_tensors(path, LATENTS_ADVICE)
    about = parse_metadata(path, raw)
    wrong = _mistake(tensors, len(about.classes))
    if not wrong and about.sha256 not in (None, tensors_digest(tensors)):
        wrong = "its tensors have another digest than it says"
    if wrong:
        raise UserError(f"{path} is damaged ({wrong}); {LATENTS_ADVICE}")
    return tensors, about


def _mistake(tensors: Mapping[str, Tensor], classes: int) -> str | None:
    """Why tensors are not the latents of so many classes, or None if they are."""
    types = {"z": torch.float32, "c": torch.float32, "labels": torch.int64}
    if {name: tensor.dtype for name, tensor in tensors.items()} != types:
        found = ", ".join(f"{name} of {tensor.dtype}" for name, tensor in sorted(tensors.items())[:5])
        return f"it holds {found or 'no tensors'}, not c and z of torch.float32 and labels of torch.int64"
    if len({tensor.shape[:1] for tensor in tensors.values()}) > 1 or min(tensors["z"].dim(), tensors["c"].dim()) < 2:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
        return f"it holds {shapes}, not a row of each for every image"
    each, labels = len(tensors["labels"]) // classes, tensors["labels"]
    if not each or not torch.equal(labels, torch.arange(classes).repeat_interleave(each)):
        return f"its labels are not as many of each of {classes} classes, in their order"
    return None


def read_image(path: Path, channels: int, resolution: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """An image of a run, uint8 [H, W] or [H, W, 3].

    Raises:
        UserError: if it cannot be read or has another size.
    """
    try:
        pixels = np.array(Image.open(path).convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # decoders raise nearly anything
        advice = "remove it, and ld3m distill renders it again"
        raise UserError(f"RUN: cannot read {path} ({one_line(error)}); {advice}") from None
    if pixels.shape[:2] != (resolution, resolution):
        raise UserError(
            f"RUN: {path} has {pixels.shape[0]} rows and {pixels.shape[1]} columns, not {resolution} as "
            f"data.resolution says"
        )
    return pixels


def read_images(folder: Path, classes: Sequence[str], channels: int, resolution: int) -> tuple[Tensor, Tensor]:
    """The images of a run and their labels, int64 [N].

    Images are uint8 [N, channels, H, W], or float32 in units of [0, 1] if the set has more than 8 bits.

    Raises:
        UserError: if a class has no images, or one cannot be read or has another size.
    """
    try:
        names = {path.name for path in (folder / "images").iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise UserError(f"RUN: cannot read {folder / 'images'} ({error.strerror}); distil again") from None
    if unknown := sorted(names - set(classes)):
        raise UserError(f"RUN: {folder / 'images' / unknown[0]} is none of the recipe's classes: {', '.join(classes)}")
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = image_paths(folder, name)
        if not paths:
            raise UserError(f"RUN: {folder / 'images' / name} has no images")
        for path in paths:
            pixels = read_image(path, channels, resolution)
            images.append(torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)))
            labels.append(label)
    stacked = torch.stack(images)
    if (exact := folder / EXACT_PIXELS).is_file():
        expected = {"images": TensorSpec(torch.float32, tuple(stacked.shape))}
        stacked = read_tensors(exact, f"remove {folder}, and it is imported again", expected).tensors["images"]
    return stacked, torch.tensor(labels)
