"""The rows of an ablation: figures of several runs pooled, how far apart they are, and Markdown tables of both."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ld3m.evaluation.comparison import paired
from ld3m.reporting.status import duration

Rows = Sequence[Mapping[str, Any]]


def pooled(parts: Rows) -> list[dict[str, Any]]:
    """Figures of single runs as rows; runs that differ in nothing but the distillation seed become one.

    Args:
        parts: each with `trained_on` ("distilled" or a baseline), `recipe`, `settings` (the axes' values without the
            seed), `images_per_class`, `images`, `run` (seed, folder, what it took) and `results`, rows as
            evaluation.json has them.

    Returns:
        Rows in the order of their first parts, baselines last: `runs` in the place of `run`, means over runs of what
        they took, and `accuracies` by architecture: `by_run` (a list a run, a network a number, in percent), `mean`
        and `std` over all networks, `std_of_runs` over the runs' means (None of one run), `networks`, `tested_on`,
        `protocol`.
        Deviations are the population's, as those of `evaluate`.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for part in parts:
        key = json.dumps([part["trained_on"], part["recipe"], part["settings"]])
        groups.setdefault(key, []).append(part)
    rows = []
    for group in groups.values():
        runs = [part["run"] for part in group]
        found = dict.fromkeys(result["arch"] for part in group for result in part["results"])
        same = ("trained_on", "recipe", "settings", "images_per_class", "images")
        took = ("loss", "seconds_per_iteration", "seconds", "peak_memory")
        row = {key: group[0][key] for key in same} | {"accuracies": {}}
        for arch in found:
            results = [result for part in group for result in part["results"] if result["arch"] == arch]
            row["accuracies"][arch] = _figures(results)
        if row["trained_on"] == "distilled":
            row |= {key: _mean([spent[key] for spent in runs]) for key in took}
        rows.append(row | {"runs": runs})
    return sorted(rows, key=lambda row: row["trained_on"] != "distilled")


def _figures(results: Rows) -> dict[str, Any]:
    """Figures of one architecture, of the results of one run or more."""
    by_run = [result["accuracies"] for result in results]
    networks = [accuracy for run in by_run for accuracy in run]
    of_runs = [statistics.fmean(run) for run in by_run]
    kept = ("without", "archs", "tested_on", "protocol")
    return {
        "mean": round(statistics.fmean(networks), 2),
        "std": round(statistics.pstdev(networks), 2),
        "std_of_runs": round(statistics.pstdev(of_runs), 2) if len(of_runs) > 1 else None,
        "networks": len(networks),
        "by_run": by_run,
        **{key: results[0][key] for key in kept if key in results[0]},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{statistics.fmean(known):.6g}") if known else None


def text(value: Any) -> str:
    """A value of an axis as people read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def label(row: Mapping[str, Any], rows: Rows) -> str:
    """A row's recipe, or its baseline; whose data and protocol a baseline is of where others of its name differ."""
    if row["trained_on"] == "distilled":
        return row["recipe"]
    alike = [
        other for other in rows if (other["trained_on"], other["settings"]) == (row["trained_on"], row["settings"])
    ]
    return f"{row['trained_on']} ({row['recipe']})" if len(alike) > 1 else row["trained_on"]


def cell(figures: Mapping[str, Any] | None) -> str:
    """Mean ± deviation and the number of networks, as `ld3m evaluate` prints them."""
    return f"{figures['mean']:.1f} ± {figures['std']:.1f} ({figures['networks']})" if figures else ""


def difference(row: Mapping[str, Any], first: Mapping[str, Any], arch: str) -> str:
    """How far a row is from another in points, 95 % interval and the number of distillation seeds that pair them.

    It is the distillation that a method is judged by: networks of one run count by their mean. Nothing, where not two
    seeds are common to both.
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


def archs(rows: Rows) -> list[str]:
    """The architectures that rows have accuracies of."""
    return list(dict.fromkeys(arch for row in rows for arch in row["accuracies"]))


def markdown(report: Mapping[str, Any]) -> str:
    """The tables, and below them how they were measured, and where.

    A row of the first is a cell, its columns the axes, accuracies and seconds. The second has how far each row is from
    the first one, if there are two distillation seeds or more.

    Args:
        report: as `ablate` writes it to ablation.json.
    """
    rows, axes = report["rows"], report["axes"]
    networks = archs(rows)
    seeds = any(len(row["runs"]) > 1 for row in rows)
    names = [
        [label(row, rows), *(text(row["settings"][key]) if key in row["settings"] else "" for key in axes)]
        for row in rows
    ]
    figures = []
    for row in rows:
        took = row.get("seconds_per_iteration")
        figures.append(
            [
                *([str(len(row["runs"]))] if seeds else []),
                *(cell(row["accuracies"].get(arch)) for arch in networks),
                f"{took:.3g}" if took is not None else "",
            ]
        )
    numbers = [*(["distillation seeds"] if seeds else []), *networks, "median s / iteration"]
    said = [
        _table(["set", *axes], numbers, names, figures),
        f"Accuracy in % on the {report['split']} split, mean ± standard deviation over all networks (their number).",
    ]
    apart = [[difference(row, rows[0], arch) for arch in networks] for row in rows[1:]]
    if any(map(any, apart)):
        first = " ".join(filter(None, names[0]))
        said += [
            _table(["set", *axes], [f"{arch}, against {first}" for arch in networks], names[1:], apart),
            "Difference in points, with a 95 % interval (Student's, paired by distillation seed; their number).",
        ]
    for crossed in dict.fromkeys(
        f"{arch}: the mean over {', '.join(row['accuracies'][arch]['archs'])}."
        for row in rows
        for arch in networks
        if "archs" in row["accuracies"].get(arch, {})
    ):
        said.append(crossed)
    protocols = {
        f"{arch}: `{json.dumps(row['accuracies'][arch]['protocol'])}`"
        for row in rows
        for arch in networks
        if arch in row["accuracies"] and "archs" not in row["accuracies"][arch]
    }
    said += [f"Networks of {protocol}" for protocol in sorted(protocols)]
    said += [f"Failed: {failed['cell']}: {failed['why']}" for failed in report["failed"]]
    if report["done"] + len(report["failed"]) < report["cells"]:
        said.append(f"Not finished: {report['done']} of {report['cells']} cells are done.")
    distilling = sum(run["seconds"] for row in rows if row["trained_on"] == "distilled" for run in row["runs"])
    if distilling:
        said.append(f"Distilling took {duration(distilling)} in all.")
    machines = dict.fromkeys(json.dumps(spent["machine"]) for row in rows for spent in row["runs"])
    said += [f"Command: `{report['command']}`", *(f"Machine: `{machine}`" for machine in machines)]
    return "\n\n".join(said) + "\n"


def _table(
    keys: Sequence[str], heads: Sequence[str], names: Sequence[Sequence[str]], cells: Sequence[Sequence[str]]
) -> str:
    """A Markdown table: texts to the left, figures to the right."""
    lines = [[*keys, *heads], ["---"] * len(keys) + ["--:"] * len(heads)]
    lines += [[*name, *figures] for name, figures in zip(names, cells, strict=True)]
    return "\n".join("| " + " | ".join(entry.replace("|", r"\|") for entry in line) + " |" for line in lines)
