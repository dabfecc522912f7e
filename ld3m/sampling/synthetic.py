"""The synthetic images of a process: what the loop renders and pulls gradients back through."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ld3m.priors import Prior
from ld3m.sampling.algorithm import Schedule
from ld3m.sampling.differentiated import EXACT, Differentiated
from ld3m.sampling.memory_budget import MemoryBudget, RetryingPullBack
from ld3m.sampling.noise import Noise
from ld3m.sampling.pull_back import PullBack, render


@dataclass(frozen=True)
class SyntheticImages:
    """Latents to images and gradients back, by class at its border; flat, padded and in micro-batches inside."""

    prior: Prior
    schedule: Schedule
    noise: Noise
    labels: Sequence[int]
    """The classes of this process; none if there are more processes than classes."""
    resolution: int
    """Height and width of an image."""
    budget: MemoryBudget
    differentiated: Differentiated = EXACT
    """The denoiser's calls that the pull-back goes through."""
    padding: int = 0
    """Images without a class that are rendered too, so that all processes make the same calls of a sharded denoiser."""

    def render(self, z: Tensor, c: Tensor, iteration: int) -> tuple[Tensor, RetryingPullBack]:
        """The images of latents with the noise of an iteration, and the pull-back of a gradient at them.

        Args:
            z: latents Z [classes, latents per class, *latent_shape].
            c: conditioning [classes, latents per class, *conditioning_shape].
            iteration: keys the noise, and which calls are differentiated if they are drawn.

        Returns:
            Pixels [classes, latents per class, channels, H, W] in [0, 1], and the pull-back: a gradient of that shape
            to gradients of the shapes of z and c.

        Raises:
            UserError: if memory runs out with one image at a time, or other processes would wait for ever.
        """
        by_class, count = z.shape[:2], z.shape[0] * z.shape[1]
        noise = self.noise.draw(self.labels, iteration, z.device)
        through = self.differentiated.through(self.schedule, iteration)
        inputs = [self._padded(tensor.flatten(0, 1)) for tensor in (z, c, noise)]

        def attempt(micro_batch: int, keep_graph_steps: int) -> tuple[Tensor, PullBack]:
            pixels, pull_back = render(
                self.prior,
                self.schedule,
                *inputs,
                resolution=self.resolution,
                micro_batch=micro_batch,
                keep_graph_steps=keep_graph_steps,
                through=through,
            )

            def pull_back_by_class(grad: Tensor) -> tuple[Tensor, Tensor]:
                grad_z, grad_c = pull_back(self._padded(grad.flatten(0, 1)))
                return grad_z[:count].view_as(z), grad_c[:count].view_as(c)

            return pixels[:count].unflatten(0, by_class), pull_back_by_class

        return self.budget.render(attempt)

    def _padded(self, images: Tensor) -> Tensor:
        """[images, …] to [images + padding, …] with zeros."""
        return functional.pad(images, (0, 0) * (images.dim() - 1) + (0, self.padding))
