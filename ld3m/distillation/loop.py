"""The loop: latents of a few images per class, optimised through the frozen model to match real images."""

import copy
import math
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.functional import vjp
from torch.nn import functional
from tqdm import tqdm

from ld3m import priors
from ld3m.distillation import trackers
from ld3m.distillation.latents import Learnt
from ld3m.distillation.setup import Job
from ld3m.distillation.starts import initial
from ld3m.distillation.trackers import Trackers
from ld3m.errors import UserError
from ld3m.images import grids as pictures
from ld3m.images.multi_formation import enlarge, pack
from ld3m.images.ranges import unit_to_bytes
from ld3m.machine import memory
from ld3m.machine.determinism import repeatable
from ld3m.machine.out_of_memory import ran_out
from ld3m.machine.processes import Processes, watched_command
from ld3m.machine.timing import Clock
from ld3m.recipe import Recipe
from ld3m.runs import checkpoints, metrics, result
from ld3m.runs.folder import iterations_done, iterations_saved, note_classes
from ld3m.runs.resume import claim
from ld3m.runs.sources import Sources, describe_data
from ld3m.sampling.noise import draw_noise
from ld3m.sampling.room import RetryingPullBack
from ld3m.sampling.sampler import PullBack, render


@watched_command
def distill(processes: Processes, recipe: Recipe, resume: bool = True, start: Path | None = None) -> Path:
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
    main = processes.is_main_process
    with repeatable(processes.device, recipe.tf32), ExitStack() as claimed:
        resumes = start is not None or (resume and iterations_saved(recipe.folder) is not None)
        job = Job.prepare(processes, recipe, resumes)
        with job.processes.main_process_first():
            if main:
                data = describe_data(job.images, recipe.data)
                made_from = Sources(priors.provenance(recipe.prior.source), data)
                claimed.enter_context(claim(recipe, made_from, resume, start))
                note_classes(recipe.folder, job.classes)
        if iterations_done(recipe.folder) == recipe.distill.iterations:
            done = f"{recipe.folder} is finished; raise distill.iterations to go on, or give --no-resume"
            job.processes.print(done)
            return recipe.folder
        first, learnt = begin(job)
        with trackers.started(recipe, first, main) as tracked:
            _iterate(job, first, learnt, tracked)
            _finish(job, learnt, tracked)
    return recipe.folder


def _iterate(job: Job, first: int, learnt: Learnt, tracked: Trackers) -> None:
    """The iterations from `first` on, which move what is learnt."""
    settings = job.recipe.distill
    _tell_where_to_look(job)
    with _signals() as received, _progress(job, first) as bar:
        for iteration in range(first, settings.iterations):
            stop, done = once(job, iteration, learnt, tracked, bar, received), iteration + 1
            if stop and done < settings.iterations:
                job.processes.wait_for_everyone()  # a launcher ends all where one ends before the manifest is written
                job.processes.print(f"saved after iteration {done}; the same command goes on from there")
                raise SystemExit(128 + stop)


