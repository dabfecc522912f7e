"""k-means: Lloyd's iterations from a k-means++ start."""

import torch
from torch import Tensor


def kmeans(points: Tensor, count: int, draws: torch.Generator, iterations: int = 100) -> Tensor:
    """Centres of the points, each the mean of those nearest to it.

    Lloyd (1982), started as in k-means++ (Arthur and Vassilvitskii, SODA 2007); ends once no point changes its centre.

    Args:
        points: [n, d] floating point, on the CPU, on which the result depends on the arguments alone.
        count: of centres, at most n.

    Returns:
        [count, d], in the order of the start.
    """
    centres = points[_plus_plus(points, count, draws)]
    nearest = None
    for _ in range(iterations):
        before, nearest = nearest, _distances(points, centres).argmin(1)
        if before is not None and torch.equal(nearest, before):
            break
        sizes = nearest.bincount(minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        # a centre that is nearest to nothing stays where it is
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)
    return centres


def cluster_sizes(points: Tensor, centres: Tensor) -> Tensor:
    """How many of the points [n, d] are nearest to each of the centres [k, d]: int64 [k]."""
    return _distances(points, centres).argmin(1).bincount(minlength=len(centres))


def _plus_plus(points: Tensor, count: int, draws: torch.Generator) -> list[int]:
    """Indices of points to start from: each next one drawn with its squared distance to those before as weight."""
    chosen: list[int] = []
    weights = torch.ones(len(points), dtype=torch.float64)
    for _ in range(count):
        if not weights.any():  # fewer different points than centres
            weights = torch.ones_like(weights)
        weights[chosen] = 0
        chosen.append(int(torch.multinomial(weights, 1, generator=draws)))
        distances = _distances(points, points[chosen[-1:]])[:, 0].double()
        weights = distances if len(chosen) == 1 else torch.minimum(weights, distances)
    return chosen


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Squared Euclidean distances [n, k], one centre at a time: differences first, so that a point is 0 from itself."""
    return torch.stack([(points - centre).square().sum(1) for centre in centres], dim=1)
