"""The tables in the Markdown files, written from the ablations that they come from.

    python tests/results.py

Between `<!-- recipes/results/NAME.json -->` and `<!-- end -->` stands what `ld3m ablate` says of that file.
"""

import json
import re
from pathlib import Path

from ld3m.ablation_table import markdown

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "recipes" / "README.md")
RESULTS = ROOT / "recipes" / "results"
BLOCK = re.compile(r"(<!-- (recipes/results/[\w-]+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with each of its blocks as its JSON file has it."""

    def table(block: re.Match[str]) -> str:
        report = json.loads((ROOT / block[2]).read_text(encoding="utf-8"))
        return f"{block[1]}\n{markdown(report)}\n{block[3]}"

    return BLOCK.sub(table, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
