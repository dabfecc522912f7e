"""The measured tables in the Markdown pages, generated from their JSON files.

    python tests/results.py [NAME RUN COMMAND]

Between `<!-- recipes/results/NAME.json -->` and `<!-- end -->` stands the table that `ld3m ablate` or `ld3m evaluate`
prints for that file, or a table of the norms of tests/benchmarks/gradient_norms.py; for `*`, the summary; after
`<!-- claims -->` what the paper finds, with verdicts; after `<!-- marks -->` published accuracies beside ours. Command,
machine and protocol are folded below each table; captions are left to the page, which has each of them once.
Several files of ablations become one table, with differences from the first row of the first file; several of
`ld3m compare` become one of a column for each protocol, with differences of the first set from the others. With
arguments, the evaluation in the run folder RUN first becomes recipes/results/NAME.json, with the COMMAND that made it.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ld3m.ablation.table import accuracy_cell, markdown, row_label, seed_difference
from ld3m.evaluation.rows import labels_text
from ld3m.evaluation.tables import accuracy_table, accuracy_text, training_text
from ld3m.machine.environment import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "recipes" / "results"
PAGES = (ROOT / "README.md", ROOT / "recipes" / "SPEED.md", RESULTS / "README.md")
"""The pages with generated tables."""
BLOCK = re.compile(r"(<!-- ((?:recipes/results/[\w*-]+\.json )+)-->\n).*?(<!-- end -->)", re.DOTALL)
WRITTEN = re.compile(r"(<!-- (claims|marks) -->\n).*?(<!-- end -->)", re.DOTALL)
CAPTION = re.compile(r"(Accuracy|Difference) in ")
"""How the captions of an ablation's tables begin."""
SUMMARY = {
    "random real images": ("baselines random", "whole random"),
    "herded real images": ("baselines herding", "whole herding"),
    "pixel space, no prior": ("baselines pixels", "whole pixels"),
    "latents, full chain without the skip": ("baselines no-skip", ""),
    "latents, full chain with the skip": ("baselines reference", "whole-reference reference"),
    "best recipe: several small images in each, no prior": ("one 4", "ten pixels"),
}
"""Rows of the summary: the file, and the recipe or value of its row, at one and at ten images per class."""

SECTIONS = {
    "baselines": "baselines",
    "one": "several-images-in-one",
    **dict.fromkeys(["whole", "whole-reference", "ten"], "ten-images-per-class"),
    "digits": "digits",
    "architectures": "other-networks",
    **dict.fromkeys(["cifar10-one", "cifar10-prior-architectures"], "cifar-10"),
}
"""The section of recipes/results/README.md that has the table of each of these files."""


class Claim(NamedTuple):
    """Something the paper finds better than something else."""

    text: str
    published: str
    """The accuracies in %."""
    network: str
    """The column of the measured tables."""
    rows: dict[str, tuple[str, str]]
    """By data set the better and the worse row, each "FILE ROW"."""


CONVNET, OTHERS = "convnet", "cross-architecture"
FASHION, DIGITS, CIFAR10 = "Fashion-MNIST", "digits", "CIFAR-10"
CLAIMS = (
    Claim(
        "Learning Z and c is better than c alone.",
        "15.8, 22.3",
        CONVNET,
        {
            FASHION: ("baselines no-skip", "baselines conditioning"),
            DIGITS: ("digits no-skip", "digits conditioning"),
        },
    ),
    Claim(
        "A skip is better than none.",
        "22.3, 28.1",
        CONVNET,
        {FASHION: ("baselines reference", "baselines no-skip"), DIGITS: ("digits reference", "digits no-skip")},
    ),
    Claim(
        "The chain is better than the autoencoder alone.",
        "35.3, 36.5",
        CONVNET,
        {
            FASHION: ("baselines reference", "baselines autoencoder"),
            DIGITS: ("digits reference", "digits autoencoder"),
        },
    ),
    Claim(
        "The same",
        "",
        OTHERS,
        {
            FASHION: ("architectures reference", "architectures autoencoder"),
            CIFAR10: ("cifar10-prior-architectures reference", "cifar10-prior-architectures autoencoder"),
        },
    ),
    Claim(
        "Latents are better than pixels.",
        "44.4, 47.3",
        CONVNET,
        {FASHION: ("baselines reference", "baselines pixels"), DIGITS: ("digits reference", "digits-pixels pixels")},
    ),
    Claim(
        "The same",
        "",
        OTHERS,
        {
            FASHION: ("architectures reference", "architectures pixels"),
            CIFAR10: ("cifar10-prior-architectures reference", "cifar10-architectures pixels"),
        },
    ),
)
"""What the paper finds by means over AlexNet, VGG11, ResNet18 and ViT on subsets of ImageNet."""


class Mark(NamedTuple):
    """Published accuracies of a ConvNet-3 in %, and the row of ours to hold against them, "FILE ROW" or empty."""

    data: str
    images_per_class: int
    ours: str
    published: dict[str, str]


