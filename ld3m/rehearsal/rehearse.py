"""A run from its start to its push on a small scale, with the recipe's true sizes; nothing of it is kept."""

import math
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ld3m import networks, priors
from ld3m.data.first_images import FirstImagesRecipe
from ld3m.data.preparation import Outlook
from ld3m.data.prepared import preparation_of, prepare
from ld3m.distillation.inputs import check_inputs
from ld3m.distillation.loop import distill
from ld3m.distillation.setup import schedule_of
from ld3m.errors import UserError, counted
from ld3m.evaluation.evaluate import evaluate
from ld3m.files import writable
from ld3m.machine import lock, signals
from ld3m.machine.out_of_memory import free_unheld
from ld3m.machine.processes import Processes, watched_command
from ld3m.objectives.experts import check_there, experts_of
from ld3m.priors import sharding
from ld3m.priors.hub_folder import HubFolder
from ld3m.publishing.options import Destination
from ld3m.publishing.push import push
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.recipe.values import STARTS
from ld3m.rehearsal import forecast, stand_in
from ld3m.rehearsal.folder import nearest, temporary
from ld3m.rehearsal.forecast import size_text
from ld3m.rehearsal.steps import FAILED, WARNING, Row, Steps
from ld3m.reporting.report import report
from ld3m.runs import metrics
from ld3m.runs.folder import iterations_saved
from ld3m.runs.metrics import duration
from ld3m.runs.resume import nothing_left

LONG = 600.0
"""Seconds of preparing images above which a sample stands for them."""
FEW = 8
"""Images of each class, of both splits, with which evaluation is rehearsed."""
EPOCHS = 2
"""Of its networks."""
SAMPLED = 2
"""Steps of the chains, if Z is sampled."""


@dataclass(frozen=True)
class Rehearsal:
    """What came of a rehearsal."""

    rows: list[Row]
    seconds: float
    """What the run and its evaluation will take, about; 0 if not all of it passed."""
    errors: list[Exception]
    is_main: bool
    """Whether this process is the one to print."""
    processes: int
    """That took part."""
    random: bool
    """Whether the prior had random weights."""

    @property
    def failed(self) -> int:
        """How many steps failed."""
        return sum(row.result == FAILED for row in self.rows)

    def conclusion(self, command: str) -> str:
        """The last line: what came of it, and how to start the run.

        Args:
            command: that starts the run on one process.
        """
        if failed := self.failed:
            return f"rehearsal: {counted(failed, 'step')} failed"
        start = f"start it by {command}" if self.processes == 1 else "start it by the same launch without --rehearse"
        passed = "all passed with RANDOM weights" if self.random else "all passed"
        return f"rehearsal: {passed}; the whole will take about {duration(self.seconds)}; {start}"

    def raise_if_failed(self) -> None:
        """Raises what made steps fail: an error that is not the user's as it is, else a line for each mistake.

        Raises:
            UserError: for the mistakes.
        """
        for error in self.errors:
            if not isinstance(error, UserError):
                raise error
        if self.errors:
            lines = [line for error in self.errors if isinstance(error, UserError) for line in error.lines]
            raise UserError(*dict.fromkeys(lines))


@watched_command
def rehearse(processes: Processes, recipe: Recipe, resume: bool = True) -> Rehearsal:
    """Tries all that a run does, and prints a row of a table for each step.

    Two iterations, a checkpoint and a resume from it, the run's end, a network of two epochs for each architecture of
    `evaluate.arch`, the report, and `push-to-hub --dry-run`; in a temporary folder beside the run's, which is removed
    however the rehearsal ends. Sizes are the recipe's. Images are prepared and kept in the cache, or a sample of them
    if that takes longer than ten minutes. A prior that would have to be fetched first has random weights. Trackers get
    nothing.

    Args:
        resume: whether the run would resume what is in its folder, or replace it.

    Returns:
        What came of it. On several processes a step that fails on one of them ends all.
    """
    steps = Steps(processes)
    place = nearest(recipe.folder)
    with signals.exiting(), temporary(place, processes) as (folder, why_not):
        return _Rehearsing(recipe, resume, steps, place, folder, why_not).run()


