"""The tables in the Markdown files, written from the measurements that they come from.

    python tests/results.py [NAME RUN COMMAND]

Between `<!-- recipes/results/NAME.json -->` and `<!-- end -->` stands what `ld3m ablate` or `ld3m evaluate` says of
that file, or a table of the norms of tests/benchmarks/gradient_norms.py; where NAME is `*`, a summary of several.
Several files of ablations become one table, with differences from the first row of the first. With arguments the
evaluation of a run's folder becomes recipes/results/NAME.json first, beside the command that made it.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from ld3m.ablation.table import accuracy_cell, markdown, row_label
from ld3m.evaluation.tables import accuracy_table
from ld3m.machine.environment import machine

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "recipes" / "README.md")
RESULTS = ROOT / "recipes" / "results"
BLOCK = re.compile(r"(<!-- ((?:recipes/results/[\w*-]+\.json )+)-->\n).*?(<!-- end -->)", re.DOTALL)
SUMMARY = {
    "random real images": ("baselines random", "whole random"),
    "herding, real images": ("baselines herding", "whole herding"),
    "pixel space": ("baselines pixels", "whole pixels"),
    "pixel space, mean and deviation": ("", "moments moments"),
    "the autoencoder alone": ("baselines autoencoder", "whole autoencoder"),
    "full chain, no skip": ("baselines no-skip", ""),
    "full chain, `paper` skip": ("baselines paper", ""),
    "full chain, `reference` skip": ("baselines reference", "whole-reference reference"),
    "four in one: random real images": ("several random", ""),
    "four in one: the autoencoder alone": ("several autoencoder", ""),
    "four in one: pixel space, mean and deviation": ("one 2", "ten pixels"),
    "sixteen in one: random real images": ("one-random random", ""),
    "sixteen in one: pixel space, mean and deviation": ("one 4", ""),
}
"""Rows of the summary: the file, and the recipe or value of its row, at one and at ten images per class."""

SECTIONS = {
    "baselines": "baselines",
    **dict.fromkeys(["several", "one", "one-random"], "several-images-in-one"),
    **dict.fromkeys(["whole", "whole-reference", "moments", "ten"], "ten-images-per-class"),
}
"""Where in recipes/README.md the table of each of these files is."""


def filled(text: str) -> str:
    """A page with each of its blocks as its JSON file has it."""

    def anew(block: re.Match[str]) -> str:
        if "*" in block[2]:
            return f"{block[1]}\n{summary()}\n{block[3]}"
        report = joined([json.loads((ROOT / name).read_text(encoding="utf-8")) for name in block[2].split()])
        show = norms if "norms" in report else markdown if "rows" in report else scored
        return f"{block[1]}\n{show(report)}\n{block[3]}"

    return BLOCK.sub(anew, text)


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Ablations as one: rows and commands of all of them."""
    first, *others = reports
    for other in others:
        axes = [*first["axes"], *(key for key in other["axes"] if key not in first["axes"])]
        command = f"{first['command']}; {other['command']}"
        first = first | {"axes": axes, "rows": first["rows"] + other["rows"], "command": command}
    return first


def summary() -> str:
    """Accuracies of the ConvNet by how the images were made, from several files."""
    lines = ["| ConvNet-3 | one image per class | ten |", "| --- | --: | --: |"]
    lines += [f"| {name} | {' | '.join(map(accuracy, places))} |" for name, places in SUMMARY.items()]
    return "\n".join(lines) + "\n"


def accuracy(place: str) -> str:
    """A file's row as the tables have it, with a link to its table; nothing for nothing."""
    if not place:
        return ""
    file, name = place.split()
    rows = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))["rows"]
    (row,) = (row for row in rows if name in (row_label(row, rows), *map(str, row["settings"].values())))
    return f"[{accuracy_cell(row['accuracies']['convnet'])}](recipes/README.md#{SECTIONS[file]})"


def norms(report: dict[str, Any]) -> str:
    """Gradient norms as shares of that at the fewest steps, a row each skip, and how they were measured."""
    rows = {f"{skip} skip": row for skip, row in report["norms"].items()} | {"paper's Table 1": report["paper"]}
    steps = report["steps"]
    lines = [f"| | {' | '.join(f'S = {count}' for count in steps)} | norm at S = {steps[0]} |"]
    lines.append("| --- |" + " --: |" * (len(steps) + 1))
    for name, row in rows.items():
        shares = [f"{norm / row[0]:.2f}" for norm in row]
        lines.append(f"| {name} | {' | '.join(shares)} | {row[0]:.3g} |")
    return "\n".join(lines) + f"\n\n{made(report)}\n"


def scored(report: dict[str, Any]) -> str:
    """One run's evaluation, as the command prints it."""
    return f"```\n{accuracy_table(report)}\n```\n\n{made(report)}\n"


def made(report: dict[str, Any]) -> str:
    """How and where it was measured."""
    return f"Command: `{report['command']}`\n\nMachine: `{json.dumps(report['machine'])}`"


def keep(name: str, run: str, command: str) -> None:
    """The evaluation of a run's folder as a result of that name."""
    report = json.loads((Path(run) / "evaluation.json").read_text(encoding="utf-8"))
    report = {"command": command, "machine": machine(), **report}
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        keep(*sys.argv[1:])
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