def once(job: Job, iteration: int, learnt: Learnt, tracked: Trackers, bar: tqdm, received: Sequence[int]) -> int:
    """One iteration, which moves what is learnt; the signal upon which the run is to stop after it, or 0."""
    settings, device, done = job.recipe.distill, job.processes.device, iteration + 1
    due = done % settings.checkpoint_every == 0 or done == settings.iterations
    logged = due or done % settings.log_every == 0
    with Clock(device, exact=logged) as clock:
        clock.begin("render")
        pixels, pull_back = _render(job, learnt, iteration)
        clock.begin("objective")
        losses, grad_pixels = _match(job, iteration, pixels, pull_back)
        clock.begin("pull_back")
        grad_z, grad_c = pull_back(grad_pixels)

        clock.begin("logging")
        stop = max(job.processes.gather([max(received, default=0)]))
        if logged or stop:
            numbers = _metrics(job, losses, grad_z, grad_c)
            if not all(math.isfinite(value) for value in numbers.values()):
                _give_up(job, learnt, iteration)
            numbers |= job.objective.learnt()
            numbers["peak_memory"] = max(job.processes.gather([memory.peak(device)]))
            _log(job, bar, tracked, {"iteration": iteration, **numbers, "seconds": clock.seconds})
        clock.begin("optimiser")
        learnt.step(iteration, grad_z, grad_c, settings)
        bar.update()
        clock.begin("saving")
        if due or stop:
            _save(job, learnt, done)
        if settings.pictures and iteration % -(-settings.iterations // settings.pictures) == 0:
            _draw(job, pixels, iteration, tracked)
    return stop


def begin(job: Job) -> tuple[int, Learnt]:
    """The first iteration to do and the state before it: the newest checkpoint's, or the initial one."""
    labels = job.own or [0]  # an idle process needs the shapes, and learns none of it
    device = job.processes.device
    checkpoint = checkpoints.newest(job.recipe.folder, job.processes.print)
    if checkpoint:
        first, states, objective = checkpoints.read_states(checkpoint, labels, device)
        job.objective.restore(first, objective)
    else:
        first = 0
        states = [initial(job.recipe, job.images, job.prior, job.embeddings[label], label, device) for label in labels]
    if job.processes.is_main_process:
        metrics.cut(job.recipe.folder, first)
    return first, Learnt.stack(states, count=len(job.own))


def _save(job: Job, learnt: Learnt, iteration: int) -> None:
    """A checkpoint of the state before an iteration."""
    states = dict(zip(job.own, learnt.by_class(), strict=True))
    checkpoints.save(job.recipe, iteration, states, job.objective.state(), job.processes)


def _render(job: Job, learnt: Learnt, iteration: int) -> tuple[Tensor, RetryingPullBack]:
    """This process's images with the noise of an iteration, and their pull-back."""
    noise = draw_noise(job.recipe, job.prior, job.own, iteration, job.processes.device)
    inputs = [_padded(tensor, job.padding) for tensor in (learnt.z.flatten(0, 1), learnt.c.flatten(0, 1), noise)]

    def attempt(micro_batch: int, keep_graph_steps: int) -> tuple[Tensor, PullBack]:
        pixels, pull_back = render(
            job.prior,
            job.schedule,
            *inputs,
            resolution=job.recipe.rendered_size,
            micro_batch=micro_batch,
            keep_graph_steps=keep_graph_steps,
        )

        def pull_back_own(grad: Tensor) -> tuple[Tensor, Tensor]:
            grad_z, grad_c = pull_back(_padded(grad, job.padding))
            return grad_z[: len(noise)], grad_c[: len(noise)]

        return pixels[: len(noise)], pull_back_own

    return job.room.render(attempt)


def _match(job: Job, iteration: int, pixels: Tensor, pull_back: RetryingPullBack) -> tuple[Tensor, Tensor]:
    """The objective's losses, and gradient at the pixels; where memory runs out, again without the graphs kept.

    Raises:
        UserError: where there are none, or there are other processes, which would not answer an objective twice.
    """
    again = job.room.keep_graph_steps > 0 and job.processes.num_processes == 1
    before = copy.deepcopy(job.objective.state()) if again else {}
    factor = job.recipe.distill.factor
    try:
        losses, grad = job.objective.match(iteration, job.by_class(enlarge(pixels, factor)))
        return losses, vjp(partial(enlarge, factor=factor), pixels, grad.flatten(0, 1))[1]
    except Exception as error:
        if not ran_out(error):
            raise
        if not again:
            graphs = "prior.keep_graph_steps=0, " if job.room.keep_graph_steps else ""
            raise UserError(
                f"distill.objective: memory ran out in {job.recipe.distill.objective}; give {graphs}a smaller "
                "distill.real_batch or network.width, or more memory; the same command goes on where it stood"
            ) from None
    pull_back.release()
    job.objective.restore(iteration, before)
    return _match(job, iteration, pixels, pull_back)


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
    if job.processes.is_main_process:
        result.begin_images(recipe.folder)
    job.processes.wait_for_everyone()
    for label, images in zip(job.own, _stored(job, pixels), strict=True):
        result.write_images(recipe.folder, job.images.classes[label], images)
    _draw(job, pixels, last, tracked)
    job.processes.wait_for_everyone()
    if job.processes.is_main_process:
        pictures.write_animation(recipe.folder)
        _, states, _ = checkpoints.read_states(checkpoints.path_of(recipe.folder, last), range(len(classes)), "cpu")
        result.write_result(recipe, classes, states, moment, job.objective.learnt())
        count = len(classes) * recipe.distill.images_per_class
        print(f"{recipe.folder}: {count} images in images/, a look at them in grid.png and evolution.gif")
    job.processes.wait_for_everyone()


def _stored(job: Job, pixels: Tensor) -> Tensor:
    """Rendered pixels as the images of this process's classes, uint8 [classes, images per class, channels, H, W]."""
    packed = pack(unit_to_bytes(pixels), job.recipe.distill.factor)
    return packed.unflatten(0, (len(job.own), job.recipe.distill.images_per_class))


# --- what is said on the way -------------------------------------------------------------------------------


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def _progress(job: Job, start: int) -> Iterator[tqdm]:
    """A bar with loss, rate and time left, on the main process."""
    total = job.recipe.distill.iterations
    hidden = not job.processes.is_main_process
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
    rows = sorted(job.processes.gather(own))
    _, loss, square_z, square_c = (sum(column) for column in zip(*rows, strict=True))
    return {"loss": loss, "grad_z": math.sqrt(square_z), "grad_c": math.sqrt(square_c)}


def _give_up(job: Job, learnt: Learnt, iteration: int) -> None:
    """Saves the state before a loss that is not finite, where it is sound, and says what to try.

    An objective with a state of its own has moved on by now; then the last checkpoint stands.
    """
    sound = (
        all(bool(tensor.isfinite().all()) for state in learnt.by_class() for tensor in state.values())
        and not job.objective.state()
    )
    if all(job.processes.gather([sound])):
        _save(job, learnt, iteration)
    raise UserError(
        f"the loss or its gradient is not finite at iteration {iteration}; the last good state is in "
        f"{job.recipe.folder / 'checkpoints'}. Try a lower distill.lr_latents and distill.lr_conditioning "
        "(and prior.dtype=float32) with another --output"
    )


def _tell_where_to_look(job: Job) -> None:
    folder, settings = job.recipe.folder, job.recipe.distill
    seen = "grid.png shows the images on their way, " if settings.pictures else ""
    job.processes.print(f"{folder}: {seen}ld3m status {shlex.quote(str(folder))} says how far it is")


def _log(job: Job, bar: tqdm, tracked: Trackers, row: dict[str, object]) -> None:
    if job.processes.is_main_process:
        bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
        metrics.append(job.recipe.folder, row)
        tracked.log(row)


def _draw(job: Job, pixels: Tensor, iteration: int, tracked: Trackers) -> None:
    """Pictures of the images that an iteration began with: `grid.png`, one in `evolution/`, and the trackers'."""
    classes, each = pictures.shown(len(job.images.classes), job.recipe.distill.images_per_class)
    found = zip(job.own, _stored(job, pixels), strict=True)
    own = [(label, images[:each]) for label, images in found if label < classes]
    everyone = sorted(job.processes.gather(own), key=lambda item: item[0])
    if job.processes.is_main_process:
        images = torch.stack([images for _, images in everyone])
        pictures.write_frame(job.recipe.folder, iteration, images)
        pictures.write_grid(job.recipe.folder, images)
        tracked.draw(iteration, pictures.side_by_side(images))
