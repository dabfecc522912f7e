"""The rows of an ablation: figures of several runs pooled, how far apart they are, and Markdown tables of both.

A column has results that were measured in the same way: an architecture of which there are others has a column for each
way, under a heading that says in what they differ.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.evaluation.blocks import bests, few_images
from ld3m.evaluation.differences import TOO_FEW_PAIRS, paired
from ld3m.evaluation.protocols.details import LAST
from ld3m.evaluation.tables import figures_text, training_text
from ld3m.markdown import code, sentence, table, text
from ld3m.recipe.varied import value_text
from ld3m.runs.metrics import duration

Rows = Sequence[Mapping[str, Any]]


def pooled(measurements: Rows) -> list[dict[str, Any]]:
    """Figures of single runs as rows; runs that differ only in the distillation seed become one.

    Args:
        measurements: each with `trained_on` ("distilled" or a baseline), `recipe`, `settings` (the axes' values without
            the seed), `images_per_class`, `images`, `run` (seed, folder, what it took) and `results`, rows as
            evaluation.json has them. What those of one column share is their `asked`, or else their `protocol`.

    Returns:
        Rows in the order of their first measurements, baselines last: `runs` in place of `run`, means over runs of what
        they took, and `accuracies` by column (an architecture, as long as all of it was measured in one way): `arch`,
        `by_run` (a list per run, a number per network, in percent), `mean` and `std` over all networks, `std_of_runs`
        over the runs' means (None for one run), `networks`, `at_chance` (how many have not learnt, if any),
        `best` (of several tests, if all have it: `tests`, `by_run`, `mean`, `std`), `tested_on`, `protocol`. All are
        population standard deviations, as those of `evaluate`.
    """
    names = _headings([result for measurement in measurements for result in measurement["results"]])
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for measurement in measurements:
        key = json.dumps([measurement["trained_on"], measurement["recipe"], measurement["settings"]])
        groups.setdefault(key, []).append(measurement)
    rows = []
    for group in groups.values():
        runs = [measurement["run"] for measurement in group]
        same = ("trained_on", "recipe", "settings", "images_per_class", "images")
        took = ("loss", "seconds_per_iteration", "seconds", "peak_memory")
        row = {key: group[0][key] for key in same}
        by_column: dict[str, list[Mapping[str, Any]]] = {}
        for result in (result for measurement in group for result in measurement["results"]):
            by_column.setdefault(names[_column(result)], []).append(result)
        row["accuracies"] = {name: _figures(results) for name, results in by_column.items()}
        if row["trained_on"] == "distilled":
            row |= {key: _mean([run[key] for run in runs]) for key in took}
        rows.append(row | {"runs": runs})
    return sorted(rows, key=lambda row: row["trained_on"] != "distilled")


def _how(result: Mapping[str, Any]) -> dict[str, Any]:
    """What results of an architecture must share to be compared, as a heading says it."""
    how = result.get("asked", result.get("protocol", {}))
    over = ", ".join(sorted(result["archs"])) if "archs" in result else None
    return {**how, "tested on": result.get("tested_on"), "over": over}


def _column(result: Mapping[str, Any]) -> str:
    return json.dumps([result["arch"], _how(result)], sort_keys=True)


def _headings(results: Rows) -> dict[str, str]:
    """The headings of the columns that results stand in."""
    first = {_column(result): result for result in results}
    headings = {}
    for key, result in first.items():
        how, others = _how(result), [_how(other) for other in first.values() if other["arch"] == result["arch"]]
        unlike = [name for name in how if any(other.get(name) != how[name] for other in others)]
        details = [f"{name} {value_text(how[name])}" for name in unlike if how[name] is not None]
        headings[key] = ", ".join([result["arch"], *details])
    return headings


def _figures(results: Rows) -> dict[str, Any]:
    """Figures of one architecture from the results of one run or more."""
    by_run = [result["accuracies"] for result in results]
    networks = [accuracy for run in by_run for accuracy in run]
    of_runs = [statistics.fmean(run) for run in by_run]
    kept = ("without", "archs", "tested_on", "protocol")
    at_chance = sum(len(result.get("at_chance", ())) for result in results)
    best: dict[str, Any] = {}
    if all("best" in result for result in results):
        best_by_run = [result["best"]["accuracies"] for result in results]
        every = [accuracy for run in best_by_run for accuracy in run]
        spread = {"mean": round(statistics.fmean(every), 2), "std": round(statistics.pstdev(every), 2)}
        best = {"best": {"tests": results[0]["best"]["tests"], "by_run": best_by_run, **spread}}
    return {
        "arch": results[0]["arch"],
        "mean": round(statistics.fmean(networks), 2),
        "std": round(statistics.pstdev(networks), 2),
        "std_of_runs": round(statistics.pstdev(of_runs), 2) if len(of_runs) > 1 else None,
        "networks": len(networks),
        "by_run": by_run,
        **({"at_chance": at_chance} if at_chance else {}),
        **best,
        **{key: results[0][key] for key in kept if key in results[0]},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{statistics.fmean(known):.6g}") if known else None


def row_label(row: Mapping[str, Any], rows: Rows) -> str:
    """A row's recipe or baseline; a baseline's recipe too if other rows have the same baseline and settings."""
    if row["trained_on"] == "distilled":
        return row["recipe"]
    alike = [
        other for other in rows if (other["trained_on"], other["settings"]) == (row["trained_on"], row["settings"])
    ]
    return f"{row['trained_on']} ({row['recipe']})" if len(alike) > 1 else row["trained_on"]


def accuracy_cell(accuracies: Mapping[str, Any] | None) -> str:
    """Mean ± standard deviation and the number of networks, as `ld3m evaluate` prints them; nothing for None."""
    if not accuracies:
        return ""
    best = accuracies.get("best")
    return figures_text(accuracies, accuracies["networks"], best if best and best["tests"] != LAST else None)


def seed_difference(row: Mapping[str, Any], first: Mapping[str, Any], arch: str) -> str:
    """A row's accuracy minus another's in points, the 95 % interval, and the number of distillation seeds in both.

    What is judged is the distillation, so networks of one run count by their mean. There is no interval for
    fewer than three seeds, and nothing at all if fewer than two seeds are in both.
    """
    ours, theirs = _by_seed(row, arch), _by_seed(first, arch)
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) < 2:
        return ""
    test = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    interval = "" if test.low is None else f" [{test.low:+.1f}, {test.high:+.1f}]"
    return f"{test.mean:+.1f}{interval} ({len(seeds)})"


def _by_seed(row: Mapping[str, Any], arch: str) -> dict[int, float]:
    """The mean accuracy of a run's networks, by its distillation seed."""
    if arch not in row["accuracies"]:
        return {}
    runs = zip(row["runs"], row["accuracies"][arch]["by_run"], strict=True)
    return {run["seed"]: statistics.fmean(accuracies) for run, accuracies in runs}


