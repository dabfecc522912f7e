"""What is learnt: latents Z and conditioning c of this process's images, their start, their noise, their step."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ld3m import data, hub, run
from ld3m.coresets import Coreset
from ld3m.errors import UserError
from ld3m.kmeans import kmeans
from ld3m.priors import Prior
from ld3m.randomness import generator
from ld3m.recipe import DistillRecipe, Recipe
from ld3m.recipe_values import STARTS
from ld3m.shortage import in_parts
from ld3m.transfer import send

SQUARE_DECAY = 0.999
"""Adam's β2."""


@dataclass
class Learnt:
    """Z, c and what their optimiser keeps, each [classes, latents per class, …] in float32, by class."""

    z: Tensor
    c: Tensor
    z_momentum: Tensor
    c_momentum: Tensor
    z_square: Tensor | None = None
    """Adam's running mean of the squared gradient."""
    c_square: Tensor | None = None

    @classmethod
    def stack(cls, states: Sequence[dict[str, Tensor]], count: int) -> "Learnt":
        """Of the states of the first `count` classes, as `by_class` gives them; none at all is a count of 0.

        In one memory layout, wherever the states come from: kernels add up in the order of memory, and an encoder's
        output may be laid out otherwise than a file's.
        """
        return cls(**{name: torch.stack([state[name] for state in states])[:count].contiguous() for name in states[0]})

    def by_class(self) -> list[dict[str, Tensor]]:
        """The state of each class, which checkpoints keep: classes may move to other processes."""
        known = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return [{name: tensor[place] for name, tensor in known.items()} for place in range(len(self.z))]

    def step(self, iteration: int, grad_z: Tensor, grad_c: Tensor, recipe: DistillRecipe) -> None:
        """The optimiser's step of an iteration, on what the recipe learns."""
        share = 1.0
        if recipe.schedule == "cosine":
            share = (1 + math.cos(math.pi * iteration / recipe.iterations)) / 2
        if recipe.learn != "conditioning":
            direction, self.z_momentum, self.z_square = _direction(
                grad_z.view_as(self.z), self.z_momentum, self.z_square, iteration, recipe.momentum
            )
            self.z = self.z - share * recipe.lr_latents * direction
        if recipe.learn != "latents":
            direction, self.c_momentum, self.c_square = _direction(
                grad_c.view_as(self.c), self.c_momentum, self.c_square, iteration, recipe.momentum
            )
            self.c = self.c - share * recipe.lr_conditioning * direction


