"""Real images as latents: all of a class, those that a core-set chooses, and the class's prototypes."""

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.data.coresets import Coreset
from ld3m.images.ranges import bytes_to_signed
from ld3m.machine.out_of_memory import in_parts
from ld3m.priors import Prior
from ld3m.sampling.kmeans import kmeans


@torch.no_grad()
def starting_latents(
    start: str,
    images: Coreset,
    prior: Prior,
    label: int,
    count: int,
    draws: torch.Generator,
    micro_batch: int,
    device: torch.device,
) -> Tensor:
    """Clean latents of a class [count, *latent_shape], by a word of `distill.init`.

    "prototype" is what D4M samples from (Su et al., CVPR 2024, arXiv 2407.15138), without its conditioning on text.

    Args:
        start: "noise", "prototype", "real", or one of `data.coresets.SELECTIONS`.
        images: the real images, opened for `start`.
        prior: encodes them.
        label: the class.
        count: of latents.
        draws: decides them.
        micro_batch: images that are encoded at a time.
        device: of the encoder and the result.
    """
    if start == "noise":
        return torch.randn(count, *prior.latent_shape, generator=draws).to(device)
    if start == "prototype":
        return prototypes(encode(images.images("train", label), prior, micro_batch, device), count, draws).to(device)
    chosen = images.select("random" if start == "real" else start, label, count, draws)
    return encode(images.images("train", label)[chosen], prior, micro_batch, device).to(device)


def prototypes(encodings: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """k-means centres [count, *latent_shape] of a class's encodings [n, *latent_shape], on the CPU."""
    return kmeans(encodings.flatten(1), count, draws).view(count, *encodings.shape[1:])


@torch.no_grad()
def encode(images: Tensor, prior: Prior, micro_batch: int, device: torch.device) -> Tensor:
    """Latents [n, *latent_shape], on the CPU, of uint8 images [n, channels, H, W].

    Raises:
        UserError: if memory runs out with one image at a time.
    """

    def encode(chunk: Tensor) -> Tensor:
        pixels = bytes_to_signed(chunk.to(device))
        if pixels.shape[-1] != prior.image_size:
            pixels = functional.interpolate(pixels, size=prior.image_size, mode="bilinear", antialias=True)
        return prior.encode(pixels).cpu()

    advice = (
        "distill.init: memory ran out as a single image was encoded; give distill.init=noise, a smaller "
        "prior.resolution or more memory"
    )
    return in_parts(encode, images, micro_batch, advice)
