"""What is not the method: a run's log, checkpoints and pictures on the way, its end, and what is printed of it."""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ld3m.data.prepared import ImageSet
from ld3m.distillation.latents import LearntLatents
from ld3m.distillation.setup import Setup
from ld3m.distillation.trackers import Trackers
from ld3m.errors import DivergedError, counted, span
from ld3m.images import grids
from ld3m.images.multi_formation import stored
from ld3m.machine import memory
from ld3m.machine.timing import Clock
from ld3m.runs import checkpoints, metrics, result


class Outcome(NamedTuple):
    """What an iteration gave."""

    latents: LearntLatents
    """After the step."""
    pixels: Tensor
    """The images it began with, [classes, latents per class, channels, H, W] in [0, 1]."""
    losses: Tensor
    """Of each class of this process, [classes]."""
    grad_z: Tensor
    grad_c: Tensor


@dataclass(frozen=True)
class Bookkeeping:
    """Keeps what an iteration gave, after its step."""

    setup: Setup
    tracked: Trackers
    bar: tqdm

    @classmethod
    @contextmanager
    def opened(cls, setup: Setup, tracked: Trackers, first: int, timed: bool) -> Iterator["Bookkeeping"]:
        """The bookkeeping of a run from its iteration `first` on; the main process says where to look.

        Args:
            setup: of the run.
            tracked: its trackers.
            first: its first iteration.
            timed: whether a time ends it, so that nobody knows the iterations that are left.
        """
        recipe, settings = setup.recipe, setup.recipe.distill
        pictures = "grid.png shows the images on their way, " if settings.pictures else ""
        status = f"ld3m status {shlex.quote(str(recipe.folder))} says how far it is"
        setup.processes.print(f"{recipe.folder}: {pictures}{status}")
        setup.processes.print(f"{recipe.data.source}: {data_text(setup.images)}")
        hidden = not setup.processes.is_main_process
        total = None if timed else settings.iterations
        with tqdm(desc=recipe.name, initial=first, total=total, disable=hidden or total == 0) as bar:
            yield cls(setup, tracked, bar)

    def is_saved(self, i: int) -> bool:
        """Whether a checkpoint follows iteration i."""
        settings = self.setup.recipe.distill
        return (i + 1) % settings.checkpoint_every == 0 or i + 1 == settings.iterations

    def is_logged(self, i: int) -> bool:
        """Whether iteration i is written to metrics.jsonl; a GPU is waited for in these alone."""
        return self.is_saved(i) or (i + 1) % self.setup.recipe.distill.log_every == 0

    def keep(self, i: int, before: LearntLatents, outcome: Outcome, clock: Clock, received: Sequence[int]) -> int:
        """Logs, saves and draws iteration i as far as they are due, and says whether the run is to stop after it.

        Args:
            before: the latents it began with, which are saved if its loss is not finite.

        Returns:
            The signal that some process has got, or 0.

        Raises:
            DivergedError: if the loss or its gradient is not finite.
        """
        settings = self.setup.recipe.distill
        clock.begin("logging")
        stop = max(self.setup.processes.gather([max(received, default=0)]))
        if self.is_logged(i) or stop:
            self._log(i, before, outcome, clock)
        self.bar.update()
        clock.begin("saving")
        if self.is_saved(i) or stop:
            self.save(i + 1, outcome.latents)
        if settings.pictures and i % -(-settings.iterations // settings.pictures) == 0:
            self.draw(i, outcome.pixels)
        return stop

    def leave(self, done: int, stop: int) -> None:
        """Ends the command after a signal, unless the run is at its end anyway.

        Raises:
            SystemExit: with 128 + the signal's number.
        """
        if done < self.setup.recipe.distill.iterations:
            processes = self.setup.processes
            processes.wait_for_everyone()  # a launcher ends all when one ends, before the manifest is written
            processes.print(f"saved after iteration {done}; the same command resumes from there")
            raise SystemExit(128 + stop)

    def save(self, iteration: int, latents: LearntLatents) -> None:
        """A checkpoint of the state before an iteration."""
        states = dict(zip(self.setup.own, latents.by_class(), strict=True))
        checkpoints.save(self.setup.recipe, iteration, states, self.setup.objective.state(), self.setup.processes)

    def draw(self, i: int, pixels: Tensor) -> None:
        """Pictures of the images that iteration i began with: `grid.png`, one in `evolution/`, and the trackers'.

        Args:
            pixels: [classes, latents per class, channels, H, W] in [0, 1].
        """
        settings, folder = self.setup.recipe.distill, self.setup.recipe.folder
        classes, each = grids.shown(len(self.setup.images.classes), settings.images_per_class)
        by_class = zip(self.setup.own, stored(pixels, settings.factor), strict=True)
        own = [(label, images[:each]) for label, images in by_class if label < classes]
        everyone = sorted(self.setup.processes.gather(own), key=lambda item: item[0])
        if self.setup.processes.is_main_process:
            images = torch.stack([images for _, images in everyone])
            grids.write_frame(folder, i, images)
            grids.write_grid(folder, images, self.setup.images.classes)
            self.tracked.draw(i, grids.side_by_side(images))

    def finish(self, latents: LearntLatents) -> None:
        """Renders the result once more and writes it; fresh noise is that of the iteration after the last.

        Each process writes its own images, and the first makes the latents of the last checkpoint.
        """
        setup, recipe, processes = self.setup, self.setup.recipe, self.setup.processes
        last = recipe.distill.iterations
        if not last:
            self.save(last, latents)
        noise = setup.synthetic.noise.key(last)
        pixels, _ = setup.synthetic.render(latents.z, latents.c, noise)
        if processes.is_main_process:
            result.begin_images(recipe.folder)
        processes.wait_for_everyone()
        for label, images in zip(setup.own, stored(pixels, recipe.distill.factor), strict=True):
            result.write_images(recipe.folder, setup.images.classes[label], images)
        sampled = recipe.samples and not last  # then pictures are numbered by the steps of the sampling
        self.draw(recipe.sample.steps if sampled else last, pixels)
        processes.wait_for_everyone()
        if processes.is_main_process:
            each = recipe.distill.images_per_class
            grids.write_animation(recipe.folder, setup.images.classes, each, "step" if sampled else "iteration")
            classes = setup.class_ids
            states, _ = checkpoints.read_states(checkpoints.path_of(recipe.folder, last), range(len(classes)), "cpu")
            result.write_result(recipe, classes, states, noise, setup.objective.learnt())
            count = len(classes) * recipe.distill.images_per_class
            print(f"{recipe.folder}: {count} images in images/, shown in grid.png and evolution.gif")
            run = shlex.quote(str(recipe.folder))
            print(f"next: ld3m evaluate {run} --against random; ld3m report {run}")
        processes.wait_for_everyone()

    def _log(self, i: int, before: LearntLatents, outcome: Outcome, clock: Clock) -> None:
        """A line of metrics.jsonl, and the trackers' numbers."""
        processes = self.setup.processes
        numbers = self._numbers(outcome)
        if not all(math.isfinite(value) for value in numbers.values()):
            self._give_up(i, before)
        numbers |= self.setup.objective.learnt()
        numbers["peak_memory"] = max(processes.gather([memory.peak(processes.device)]))
        if processes.is_main_process:
            row = {"iteration": i, **numbers, "seconds": clock.seconds}
            self.bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
            metrics.append(self.setup.recipe.folder, row)
            self.tracked.log(row)

    def _numbers(self, outcome: Outcome) -> dict[str, float]:
        """Loss and gradient norms over the classes of all processes, added up in the order of the classes."""
        squares = [grad.square().flatten(1).sum(1) for grad in (outcome.grad_z, outcome.grad_c)]
        own = zip(self.setup.own, outcome.losses.tolist(), *(sums.tolist() for sums in squares), strict=True)
        rows = sorted(self.setup.processes.gather(list(own)))
        _, loss, square_z, square_c = (sum(column) for column in zip(*rows, strict=True))
        return {"loss": loss, "grad_z": math.sqrt(square_z), "grad_c": math.sqrt(square_c)}

    def _give_up(self, i: int, before: LearntLatents) -> None:
        """Saves the state before a loss that is not finite, if that is sound, and says what to try.

        An objective with a state of its own has moved on by now; then the last checkpoint stands.
        """
        tensors = (tensor for state in before.by_class() for tensor in state.values())
        sound = all(bool(tensor.isfinite().all()) for tensor in tensors) and not self.setup.objective.state()
        if all(self.setup.processes.gather([sound])):
            self.save(i, before)
        raise DivergedError(
            f"the loss or its gradient is not finite at iteration {i}; the last good state is in "
            f"{self.setup.recipe.folder / 'checkpoints'}. Try a lower distill.lr_latents and distill.lr_conditioning "
            "(and prior.dtype=float32) with another --output"
        )


def data_text(images: ImageSet) -> str:
    """How many classes and training images there are, and their size."""
    counts, shape = images.counts["train"], images.shape
    size = f"{shape.resolution} × {shape.resolution} pixels in {counted(shape.channels, 'channel')}"
    return f"{shape.classes:,} classes, {sum(counts):,} training images ({span(counts)} in each) of {size}"
