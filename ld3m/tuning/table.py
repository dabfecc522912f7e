"""What people read of a search: lines at its beginning, the table of its candidates, and how they were measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.errors import counted
from ld3m.evaluation.blocks import few_images
from ld3m.markdown import code, sentence, table, text
from ld3m.recipe.varied import value_text
from ld3m.runs.metrics import duration
from ld3m.tuning.axes import Axis, Range
from ld3m.tuning.halving import Note
from ld3m.tuning.results import FINAL, MOST_CLOSE, Candidate, decision, final_job, importances, sound
from ld3m.tuning.search import Search
from ld3m.tuning.trials import Trials

STATES = {
    "complete": "",
    "pruned": "stopped early",
    "running": "not finished",
}


def beginning(search: Search, before: Sequence[Note]) -> list[str]:
    """What will be done, in lines."""
    data, budget = search.base.data, search.budget
    count = f"{budget.wanted} trials" if budget.wanted else f"trials for {budget.minutes:g} minutes"
    share = f"{100 * data.validation_share:g} % of the training images"
    chosen = (
        "; set by tune, as the recipe has none"
        if any(each.startswith("data.validation_share") for each in search.held_out)
        else ""
    )
    lines = [
        f"tune {search.base.name}: {count}, measured on {share} (data.validation_share{chosen}); no test image is read",
        *(f"axis {axis_text(axis)}" for axis in search.axes),
        f"{rungs_text(search)}",
    ]
    if budget.distillations > 1:
        near = f"{budget.close:g} point{'s' * (budget.close != 1)} (or one image)"
        lines.append(
            f"then candidates within {near} of the best get {budget.distillations} distillations each, {MOST_CLOSE} at "
            "a time; the highest mean is the best"
        )
    if before:
        runs = sum(len(note.figures) for note in before)
        lines.append(f"resumed: {counted(len(before), 'trial')} with {counted(runs, 'run')} in {search.folder}")
    return lines


def axis_text(axis: Axis) -> str:
    """An axis for people, with how its range is searched."""
    if not isinstance(axis.values, Range):
        return f"{axis.name}={','.join(axis.values)}"
    scale = "logarithmic" if axis.values.log else "linear"
    return f"{axis.name}={'..'.join(axis.ends)} ({'integers, ' if axis.values.integer else ''}{scale})"


def rungs_text(search: Search) -> str:
    """How long the runs of each rung are, and how many trials get them."""
    budget = search.budget
    if budget.rungs == 1:
        return "every run has all iterations and epochs"
    lengths = []
    for rung in range(budget.rungs):
        recipe = search.run(0, {}, rung, 0)
        epochs = counted(recipe.evaluate.epochs, "epoch") if recipe.evaluate.epochs else "all epochs"
        lengths.append(f"{counted(recipe.distill.iterations, 'iteration')} and {epochs}")
    return f"rungs: {'; '.join(lengths)}; the best 1/{budget.eta} of a rung go on to the next, in a run of its own"


def report(
    search: Search, trials: Trials, ranked: Sequence[Candidate], command: str, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """What tune.json holds."""
    notes = trials.notes()
    best = next((each.number for each in sound(ranked)), None)
    jobs = [] if best is None else [final_job(best, seed) for seed in range(FINAL)]
    final = [figure for job in jobs if (figure := trials.figure(job))]
    return {
        "command": command,
        "recipe": search.recipe,
        "overrides": search.overrides,
        "held_out": search.held_out,
        "base": {axis.key: value_text(search.base_value(axis.key)) for axis in search.axes},
        "axes": [
            {
                "name": axis.name,
                "key": axis.key,
                "log": isinstance(axis.values, Range) and axis.values.log,
                "range": isinstance(axis.values, Range),
                "text": axis_text(axis),
            }
            for axis in search.axes
        ],
        "rungs": [search.share(rung) for rung in range(search.budget.rungs)],
        "ranked": [
            {
                "trial": each.number,
                "settings": each.settings,
                "rung": each.rung + 1,
                "mean": round(each.mean, 2),
                "by_seed": [round(mean, 2) for mean in each.by_seed],
                "seconds": round(each.seconds, 2),
            }
            for each in ranked
        ],
        "trials": [
            {
                "trial": note.number,
                "settings": note.settings,
                "parameters": note.parameters,
                "state": note.state,
                **({"why": note.reason} if note.reason else {}),
                "runs": [{"rung": rung + 1, **figure} for rung, figure in sorted(note.figures.items())],
            }
            for note in notes
        ],
        "importance": importances(search.axes, notes),
        "decision": decision(ranked, search.budget.close),
        "best": best,
        "final": final,
        "machine": dict(machine),
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The table of candidates, the best first, and below it what it rests on."""
    keys = list(dict.fromkeys(axis["key"] for axis in report["axes"]))
    rungs, trials = len(report["rungs"]), {trial["trial"]: trial for trial in report["trials"]}
    heads = ["trial", *(code(key) for key in keys), *(f"rung {rung}" for rung in range(1, rungs + 1))]
    rows = []
    for each in report["ranked"]:
        trial = trials[each["trial"]]
        by_rung = {run["rung"]: f"{run['mean']:.1f}" if "failed" not in run else "diverged" for run in trial["runs"]}
        chosen = each["settings"] or (report["base"] if each["trial"] == 0 else {})
        settings = [text(chosen.get(key, "")) for key in keys]
        several = f"{each['mean']:.1f} ({len(each['by_seed'])})" if len(each["by_seed"]) > 1 else ""
        name = str(each["trial"]) if each["settings"] else f"{each['trial']}, the recipe as it is"
        cells = [by_rung.get(rung, "") for rung in range(1, rungs + 1)]
        rows.append([name, *settings, *cells, several, STATES[trial["state"]]])
    lengths = (
        f"; a rung's runs have {', '.join(f'{share:.3g}' for share in report['rungs'])} of the iterations and epochs, "
        "and their figures compare only with those of the same rung"
    )
    paragraphs = [
        table([*heads, "mean of distillations", "state"], rows),
        f"Accuracy in % on held-out training images, the mean over networks{lengths if rungs > 1 else ''}.",
    ]
    paragraphs += map(sentence, few_held_out([run for trial in report["trials"] for run in trial["runs"]]))
    if report["ranked"]:
        paragraphs.append(text(sentence(report["decision"])))
    paragraphs += _final(report["final"])
    if report["importance"]:
        shares = ", ".join(f"{code(name)} {100 * share:.0f} %" for name, share in report["importance"].items())
        paragraphs.append(f"What mattered in runs of the first rung (PED-ANOVA, as shares): {shares}.")
    failed = [trial for trial in report["trials"] if trial["state"] == "failed"]
    paragraphs += [f"Failed: trial {trial['trial']}: {text(trial['why'])}" for trial in failed]
    seconds = sum(each["seconds"] for each in (*report["ranked"], *report["final"]))
    paragraphs.append(f"All runs together took {duration(seconds)}.")
    if report["command"]:
        paragraphs.append(f"Command: {code(report['command'])}")
    return "\n\n".join(paragraphs) + "\n"


def few_held_out(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line if candidates are compared on so few images that each weighs much; what the best lead by may be one."""
    counts = [figure["tested_on"] for figure in figures if "tested_on" in figure]
    return [f"{line}; data.validation_share holds out more" for line in few_images(min(counts, default=None))]


def _final(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the best got on test images."""
    paragraphs = []
    archs = list(dict.fromkeys(arch for figure in figures for arch in figure.get("accuracies", ())))
    for arch in archs:
        networks = [each for figure in figures if "accuracies" in figure for each in figure["accuracies"][arch]]
        spread = f"{statistics.fmean(networks):.1f} ± {statistics.pstdev(networks):.1f} ({len(networks)})"
        paragraphs.append(
            f"On test images, {len(figures)} distillations of the best from all training images: {text(arch)} {spread}."
        )
    counts = [figure["tested_on"] for figure in figures if "tested_on" in figure]
    paragraphs += map(sentence, few_images(min(counts, default=None)))
    if diverged := sum("failed" in figure for figure in figures):
        paragraphs.append(f"{diverged} of these distillations diverged, and are not in the mean.")
    return paragraphs
