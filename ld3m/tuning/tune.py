"""The search itself: candidates distilled and measured by all workers, the best as a recipe, table and chart."""

import io
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from ld3m.data.prepared import notes_once
from ld3m.distillation.measured import cost, make, result
from ld3m.errors import UserError, counted
from ld3m.files import writable, write_json, write_text
from ld3m.machine import environment, signals
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, apart, watched_command
from ld3m.markdown import sentence
from ld3m.recipe import Recipe
from ld3m.recipe.files import to_yaml
from ld3m.runs.metrics import duration
from ld3m.tuning import chart, table
from ld3m.tuning.draws import Draws
from ld3m.tuning.halving import Figure
from ld3m.tuning.outlook import SEARCHED, forecast, timed
from ld3m.tuning.results import FINAL, Outcome, close, decision, final_job, job, ranked, sound
from ld3m.tuning.search import Search
from ld3m.tuning.trials import Trials
from ld3m.tuning.worker import Worker


@watched_command
def tune(processes: Processes, search: Search, command: str = "") -> Outcome:
    """Searches, and writes best.yaml, tune.json, tune.md and tune.svg into the folder.

    Every process of a launch is a worker of its own, as are commands on other machines that share the folder. A worker
    that dies leaves its trial to the others, or to the next command; finished runs are not made again.

    Args:
        command: that was typed, which results note; "" for a call from Python.

    Returns:
        Candidates from best to worst, how the best was told from the next, and what tune.json holds.

    Raises:
        UserError: if the folder is another search's, or several trials in a row cannot be measured.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1; the same command resumes.
    """
    keep_freed_memory()
    with signals.exiting(), apart(processes), notes_once():
        tuning = Tuning(processes, search, command)
        tuning.search_all()
        if search.budget.final:
            tuning.measure_best()
        return tuning.write()


