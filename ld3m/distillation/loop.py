"""The loop: latents of a few images per class, optimised through the frozen model to match real images."""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from ld3m import priors
from ld3m.distillation import trackers
from ld3m.distillation.bookkeeping import Bookkeeping, Outcome
from ld3m.distillation.latents import LearntLatents
from ld3m.distillation.sampled_start import forget_parts, sampled_states
from ld3m.distillation.setup import Setup
from ld3m.distillation.starts import initial_state
from ld3m.errors import UserError
from ld3m.machine import signals
from ld3m.machine.determinism import repeatable
from ld3m.machine.out_of_memory import ran_out
from ld3m.machine.processes import Processes, watched_command
from ld3m.machine.timing import Clock
from ld3m.recipe import Recipe
from ld3m.runs import checkpoints, manifests, metrics
from ld3m.runs.folder import iterations_saved, note_classes
from ld3m.runs.result import write_real
from ld3m.runs.resume import claim, nothing_left
from ld3m.runs.sources import Sources, describe_data
from ld3m.sampling.memory_budget import RetryingPullBack


@watched_command
def distill(
    processes: Processes,
    recipe: Recipe,
    resume: bool = True,
    start: Path | None = None,
    until: int | None = None,
    seconds: float | None = None,
) -> Path:
    """Distils a recipe into its run folder, resuming an unfinished run of it.

    Under `accelerate launch` the classes are dealt to the processes, and the result is that of one process.

    Args:
        resume: whether a run that is in the folder is resumed, or replaced.
        start: a run's folder, or one of its checkpoints, to resume from; its recipe must be the same.
        until: the iteration before which a rehearsal leaves the run unfinished, to resume it; it must be a saved one.
        seconds: of iterations, after which the run is saved and left unfinished too; at least one is made.

    Returns:
        The run folder.

    Raises:
        UserError: for a mistake in the recipe that only its data or prior shows, a folder in which another process is
            at work, or a loss that is not finite.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1, once the state is saved.
    """
    main = processes.is_main_process
    if resume and not start:  # on one process, as another may be late and find what this one has made
        (finished, *_) = processes.gather([nothing_left(recipe) if main else None])
        if finished:
            processes.print(finished)
            return recipe.folder
    with repeatable(processes.device, recipe.tf32), ExitStack() as claimed:
        resumes = start is not None or (resume and iterations_saved(recipe.folder) is not None)
        setup = Setup.load(processes, recipe, resumes)
        with processes.main_process_first():
            if main:
                data = describe_data(setup.images, recipe.data)
                made_from = Sources(priors.provenance(recipe.prior.source), data)
                claimed.enter_context(claim(recipe, made_from, resume, start))
                note_classes(recipe.folder, setup.class_ids)
                write_real(recipe.folder, setup.images, recipe.distill.images_per_class)
        first, latents = checkpoint_or_start(setup)
        with (
            trackers.started(recipe, first, main) as tracked,
            Bookkeeping.opened(setup, tracked, first, timed=seconds is not None) as books,
        ):
            done, latents = optimise(setup, first, latents, books, until, seconds)
            if until is None and done == recipe.distill.iterations:
                books.finish(latents)
    return recipe.folder


def optimise(
    setup: Setup,
    first: int,
    latents: LearntLatents,
    books: Bookkeeping,
    until: int | None = None,
    seconds: float | None = None,
) -> tuple[int, LearntLatents]:
    """The iterations from `first` on, up to the last, or that before `until`, or that in which the seconds are over.

    Returns:
        The iterations done, and the latents after them.

    Raises:
        SystemExit: after a signal, once the state is saved.
    """
    done = first
    with signals.collected(seconds) as received:
        for i in range(first, setup.recipe.distill.iterations if until is None else until):
            latents, stop = timed_iteration(setup, i, latents, books, received)
            done = i + 1
            if stop == signals.TIME:
                break
            if stop:
                books.leave(done, stop)
    return done, latents


def timed_iteration(
    setup: Setup, i: int, latents: LearntLatents, books: Bookkeeping, received: Sequence[int]
) -> tuple[LearntLatents, int]:
    """An iteration and its bookkeeping: the latents after it, and the signal that stops the run after it, or 0."""
    with Clock(setup.processes.device, exact=books.is_logged(i)) as clock:
        outcome = iteration(setup, i, latents, clock)
        stop = books.keep(i, latents, outcome, clock, received)
    return outcome.latents, stop


def iteration(setup: Setup, i: int, latents: LearntLatents, clock: Clock) -> Outcome:
    """Iteration i: render the latents, match the images, pull the gradient back through the model, step."""
    clock.begin("render")
    pixels, pull_back = setup.synthetic.render(latents.z, latents.c, i)
    clock.begin("objective")
    losses, grad_pixels = match_or_free_graphs(setup, i, pixels, pull_back)
    clock.begin("pull_back")
    grad_z, grad_c = pull_back(grad_pixels)
    clock.begin("optimiser")
    return Outcome(latents.step(i, grad_z, grad_c, setup.recipe.distill), pixels, losses, grad_z, grad_c)


def match_or_free_graphs(setup: Setup, i: int, pixels: Tensor, pull_back: RetryingPullBack) -> tuple[Tensor, Tensor]:
    """The objective's losses and its gradient at the pixels; if memory runs out, again without the kept graphs.

    Raises:
        UserError: if there are none, or there are other processes, which would not answer an objective twice.
    """
    objective, budget = setup.objective, setup.synthetic.budget
    can_retry = budget.keep_graph_steps > 0 and setup.processes.num_processes == 1
    before = copy.deepcopy(objective.state()) if can_retry else {}
    try:
        return objective.match(i, pixels)
    except Exception as error:
        if not ran_out(error):
            raise
        if not can_retry:
            graphs = "prior.keep_graph_steps=0, " if budget.keep_graph_steps else ""
            raise UserError(
                f"distill.objective: memory ran out in {setup.recipe.distill.objective}; give {graphs}a smaller "
                "distill.real_batch or network.width, or more memory; the same command resumes"
            ) from None
    pull_back.free_graphs()  # out here nothing holds what the attempt had
    objective.restore(i, before)
    return match_or_free_graphs(setup, i, pixels, pull_back)


def checkpoint_or_start(setup: Setup) -> tuple[int, LearntLatents]:
    """The first iteration to do and the latents before it: the newest checkpoint's, or the initial ones."""
    recipe, processes = setup.recipe, setup.processes
    labels = setup.own or [0]  # an idle process needs the shapes, and learns none of it
    checkpoint = manifests.newest(recipe.folder, processes.print)
    if checkpoint:
        first = int(checkpoint.name)
        states, objective = checkpoints.read_states(checkpoint, labels, processes.device)
        if first or objective:  # what was sampled without iterations has none, and may be refined later
            setup.objective.restore(first, objective)
    else:
        if iterations_saved(recipe.folder):
            processes.print(f"{recipe.folder}: no checkpoint is whole, so the run begins again")
        first = 0
        states = (
            sampled_states(setup)
            if recipe.samples
            else [
                initial_state(recipe, setup.images, setup.prior, setup.embeddings[label], label, processes.device)
                for label in labels
            ]
        )
        if recipe.samples:  # hours of work, which a run that is stopped soon after must not lose
            own = dict(zip(setup.own, states, strict=False))
            checkpoints.save(recipe, first, own, setup.objective.state(), processes)
            forget_parts(setup)
    if processes.is_main_process:
        metrics.cut(recipe.folder, first)
    return first, LearntLatents.stack(states, count=len(setup.own))