@dataclass
class _Rehearsing:
    """A rehearsal under way; steps fill what later ones need."""

    recipe: Recipe
    resume: bool
    steps: Steps
    place: Path
    """The folder that the run's folder lies in, or the nearest above."""
    folder: Path
    """Of the rehearsal."""
    why_not: str | None
    """Why it is not in the place."""
    rehearsed: Recipe = field(init=False)
    """The recipe on a small scale."""
    archs: list[str] = field(init=False)
    """Those of `evaluate.arch` that fit the images; the first step reports the others."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Of a latent and a conditioning."""
    source: str = ""
    """Its `prior.source`."""
    random: bool = False
    """Whether the prior's weights are random."""
    outlook: Outlook = field(default_factory=lambda: Outlook({}, 0, 0, 0.0))
    """What preparing the images takes."""
    holds_out: bool = False
    """Whether test images are held out of the training images."""
    done: int = 0
    """Iterations of the run that is resumed, on the main process."""
    seconds: float = 0.0
    """Of the last command."""
    whole: dict[str, forecast.Part] = field(default_factory=dict)
    """What the whole will take, by command."""

    def __post_init__(self) -> None:
        recipe, compiles = self.recipe, self.recipe.prior.compiles
        shape = networks.Shape(recipe.data.channels, recipe.data.resolution, 2)
        self.archs = [arch for arch in dict.fromkeys(recipe.evaluate.arch) if _fits(arch, shape)]
        self.rehearsed = recipe.changed(
            {
                "output": str(self.folder / "run"),
                "log_with": [],
                "sample.steps": min(recipe.sample.steps, SAMPLED),
                "distill.iterations": min(recipe.distill.iterations, 2 + compiles),
                "distill.checkpoint_every": 1,
                "distill.log_every": 1,
                "evaluate.arch": self.archs or ["convnet"],
            }
        )
        if self._resumes and recipe.distill.init not in STARTS:  # the run's first iterations are done, and not ours
            self.rehearsed = self.rehearsed.changed({"distill.init": "noise"})

    def run(self) -> Rehearsal:
        """All steps, those that need what failed left out."""
        steps, processes, main = self.steps, self.steps.processes, self.steps.processes.is_main_process
        steps.alone("recipe", self._recipe)
        steps.alone("output", self._output, everywhere=False)
        ready = [
            self._sound(),
            not self.recipe.needs_experts or steps.alone("experts", self._experts),
            self._find_prior(),
            steps.alone("data", self._data, everywhere=False),
        ]
        self.outlook, self.holds_out = processes.gather([(self.outlook, self.holds_out)])[0]
        if all(ready) and steps.alone("images", self._images):
            self._run()
        else:
            for step in ("distil", "evaluate", "report", "push-to-hub"):
                steps.skip(step, "it needs what failed")
        total = 0.0 if steps.errors else sum(part.seconds for part in self.whole.values())
        return Rehearsal(steps.rows, total, steps.errors, main, processes.num_processes, self.random)

    def _run(self) -> None:
        """Distils, evaluates, reports and pushes, and says what the whole will take."""
        steps = self.steps
        if not steps.together("distil", self._begin) or not steps.together("resume", self._resume):
            for step in ("evaluate", "report", "push-to-hub"):
                steps.skip(step, "there is no finished run")
            return
        for arch in self.archs:
            steps.together(f"evaluate {arch}", partial(self._evaluate, arch))
        steps.alone("report", self._report, everywhere=False)
        steps.alone("push-to-hub", self._push, everywhere=False)
        self._warn_of_login()
        steps.alone("disk", lambda: forecast.disk(self.recipe, self.rehearsed, self.place), everywhere=False)
        if steps.processes.is_main_process:
            print("the whole will take", file=steps.out)
            for name, part in self.whole.items():
                print(f"  {name:<18} about {duration(part.seconds)}: {part.text}", file=steps.out)

    @property
    def _resumes(self) -> bool:
        """Whether the run resumes an unfinished one."""
        return self.resume and iterations_saved(self.recipe.folder) is not None

    # --- the steps ---

    def _recipe(self) -> str:
        check_inputs(self.recipe, self._resumes)
        trackers = ", ".join(self.recipe.log_with)
        return "what it names is here" + (f"; {trackers}: installed, and sent nothing" if trackers else "")

    def _sound(self) -> bool:
        """Whether distillation can be tried, be it without trackers and some architectures."""
        with suppress(UserError):
            check_inputs(self.rehearsed)
            return True
        return False

    def _output(self) -> str:
        run = self.recipe.folder
        if self.why_not:
            raise UserError(f"output: cannot write to {self.place} ({self.why_not}); give another --output")
        if lock.is_held(run):
            raise UserError(
                f"output: another process is at work in {run}; wait until it ends, or give another --output"
            )
        finished = nothing_left(self.recipe) if self.resume else None
        there = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"output: {there} is no folder; give another --output")
        if there == run.absolute() and not finished:
            writable(run, "give another --output")
        self.done = (iterations_saved(run) or 0) if self.resume else 0
        free = size_text(shutil.disk_usage(self.place).free)
        return finished or f"{run} can be written to; {free} are free"

    def _experts(self) -> str:
        experts = experts_of(self.recipe)
        check_there(experts.folder, experts.settings.count)
        return f"{experts.settings.count:,} in {experts.folder}"

    def _find_prior(self) -> bool:
        """Whether the prior, or one of its sizes, can be loaded."""
        steps = self.steps
        if not steps.alone("weights", self._weights, everywhere=False):
            return False
        source, self.random = steps.processes.gather([(self.source, self.random)])[0]
        self.rehearsed = self.rehearsed.changed({"prior.source": source})
        return steps.alone("prior", self._prior)

    def _weights(self) -> str:
        """The prior's own or random ones, on the main process."""
        source = self.recipe.prior.source
        if folder := stand_in.own(source):
            self.source = str(folder) if HubFolder.of(source) else source
            return f"of {source}"
        self.source = str(self.folder / "prior")
        self.random = True
        return f"RANDOM, as those of {source} are not here: {stand_in.draw(source, Path(self.source))}"

    def _prior(self) -> str:
        """Loads it, as it is loaded for the run."""
        recipe, processes = self.rehearsed, self.steps.processes
        device = "cpu" if sharding.wanted(processes.accelerator) else processes.device
        prior = priors.for_images(recipe.prior, recipe.data.channels, recipe.rendered_size, device)
        schedule_of(recipe, prior)
        self.shapes = tuple(prior.latent_shape), tuple(prior.conditioning_shape)
        del prior
        free_unheld()
        return f"latents of {' × '.join(map(str, self.shapes[0]))}"

    def _data(self) -> str:
        """What there is, and what preparing it takes; on the main process."""
        located = preparation_of(self.recipe.data, progress=False)
        self.outlook = located.outlook()
        self.holds_out = "test" not in located.source.splits
        counts = self.outlook.counts
        return f"{len(located.chosen):,} classes, {counts['train']:,} training and {counts['test']:,} test images"

    def _images(self) -> str:
        processes, outlook = self.steps.processes, self.outlook
        if outlook.seconds > LONG and not self.recipe.needs_experts:
            first = self._sample_size()
            self.whole["prepare"] = forecast.Part(outlook.seconds, f"{outlook.images:,} images, most of them later")
            self.rehearsed = self.rehearsed.changed({"data": self._sample(train=first, test=FEW)})
            text = (
                f"A SAMPLE, the first {first:,} training images of each class; preparing all {outlook.images:,} takes "
                f"about {duration(outlook.seconds)} and {size_text(outlook.bytes)}"
            )
        else:
            text = f"{outlook.images:,} prepared, and kept in the cache" if outlook.images else "all are in the cache"
        images = prepare(self.rehearsed.data, progress=processes.is_main_process)
        forecast.check_room(self.recipe, *self.shapes, len(images.classes), self.place)
        return text

    def _sample_size(self) -> int:
        """Training images of a class that leave as many as an iteration and the start take."""
        data, settings = self.recipe.data, self.recipe.distill
        kept = data.keep * (1 - data.validation_share) * (1 - data.test_share * self.holds_out)
        return math.ceil(max(settings.real_batch, settings.latents_per_class) / kept) + 2

    def _sample(self, **first: int) -> FirstImagesRecipe:
        data = self.recipe.data.model_dump() | {"scorer": self.recipe.data.scorer}
        return FirstImagesRecipe(**data, first=first, cache=self.folder / "images")

    def _begin(self) -> str:
        """The first iteration and its checkpoint; all if there are no iterations."""
        began = time.perf_counter()
        iterations = self.rehearsed.distill.iterations
        distill(self.rehearsed, until=1 if iterations else None)
        self.seconds = time.perf_counter() - began
        if self.recipe.samples:
            self.whole["sample"] = sampling = forecast.sampling(self.recipe, self.rehearsed)
            self.seconds = max(0.0, self.seconds - sampling.seconds * SAMPLED / self.recipe.sample.steps)
        if not iterations:
            self.whole["distil"] = forecast.Part(self.seconds, "no iterations")
        return f"iteration 1 of {self.recipe.distill.iterations:,}, and a checkpoint"

    def _resume(self) -> str:
        """The other iterations and the run's end, from the checkpoint."""
        iterations = self.rehearsed.distill.iterations
        if not iterations:
            return "not needed by a run without iterations"
        run, before = self.rehearsed.folder, metrics.read(self.rehearsed.folder).rows
        began = time.perf_counter()
        distill(self.rehearsed)
        self.seconds = time.perf_counter() - began
        if iterations_saved(run) != iterations or metrics.read(run).rows[:1] != before:
            raise UserError(f"distill.checkpoint_every: the run in {run} began again, instead of resuming; look above")
        save = forecast.saving(self.rehearsed, self.steps.processes)
        self.whole["distil"] = forecast.distilling(self.recipe, metrics.read(run).rows, self.seconds, save, self.done)
        return f"from the checkpoint of iteration 1, and on to the images of iteration {iterations}"

    def _evaluate(self, arch: str) -> str:
        """A network of an architecture, or one on each process."""
        processes = self.steps.processes
        few = {"arch": [arch], "seeds": processes.num_processes, "epochs": EPOCHS}
        recipe = self.rehearsed.changed({"data": self._few(), "evaluate": self.recipe.evaluate.changed(few)})
        report, _ = evaluate(self.rehearsed.folder, recipe)
        row = next(row for row in report["results"] if row["arch"] == arch)
        part = forecast.evaluating(self.recipe, arch, recipe, self.outlook.counts["test"], processes)
        self.whole[f"evaluate {arch}"] = part
        networks = "a network" if processes.num_processes == 1 else f"{processes.num_processes} networks"
        return f"{networks} of {EPOCHS} epochs, tested on {row['tested_on']:,} images"

    def _few(self) -> FirstImagesRecipe:
        """A few images of each class to test on, of which some are held out if none of the source's are."""
        return self._sample(train=FEW, test=FEW).changed({"test_share": 0.5, "validation_share": 0.0})

    def _report(self) -> str:
        return f"a page of {size_text(report(self.rehearsed.folder).stat().st_size)}"

    def _push(self) -> str:
        push(self.rehearsed.folder, Destination(), dry_run=True)
        files = [path for path in (self.rehearsed.folder / "hub").rglob("*") if path.is_file()]
        return f"{len(files)} files of {size_text(sum(path.stat().st_size for path in files))}, sent nowhere"

    def _warn_of_login(self) -> None:
        from huggingface_hub import constants, get_token

        why = "HF_HUB_OFFLINE is set; unset it" if constants.HF_HUB_OFFLINE else None
        why = why or (None if get_token() else "you are not logged in; run hf auth login, or set HF_TOKEN")
        if why:
            self.steps.add(Row("login", WARNING, [f"{why}, before ld3m push-to-hub"]))


def _fits(arch: str, shape: networks.Shape) -> bool:
    with suppress(UserError):
        networks.check(arch, shape, NetworkRecipe(), "evaluate.arch")
        return True
    return False
