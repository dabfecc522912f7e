"""How far the cheaper gradients of `prior.pull_back` are from the exact one, and the time that they take.

    python tests/benchmarks/pull_backs.py [RECIPE] [KEY=VALUE …]

For each skip and number of steps: the cosine between Z's gradient and the exact one, that between c's, the ratio of
Z's norms, and shares of the exact one's processor time with graphs kept, of the pull-back and of rendering with it.
Then, at the middle number of steps, the cosines when one call alone is held fixed, from the noisiest on: what each call
adds to the gradient. Of `dm`'s loss at the start of a recipe (the quickstart's, if none is given), medians over its
images and three draws of noise and network. Any recipe of `dm` will do, so that other priors are measured by theirs;
`LD3M_STEPS=4 LD3M_DRAWS=1` are for large ones. In the place of a recipe, `random` is two images of 128 pixels through
401 M parameters with random weights, in cin256-v2's configuration.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import imagenet_shape
import torch
from torch import Tensor

from ld3m.distillation.loop import checkpoint_or_start
from ld3m.distillation.setup import Setup
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule
from ld3m.sampling.differentiated import EXACT, Differentiated, Through

SKIPS = ("reference", "paper", "none")
STEPS = tuple(map(int, os.environ.get("LD3M_STEPS", "5,10,20").split(",")))
CHEAPER = [
    *(Differentiated("shortcut", count) for count in (0, 1, 3)),
    *(Differentiated("drawn", count) for count in (1, 3)),
    *(Differentiated("last", count) for count in (1, 3)),
]
DRAWS = int(os.environ.get("LD3M_DRAWS", "3"))
Gradients = tuple[Tensor, Tensor, float, float]
"""Of Z and c, [images, numbers] each; seconds of the pull-back, and of rendering with it."""


@dataclass(frozen=True)
class AllBut:
    """In the place of a `Differentiated`: all calls but one."""

    held: int

    def through(self, schedule: Schedule, iteration: int) -> Through:
        return Through(frozenset(range(len(schedule.steps))) - {self.held}, carried=True)


def pulled(setup: Setup, differentiated: Differentiated | AllBut, draw: int) -> Gradients:
    """The gradients at the start."""
    _, latents = checkpoint_or_start(setup)
    synthetic = replace(setup.synthetic, differentiated=differentiated)  # type: ignore[arg-type]
    began = time.process_time()
    pixels, pull_back = synthetic.render(latents.z, latents.c, draw)
    rendering = time.process_time() - began
    _, grad = setup.objective.match(draw, pixels)
    began = time.process_time()
    grad_z, grad_c = pull_back(grad)
    seconds = time.process_time() - began
    return grad_z.flatten(0, 1).flatten(1), grad_c.flatten(0, 1).flatten(1), seconds, rendering + seconds


def median(values: list[Tensor]) -> float:
    return float(torch.cat(values).median())


def cosine(pairs: list[tuple[Gradients, Gradients]], part: int) -> float:
    """Of Z's gradients (part 0) or c's (1)."""
    return median([torch.cosine_similarity(a[part], b[part], dim=1) for a, b in pairs])  # type: ignore[arg-type]


def compare(setup: Setup, one_by_one: bool) -> None:
    """Prints the lines of a skip and a number of steps."""
    exact = [pulled(setup, EXACT, draw) for draw in range(DRAWS)]

    def beside(other: Differentiated | AllBut) -> list[tuple[Gradients, Gradients]]:
        return [(pulled(setup, other, draw), exact[draw]) for draw in range(DRAWS)]

    for cheaper in CHEAPER:
        if cheaper.kind == "last" and setup.synthetic.schedule.skip == "none":
            continue  # nothing would reach Z
        pairs = beside(cheaper)
        norms = median([a[0].norm(dim=1) / b[0].norm(dim=1) for a, b in pairs])
        seconds, step = (sum(a[part] for a, _ in pairs) / sum(b[part] for _, b in pairs) for part in (2, 3))
        of_c = f"{cosine(pairs, 1):5.2f}" if cheaper.count else "    –"
        line = f"{cosine(pairs, 0):5.2f}  {of_c}  {norms:5.2f}  {seconds:5.2f}  {step:5.2f}"
        print(f"{cheaper.kind:>8} K = {cheaper.count}  {line}", flush=True)
    if one_by_one:
        held = [beside(AllBut(step)) for step in range(len(setup.synthetic.schedule.steps))]
        for part, name in enumerate("Zc"):
            print(f"  one held, {name}: " + " ".join(f"{cosine(pairs, part):.2f}" for pairs in held), flush=True)


def large(place: Path) -> list[str]:
    """A recipe and overrides of two classes of synthetic photographs and a prior with random weights."""
    imagenet_shape.save_prior(place / "prior")
    imagenet_shape.save_photographs(place / "imagenet")
    there = [f"prior.source={place / 'prior'}", f"data.root={place / 'imagenet'}", "data.resolution=128"]
    return ["imagenet256", *imagenet_shape.SETTINGS, *there, "prior.resolution=128", "distill.images_per_class=1"]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        asked = sys.argv[1:] or ["quickstart"]
        table(*(large(Path(place)) + asked[1:] if asked[0] == "random" else asked))


def table(name: str, *overrides: str) -> None:
    """Prints a block for each skip and number of steps."""
    for skip in SKIPS:
        for steps in STEPS:
            changes = [f"prior.skip={skip}", f"prior.steps={steps}", "prior.keep_graph_steps=all"]
            recipe = load(Recipe, name, ["output=runs/none", *overrides, *changes])
            setup = Setup.load(Processes(torch.device("cpu")), recipe)
            print(
                f"\nskip {skip}, S = {steps}: cosine of Z, of c, norm of Z, time of the pull-back, of the gradient step"
            )
            compare(setup, one_by_one=steps == sorted(STEPS)[len(STEPS) // 2])


if __name__ == "__main__":
    main()
