"""What a process puts through the prior at a time: less where memory runs out after all."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from ld3m.errors import UserError
from ld3m.machine.out_of_memory import free_unheld, ran_out
from ld3m.recipe import Recipe
from ld3m.sampling.sampler import PullBack

Attempt = Callable[[int, int], tuple[Tensor, PullBack]]
"""A render by its micro-batch and the steps whose graph it keeps; called again, it gives the same."""


@dataclass
class MemoryBudget:
    """What a process puts through the prior at a time: less from each moment on at which memory ran out."""

    micro_batch: int
    keep_graph_steps: int
    together: bool = False
    """Whether all processes must make the same calls of the denoiser, so that none can repeat its own."""
    process: str = ""
    """Names the process in what it says."""

    @classmethod
    def of(cls, recipe: Recipe, images: int, together: bool = False, process: str = "") -> "MemoryBudget":
        """That of a recipe, for so many images."""
        sampler = recipe.prior
        return cls(max(1, min(sampler.images_at_a_time, images)), sampler.kept_steps, together, process)

    def render(self, attempt: Attempt) -> tuple[Tensor, "RetryingPullBack"]:
        """Images and their pull-back; either is done again with less where memory runs out.

        Raises:
            UserError: where it runs out with one image at a time, or other processes would wait for ever.
        """
        while True:
            try:
                pixels, pull_back = attempt(self.micro_batch, self.keep_graph_steps)
                return pixels, RetryingPullBack(self, attempt, pull_back)
            except Exception as error:
                if not ran_out(error):
                    raise
            self.lower()  # out here nothing holds what the attempt had

    def lower(self) -> None:
        """Keeps no graph from here on, or halves the micro-batch, and says so; frees what nobody holds."""
        free_unheld()
        if self.keep_graph_steps:
            less = "prior.keep_graph_steps=0"
        elif self.micro_batch > 1:
            less = f"prior.micro_batch={self.micro_batch // 2}"
        else:
            raise UserError(
                "prior.micro_batch: memory ran out with one image at a time and no graph kept; give "
                "prior.dtype=bfloat16, a smaller prior.resolution or more memory, or launch by launch/zero3.yaml"
            )
        if self.together:
            raise UserError(
                "prior.micro_batch: memory ran out, and under ZeRO-3 and FSDP no process can go on with less than the "
                f"others; give {less}, and the same command goes on where it stood"
            )
        if self.keep_graph_steps:
            self.keep_graph_steps = 0
        else:
            self.micro_batch //= 2
        tqdm.write(
            f"ld3m: {self.process}memory ran out; goes on with {less}, which on the command line saves the attempt",
            file=sys.stderr,
        )


class RetryingPullBack:
    """A pull-back that renders again with less where memory runs out; its images stay those that there are."""

    def __init__(self, room: MemoryBudget, attempt: Attempt, pull_back: PullBack) -> None:
        self.room = room
        self.attempt = attempt
        self.pull_back: PullBack | None = pull_back

    def __call__(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of (Z, c) of one of the pixels."""
        while True:
            pull_back, self.pull_back = self.pull_back, None
            try:
                pull_back = pull_back or self.attempt(self.room.micro_batch, self.room.keep_graph_steps)[1]
                return pull_back(grad)
            except Exception as error:
                if not ran_out(error):
                    raise
            del pull_back
            self.room.lower()

    def release(self) -> None:
        """Lets go of the graphs that are kept; they are made again when they are needed."""
        self.pull_back = None
        self.room.lower()
