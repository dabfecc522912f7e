"""Where Z and c start: encodings of real images, noise, k-means centres, or another run's latents."""

from pathlib import Path

import torch
from torch import Tensor

from ld3m.data.selection.coresets import Coreset
from ld3m.distillation.latents import unmoved
from ld3m.errors import UserError
from ld3m.priors import Prior
from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.recipe.values import STARTS
from ld3m.runs import weights
from ld3m.runs.folder import load_recipe
from ld3m.runs.result import read_latents
from ld3m.sampling.encodings import starting_latents


@torch.no_grad()
def initial_state(
    recipe: Recipe, images: Coreset, prior: Prior, embedding: Tensor, label: int, device: torch.device
) -> dict[str, Tensor]:
    """The state of a class at the start: Z as `distill.init` says, c its embedding, or both as another run has them.

    Args:
        recipe: `distill.init`, the number of latents, what the optimiser keeps, the seed, and `prior.micro_batch`.
        images: the real images, opened for `distill.init`.
        embedding: the prior's conditioning of the class, [*conditioning_shape].

    Returns:
        Tensors [latents per class, …] by the names of `LearntLatents`.

    Raises:
        UserError: if another run has not as many images of the class, or latents of another prior.
    """
    init, count, micro_batch = recipe.distill.init, recipe.distill.latents_per_class, recipe.prior.images_at_a_time
    if init not in STARTS:
        published = _published(init, images.classes[label], count, prior)
        z, c = (tensor.to(device) for tensor in published[:2])
        state, counted = unmoved(recipe.distill, z, c), published[2]
        return state if counted is None else state | {"weight": counted.to(device)}
    draws = generator(recipe.seed, "init", label)
    z = starting_latents(init, images, prior, label, count, draws, micro_batch, device)
    c = embedding.expand(count, *prior.conditioning_shape).clone()
    return unmoved(recipe.distill, z, c)


def _published(init: str, name: str, count: int, prior: Prior) -> tuple[Tensor, Tensor, Tensor | None]:
    """Z and c of the first images of a class in another run, which is here or on the Hub; and their weights, if any.

    Raises:
        UserError: if it does not have as many images of the class, or has latents of another prior.
    """
    folder: Path | None = Path(init)
    if init.startswith("hub:"):
        from ld3m.runs.download import fetch  # most runs ask nothing of the Hub

        folder = fetch(init.removeprefix("hub:"))
    if folder is None:
        raise UserError(f"distill.init: {init} has no latents; give a data set that ld3m push-to-hub made")
    tensors, about = read_latents(folder)
    classes = about.classes
    if name not in classes:
        raise UserError(f"distill.init: {init} has no class {name!r}; its classes are {', '.join(classes[:20])}")
    rows = (tensors["labels"] == classes.index(name)).nonzero().flatten()[:count]
    if len(rows) < count:
        raise UserError(
            f"distill.images_per_class: {count} latents of class {name!r} are wanted, but {init} has {len(rows)}; "
            "set fewer images per class"
        )
    z, c = tensors["z"][rows], tensors["c"][rows]
    for what, found, wanted in (("Z", z, prior.latent_shape), ("c", c, prior.conditioning_shape)):
        if tuple(found.shape[1:]) != tuple(wanted):
            raise UserError(
                f"distill.init: {init} has {what} of shape {list(found.shape[1:])}, not {list(wanted)} as this prior; "
                "give the prior that it was made with"
            )
    each = len(tensors["z"]) // len(classes)
    counted = weights.read(folder, dict.fromkeys(classes, each)) if load_recipe(folder).distill.factor == 1 else None
    return z, c, None if counted is None else torch.tensor(counted[name][:count], dtype=torch.float32)
