"""A class sampled as a recipe says: its method's chains a few images at a time, kept on disk, and the choice from them.

`sample_class` is the one way by which `ld3m sample` and `distill.init=sample` get their latents.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ld3m.errors import UserError
from ld3m.files import write_tensors
from ld3m.reading import TensorSpec, read_tensors
from ld3m.sampling.approach import Approach, ClassTask, Correction, Guide, Kept, Moment
from ld3m.sampling.chains import follow
from ld3m.sampling.choices import CHOICES
from ld3m.sampling.methods import METHODS

SECONDS = "seconds"
"""Key of a part's metadata: what it took."""


@dataclass(frozen=True)
class Sampled:
    """The latents of a class that were sampled and kept, on the CPU."""

    z: Tensor
    """Clean latents [count, *latent_shape]."""
    weights: Tensor | None
    """float32 [count], by which the images count in training; None: all alike."""
    on_the_way: Tensor
    """x̂0 [count, shown, *latent_shape] after the steps that are shown."""
    drawn: int
    """Images that were drawn."""
    unguided: bool
    """Whether its method has a guide, which changed nothing in any step."""
    seconds: float
    """What the class took, also in processes that were stopped, or by the run that encoded its real images."""


def sample_class(
    task: ClassTask,
    shown: Sequence[int] = (),
    keep: Path | None = None,
    tell: Callable[[int], object] = lambda images: None,
) -> Sampled:
    """Samples a class by the recipe's method.

    Args:
        shown: steps whose x̂0 is kept.
        keep: the folder in which images are kept as they are done, from which an interrupted class resumes.
        tell: is called with the number of images that are done more.

    Raises:
        UserError: for an unknown method or choice, or latents that are not finite.
    """
    began = time.perf_counter()
    approach = METHODS.find(task.settings.method)(task)
    choose = approach.choose or (CHOICES.find(task.settings.choose) if task.settings.choose else None)
    drawn = task.drawn if approach.drawn is None else approach.drawn
    if choose is None and drawn != task.count:
        raise UserError(
            f"sample.method: {task.settings.method} draws {drawn} images of a class for {task.count} that are kept, "
            "and nothing says which; give sample.choose"
        )
    if approach.start is not None:
        shown = [step for step in shown if step >= approach.first]
    guided = list[bool]()
    if approach.guide:
        approach = replace(approach, guide=_noting(approach.guide, guided))
    parts = Parts(task, drawn, len(shown), keep)
    seconds = time.perf_counter() - began
    for images in _batches(task, approach, drawn):
        if not all(image in parts.done for image in images):
            began = time.perf_counter()
            z, way = follow(task, approach, images, parts.before(images[0]), shown)
            parts.add(images, z, way, seconds + time.perf_counter() - began)
            seconds = 0.0
        tell(len(images))
    z, way = parts.all()
    began = time.perf_counter()
    kept = choose(task, z) if choose else Kept(torch.arange(drawn))
    weights = kept.weights
    if weights is None and approach.weights is not None:
        weights = approach.weights[kept.images]
    taken = parts.seconds + time.perf_counter() - began + task.earlier_seconds
    return Sampled(z[kept.images], weights, way[kept.images], drawn, bool(guided) and not any(guided), taken)


def _noting(guide: Guide, guided: list[bool]) -> Guide:
    """The guide, which notes of each step whether it changed something."""

    def noting(moment: Moment) -> Correction | None:
        correction = guide(moment)
        guided.append(correction is not None)
        return correction

    return noting


def _batches(task: ClassTask, approach: Approach, drawn: int) -> list[list[int]]:
    """The images of a class as they are done: as many at a time as the method wants, or as memory has room for."""
    size = approach.together or task.micro_batch
    return [list(range(first, min(first + size, drawn))) for first in range(0, drawn, size)]


class Parts:
    """The images of a class that are done, in memory and, if a folder keeps them, on disk."""

    def __init__(self, task: ClassTask, drawn: int, shown: int, folder: Path | None) -> None:
        self.folder = folder
        self.name = f"class-{task.label:04d}"
        self.drawn, self.shown, self.shape = drawn, shown, task.prior.latent_shape
        self.done: dict[int, tuple[Tensor, Tensor]] = {}
        """z_0 and x̂0 on the way by image."""
        self.seconds = 0.0
        expected = {
            "images": TensorSpec(torch.int64, (-1,)),
            "z": TensorSpec(torch.float32, (-1, *self.shape)),
            "on_the_way": TensorSpec(torch.float32, (-1, shown, *self.shape)),
        }
        for path in sorted(folder.glob(f"{self.name}-*.safetensors")) if folder else ():
            try:
                tensors, about = read_tensors(path, "its images are sampled again", expected)
                self._take(tensors["images"].tolist(), tensors["z"], tensors["on_the_way"], float(about[SECONDS]))
            except (UserError, LookupError, ValueError) as error:
                problem = error if isinstance(error, UserError) else f"{path} is damaged; it is sampled again"
                print(f"ld3m: {problem}", file=sys.stderr)

    def _take(self, images: Sequence[int], z: Tensor, way: Tensor, seconds: float) -> None:
        self.done |= dict(zip(images, zip(z, way, strict=True), strict=True))
        self.seconds += seconds

    def add(self, images: Sequence[int], z: Tensor, way: Tensor, seconds: float) -> None:
        """Keeps images that are done."""
        self._take(images, z, way, seconds)
        if self.folder:
            tensors = {"images": torch.tensor(images), "z": z, "on_the_way": way}
            path = self.folder / f"{self.name}-{images[0]:06d}.safetensors"
            write_tensors(path, tensors, {SECONDS: str(seconds)})

    def before(self, image: int) -> Tensor:
        """Clean latents of the images before one, [image, *latent_shape]."""
        return self._stacked(0, range(image), self.shape)

    def all(self) -> tuple[Tensor, Tensor]:
        """z_0 and x̂0 on the way of all images, in their order."""
        images = range(self.drawn)
        return self._stacked(0, images, self.shape), self._stacked(1, images, (self.shown, *self.shape))

    def _stacked(self, which: int, images: range, shape: tuple[int, ...]) -> Tensor:
        rows = [self.done[image][which] for image in images]
        return torch.stack(rows) if rows else torch.empty(0, *shape)