def costs_differ_in_kind(rows: Rows) -> bool:
    """Whether some sets were made without iterations, so that seconds per iteration do not compare."""
    made = [row for row in rows if row["trained_on"] == "distilled" and row.get("seconds")]
    return len(made) > 1 and any(row["seconds_per_iteration"] is None for row in made)


def columns(rows: Rows) -> list[str]:
    """The headings under which rows have accuracies: architectures, or ways to measure one."""
    return list(dict.fromkeys(arch for row in rows for arch in row["accuracies"]))


# --- Markdown ----------------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """The tables, and below them how and where the figures were measured.

    A row of the first is a cell of the ablation; its columns are the axes, accuracies and seconds. The second has the
    difference of each row from the first one in the same column, if there are two distillation seeds or more.

    Args:
        report: as `ablate` writes it to ablation.json.
    """
    rows, axes = report["rows"], report["axes"]
    archs = columns(rows)
    has_seeds = any(len(row["runs"]) > 1 for row in rows)
    names = [
        [row_label(row, rows), *(value_text(row["settings"][key]) if key in row["settings"] else "" for key in axes)]
        for row in rows
    ]
    figures = []
    some_sampled = costs_differ_in_kind(rows)
    for row in rows:
        took, whole = row.get("seconds_per_iteration"), row.get("seconds")
        figures.append(
            [
                *([str(len(row["runs"]))] if has_seeds else []),
                *(accuracy_cell(row["accuracies"].get(arch)) for arch in archs),
                f"{took:.3g}" if took is not None else "",
                *([_whole_seconds(whole)] if some_sampled else []),
            ]
        )
    numbers = [*(["distillation seeds"] if has_seeds else []), *archs, "median s / iteration"]
    numbers += ["s in all"] if some_sampled else []
    paragraphs = [
        _table(["set", *axes], numbers, names, figures),
        f"Accuracy in % on the {report['split']} split, mean ± standard deviation over all networks (their number).",
    ]
    firsts = {arch: next(index for index, row in enumerate(rows) if arch in row["accuracies"]) for arch in archs}
    differences = [
        [seed_difference(row, rows[first], arch) if index > first else "" for arch, first in firsts.items()]
        for index, row in enumerate(rows)
    ][1:]
    if any(map(any, differences)):
        heads = [f"{arch}, against {' '.join(filter(None, names[first]))}" for arch, first in firsts.items()]
        paragraphs.append(_table(["set", *axes], heads, names[1:], differences))
        paragraphs.append(_difference_caption([entry for line in differences for entry in line]))
    paragraphs += _measured_how(report, archs)
    return "\n\n".join(paragraphs) + "\n"


def _whole_seconds(seconds: float | None) -> str:
    """What a set took; nothing for real images."""
    return "" if not seconds else f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _difference_caption(differences: Sequence[str]) -> str:
    """What the figures of the second table are."""
    if not any("[" in difference for difference in differences):
        return f"Difference in points, paired by distillation seed (their number); no interval: {TOO_FEW_PAIRS}."
    return (
        "Difference in points, with a 95 % interval (Student's, paired by distillation seed; their number); "
        f"no interval for {TOO_FEW_PAIRS}."
    )


def _measured_how(report: Mapping[str, Any], archs: Sequence[str]) -> list[str]:
    """Paragraphs on what the figures rest on: architectures, protocols, failures, time, command and machines."""
    rows = report["rows"]
    paragraphs = list(dict.fromkeys(note for arch in archs for note in _notes(arch, rows)))
    figures = [each for row in rows for each in row["accuracies"].values()]
    paragraphs += map(sentence, bests(figures))
    protocols = {
        f"{text(arch)}{' on full' * (row['trained_on'] == 'full')}: {text(training_text(each['protocol']))}"
        for row in rows
        for arch, each in row["accuracies"].items()
        if "archs" not in each
    }
    paragraphs += [f"Networks of {protocol}" for protocol in sorted(protocols)]
    paragraphs += [f"Failed: {text(failed['cell'])}: {text(failed['why'])}" for failed in report["failed"]]
    if report["done"] + len(report["failed"]) < report["cells"]:
        paragraphs.append(f"Not finished: {report['done']} of {report['cells']} cells are done.")
    distilling = sum(run["seconds"] for row in rows if row["trained_on"] == "distilled" for run in row["runs"])
    if distilling:
        paragraphs.append(f"Distilling took {duration(distilling)} in all.")
    machines = dict.fromkeys(json.dumps(run["machine"]) for row in rows for run in row["runs"])
    return [*paragraphs, f"Command: {code(report['command'])}", *(f"Machine: {code(machine)}" for machine in machines)]


def _notes(name: str, rows: Rows) -> list[str]:
    """What readers must know of a column: what a mean is over, who has not learnt, how few images were tested on."""
    measured = [(row, row["accuracies"][name]) for row in rows if name in row["accuracies"]]
    first = measured[0][1]
    notes = [text(f"{name}: the mean over {', '.join(first['archs'])}.")] if "archs" in first else []
    at_chance = []
    for row, figures in measured:
        if count := figures.get("at_chance"):
            settings = [f"{key} {value_text(value)}" for key, value in row["settings"].items()]
            at_chance.append(f"{count} of {figures['networks']} on {', '.join([row_label(row, rows), *settings])}")
    if at_chance:
        rate = code(f"evaluate.lr={{{first['arch']}: …}}")
        note = text(f"{name}: networks at chance, which have not learnt: {'; '.join(at_chance)}")
        notes.append(f"{note}; give more epochs, or a rate of its own: {rate}.")
    return [*notes, *map(sentence, few_images(first.get("tested_on")))]


def _table(
    keys: Sequence[str], heads: Sequence[str], names: Sequence[Sequence[str]], figures: Sequence[Sequence[str]]
) -> str:
    """A Markdown table: names to the left, figures to the right."""
    rows = [[*map(text, name), *cells] for name, cells in zip(names, figures, strict=True)]
    return table(list(map(text, [*keys, *heads])), rows, len(heads))
