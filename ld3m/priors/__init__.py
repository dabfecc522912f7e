"""Priors: frozen, pre-trained latent diffusion models behind one small protocol; how their folders are found and read.

`kinds` has a file per kind, `originals` makes priors of original checkpoints. How a prior renders is `sampling`;
training one on one's own images is `prior_training`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from ld3m.errors import UserError, one_line, user_error_if_damaged
from ld3m.priors.base import LatentDiffusion, Prior, numbers_of
from ld3m.priors.diffusers_layout import is_whole, read_index
from ld3m.priors.kinds.autoencoder import Autoencoder
from ld3m.priors.kinds.consistency import ConsistencyModel
from ld3m.priors.kinds.dit import DiT
from ld3m.priors.kinds.ldm import ClassConditionalLDM, UnconditionalLDM
from ld3m.priors.kinds.pixels import Pixels
from ld3m.priors.kinds.several_encoders import Sana, StableDiffusion3, StableDiffusionXL
from ld3m.priors.kinds.stable_diffusion import StableDiffusion
from ld3m.priors.known import KNOWN
from ld3m.priors.loading import Parts
from ld3m.priors.source import fetch, outline, provenance, weight_bytes
from ld3m.recipe import SamplerRecipe
from ld3m.registry import Registry

__all__ = [
    "PRIORS",
    "Autoencoder",
    "ClassConditionalLDM",
    "ConsistencyModel",
    "DiT",
    "Parts",
    "Pixels",
    "Prior",
    "Sana",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "UnconditionalLDM",
    "check_classes",
    "compile_denoiser",
    "for_images",
    "load",
    "provenance",
    "render_at",
    "weight_bytes",
]

PRIORS: Registry[Callable[[Parts], Prior]] = Registry(
    "ld3m.priors",
    "prior.source",
    {
        "ClassConditionalLDM": ClassConditionalLDM.load,
        "LDMPipeline": UnconditionalLDM.load,
        "DiTPipeline": DiT.load,
        "StableDiffusionPipeline": StableDiffusion.load,
        "StableDiffusionXLPipeline": StableDiffusionXL.load,
        "StableDiffusion3Pipeline": StableDiffusion3.load,
        "SanaPipeline": Sana.load,
        "ConsistencyModelPipeline": ConsistencyModel.load,
    },
)
"""Loaders by the `_class_name` of a folder's model_index.json."""
PACKED = ("FluxPipeline", "Flux2Pipeline", "LuminaPipeline", "Lumina2Pipeline", "AuraFlowPipeline", "QwenImagePipeline")
"""Flows whose latents are packed into tokens or whose guidance is an input, so that they are no priors."""


def for_images(
    recipe: SamplerRecipe,
    channels: int,
    size: int,
    device: torch.device | str = "cpu",
    denoiser_device: torch.device | str | None = None,
) -> Prior:
    """The prior that `prior.source` names, as `load` has it; "pixels" is `Pixels` of so many channels and pixels."""
    if recipe.source == "pixels":
        return Pixels(channels, size, device)
    return load(recipe, device, denoiser_device, size)


def load(
    recipe: SamplerRecipe,
    device: torch.device | str = "cpu",
    denoiser_device: torch.device | str | None = None,
    size: int | None = None,
) -> Prior:
    """The prior that `prior.source` names, on a device; its denoiser in the recipe's dtype, on another device if given.

    Args:
        recipe: `prior.source` and how it is rendered.
        size: height and width of what an autoencoder alone renders, if `prior.resolution` says none.

    Raises:
        UserError: if it is not a latent diffusion model in diffusers' layout, or of no known kind.
    """
    folder = fetch(recipe.source)
    if recipe.scaling_factor is None and recipe.source in KNOWN:
        recipe = recipe.changed({"scaling_factor": KNOWN[recipe.source].scaling_factor})
    kind, loader = _kind(folder)
    with whole(folder, kind):
        prior = loader(Parts(folder, device, recipe, denoiser_device, size))
    check_null_class(recipe, prior.null_embedding is not None)
    render_at(prior, kind, recipe)
    if recipe.denoiser == "random":
        if prior.denoiser is None:
            raise UserError(f"prior.denoiser: random, but a prior of kind {kind!r} has no denoiser")
        draw_weights(prior.denoiser)
    return prior


