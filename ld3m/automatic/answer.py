"""The best set of a given time: looked at, tried in pilots, distilled, and measured on test images at the end."""

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

from ld3m.automatic.budget import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    Measurement,
    ends,
    full_epochs,
    measurement,
    split_text,
)  # fmt: skip
from ld3m.automatic.candidates import Candidate, candidates, left_out
from ld3m.automatic.look import Look, look_at
from ld3m.automatic.pilots import choose
from ld3m.automatic.question import PILOTS, Kept, Question
from ld3m.automatic.work import EMA, NARROWER, Work, data_overrides, measured
from ld3m.data.prepared import notes_once, prepare
from ld3m.distillation.inputs import check_inputs
from ld3m.errors import UserError, counted
from ld3m.evaluation.effort import Cost
from ld3m.evaluation.evaluate import check_archs, evaluate
from ld3m.files import write_text
from ld3m.machine import lock, signals
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.publishing.options import Destination
from ld3m.publishing.push import push
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, to_yaml
from ld3m.reporting.report import report
from ld3m.runs import metrics
from ld3m.runs.folder import document, is_run
from ld3m.runs.metrics import duration

RECIPE = "auto.yaml"
"""The recipe of the result, beside it; ld3m distill runs it."""
LIMIT = 3000
"""Iterations of the result; more gained nothing in our results."""
POOL = 40
"""Matching networks."""
CAUTION = 0.85
"""Share of the time left that networks are planned for: the machine may become slower."""
PAGES = 5.0
"""Seconds for report and card."""
BASELINES = ("random", "herding")


@watched_command
def answer(processes: Processes, question: Question) -> tuple[dict[str, Any], bool]:
    """Finds and makes the best set that a question's time allows, in an ordinary run folder.

    Beside the run are auto.yaml, the recipe of the result; auto.json, how it was found; and pilots/, the runs that were
    compared. Pilots are measured on held-out training images; the source's test split is neither read nor prepared
    before the result is measured. Interrupt it at any time: the same call resumes, and repeats no finished pilot.

    Returns:
        The run's evaluation.json, and whether this process is the one to print it.

    Raises:
        UserError: for images that cannot be used, too little time, or a folder that holds something else.
        SystemExit: after a signal; the same call resumes.
    """
    began = time.monotonic()
    keep_freed_memory()
    found = look(question, processes.device.type)
    options = worth_trying(question, found)
    with ExitStack() as entered:
        entered.enter_context(signals.exiting())
        entered.enter_context(notes_once())
        if processes.is_main_process:
            _check_folder(question.folder)
            entered.enter_context(lock.claim(question.folder / PILOTS))
        processes.wait_for_everyone()
        work = Work(processes, question, found, options, Kept.of(question, processes.is_main_process), began)
        if work.state.finished:
            work.say(f"{question.folder} is finished; give another --output to begin again")
        else:
            _work_on(work)
    return document(question.folder, "evaluation.json"), processes.is_main_process


def _work_on(work: Work) -> None:
    """All stages, as far as they are left."""
    for line in plan_lines(work.question, work.found, work.options):
        work.say(line)
    if work.state.spent:
        work.say(f"resumes after {duration(work.state.spent)}")
    try:
        if work.state.chosen is None:
            choose(work)
        _measure(work, _distil(work))
        work.state.finished = True
    except SystemExit:
        work.say("interrupted; the same command resumes")
        raise
    except UserError:  # test images are read after hours, and one of them may be broken
        if work.state.pilots or work.state.chosen is not None:
            work.say("what is done is kept: once this is mended, the same command resumes")
        raise
    finally:
        work.save()


def look(question: Question, device: str) -> Look:
    """A look at a question's images, for a kind of device."""
    recipe = question.recipe()
    check_archs(recipe)
    given = [each.partition("=")[0].removeprefix("data.") for each in question.standing if each.startswith("data.")]
    return look_at(recipe.data, given, device, question.images_per_class)


def worth_trying(question: Question, found: Look) -> list[Candidate]:
    """The candidates that fit, without those that are the same as another since what the user set stands.

    Raises:
        UserError: if none fits, or one of a prior that the user named does not.
    """
    fitting: dict[str, Candidate] = {}
    mistakes: list[str] = []
    for candidate in candidates(found, question.images_per_class, question.source, question.own_priors):
        try:
            recipe = question.recipe([*data_overrides(found), *candidate.overrides])
            check_inputs(recipe)
        except UserError as error:
            if _has_prior(candidate, question.own_priors):
                raise
            mistakes += error.lines
        else:
            fitting.setdefault(f"{digest(recipe)} {recipe.prior.source}", candidate)
    if not fitting:
        raise UserError(*dict.fromkeys(mistakes))
    return list(fitting.values())


def _has_prior(candidate: Candidate, priors: Sequence[str]) -> bool:
    """Whether a candidate has one of these priors."""
    return any(f"prior.source={prior}" in candidate.overrides for prior in priors)


def plan_lines(question: Question, found: Look, options: Sequence[Candidate]) -> list[str]:
    """What is there, how the time is split, and what may be tried, for people."""
    lines = [f"{question.source}: {line}" for line in found.lines]
    names = "; ".join(candidate.name for candidate in options)
    lines += left_out(found, question.images_per_class)
    return [*lines, f"time: {split_text(60 * question.minutes)}", f"candidates: {names}"]