MARKS = (
    Mark(FASHION, 1, "one 4", {"DC": "70.5", "DSA": "70.6", "IDC-I": "70.7", "IDC": "81.0", "KIP": "73.8"}),
    Mark(FASHION, 10, "ten pixels", {"DC": "82.3", "DSA": "84.6", "IDC-I": "85.3", "IDC": "86.0", "KIP": "86.8"}),
    Mark(FASHION, 50, "", {"DC": "83.6", "DSA": "88.7", "IDC-I": "89.1", "IDC": "86.2", "KIP": "87.8"}),
    Mark(CIFAR10, 1, "cifar10-one pixels", {"DM": "26.0", "DSA": "28.8", "MTT": "46.3", "IDC": "50.6"}),
    Mark(CIFAR10, 10, "", {"DM": "48.9", "DSA": "52.1", "MTT": "65.3", "IDC": "67.5"}),
    Mark(CIFAR10, 50, "", {"DM": "63.0", "DSA": "60.6", "MTT": "71.6", "IDC": "74.5"}),
)


def filled(text: str) -> str:
    """A page with each of its blocks generated from its JSON files."""

    def generate(block: re.Match[str]) -> str:
        if "*" in block[2]:
            return f"{block[1]}\n{summary()}\n{block[3]}"
        reports = [json.loads((ROOT / name).read_text(encoding="utf-8")) for name in block[2].split()]
        if "sets" in reports[0]:
            return f"{block[1]}\n{comparisons(reports)}\n{block[3]}"
        report = joined(reports)
        show = norms if "norms" in report else ablation if "rows" in report else evaluation
        return f"{block[1]}\n{show(report)}\n{block[3]}"

    tables = {"claims": claims, "marks": marks}
    return WRITTEN.sub(lambda block: f"{block[1]}\n{tables[block[2]]()}\n{block[3]}", BLOCK.sub(generate, text))


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Ablations as one: the rows and commands of all of them."""
    first, *others = reports
    for other in others:
        axes = [*first["axes"], *(key for key in other["axes"] if key not in first["axes"])]
        command = f"{first['command']}; {other['command']}"
        first = first | {"axes": axes, "rows": first["rows"] + other["rows"], "command": command}
    return first


def summary() -> str:
    """Accuracies of the ConvNet by how the images were made, from several files."""
    lines = ["| ConvNet-3, accuracy in % | 1 image per class | 10 per class |", "| --- | --: | --: |"]
    lines += [f"| {name} | {' | '.join(map(accuracy, sources))} |" for name, sources in SUMMARY.items()]
    return "\n".join(lines) + "\n"


def accuracy(source: str) -> str:
    """A row of a file ("FILE ROW") as the tables show it, linked to its table; an empty cell for an empty source."""
    if not source:
        return ""
    file, name = source.split()
    return f"[{accuracy_cell(row(file, name)['accuracies']['convnet'])}](recipes/results/README.md#{SECTIONS[file]})"


def claims() -> str:
    """A row for each claim, a column for each data set, and a verdict by the intervals."""
    sets = (FASHION, DIGITS, CIFAR10)
    lines = [
        f"| the paper finds | there | networks here | {' | '.join(sets)} | here |",
        f"| --- | --: | --- |{' --: |' * len(sets)} --- |",
    ]
    for claim in CLAIMS:
        measured = {data: difference_of(claim, data) for data in claim.rows}
        cells = [f"[{measured[data]}](#{section_of(claim, data)})" if data in measured else "" for data in sets]
        networks = "ConvNet" if claim.network == CONVNET else "others"
        lines.append(f"| {claim.text} | {claim.published} | {networks} | {' | '.join(cells)} | {verdict(measured)} |")
    return "\n".join(lines) + "\n"


def difference_of(claim: Claim, data: str) -> str:
    """How much better the better row of a claim is on a data set, as the tables show it."""
    better, worse = (row(*source.split()) for source in claim.rows[data])
    return seed_difference(better, worse, claim.network)


def section_of(claim: Claim, data: str) -> str:
    """The section that has the better row of a claim."""
    return SECTIONS[claim.rows[data][0].split()[0]]


def verdict(measured: dict[str, str]) -> str:
    """Where the interval of a difference leaves out 0, and on which side."""
    intervals = {data: [float(end) for end in re.findall(r"[+-][\d.]+", text)[1:]] for data, text in measured.items()}
    holds = [data for data, (low, _) in intervals.items() if low > 0]
    opposite = [data for data, (_, high) in intervals.items() if high < 0]
    said = [f"holds on {' and '.join(holds)}"] if holds else []
    said += [f"the opposite on {' and '.join(opposite)}"] if opposite else []
    return "; ".join(said) or "not shown"


def marks() -> str:
    """A row for each data set and number of images: ours, its distance to the best, and a column for each method."""
    methods = list(dict.fromkeys(method for mark in MARKS for method in mark.published))
    lines = [
        f"| ConvNet-3, accuracy in % | images per class | here | minus the best | {' | '.join(methods)} |",
        f"| --- | --: | --: | --- |{' --: |' * len(methods)}",
    ]
    for mark in MARKS:
        ours, distance = "not measured", ""
        if mark.ours:
            file, name = mark.ours.split()
            measured = row(file, name)["accuracies"][CONVNET]
            best = max(mark.published, key=lambda method: float(mark.published[method]))
            ours = f"[{accuracy_cell(measured)}](#{SECTIONS[file]})"
            distance = f"{measured['mean'] - float(mark.published[best]):+.1f} ({best})"
        cells = [mark.published.get(method, "") for method in methods]
        lines.append(f"| {mark.data} | {mark.images_per_class} | {ours} | {distance} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def row(file: str, name: str) -> dict[str, Any]:
    """The one row of recipes/results/FILE.json whose recipe, or value of an axis, is of that name."""
    rows = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))["rows"]
    (only,) = (each for each in rows if name in (row_label(each, rows), *map(str, each["settings"].values())))
    return dict(only)


def ablation(report: dict[str, Any]) -> str:
    """The tables of an ablation, and folded what `ld3m ablate` writes below them."""
    paragraphs = [part for part in markdown(report).strip().split("\n\n") if not CAPTION.match(part)]
    tables = [part for part in paragraphs if part.startswith("|")]
    notes = [part for part in paragraphs if not part.startswith(("|", "Command: "))]
    return "\n\n".join([*tables, folded(report["command"], notes)]) + "\n"


def captions(report: dict[str, Any]) -> list[str]:
    """The captions of an ablation's tables."""
    return [part for part in markdown(report).strip().split("\n\n") if CAPTION.match(part)]


