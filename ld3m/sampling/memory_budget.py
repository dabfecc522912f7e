"""How much a process puts through the prior at a time, and less each time memory runs out."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from ld3m.errors import UserError
from ld3m.machine.out_of_memory import retry
from ld3m.recipe import Recipe
from ld3m.sampling.pull_back import PullBack

Attempt = Callable[[int, int], tuple[Tensor, PullBack]]
"""(micro-batch, steps whose graph is kept) to images and pull-back; a second call gives the same images."""


@dataclass
class MemoryBudget:
    """The micro-batch and the graphs that a process keeps; less from each moment on at which memory ran out."""

    micro_batch: int
    keep_graph_steps: int
    collective: bool = False
    """Whether all processes must make the same calls of the denoiser, so that none can repeat its own."""
    reproducible: bool = False
    """Whether the micro-batch must stay, since another rounds differently."""
    label: str = ""
    """The beginning of the lines it prints, which names the process."""

    @classmethod
    def of(cls, recipe: Recipe, images: int, collective: bool = False, label: str = "") -> "MemoryBudget":
        """What a recipe asks for, for so many images."""
        sampler = recipe.prior
        micro_batch = max(1, min(sampler.images_at_a_time, images))
        return cls(micro_batch, sampler.kept_steps, collective, recipe.reproducible, label)

    def render(self, attempt: Attempt) -> tuple[Tensor, "RetryingPullBack"]:
        """Images and their pull-back; either is computed again with less if memory runs out.

        Raises:
            UserError: if it runs out with one image at a time, or other processes would wait for ever.
        """
        pixels, pull_back = retry(lambda: attempt(self.micro_batch, self.keep_graph_steps), self.lower)
        return pixels, RetryingPullBack(self, attempt, pull_back)

    def lower(self) -> None:
        """Keeps no graph from here on, or else halves the micro-batch, and says so.

        Raises:
            UserError: if neither is possible.
        """
        if self.keep_graph_steps:
            less = "prior.keep_graph_steps=0"
        elif self.micro_batch > 1:
            less = f"prior.micro_batch={self.micro_batch // 2}"
        else:
            raise UserError(
                "prior.micro_batch: memory ran out with one image at a time and no graph kept; give "
                "prior.dtype=bfloat16, a smaller prior.resolution or more memory, or launch by launch/zero3.yaml"
            )
        if self.collective:
            raise UserError(
                "prior.micro_batch: memory ran out, and under ZeRO-3 and FSDP no process can continue with less than "
                f"the others; give {less}, and the same command resumes"
            )
        if self.reproducible and not self.keep_graph_steps:
            raise UserError(
                "prior.micro_batch: memory ran out, and with reproducible: true another micro-batch is another result; "
                f"give a divisor of {self.micro_batch} below it and another --output, or reproducible=false"
            )
        if self.keep_graph_steps:
            self.keep_graph_steps = 0
        else:
            self.micro_batch //= 2
        tqdm.write(
            f"ld3m: {self.label}memory ran out; continuing with {less}, which on the command line saves the attempt",
            file=sys.stderr,
        )


class RetryingPullBack:
    """A pull-back that renders again with less if memory runs out; the images that were given stay as they are."""

    def __init__(self, budget: MemoryBudget, attempt: Attempt, pull_back: PullBack) -> None:
        self.budget = budget
        self.attempt = attempt
        self.pull_back: PullBack | None = pull_back

    def __call__(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients at (Z, c) of a gradient at the pixels."""

        def once() -> tuple[Tensor, Tensor]:
            pull_back, self.pull_back = self.pull_back, None  # it can be called once
            if pull_back is None:
                pull_back = self.attempt(self.budget.micro_batch, self.budget.keep_graph_steps)[1]
            return pull_back(grad)

        return retry(once, self.budget.lower)

    def free_graphs(self) -> None:
        """Lets go of the graphs that are kept; they are built again when they are needed."""
        self.pull_back = None
        self.budget.lower()