class Tuning:
    """A search under way, as one of its workers sees it."""

    def __init__(self, processes: Processes, search: Search, command: str) -> None:
        self.processes, self.search, self.command = processes, search, command
        began, folder = time.monotonic(), writable(search.folder, "give another --output")
        draws = Draws(search.axes, search.base_value, search.identify, search.base.seed, self.say)
        self.trials = Trials(folder, draws, search.about)
        end = began + 60 * search.budget.minutes if search.budget.minutes else float("inf")
        self.worker = Worker(
            self.trials, self.measure, search.budget.rungs, search.budget.eta, self.say, self.write, end
        )

    def say(self, line: str) -> None:
        """Prints a line to standard error, which is for what happens meanwhile."""
        print(f"{self.processes.label}{line}", file=sys.stderr, flush=True)

    def say_once(self, line: str) -> None:
        """Prints a line that all processes of a launch would print, and of which one is enough."""
        if self.processes.is_main_process:
            self.say(line)

    # --- steps ---------------------------------------------------------------------------------------------

    def search_all(self) -> None:
        """Makes trials, then further distillations of candidates that are close, within the budget."""
        search, budget, worker = self.search, self.search.budget, self.worker
        notes = self.trials.notes()
        for line in table.beginning(search, notes):
            self.say_once(line)
        if any(note.figures for note in notes):
            self.say_once(self.forecast([worker.expected(rung) for rung in range(budget.rungs)]))
        end, began = worker.until, time.monotonic()
        if budget.minutes:
            worker.until = began + SEARCHED * (end - began)
        worker.search(budget.wanted)
        if self.trials.exhausted:
            self.say_once("every combination of the axes has been tried")
        worker.until = end
        worker.end()
        while not worker.stopped and (jobs := self.further_distillations()):
            self.say_once(f"{counted(len(jobs), 'more distillation')} of candidates that are close to the best")
            worker.share(jobs, ranked(self.trials)[0].rung)
        self.say_once(decision(ranked(self.trials), budget.close))
        if worker.stopped:
            self.say_once(f"{budget.minutes:g} minutes are spent; the same command continues for as many more")

    def further_distillations(self) -> dict[str, Any]:
        """What is left to distil of candidates that are close, by the names of the jobs."""
        return {
            name: partial(self.measure, candidate.number, candidate.settings, candidate.rung, seed)
            for candidate in close(ranked(self.trials), self.search.budget.close)
            for seed in range(1, self.search.budget.distillations)
            if self.trials.figure(name := job(candidate.number, candidate.rung, seed)) is None
        }

    def measure_best(self) -> None:
        """Distils the best from all training images, `FINAL` times, and measures that on test images."""
        best = self.write().best
        jobs = {
            final_job(best.number, seed): partial(self.measure_on_test, best.number, best.settings, seed)
            for seed in range(FINAL)
        }
        self.worker.until, self.worker.stopped = float("inf"), False
        self.say_once(f"{best.name}: {FINAL} distillations from all training images, measured on test images")
        self.worker.share(jobs, self.search.budget.rungs - 1)

    # --- runs ----------------------------------------------------------------------------------------------

    def measure(self, number: int, settings: Mapping[str, str], rung: int, seed: int) -> Figure:
        """What a candidate gets in a run on held-out images; said, and written."""
        which = f"trial {number}, rung {rung + 1} of {self.search.budget.rungs}"
        which += f", distillation {seed + 1}" if seed else ""
        if number == rung == seed == 0:
            with redirect_stdout(io.StringIO()):  # what the run prints at its start
                by_rung = timed(self.search, self.processes)
            self.say(f"estimate, by a few iterations and steps: {self.forecast(by_rung)}")
        figure = self._made(self.search.run(number, settings, rung, seed), "validation", which, settings)
        if number == rung == seed == 0:
            for line in table.few_held_out([figure]):
                self.say(line)
        return figure

    def forecast(self, by_rung: Sequence[float]) -> str:
        """What is left to do will take, by the seconds of a run on each rung."""
        made = sum(bool(note.figures) for note in self.trials.notes())
        return forecast(self.search, by_rung, made, self.processes.num_processes)

    def measure_on_test(self, number: int, settings: Mapping[str, str], seed: int) -> Figure:
        """What the best gets in a whole run on test images."""
        which = f"best, distillation {seed + 1} of {FINAL}, test images"
        return self._made(self.search.full_run(number, settings, seed), "test", which, settings)

    def _made(self, recipe: Recipe, split: str, which: str, settings: Mapping[str, str]) -> Figure:
        """Makes a run as far as it is not made, and reads what it got."""
        settings_text, began = " ".join(map("=".join, settings.items())) or "the recipe as it is", time.monotonic()
        iterations, epochs = recipe.distill.iterations, recipe.evaluate.epochs
        self.say(f"{which}: {settings_text}")
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):  # what each run prints of itself would bury the lines of the search
                make(recipe, ["distilled"], split)
        except UserError:
            self.say(printed.getvalue().rstrip())
            raise
        rows = {arch: result(recipe, "distilled", arch, split) for arch in dict.fromkeys(recipe.evaluate.arch)}
        accuracies = {arch: list(row["accuracies"]) for arch, row in rows.items() if row}
        means = {arch: statistics.fmean(each) for arch, each in accuracies.items()}
        seconds = round(max(time.monotonic() - began, cost(recipe)["seconds"]), 2)
        figure = {
            "mean": round(statistics.fmean(means.values()), 4),
            "accuracies": accuracies,
            "seconds": seconds,
            "iterations": iterations,
            "epochs": epochs,
            "seed": recipe.seed,
            "folder": str(recipe.folder.relative_to(self.search.folder)),
            "tested_on": next(row["tested_on"] for row in rows.values() if row),
        }
        got = ", ".join(f"{arch} {mean:.1f} %" for arch, mean in means.items())
        self.say(f"{which}: {got} after {counted(iterations, 'iteration')}, in {duration(seconds)}")
        return figure

    # --- what is written -----------------------------------------------------------------------------------

    def write(self) -> Outcome:
        """Writes what is known, and returns it."""
        search, folder, found = self.search, self.search.folder, ranked(self.trials)
        report = table.report(search, self.trials, found, self.command, environment.machine())
        write_json(folder / "tune.json", report)
        write_text(folder / "tune.md", table.markdown(report))
        write_text(folder / "tune.svg", chart.draw(report))
        outcome = Outcome(found, report["decision"], report, self.processes.is_main_process)
        if sound(found):
            write_text(folder / "best.yaml", _best(search, outcome, self.command))
        return outcome


def _best(search: Search, outcome: Outcome, command: str) -> str:
    """best.yaml: the recipe with the best settings, every default written out, and where it comes from."""
    best, path = outcome.best, Path(search.folder) / "best.yaml"
    lines = [
        f"The best of {len(outcome.ranked)} candidates, by ld3m tune on held-out training images: {best.name}.",
        sentence(outcome.decision),
        *([f"Made by: {command}"] if command else []),
        f"ld3m distill {path}",
    ]
    return "".join(f"# {line}\n" for line in lines) + to_yaml(search.best_recipe(best.settings))