def render_at(prior: Prior, kind: str, recipe: SamplerRecipe) -> None:
    """Has a prior render at `prior.resolution`, if the recipe gives one.

    Raises:
        UserError: if it cannot.
    """
    if not recipe.resolution or isinstance(prior, Autoencoder):  # which was made for it
        return
    if not isinstance(prior, LatentDiffusion):
        raise UserError(f"prior.resolution: a prior of kind {kind!r} has one size; leave the key out")
    prior.render_at(recipe.resolution)


def check_classes(source: str, classes: Sequence[str]) -> bool:
    """That a prior knows classes, as far as its configurations tell, if they are on this machine; none is asked for.

    Returns:
        whether they tell.

    Raises:
        UserError: naming a class that it does not know.
    """
    if source == "pixels":
        return True
    try:
        folder = outline(source)
    except UserError:
        return False
    kind, _ = _kind(folder)
    named: dict[str, type[ClassConditionalLDM | DiT | ConsistencyModel]] = {
        each.kind: each for each in (ClassConditionalLDM, DiT, ConsistencyModel)
    }
    if prior := named.get(kind):
        names = prior.class_names(Parts(folder, "cpu", SamplerRecipe(source=source)))
        numbers_of(classes, names, prior.named_in)
    return kind in PRIORS or not is_whole(folder)


def _kind(folder: Path) -> tuple[str, Callable[[Parts], Prior]]:
    """What a folder's model_index.json says that it is, and the loader; refuses what is no prior."""
    kind = read_index(folder).kind
    if not is_whole(folder):
        return kind, Autoencoder.load
    if kind in PACKED:
        raise UserError(
            f"prior.source: {folder} is a {kind}, whose latents are packed into tokens or whose guidance is an input; "
            "of flow-matching models StableDiffusion3Pipeline, SanaPipeline and ld3m train-prior's can be priors"
        )
    return kind, PRIORS.find(kind, f"prior.source: the kind of {folder}")


def whole(folder: Path, kind: str) -> AbstractContextManager[None]:
    """Turns what goes wrong while a prior is made of a folder's configurations into a UserError."""
    return user_error_if_damaged(f"prior.source: {folder}, a {kind},", "compare its configurations with the original's")


def check_null_class(recipe: SamplerRecipe, null_class: bool) -> None:
    """That a prior has what guidance contrasts with, if the recipe asks for any.

    Raises:
        UserError: if not.
    """
    if recipe.steps and recipe.guidance != 1 and not null_class:
        raise UserError(
            f"prior.guidance: {recipe.guidance:g}, but {recipe.source} has no null class to guide away from; "
            "set prior.guidance=1"
        )


def compile_denoiser(prior: Prior, device: torch.device, sharded: bool = False) -> None:
    """Compiles a prior's denoiser, which happens when it is first called with and without a graph.

    Kernels are of one batch size, which is faster than kernels of any: a last micro-batch that is smaller has its own.

    Raises:
        UserError: if torch.compile does not work here, or this process has no denoiser, or not all of it.
    """
    denoiser = prior.denoiser
    if sharded or denoiser is None:
        why = "under ZeRO-3 and FSDP its layers come and go" if sharded else f"a {type(prior).__name__} has none"
        raise UserError(f"prior.compile: on, but a denoiser must be there as a whole, and {why}; leave the key out")
    try:  # on something small first: a compiler that is missing should not show after minutes
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # each backend raises its own
        raise UserError(
            f"prior.compile: torch.compile does not work here ({one_line(error)}); it needs a C++ compiler, and "
            "Triton on GPUs; leave the key out if there is none"
        ) from None
    denoiser.compile(dynamic=False)


def draw_weights(network: nn.Module) -> None:
    """Gives a network the weights it would have before training, the same on every process and device."""
    device = next(network.parameters()).device
    network.to("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    network.to(device)
