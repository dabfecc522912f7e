"""The norm of Z's gradient against the number of steps, for each skip: the paper's Table 1.

    python tests/benchmarks/gradient_norms.py [OUT.json]

Gradients of the matching loss at the start, on the packaged prior and data: medians over ten images and three draws of
noise and network. The mean would be that of the few images whose gradient explodes. The paper's row is its Table 1
(plain sampler; ImageNet LDM). With a file to write, that and a chart beside it, OUT.svg.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from ld3m import objectives, priors
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection import coresets
from ld3m.distillation.setup import noise_of
from ld3m.distillation.starts import initial_state
from ld3m.machine import environment
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule, render

SKIPS = ("none", "paper", "reference")
STEPS = (10, 20, 30, 40, 50, 60, 70, 80, 90)
PAPER = (58.1, 33.5, 19.8, 15.4, 13.9, 12.1, 10.4, 8.7, 6.5)
"""×10⁴, arXiv 2403.03881, Table 1."""
DRAWS = 3


def gradient_norm(recipe: Recipe, images: ImageSet, prior: priors.Prior, skip: str, steps: int) -> float:
    """Median over draws and classes, one image each, of ‖∂loss/∂Z‖."""
    labels = range(len(images.classes))
    device = torch.device("cpu")
    embeddings = prior.class_embeddings(images.classes)
    whole = coresets.open_whole(images, recipe.data, [], device)
    states = [initial_state(recipe, whole, prior, embeddings[label], label, device) for label in labels]
    z, c = (torch.cat([state[name] for state in states]) for name in ("z", "c"))
    schedule = Schedule.of(prior.noise_schedule, steps, skip, recipe.prior.guidance)
    objective = objectives.build(recipe, whole, labels, Processes(torch.device("cpu")))
    norms = []
    for draw in range(DRAWS):
        noise = noise_of(recipe, prior).draw(labels, draw, device).flatten(0, 1)
        pixels, pull_back = render(prior, schedule, z, c, noise)
        _, grad = objective.match(draw, pixels.unsqueeze(1))
        norms.append(pull_back(grad.squeeze(1))[0].flatten(1).norm(dim=1))
    return float(torch.cat(norms).median())


def measured() -> dict[str, Any]:
    """The norms by skip, one a number of steps; those of the paper's Table 1; and where they were measured."""
    recipe = load(Recipe, "quickstart", ["distill.real_batch=32", "network.width=32"])
    images = prepare(recipe.data)
    prior = priors.load(recipe.prior)
    norms = {skip: [gradient_norm(recipe, images, prior, skip, steps) for steps in STEPS] for skip in SKIPS}
    return {
        "command": "python tests/benchmarks/gradient_norms.py recipes/results/gradient-norms.json",
        "steps": list(STEPS),
        "norms": {skip: [float(f"{norm:.4g}") for norm in row] for skip, row in norms.items()},
        "paper": [round(value / 1e4, 6) for value in PAPER],
        "machine": environment.machine(),
    }


def draw(report: dict[str, Any], path: Path) -> None:
    """The table as lines over the steps, on logarithmic axes."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "ld3m"  # the same figures make the same file
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, norms in [*report["norms"].items(), ("paper's Table 1, none", report["paper"])]:
        style = "k--" if name.startswith("paper's") else "o-"
        axes.loglog(report["steps"], [norm / norms[0] for norm in norms], style, label=name)
    axes.set_xticks(report["steps"], [str(steps) for steps in report["steps"]])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("DDIM steps S")
    axes.set_ylabel(f"‖∂loss/∂Z‖, share of that at S = {report['steps'][0]}")
    axes.legend(title="skip", frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    found = measured()
    for name, row in found["norms"].items():
        print(f"{name:<12}" + "".join(f"{norm:>10.4g}" for norm in row))
    if sys.argv[1:]:
        target = Path(sys.argv[1])
        target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        draw(found, target.with_suffix(".svg"))
