"""Real images as latents: all of a class, those that a core-set chooses, and the class's prototypes."""

import math
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.data.selection.coresets import Coreset
from ld3m.errors import UserError
from ld3m.files import ANOTHER_CACHE, cache_folder, cache_key, writable, write_tensors
from ld3m.images.ranges import bytes_to_signed
from ld3m.machine.out_of_memory import in_parts
from ld3m.priors import Prior
from ld3m.reading import TensorSpec, read_tensors
from ld3m.sampling.kmeans import kmeans

MOST_KEPT = 2**30
"""Bytes of a data set's encodings up to which they are kept in the cache: an ImageNet subset's, not ImageNet-1k's."""
SECONDS = "seconds"
"""Key of their metadata: what encoding took."""


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
        micro_batch: images that are encoded at a time.
    """
    if start == "noise":
        return torch.randn(count, *prior.latent_shape, generator=draws).to(device)
    if start == "prototype":
        encoded = class_encodings(images, prior, label, micro_batch, device)
        return prototypes(encoded.latents, count, draws).to(device)
    chosen = images.select("random" if start == "real" else start, label, count, draws)
    return encode(images.images("train", label)[chosen], prior, micro_batch, device).to(device)


def prototypes(encodings: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """k-means centres [count, *latent_shape] of a class's encodings [n, *latent_shape], on the CPU."""
    return kmeans(encodings.flatten(1), count, draws).view(count, *encodings.shape[1:])


@dataclass(frozen=True)
class ClassEncodings:
    """All real training images of a class as latents."""

    latents: Tensor
    """[n, *latent_shape], on the CPU, in one memory layout, whether encoded now or read."""
    earlier_seconds: float = 0.0
    """What encoding took, if an earlier run has done it; 0 if it was done now."""


def class_encodings(
    images: Coreset, prior: Prior, label: int, micro_batch: int, device: torch.device
) -> ClassEncodings:
    """Encodes a class, or takes its encodings from the cache, where they are kept for other seeds and methods.

    They are found by the pixels and by the latents of the first few images, which are encoded each time: they change
    with the autoencoder, its precision and the device.

    Raises:
        UserError: if memory runs out with one image at a time, or the cache cannot be written to.
    """
    pixels = images.images("train", label)
    bytes_of_all = sum(images.counts["train"]) * math.prod(prior.latent_shape) * 4
    if len(pixels) <= micro_batch or bytes_of_all > MOST_KEPT:
        return ClassEncodings(encode(pixels, prior, micro_batch, device).contiguous())
    first = encode(pixels[:micro_batch], prior, micro_batch, device).contiguous()
    content = (pixels.contiguous(), first.view(torch.uint8))
    key = cache_key([micro_batch, list(first.shape), str(first.dtype)], *(each.numpy().data for each in content))
    path = cache_folder() / "encodings" / f"{key}.safetensors"
    if path.exists():
        try:
            expected = {"latents": TensorSpec(first.dtype, (len(pixels), *first.shape[1:]))}
            tensors, about = read_tensors(path, "its images are encoded again", expected)
            return ClassEncodings(tensors["latents"], float(about[SECONDS]))
        except (UserError, LookupError, ValueError) as error:
            problem = error if isinstance(error, UserError) else f"{path} is damaged; it is made again"
            print(f"ld3m: {problem}", file=sys.stderr)
    began = time.perf_counter()
    latents = torch.cat([first, encode(pixels[micro_batch:], prior, micro_batch, device).contiguous()])
    writable(path.parent, ANOTHER_CACHE)
    write_tensors(path, {"latents": latents}, {SECONDS: str(time.perf_counter() - began)})
    return ClassEncodings(latents)


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
