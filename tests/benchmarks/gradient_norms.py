"""The norm of Z's gradient against the number of steps, for each skip: the paper's Table 1.

    python tests/benchmarks/gradient_norms.py

Gradients of the matching loss at the start, on the packaged prior and data: medians over ten images and three draws of
noise and network, as a share of that at S = 10. The mean would be that of the few images whose gradient explodes. The
paper's row is its Table 1 (plain sampler; ImageNet LDM).
"""

import torch
from accelerate import Accelerator

from ld3m import coresets, data, objectives, priors
from ld3m.learnt import draw_noise, initial
from ld3m.recipe import Recipe
from ld3m.recipe_file import load
from ld3m.sampler import Schedule, render

STEPS = (10, 20, 40, 90)
PAPER = (58.1, 33.5, 15.4, 6.5)
"""×10⁴, arXiv 2403.03881, Table 1."""
DRAWS = 3


def gradient_norm(recipe: Recipe, images: data.ImageSet, prior: priors.Prior, skip: str, steps: int) -> float:
    """Median over draws and classes, one image each, of ‖∂loss/∂Z‖."""
    labels = range(len(images.classes))
    device = torch.device("cpu")
    embeddings = prior.class_embeddings(images.classes)
    whole = coresets.open_whole(images, recipe.data, [], device)
    states = [initial(recipe, whole, prior, embeddings[label], label, device) for label in labels]
    z, c = (torch.cat([state[name] for state in states]) for name in ("z", "c"))
    schedule = Schedule.of(prior.noise_schedule, steps, skip, recipe.prior.guidance)
    objective = objectives.build(recipe, whole, labels, Accelerator(cpu=True))
    norms = []
    for draw in range(DRAWS):
        noise = draw_noise(recipe, prior, labels, draw, device)
        pixels, pull_back = render(prior, schedule, z, c, noise)
        _, grad = objective.match(draw, pixels.unsqueeze(1))
        norms.append(pull_back(grad.squeeze(1))[0].flatten(1).norm(dim=1))
    return float(torch.cat(norms).median())


def main() -> None:
    """Prints a row for each skip and the paper's."""
    recipe = load(Recipe, "quickstart", ["distill.real_batch=32", "network.width=32"])
    images = data.prepare(recipe.data)
    prior = priors.load(recipe.prior)
    print(f"{'S':<12}" + "".join(f"{steps:>8}" for steps in STEPS))
    print(f"{'paper, none':<12}" + "".join(f"{value / PAPER[0]:>8.3f}" for value in PAPER))
    for skip in ("none", "paper", "reference"):
        norms = [gradient_norm(recipe, images, prior, skip, steps) for steps in STEPS]
        print(f"{skip:<12}" + "".join(f"{norm / norms[0]:>8.3f}" for norm in norms) + f"   (S = 10: {norms[0]:.3g})")


if __name__ == "__main__":
    main()
