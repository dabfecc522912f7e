"""Linear gradient matching (Cazenavette, Torralba and Sitzmann, NeurIPS 2025; arXiv 2511.16674).

Its code is github.com/GeorgeCazenavette/linear-gradient-matching, looked at in 1d84ffd. Left out: images as sums of a
pyramid of resolutions; ten augmentations of each image in a step, and of their kinds; Adam is `distill.optimiser=adam`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.machine.transfer import send
from ld3m.objectives.base import GatherClasses, Objective
from ld3m.objectives.dm import real_features
from ld3m.objectives.draws import Draws, RealBatches
from ld3m.randomness import generator
from ld3m.recipe.objectives import LgmRecipe

HEAD_DEVIATION = 0.01
"""Standard deviation of the weights of a random head; its biases are 0."""


class LinearGradientMatching(Objective):
    """Cosine distance of the gradients that real and synthetic images of all classes give a linear head on features.

    The head is another random one in each iteration. Its gradient has a closed form, so that nothing is differentiated
    twice, and the features of all classes are all that processes tell each other. Memory does not grow with the number
    of classes, but for these: each class passes the network once for its features and once for its gradient.
    """

    def __init__(self, settings: LgmRecipe, draws: Draws, own: Sequence[int], gather_classes: GatherClasses) -> None:
        self.settings = settings
        self.draws = draws
        self.own = list(own)
        self.real = RealBatches(draws, own)
        self.gather_classes = gather_classes
        self.counts = [min(draws.real_batch, count) for count in draws.images.counts["train"]]
        draws.check_networks()

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`; the loss is of all classes together, and shared out evenly among them."""
        images, classes = self.draws.images, len(self.draws.images.classes)
        network = self.draws.network(iteration).requires_grad_(False)
        self.draws.freeze_norms(network, iteration)
        shown = [self._augmentation(iteration, label) for label in self.own]
        own = [real_features(network, show(images.normalise(each))) for show, each in zip(shown, pixels, strict=True)]
        real = [
            real_features(network, show(self.real.draw(iteration, label)))
            for show, label in zip(shown, self.own, strict=True)
        ]
        features = own[0].shape[1] if own else real_features(network, images.normalise(_black(pixels))).shape[1]
        synthetic = self._gathered(own, pixels.new_zeros(len(own), pixels.shape[1], features))
        every = self._gathered(real, pixels.new_zeros(len(real), max(self.counts), features))
        numbers = generator(self.draws.seed, "head", iteration)
        head = send(torch.randn(classes, features, generator=numbers) * HEAD_DEVIATION, pixels.device)
        counted = list(zip(every, self.counts, strict=False))  # a plan counts some classes alone
        loss, slopes = match_heads(head_gradient([rows[:count] for rows, count in counted], head), synthetic, head)
        slopes = slopes[self.own] if len(slopes) == classes else slopes
        gradients = [pixels.new_zeros(0, *pixels.shape[1:])]
        for show, each, slope in zip(shown, pixels, slopes, strict=True):
            each = each.detach().requires_grad_()
            with torch.enable_grad():
                seen = network.embed(show(images.normalise(each)))
                gradients += [gradient[None] for gradient in torch.autograd.grad(seen, each, slope)]
        return loss.expand(len(self.own)) / classes, torch.cat(gradients)

    def _augmentation(self, iteration: int, label: int) -> Callable[[Tensor], Tensor]:
        """What a class's real and synthetic images share."""
        return self.draws.augmentation(iteration, label) if self.settings.augment else lambda images: images

    def _gathered(self, own: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Features of all classes, by those of the own ones; `rows` has room for these, [own, images, features]."""
        for row, features in zip(rows, own, strict=True):
            row[: len(features)] = features
        return self.gather_classes(rows, len(self.draws.images.classes))


def _black(pixels: Tensor) -> Tensor:
    """A black image, for a process that has none; [1, channels, H, W]."""
    return pixels.new_zeros(1, *pixels.shape[2:])


def head_gradient(features: Sequence[Tensor], head: Tensor) -> Tensor:
    """The gradient of a linear classifier's weights and biases, of a loss that is a mean over classes.

    That of cross-entropy by the weights of class k is the mean of (p_k − y_k) f, with p the softmax of W f, and by its
    bias the mean of p_k − y_k.

    Args:
        features: of each class, [images, features].
        head: W, [classes, features]; its biases are 0.

    Returns:
        [classes, features + 1], the biases' last.
    """
    total = torch.zeros(len(head), head.shape[1] + 1, dtype=head.dtype, device=head.device)
    for label, rows in enumerate(features):
        right = torch.arange(len(head), device=head.device) == label
        wrong = functional.softmax(rows @ head.T, dim=1) - right.to(rows.dtype)
        total = total + wrong.T @ functional.pad(rows, (0, 1), value=1.0) / len(rows)
    return total / len(features)


def match_heads(real: Tensor, synthetic: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """1 − cosine of the real and the synthetic gradient of a head, each as one vector; and the slope at the features.

    Args:
        real: the gradient, as `head_gradient` gives it.
        synthetic: features [classes, images, features].
        head: W, [classes, features].
    """
    synthetic = synthetic.detach().requires_grad_()
    with torch.enable_grad():
        own = head_gradient(synthetic.unbind(), head)
        loss = 1 - functional.cosine_similarity(real.flatten(), own.flatten(), dim=0)
        (slopes,) = torch.autograd.grad(loss, synthetic)
    return loss.detach(), slopes
