"""How far the cheaper gradients of `prior.pull_back` are from the exact one, and the time that they take.

    python tests/benchmarks/pull_backs.py [RECIPE] [KEY=VALUE …]

For each skip and number of steps: the cosine between Z's gradient and the exact one, that between c's, the ratio of
Z's norms, and the pull-back's share of the exact one's processor time with graphs kept. Of `dm`'s loss at the start of
a recipe (the quickstart's, if none is given), medians over its images and three draws of noise and network.
"""

import sys
import time
from dataclasses import replace

import torch
from torch import Tensor

from ld3m.distillation.loop import checkpoint_or_start
from ld3m.distillation.setup import Setup
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sampling.differentiated import EXACT, Differentiated

SKIPS = ("reference", "paper", "none")
STEPS = (5, 10, 20)
CHEAPER = [
    *(Differentiated("shortcut", count) for count in (0, 1, 3)),
    *(Differentiated("drawn", count) for count in (1, 3)),
    *(Differentiated("last", count) for count in (1, 3)),
]
DRAWS = 3


def pulled(setup: Setup, differentiated: Differentiated, draw: int) -> tuple[Tensor, Tensor, float]:
    """The gradients of Z and c at the start, [images, numbers] each, and the pull-back's seconds."""
    _, latents = checkpoint_or_start(setup)
    pixels, pull_back = replace(setup.synthetic, differentiated=differentiated).render(latents.z, latents.c, draw)
    _, grad = setup.objective.match(draw, pixels)
    began = time.process_time()
    grad_z, grad_c = pull_back(grad)
    return grad_z.flatten(0, 1).flatten(1), grad_c.flatten(0, 1).flatten(1), time.process_time() - began


def median(values: list[Tensor]) -> float:
    return float(torch.cat(values).median())


def main() -> None:
    name, *overrides = sys.argv[1:] or ["quickstart"]
    for skip in SKIPS:
        for steps in STEPS:
            changes = [f"prior.skip={skip}", f"prior.steps={steps}", "prior.keep_graph_steps=all"]
            recipe = load(Recipe, name, ["output=runs/none", *overrides, *changes])
            setup = Setup.load(Processes(torch.device("cpu")), recipe)
            exact = [pulled(setup, EXACT, draw) for draw in range(DRAWS)]
            print(f"\nskip {skip}, S = {steps}: cosine of Z, of c, norm of Z, time of the pull-back")
            for cheaper in CHEAPER:
                found = [pulled(setup, cheaper, draw) for draw in range(DRAWS)]
                pairs = list(zip(found, exact, strict=True))
                cosines = [
                    median([torch.cosine_similarity(a[part], b[part], dim=1) for a, b in pairs]) for part in (0, 1)
                ]
                norms = median([a[0].norm(dim=1) / b[0].norm(dim=1) for a, b in pairs])
                seconds = sum(a[2] for a, _ in pairs) / sum(b[2] for _, b in pairs)
                of_c = f"{cosines[1]:5.2f}" if cheaper.count else "    –"
                print(f"{cheaper.kind:>8} K = {cheaper.count}  {cosines[0]:5.2f}  {of_c}  {norms:5.2f}  {seconds:5.2f}")


if __name__ == "__main__":
    main()
