"""The tables in the Markdown files, written from the measurements that they come from.

    python tests/results.py

Between `<!-- recipes/results/NAME.json -->` and `<!-- end -->` stands what `ld3m ablate` or `ld3m evaluate` says of
that file, or a table of the norms of tests/benchmarks/gradient_norms.py.
"""

import json
import re
from pathlib import Path
from typing import Any

from ld3m.ablation_table import markdown
from ld3m.rows import table

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "recipes" / "README.md")
RESULTS = ROOT / "recipes" / "results"
BLOCK = re.compile(r"(<!-- (recipes/results/[\w-]+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with each of its blocks as its JSON file has it."""

    def anew(block: re.Match[str]) -> str:
        report = json.loads((ROOT / block[2]).read_text(encoding="utf-8"))
        show = norms if "norms" in report else scored if "scores" in report else markdown
        return f"{block[1]}\n{show(report)}\n{block[3]}"

    return BLOCK.sub(anew, text)


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
    return f"```\n{table(report)}\n```\n\n{made(report)}\n"


def made(report: dict[str, Any]) -> str:
    """How and where it was measured."""
    return f"Command: `{report['command']}`\n\nMachine: `{json.dumps(report['machine'])}`"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
