"""How good a prior is: what its autoencoder loses, and whether samples are of the class that was asked for."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ld3m.data.prepared import ImageSet
from ld3m.data.selection import scorer
from ld3m.files import write_image
from ld3m.images.grids import grid
from ld3m.images.ranges import bytes_to_signed, bytes_to_unit, signed_to_unit, unit_to_bytes
from ld3m.priors import Prior
from ld3m.randomness import generator
from ld3m.recipe.prior import PriorRecipe
from ld3m.sampling import Schedule, render

CLASSIFIER_WIDTH = 64
"""Channels of the blocks of the ConvNet that judges samples."""


def evaluate_prior(
    recipe: PriorRecipe,
    prior: Prior,
    images: ImageSet,
    training: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Reconstruction of test images, and how many samples a classifier of real images puts in the intended class.

    Writes `reconstructions.png` and `samples-guidance-*.png` into `training`. Shares are in [0, 1], errors in units of
    pixels in [0, 1].
    """
    settings = recipe.evaluate
    test, test_labels = images.everything("test")
    classifier = scorer.build("convnet", CLASSIFIER_WIDTH, images, recipe.seed)
    scorer.train(classifier, images, settings.classifier_epochs, recipe.seed, device, "classifier")
    with torch.no_grad():
        rebuilt = torch.cat(
            [signed_to_unit(prior.decode(prior.encode(bytes_to_signed(x.to(device))))).cpu() for x in test.split(100)]
        )
    pixels = bytes_to_unit(test)
    result: dict[str, Any] = {
        "reconstruction": {
            "l1": round(float((rebuilt - pixels).abs().mean()), 5),
            "mse": round(float((rebuilt - pixels).square().mean()), 6),
        },
        "classifier": {
            "real test images": _accuracy(classifier, images, pixels, test_labels, device),
            "reconstructed test images": _accuracy(classifier, images, rebuilt, test_labels, device),
        },
        "samples": {"count": settings.samples, "steps": settings.steps, "share in the intended class": {}},
    }
    write_image(
        training / "reconstructions.png",
        grid(unit_to_bytes(torch.cat([pixels[::97][:20], rebuilt[::97][:20]])), columns=20),
    )
    for scale in settings.guidance:
        sampled, labels = sample(prior, images.classes, settings.samples, settings.steps, scale, recipe.seed)
        share = _accuracy(classifier, images, sampled, labels, device)
        result["samples"]["share in the intended class"][f"guidance {scale:g}"] = share
        order = labels.sort(stable=True).indices.view(len(images.classes), -1)[:, :10].flatten()
        write_image(training / f"samples-guidance-{scale:g}.png", grid(unit_to_bytes(sampled[order]), columns=10))
    return result


@torch.no_grad()
def sample(
    prior: Prior, classes: list[str], count: int, steps: int, guidance: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Plain DDIM samples from noise, the classes in turn: pixels [count, …] in [0, 1] and labels [count]."""
    labels = torch.arange(len(classes)).repeat(max(1, count // len(classes)))
    schedule = Schedule.of(prior.noise_schedule, steps, "none", guidance)
    table = prior.class_embeddings(classes)
    sampled = []
    for start, chunk in enumerate(tqdm(labels.split(100), f"hundreds of samples, guidance {guidance:g}")):
        # With Z and the noise both white, the noised latent √ᾱ·Z + √(1 − ᾱ)·ε0 is white too: plain sampling.
        shape = (len(chunk), *prior.latent_shape)
        noise = torch.randn(shape, generator=generator(seed, "sample", start)).to(table.device)
        z = torch.randn(shape, generator=generator(seed, "sample latent", start)).to(table.device)
        pixels, _ = render(prior, schedule, z, table[chunk], noise, micro_batch=100)
        sampled.append(pixels.cpu())
    return torch.cat(sampled), labels


@torch.no_grad()
def _accuracy(classifier: nn.Module, images: ImageSet, pixels: Tensor, labels: Tensor, device: torch.device) -> float:
    predictions = [classifier(images.normalise(chunk.to(device))).argmax(1).cpu() for chunk in pixels.split(100)]
    return round(float((torch.cat(predictions) == labels).float().mean()), 4)
