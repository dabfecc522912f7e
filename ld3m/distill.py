"""The loop: latents of a few images per class, optimised through the frozen model to match real images."""

import math
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ld3m import checkpoints, coresets, data, networks, objectives, parallel, pictures, priors, run, sharding, trackers
from ld3m.errors import UserError
from ld3m.learnt import Learnt, draw_noise, initial
from ld3m.objectives import Objective
from ld3m.priors import Prior
from ld3m.recipe import STARTS, NetworkRecipe, Recipe
from ld3m.sampler import PullBack, Schedule, render
from ld3m.trackers import Trackers


@parallel.together
def distill(recipe: Recipe, resume: bool = True, start: Path | None = None) -> Path:
    """Distils a recipe into its run folder, going on where an unfinished run of it stands.

    Under `accelerate launch` the classes are dealt to the processes, and the result is that of one process.

    Args:
        recipe: of the run.
        resume: whether a run that is in the folder goes on, or is replaced.
        start: a run's folder, or one of its checkpoints, to go on from; its recipe must be the same.

    Returns:
        The run folder.

    Raises:
        UserError: for a mistake in the recipe that only its data or prior shows, a folder in which another process is
            at work, or a loss that is not finite.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1, once the state is saved.
    """
    trackers.check(recipe.log_with)  # first: what is missing should not cost the reading of the data
    job = Job.prepare(recipe)
    main = job.accelerator.is_main_process
    with ExitStack() as claimed:
        with job.accelerator.main_process_first():
            if main:
                claimed.enter_context(run.claim(recipe, resume, start))
                run.note_prior(recipe, priors.provenance(recipe.prior.source))
                run.note_classes(recipe.folder, job.classes)
        if run.iterations_done(recipe.folder) == recipe.distill.iterations:
            done = f"{recipe.folder} is finished; raise distill.iterations to go on, or give --no-resume"
            job.accelerator.print(done)
            return recipe.folder
        first, learnt = _start(job)
        with trackers.started(recipe, first, main) as tracked:
            _iterate(job, first, learnt, tracked)
            _finish(job, learnt, tracked)
    return recipe.folder