def _direction(
    grad: Tensor, momentum: Tensor, square: Tensor | None, iteration: int, decay: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a rate is multiplied with, and the new state: SGD's momentum, or, with a second one, Adam's quotient.

    Adam as Kingma and Ba (ICLR 2015) have it, with β1 = `decay`.
    """
    if square is None:
        momentum = decay * momentum + grad
        return momentum, momentum, None
    momentum = decay * momentum + (1 - decay) * grad
    square = SQUARE_DECAY * square + (1 - SQUARE_DECAY) * grad.square()
    mean, spread = momentum / (1 - decay ** (iteration + 1)), square / (1 - SQUARE_DECAY ** (iteration + 1))
    return mean / (spread.sqrt() + 1e-8), momentum, square


def _unmoved(recipe: DistillRecipe, z: Tensor, c: Tensor) -> dict[str, Tensor]:
    """The state of a class before the first step."""
    kept = ("momentum", "square") if recipe.optimiser == "adam" else ("momentum",)
    still = {f"{name}_{each}": torch.zeros_like(tensor) for each in kept for name, tensor in (("z", z), ("c", c))}
    return {"z": z, "c": c, **still}


@torch.no_grad()
def initial(
    recipe: Recipe, images: Coreset, prior: Prior, embedding: Tensor, label: int, device: torch.device
) -> dict[str, Tensor]:
    """The state of a class at the start: Z as `distill.init` says, c its embedding, or both as another run has them.

    "prototype" is what D4M samples from (Su et al., CVPR 2024, arXiv 2407.15138), without its conditioning on text.
    """
    init, count = recipe.distill.init, recipe.distill.latents_per_class
    if init not in STARTS:
        z, c = (tensor.to(device) for tensor in _published(init, images.classes[label], count, prior))
        return _unmoved(recipe.distill, z, c)
    draws = generator(recipe.seed, "init", label)
    if init == "noise":
        z = torch.randn(count, *prior.latent_shape, generator=draws).to(device)
    elif init == "prototype":
        encodings = _encode(images.images("train", label), prior, recipe.prior.images_at_a_time, device)
        z = kmeans(encodings.flatten(1), count, draws).view(count, *prior.latent_shape).to(device)
    else:
        chosen = images.select("random" if init == "real" else init, label, count, draws)
        z = _encode(images.images("train", label)[chosen], prior, recipe.prior.images_at_a_time, device).to(device)
    c = embedding.expand(count, *prior.conditioning_shape).clone()
    return _unmoved(recipe.distill, z, c)


def _published(init: str, name: str, count: int, prior: Prior) -> tuple[Tensor, Tensor]:
    """Z and c of the first images of a class in another run, which is here or on the Hub.

    Raises:
        UserError: where it has not as many images of the class, or latents of another prior.
    """
    folder = hub.fetch(init.removeprefix("hub:")) if init.startswith("hub:") else Path(init)
    if folder is None:
        raise UserError(f"distill.init: {init} has no latents; give a data set that ld3m push-to-hub made")
    tensors, metadata = run.read_latents(folder)
    classes = json.loads(metadata["classes"])
    if name not in classes:
        raise UserError(f"distill.init: {init} has no class {name!r}; its classes are {', '.join(classes[:20])}")
    places = (tensors["labels"] == classes.index(name)).nonzero().flatten()[:count]
    if len(places) < count:
        raise UserError(
            f"distill.images_per_class: {count} latents of class {name!r} are wanted, but {init} has {len(places)}; "
            "set fewer images per class"
        )
    z, c = tensors["z"][places], tensors["c"][places]
    for what, found, wanted in (("Z", z, prior.latent_shape), ("c", c, prior.conditioning_shape)):
        if tuple(found.shape[1:]) != tuple(wanted):
            raise UserError(
                f"distill.init: {init} has {what} of shape {list(found.shape[1:])}, not {list(wanted)} as this prior; "
                "give the prior that it was made with"
            )
    return z, c


def _encode(images: Tensor, prior: Prior, micro_batch: int, device: torch.device) -> Tensor:
    """Latents [n, *latent_shape], on the CPU, of uint8 images [n, channels, H, W]."""

    def encode(chunk: Tensor) -> Tensor:
        pixels = data.to_signed(chunk.to(device))
        if pixels.shape[-1] != prior.image_size:
            pixels = functional.interpolate(pixels, size=prior.image_size, mode="bilinear", antialias=True)
        return prior.encode(pixels).cpu()

    advice = (
        "distill.init: memory ran out as a single image was encoded; give distill.init=noise, a smaller "
        "prior.resolution or more memory"
    )
    return in_parts(encode, images, micro_batch, advice)


def draw_noise(recipe: Recipe, prior: Prior, labels: Sequence[int], iteration: int, device: torch.device) -> Tensor:
    """ε0 [classes · images per class, *latent_shape]: of the iteration ("fresh"), or the run's ("fixed")."""
    moment = iteration if recipe.prior.noise == "fresh" else 0
    draws = [
        torch.randn(prior.latent_shape, generator=generator(recipe.seed, "noise", moment, label, image))
        for label in labels
        for image in range(recipe.distill.latents_per_class)
    ]
    return send(torch.stack(draws), device) if draws else torch.empty(0, *prior.latent_shape, device=device)