def norms(report: dict[str, Any]) -> str:
    """Gradient norms as shares of the norm at the fewest steps, one row per skip."""
    rows = {f"{skip} skip": row for skip, row in report["norms"].items()} | {"paper's Table 1": report["paper"]}
    steps = report["steps"]
    lines = [f"| | {' | '.join(f'S = {count}' for count in steps)} | norm at S = {steps[0]} |"]
    lines.append("| --- |" + " --: |" * (len(steps) + 1))
    for name, values in rows.items():
        shares = [f"{norm / values[0]:.2f}" for norm in values]
        lines.append(f"| {name} | {' | '.join(shares)} | {values[0]:.3g} |")
    return "\n".join([*lines, "", folded(report["command"], [made_on(report)])]) + "\n"


def evaluation(report: dict[str, Any]) -> str:
    """One run's evaluation as the command prints it; the protocol of its networks is folded."""
    lines = accuracy_table(report).splitlines()
    networks = [line.capitalize() for line in lines if line.startswith("networks: ")]
    shown = [line for line in lines if not line.startswith("networks: ")]
    return "\n".join(["```", *shown, "```", "", folded(report["command"], [*networks, made_on(report)])]) + "\n"


def comparisons(reports: list[dict[str, Any]]) -> str:
    """Comparisons of the same sets as one table, a column for each protocol; bold differences hold."""
    hows = [report["protocol"] for report in reports]
    heads = [f"{how.get('name', 'glad')}, {labels_text(how, short=True)}" for how in hows]
    names = [each["name"] for each in reports[0]["sets"]]
    measured = [{each["name"]: each["accuracies"]["convnet"] for each in report["sets"]} for report in reports]
    differences = [
        {row["against"]: row for row in report["differences"] if row["set"] == names[0]} for report in reports
    ]
    lines = [f"| set | {' | '.join(heads)} |", f"| --- |{' --: |' * len(heads)}"]
    lines += [f"| {name} | {' | '.join(accuracy_text(column[name]) for column in measured)} |" for name in names]
    lines += ["", f"| {names[0]}, against | {' | '.join(heads)} |", f"| --- |{' --: |' * len(heads)}"]
    for name in names[1:]:
        lines.append(f"| {name} | {' | '.join(map(difference, (column[name] for column in differences)))} |")
    notes = [f"{head}: {training_text(how)}; {labels_text(how)}." for head, how in zip(heads, hows, strict=True)]
    notes += dict.fromkeys(note for report in reports for note in report["notes"])
    notes += dict.fromkeys(map(made_on, reports))
    return "\n".join([*lines, "", folded("; ".join(report["command"] for report in reports), notes)]) + "\n"


def difference(measured: dict[str, Any]) -> str:
    """A difference of a comparison with its corrected interval; bold if it holds."""
    text = f"{measured['mean']:+.1f} [{measured['low']:+.1f}, {measured['high']:+.1f}]"
    return f"**{text}**" if measured["holds"] else text


def made_on(report: dict[str, Any]) -> str:
    """The machine of a report as a line."""
    return f"Machine: `{json.dumps(report['machine'])}`"


def folded(command: str, notes: list[str]) -> str:
    """Commands, one per line, and notes, one per item, behind one line that opens them."""
    return "\n".join(
        [
            "<details><summary>Command, machine, protocol</summary>",
            "",
            "```sh",
            *command.split("; "),
            "```",
            "",
            *(f"- {note}" for note in notes),
            "",
            "</details>",
        ]
    )


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