def _iterate(job: "Job", first: int, learnt: Learnt, tracked: Trackers) -> None:
    """The iterations from `first` on, which move what is learnt."""
    settings = job.recipe.distill
    _tell_where_to_look(job)
    with _signals() as received, _progress(job, first) as bar:
        for iteration in range(first, settings.iterations):
            clock = Clock(job.accelerator.device)
            pixels, pull_back = _render(job, learnt, iteration)
            clock.lap("render")
            losses, grad_pixels = job.objective.match(iteration, job.by_class(pixels))
            clock.lap("objective")
            grad_z, grad_c = pull_back(grad_pixels.flatten(0, 1))
            clock.lap("pull_back")

            done = iteration + 1
            due = done % settings.checkpoint_every == 0 or done == settings.iterations
            stop = max(parallel.gather([max(received, default=0)], job.accelerator))
            if due or stop or done % settings.log_every == 0:
                metrics = _metrics(job, losses, grad_z, grad_c)
                if not all(math.isfinite(value) for value in metrics.values()):
                    _give_up(job, learnt, iteration)
                metrics |= job.objective.learnt()
                _log(job, bar, tracked, {"iteration": iteration, **metrics, "seconds": clock.seconds})
            learnt.step(grad_z, grad_c, settings)
            bar.update()
            if due or stop:
                _save(job, learnt, done)
            if settings.pictures and iteration % -(-settings.iterations // settings.pictures) == 0:
                _draw(job, pixels, iteration, tracked)
            if stop and done < settings.iterations:
                job.accelerator.wait_for_everyone()  # a launcher ends all where one ends before the manifest is written
                job.accelerator.print(f"saved after iteration {done}; the same command goes on from there")
                raise SystemExit(128 + stop)


@dataclass(frozen=True)
class Job:
    """A recipe made ready on this process."""

    recipe: Recipe
    accelerator: Accelerator
    images: coresets.Coreset
    prior: Prior
    schedule: Schedule
    objective: Objective
    own: list[int]
    """The classes of this process; none where there are more processes than classes."""
    embeddings: Tensor
    """Conditioning of all classes, [classes, *conditioning_shape], as the prior has it."""
    padding: int
    """Images without a class that this process renders too, so that all make the same calls of a sharded denoiser."""

    @classmethod
    def prepare(cls, recipe: Recipe) -> "Job":
        """Loads data and prior and deals the classes."""
        accelerator = parallel.start()
        prior, images, embeddings = materials(recipe, accelerator)
        own = parallel.shard(range(len(images.classes)), accelerator)
        settings = recipe.prior
        most = -(-len(images.classes) // accelerator.num_processes)
        return cls(
            recipe=recipe,
            accelerator=accelerator,
            images=images,
            prior=prior,
            schedule=Schedule.of(prior.noise_schedule, settings.steps, settings.skip, settings.guidance),
            objective=objectives.build(recipe, images, own, accelerator),
            own=own,
            embeddings=embeddings,
            padding=(most - len(own)) * recipe.distill.images_per_class if sharding.wanted(accelerator) else 0,
        )

    @property
    def classes(self) -> dict[str, int]:
        """The place of each class among all of the source, by name."""
        return dict(zip(self.images.classes, self.images.ids, strict=True))

    def by_class(self, images: Tensor) -> Tensor:
        """[images, …] to [classes, images per class, …]."""
        return images.unflatten(0, (len(self.own), self.recipe.distill.images_per_class))


def materials(recipe: Recipe, accelerator: Accelerator) -> tuple[Prior, coresets.Coreset, Tensor]:
    """The prior, the images and the embeddings of their classes, checked to fit each other and the recipe."""
    # First: a mistake here should not cost hours of reading. What is to be sharded may be too large for a device.
    sharded = sharding.wanted(accelerator)
    prior = priors.load(recipe.prior, accelerator.device, "cpu" if sharded else accelerator.device)
    if sharded:
        sharding.shard_denoiser(prior, recipe.prior, accelerator)
    prepared = data.prepare(recipe.data, progress=accelerator.is_main_process)
    embeddings = prior.class_embeddings(prepared.classes)  # says which class it does not know
    _check(recipe, prepared, prior)
    images = coresets.open_kept(prepared, recipe.data, recipe.seed, [recipe.distill.init], accelerator.device)
    return prior, images, embeddings


def _check(recipe: Recipe, images: data.ImageSet, prior: Prior) -> None:
    """Mistakes that only the data and the prior show."""
    channels, count = recipe.data.channels, recipe.distill.images_per_class
    shape = networks.Shape(channels, recipe.data.resolution, len(images.classes))
    networks.check(recipe.network.arch, shape, recipe.network)
    for arch in recipe.evaluate.arch:
        networks.check(arch, shape, NetworkRecipe(), "evaluate.arch")
    _check_learnable(recipe, prior)
    if prior.image_channels != channels:
        raise UserError(
            f"data.channels: {channels}, but the prior's images have {prior.image_channels}; "
            f"set data.channels={prior.image_channels} or choose another prior.source"
        )
    found = min(images.counts["train"])
    fewest = coresets.kept_count(recipe.data, found)
    if recipe.distill.init in STARTS and recipe.distill.init != "noise" and fewest < count:
        name = images.classes[images.counts["train"].index(found)]
        kept = f" ({found} before data.keep={recipe.data.keep:g})" if fewest < found else ""
        raise UserError(
            f"distill.images_per_class: {count}, but class {name!r} has only {fewest} training images{kept} "
            f"to start from; set fewer{', keep more' if kept else ''}, or distill.init=noise"
        )


def _check_learnable(recipe: Recipe, prior: Prior) -> None:
    """That what the recipe learns has a part in the images."""
    sampler, learn = recipe.prior, recipe.distill.learn
    conditional = bool(math.prod(prior.conditioning_shape))
    if not conditional and sampler.guidance != 1:
        raise UserError(
            f"prior.guidance: {sampler.guidance:g}, but {sampler.source} is unconditional and has no classes to guide "
            "to; set prior.guidance=1"
        )
    if learn != "latents" and not (conditional and sampler.steps):
        why = "prior.steps=0 leaves the denoiser out" if conditional else f"{sampler.source} is unconditional"
        raise UserError(f"distill.learn: {learn!r}, but {why} and only Z has a part; set distill.learn=latents")
    (_, first, _), *_ = prior.noise_schedule.walk(sampler.steps or 1)
    if learn != "conditioning" and sampler.steps and sampler.skip != "reference" and first.signal == 0:
        raise UserError(
            f"prior.skip: {sampler.skip!r}, but the first step of this prior's noise schedule is noise alone and Z "
            "has no part in the images; set prior.skip=reference"
        )


def _start(job: Job) -> tuple[int, Learnt]:
    """The first iteration to do and the state before it: the newest checkpoint's, or the initial one."""
    labels = job.own or [0]  # an idle process needs the shapes, and learns none of it
    device = job.accelerator.device
    checkpoint = checkpoints.newest(job.recipe.folder, job.accelerator.print)
    if checkpoint:
        first, states, objective = checkpoints.load(checkpoint, labels, device)
        job.objective.restore(first, objective)
    else:
        first = 0
        states = [initial(job.recipe, job.images, job.prior, job.embeddings[label], label, device) for label in labels]
    if job.accelerator.is_main_process:
        run.cut_metrics(job.recipe.folder, first)
    return first, Learnt.stack(states, count=len(job.own))


def _save(job: Job, learnt: Learnt, iteration: int) -> None:
    """A checkpoint of the state before an iteration."""
    states = dict(zip(job.own, learnt.by_class(), strict=True))
    checkpoints.save(job.recipe, iteration, states, job.objective.state(), job.accelerator)


def _render(job: Job, learnt: Learnt, iteration: int) -> tuple[Tensor, PullBack]:
    """This process's images with the noise of an iteration, and their pull-back."""
    settings = job.recipe.prior
    noise = draw_noise(job.recipe, job.prior, job.own, iteration, job.accelerator.device)
    pixels, pull_back = render(
        job.prior,
        job.schedule,
        _padded(learnt.z.flatten(0, 1), job.padding),
        _padded(learnt.c.flatten(0, 1), job.padding),
        _padded(noise, job.padding),
        resolution=job.recipe.data.resolution,
        micro_batch=settings.micro_batch,
        keep_graph_steps=settings.keep_graph_steps,
    )

    def pull_back_own(grad: Tensor) -> tuple[Tensor, Tensor]:
        grad_z, grad_c = pull_back(_padded(grad, job.padding))
        return grad_z[: len(noise)], grad_c[: len(noise)]

    return pixels[: len(noise)], pull_back_own


def _padded(images: Tensor, padding: int) -> Tensor:
    """[images, …] to [images + padding, …] with zeros."""
    return functional.pad(images, (0, 0) * (images.dim() - 1) + (0, padding))


def _finish(job: Job, learnt: Learnt, tracked: Trackers) -> None:
    """Renders the result once more and writes it; under "fresh" noise, with that of the iteration after the last.

    Each process writes its own images, and the first makes the latents of the last checkpoint.
    """
    recipe, classes = job.recipe, job.classes
    last = recipe.distill.iterations
    if not last:
        _save(job, learnt, last)
    moment = last if recipe.prior.noise == "fresh" else 0
    pixels = _render(job, learnt, moment)[0]
    if job.accelerator.is_main_process:
        run.begin_images(recipe.folder)
    job.accelerator.wait_for_everyone()
    for label, images in zip(job.own, job.by_class(pixels), strict=True):
        run.write_images(recipe.folder, job.images.classes[label], pictures.to_bytes(images))
    _draw(job, pixels, last, tracked)
    job.accelerator.wait_for_everyone()
    if job.accelerator.is_main_process:
        pictures.write_animation(recipe.folder)
        _, states, _ = checkpoints.load(checkpoints.place(recipe.folder, last), range(len(classes)), "cpu")
        run.write_result(recipe, classes, states, moment, job.objective.learnt())
        count = len(classes) * recipe.distill.images_per_class
        print(f"{recipe.folder}: {count} images in images/, a look at them in grid.png and evolution.gif")
    job.accelerator.wait_for_everyone()


# --- what is said on the way -------------------------------------------------------------------------------


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Clock:
    """Seconds of each part of an iteration."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Ends a part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] = round(now - self._last, 4)
        self._last = now


@contextmanager
def _progress(job: Job, start: int) -> Iterator[tqdm]:
    """A bar with loss, rate and time left, on the main process."""
    total = job.recipe.distill.iterations
    hidden = not job.accelerator.is_main_process
    with tqdm(desc=job.recipe.name, initial=start, total=total, disable=hidden) as bar:
        yield bar


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the signals of people and of batch systems instead of dying of them; a second one of a kind kills."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {int(number): signal.signal(number, note) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metrics(job: Job, losses: Tensor, grad_z: Tensor, grad_c: Tensor) -> dict[str, float]:
    """Loss and gradient norms over the classes of all processes, added up in the order of the classes."""
    squares = [grads.square().flatten(1).sum(1) for grads in (job.by_class(grad_z), job.by_class(grad_c))]
    own = list(zip(job.own, losses.tolist(), *(sums.tolist() for sums in squares), strict=True))
    rows = sorted(parallel.gather(own, job.accelerator))
    _, loss, square_z, square_c = (sum(column) for column in zip(*rows, strict=True))
    return {"loss": loss, "grad_z": math.sqrt(square_z), "grad_c": math.sqrt(square_c)}


def _give_up(job: Job, learnt: Learnt, iteration: int) -> None:
    """Saves the state before a loss that is not finite, where it is sound, and says what to try.

    An objective with a state of its own has moved on by now; then the last checkpoint stands.
    """
    sound = all(bool(tensor.isfinite().all()) for tensor in vars(learnt).values()) and not job.objective.state()
    if all(parallel.gather([sound], job.accelerator)):
        _save(job, learnt, iteration)
    raise UserError(
        f"the loss or its gradient is not finite at iteration {iteration}; the last good state is in "
        f"{job.recipe.folder / 'checkpoints'}. Try a lower distill.lr_latents and distill.lr_conditioning "
        "(and prior.dtype=float32) with another --output"
    )


def _tell_where_to_look(job: Job) -> None:
    folder, settings = job.recipe.folder, job.recipe.distill
    seen = "grid.png shows the images on their way, " if settings.pictures else ""
    job.accelerator.print(f"{folder}: {seen}ld3m status {shlex.quote(str(folder))} says how far it is")


def _log(job: Job, bar: tqdm, tracked: Trackers, row: dict[str, object]) -> None:
    if job.accelerator.is_main_process:
        bar.set_postfix(loss=f"{row['loss']:.4g}")
        run.append_metrics(job.recipe.folder, row)
        tracked.log(row)


def _draw(job: Job, pixels: Tensor, iteration: int, tracked: Trackers) -> None:
    """Pictures of the images that an iteration began with: `grid.png`, one in `evolution/`, and the trackers'."""
    classes, each = pictures.shown(len(job.images.classes), job.recipe.distill.images_per_class)
    found = zip(job.own, job.by_class(pixels), strict=True)
    own = [(label, pictures.to_bytes(images[:each])) for label, images in found if label < classes]
    everyone = sorted(parallel.gather(own, job.accelerator), key=lambda item: item[0])
    if job.accelerator.is_main_process:
        images = torch.stack([images for _, images in everyone])
        pictures.write_frame(job.recipe.folder, iteration, images)
        pictures.write_grid(job.recipe.folder, images)
        tracked.draw(iteration, pictures.side_by_side(images))
