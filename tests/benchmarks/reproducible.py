"""What `reproducible: true` costs: processor seconds of rendering and pulling back, by images per class.

OMP_NUM_THREADS=1 python tests/benchmarks/reproducible.py
"""

import statistics
import time

import torch

from ld3m import priors
from ld3m.distillation.setup import schedule_of
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sampling import render

CLASSES = 10


def main() -> None:
    """Prints, for the quickstart with one and with ten images per class, the median ratio of rounds in turns."""
    for each, rounds in ((1, 5), (10, 2)):
        keys = [f"distill.images_per_class={each}"]
        recipes = [load(Recipe, "quickstart", [*keys, f"reproducible={word}"]) for word in ("false", "true")]
        prior = priors.for_images(recipes[0].prior, recipes[0].data.channels, recipes[0].rendered_size)
        pairs = [[seconds(prior, recipe, each) for recipe in recipes] for _ in range(rounds + 1)][1:]
        ratio = statistics.median(slow / fast for fast, slow in pairs)
        batches = [min(CLASSES * each, recipe.prior.images_at_a_time) for recipe in recipes]
        print(f"{each} images per class, {batches[1]} at a time in the place of {batches[0]}: {ratio:.1f} times")


def seconds(prior: priors.Prior, recipe: Recipe, each: int) -> float:
    """The processor's, for the images of an iteration and their gradient."""
    z = torch.randn(CLASSES * each, *prior.latent_shape)
    c = torch.zeros(CLASSES * each, *prior.conditioning_shape)
    settings, began = recipe.prior, time.process_time()
    pixels, pull_back = render(
        prior,
        schedule_of(recipe, prior),
        z,
        c,
        z,
        micro_batch=settings.images_at_a_time,
        keep_graph_steps=settings.kept_steps,
    )
    pull_back(torch.randn_like(pixels))
    return time.process_time() - began


if __name__ == "__main__":
    main()