def _check_folder(folder: Path) -> None:
    """That a folder is empty, or has an answer or a part of one."""
    if (folder / PILOTS).is_dir():
        return
    if is_run(folder):
        raise UserError(f"--output: {folder} holds a run that ld3m auto did not make; give another --output")
    lock.check_kind(folder, PILOTS, "an answer of ld3m auto", "--output")


def _distil(work: Work) -> Recipe:
    """Distils what was chosen until the time for it is over; the recipe by which the result was made."""
    state, folder, until = work.state, work.question.folder, ends(work.total)
    assert state.chosen is not None
    pilot = next((each for each in state.best() if each.candidate == state.chosen), None)
    seconds = until["distilling"] - until["pilots"]
    most = min(LIMIT, int(2 * seconds / pilot.iteration)) if pilot and pilot.iteration else LIMIT
    recipe = work.recipe(state.chosen, max(1, most), seconds, POOL)
    if state.iterations is None:
        if work.processes.is_main_process and not is_run(folder):  # else a folder with pilots would be no run's
            write_text(folder / "recipe.yaml", to_yaml(recipe))
        if state.distilling_since is None:
            state.distilling_since = work.spent()
            work.save()
        made = sum(map(metrics.seconds, metrics.read(folder).rows))  # of a call that was killed
        left = until["distilling"] - max(work.spent(), state.distilling_since + made) - state.prepared
        work.say(f"distilling {work.options[state.chosen].name}: at most {duration(max(0.0, left))}")
        with redirect_stdout(sys.stderr):  # standard output is for the table
            state.iterations = work.distil(recipe, max(0.0, work.agreed(left))).distill.iterations
        work.save()
        work.say(f"  {state.iterations:,} iterations")
    recipe = recipe.changed({"distill.iterations": state.iterations})
    _write(work, recipe)
    return recipe


def _write(work: Work, recipe: Recipe) -> None:
    """Writes the recipe of the result, with how it is measured."""
    if work.processes.is_main_process:
        for name in (RECIPE, "recipe.yaml"):
            write_text(recipe.folder / name, to_yaml(recipe))
    work.processes.wait_for_everyone()


def _evaluated(work: Work, recipe: Recipe, against: Sequence[str]) -> Recipe:
    """Measures the result as far as that is left, and writes how into its recipe, which is returned."""
    _write(work, recipe)
    with redirect_stdout(sys.stderr):
        evaluate(recipe.folder, recipe, against)
    return recipe


def _planned(work: Work, recipe: Recipe, cost: Cost, tested: int) -> Measurement:
    """What there is time to measure."""
    train, real = sum(work.found.counts), recipe.distill.images_per_class * len(work.found.classes)
    scorer = (recipe.data.scorer.epochs * cost.train + cost.test) * train / NARROWER
    left, sizes = CAUTION * (work.total - work.spent() - PAGES), [work.seen(recipe), real, real]
    planned = measurement(left - scorer, cost, sizes, tested, work.processes.num_processes)
    if planned.sets == len(sizes):
        return planned
    return measurement(left, cost, sizes[:-1], tested, work.processes.num_processes)  # herding alone needs the scorer


def _measure(work: Work, recipe: Recipe) -> None:
    """Measures the result on test images, against random, herded and, if there is time, all real ones."""
    state, main = work.state, work.processes.is_main_process
    images = prepare(recipe.data, progress=main)
    cost, train, tested = work.cost(images, recipe), sum(images.counts["train"]), sum(images.counts["test"])
    if state.measurement is None:
        state.measurement = _planned(work, recipe, cost, tested)
        work.save()
    planned = Measurement(*state.measurement)
    against, run = BASELINES[: planned.sets - 1], shlex.quote(str(recipe.folder))
    if left_out := BASELINES[planned.sets - 1 :]:
        work.say(f"no time to measure {' and '.join(left_out)}: ld3m evaluate {run} --against {','.join(left_out)}")
    work.say(
        f"measuring on {tested:,} test images: {', '.join(['distilled', *against])}; "
        f"{counted(planned.epochs, 'epoch')}, "
        f"{counted(planned.seeds, 'network')} of each if there is time"
    )
    if planned.epochs < FEWEST_EPOCHS:
        work.say(
            f"  so few epochs tell little of the set; longer: ld3m evaluate {run} evaluate.epochs={MOST_EPOCHS} "
            f"evaluate.ema={EMA[0]} --against {','.join(BASELINES)}"
        )
    began = work.spent()
    recipe = _evaluated(work, measured(recipe, planned.epochs, 1, state.full_epochs or 0), against)
    each = work.spent() - began
    if state.full_epochs is None:
        left = CAUTION * (work.total - work.spent() - PAGES)
        state.full_epochs = work.agreed(full_epochs(left, cost, train, tested))
        work.save()
    if state.full_epochs:
        work.say(f"measuring all {train:,} training images, in {state.full_epochs} epochs")
        recipe = _evaluated(work, measured(recipe, planned.epochs, 1, state.full_epochs), [*against, "full"])
    else:
        work.say(f"no time to train on all {train:,} images: ld3m evaluate {run} --against full")
    for seeds in range(2, planned.seeds + 1):
        if work.spent() + each > work.total - PAGES:
            break
        recipe = _evaluated(work, measured(recipe, planned.epochs, seeds, state.full_epochs), against)
    if main:
        with work.quiet():
            report(recipe.folder)
            push(recipe.folder, Destination(), dry_run=True)
    seconds = duration(work.spent())
    work.say(f"{recipe.folder}: images/, report.html, the card in hub/, {RECIPE}; {seconds} in all")
