"""DDOQ, distillation by optimal quantisation (Tan and Slade, ICLR 2026, arXiv 2501.07681): D4M's images, with weights.

A k-means centre stands for the real latents that are nearest to it. An image counts by their share of its class in the
loss of networks, min Σ w ℓ(x, y). Shares are multiplied by the number of centres, so that weights are one on average.
"""

from dataclasses import replace

from ld3m.errors import UserError
from ld3m.sampling.approach import Approach, ClassTask
from ld3m.sampling.kmeans import cluster_sizes


def ddoq(task: ClassTask) -> Approach:
    """Chains from prototypes noised to `sample.strength`, weighted by their clusters."""
    if task.settings.start not in (None, "prototype"):
        raise UserError(
            f"sample.start: {task.settings.start}, but ddoq weights images by the clusters of prototypes; leave it "
            "out, or give sample.method=d4m"
        )
    approach = task.starting_at("prototype")
    assert approach.start is not None
    sizes = cluster_sizes(task.encodings().flatten(1), approach.start.flatten(1).cpu()).float()
    weights = sizes * (len(sizes) / sizes.sum())
    return replace(approach, weights=weights.repeat(-(-task.drawn // len(weights)))[: task.drawn])
