"""The best of several groups: near to the real images of the class, far from other classes (IMS3, CVPR 2026).

Its Selective Subgroup Sampling (Westlake-AGI-Lab/IMS3 2ada72c, centroid.py) maximises over a group g of each class
α Σ_i −log d(c_ig, r_i) + β Σ_{i<j} log d(c_ig, c_jg), with centroids c of groups and r of real images in a network's
features of length one, and d = 1 − cosine; α 0.4, β 0.9 and five groups. It goes from class to class until nothing
improves. Here the others' centroids are those of their real images, to which α draws them: classes are then independent
of each other, and may be on different processes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.sampling.approach import ClassTask, Kept
from ld3m.sampling.judged import Judged, real_centroids


def subgroup(task: ClassTask, drawn: Tensor) -> Kept:
    """The best of `sample.draws` groups."""
    settings, groups = task.settings.subgroup, task.settings.draws
    features = Judged.of(task, drawn).features.unflatten(0, (groups, task.count))
    centroids = functional.normalize(features.mean(1), dim=1)
    worth = worth_of_groups(centroids, real_centroids(task), task.label, settings.closeness, settings.separation)
    return Kept(torch.arange(len(drawn)).view(groups, -1)[worth.argmax()])


def worth_of_groups(groups: Tensor, real: Tensor, label: int, closeness: float, separation: float) -> Tensor:
    """What groups are worth, [G]: more is better.

    Args:
        groups: their centroids [G, d], of length one.
        real: those of the real images of each class, [classes, d].
        closeness: α.
        separation: β.
    """
    distances = (1 - groups.double() @ real.double().T).clamp_min(1e-12).log()
    others = distances.sum(1) - distances[:, label]
    return separation * others - closeness * distances[:, label]
