"""Pilots: short distillations of the candidates, measured on held-out training images; the best get longer ones."""

import time

from ld3m.automatic.budget import LONGER, SHARES, Bracket, bracket, ends
from ld3m.automatic.question import PILOTS, Pilot
from ld3m.automatic.work import NARROWER, Work, measured, seconds_of_one, without_test
from ld3m.data.decoding.depth import found_ranges
from ld3m.data.preparation import RANGES
from ld3m.data.prepared import ImageSet, preparation_of, prepare
from ld3m.errors import UserError
from ld3m.evaluation.effort import Cost
from ld3m.evaluation.evaluate import evaluate
from ld3m.recipe import Recipe
from ld3m.runs.metrics import duration

FEWEST_ITERATIONS, FEWEST_IMAGES = 40, 4000
"""Of a pilot that says anything, and that its network sees in training."""
FEWEST_EPOCHS, MOST_EPOCHS = 5, 300
"""Of its networks."""
MOST_NETWORKS = 5
"""That measure a pilot, if there is time for more than one."""
DISTILLING, TRAINING = 0.6, 0.3
"""Shares of a pilot's time, of which the rest is for testing."""
LOADING = 3.0
"""Seconds that a pilot takes beside its iterations and its network, on a small machine."""
POOL = 10
"""Matching networks of a pilot."""
MOST_ITERATIONS = 10**6
"""Of a pilot, which ends by its time."""


def choose(work: Work) -> None:
    """Tries candidates until the time of pilots is over, and notes which is chosen.

    Raises:
        UserError: if there is no time to prepare the images, or every pilot fails.
    """
    state = work.state
    images = _prepared(work)
    if state.bracket is None or state.cost is None:
        cost = work.cost(images, _recipe(work, 0))
        state.cost = cost
        left = ends(work.total)["pilots"] - work.spent()
        state.bracket = bracket(left, _least(work, cost), len(work.options), LOADING)
        work.save()
    planned = Bracket(*state.bracket)
    if planned.tried < len(work.options):
        left_out = f" of {'; '.join(each.name for each in work.options[planned.tried :])}" if planned.tried > 1 else ""
        work.say(f"no time for pilots{left_out}; more --minutes would try them")
    until, longer = ends(work.total)["pilots"], LONGER * planned.seconds
    for number in range(planned.tried if planned.tried > 1 else 0):  # late ones go, rather than longer ones
        _try(work, number, planned.seconds, until - planned.again * longer, longer=False)
    for best in state.promoted(planned.again, [each.kind for each in work.options]):
        _try(work, best.candidate, longer, until, longer=True)
    if planned.tried > 1 and not state.best():
        raise UserError(f"all pilots failed, for the reasons above; {work.log} has what they printed")
    state.chosen = state.best()[0].candidate if state.best() else 0
    work.say(f"chosen: {work.options[state.chosen].name}")
    work.save()


def _prepared(work: Work) -> ImageSet:
    """The images that pilots see; how long they took is noted.

    Raises:
        UserError: if that is more than pilots may take.
    """
    state, main = work.state, work.processes.is_main_process
    if not state.prepared:
        outlook = preparation_of(without_test(_recipe(work, 0)).data, progress=False).outlook()
        if (seconds := work.agreed(outlook.seconds)) > SHARES["pilots"] * work.total:
            enough = -(-seconds // (60 * SHARES["pilots"]))
            raise UserError(
                f"--minutes: {work.question.minutes:g}, but preparing {outlook.images:,} images alone takes about "
                f"{duration(seconds)}; give {enough:.0f}, or fewer classes by data.subset"
            )
    began = time.monotonic()
    images = prepare(without_test(_recipe(work, 0)).data, progress=main)
    ranges = found_ranges(images.folder / RANGES)
    if ranges and state.range is None:  # else the test images would have a part in it at the end
        first = next(iter(ranges.values()))
        state.range = [first.black, first.white]
        images = prepare(without_test(_recipe(work, 0)).data, progress=main)
    state.prepared = max(state.prepared, time.monotonic() - began)
    return images


def _least(work: Work, cost: Cost) -> float:
    """Seconds of a pilot of the first candidate below which it says nothing."""
    images = work.seen(_recipe(work, 0))
    seen = min(FEWEST_IMAGES, MOST_EPOCHS / 2 * images)
    return cost.train * max(FEWEST_ITERATIONS / NARROWER * images / DISTILLING, seen / TRAINING)


def _recipe(work: Work, number: int) -> Recipe:
    """The recipe of a candidate's pilots, in a folder of its own; a longer pilot resumes the first."""
    first = work.state.bracket[1] if work.state.bracket else 0.0
    folder = work.question.folder / PILOTS / f"{number + 1}"
    kept = {
        "data.validation_share": work.found.validation_share,
        "distill.pictures": 0,
        "distill.checkpoint_every": 100,
    }
    return work.recipe(number, MOST_ITERATIONS, DISTILLING * first, POOL, folder).changed(kept)


def _try(work: Work, number: int, seconds: float, until: float, longer: bool) -> None:
    """A pilot, unless it is done or would end late; a longer one resumes the run of the first.

    Args:
        work: with the candidates.
        number: of the candidate.
        seconds: that the pilot takes.
        until: when it should have ended, in seconds spent; half of it may be missing.
        longer: whether it is one of the second round.
    """
    if any((each.candidate, each.longer) == (number, longer) for each in work.state.pilots):
        return
    candidate, done = work.options[number], Pilot(candidate=number, longer=longer, accuracy=None)
    if work.state.best() and work.spent() + seconds / 2 > until:
        work.say(f"no time left for a pilot of {candidate.name}")
        return
    why = "the best of its kind, or of all, so it gets a longer pilot" if longer else candidate.why
    work.say(f"pilot of {candidate.name}, {duration(seconds)}: {why}")
    recipe = _recipe(work, number)
    epochs, seeds = _networks(work, recipe, seconds)
    try:
        with work.quiet():
            made = measured(work.distil(recipe, DISTILLING * seconds), epochs, seeds)
            report, _ = evaluate(made.folder, without_test(made), split="validation")
    except UserError as error:
        if work.processes.num_processes > 1:  # others may not have failed
            raise
        work.say(f"  left out: {error}")
    else:
        row = next(each for each in report["results"] if each["protocol"]["epochs"] == epochs)
        done.accuracy, done.iterations = row["mean"], made.distill.iterations
        done.iteration = work.agreed(seconds_of_one(made.folder, POOL))
        work.say(
            f"  {row['mean']:.1f} % of {row['tested_on']:,} held-out images, after {done.iterations:,} iterations of "
            f"{duration(done.iteration)}"
        )
    work.state.pilots.append(done)
    work.save()


def _networks(work: Work, recipe: Recipe, seconds: float) -> tuple[int, int]:
    """Epochs and number of a pilot's networks, by the time that was measured when pilots were planned."""
    cost = Cost(*(work.state.cost or (0.0, 0.0)))
    affordable = TRAINING * seconds / (cost.train * work.seen(recipe))
    epochs = round(min(MOST_EPOCHS, max(FEWEST_EPOCHS, affordable)))
    return epochs, int(min(MOST_NETWORKS, max(1, affordable / epochs)))
