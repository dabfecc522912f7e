"""Markdown around words of others: names of classes, sources, licences and settings stay what they are on any page.

Markdown cannot quote every character everywhere: a backslash before `|` splits a table's cell, and backticks have no
escape at all. Character references mean the same in text, in cells and in `<code>`, so they are what is used here.
"""

import re
from collections.abc import Iterable, Sequence

MARKUP = re.compile(r"[\\`*\[\]<>&|~$#!]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that Markdown, HTML or the Hub's formulas may take for their own; `_` inside a word is none."""


def text(words: object) -> str:
    """Words of others as a part of a line: no markup, no HTML, no line break."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", _line(words))


def sentence(words: str) -> str:
    """A note as a sentence: with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def code(words: object) -> str:
    """Words of others in the font of code."""
    line = _line(words)
    return f"`{line}`" if line and not re.search("[`|]", line) else f"<code>{text(line)}</code>"


def _line(words: object) -> str:
    """One line that UTF-8 can hold, without control characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", str(words).encode(errors="replace").decode()).split())


def fenced(block: str, language: str = "") -> str:
    """Lines of others as a block of code, whose fence is longer than any row of backticks in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", block)), 3)
    return f"{fence}{language}\n{block.rstrip()}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], figures: int = 0) -> str:
    """A table of cells that are Markdown already; the last `figures` columns are set to the right."""
    rules = ["---"] * (len(heads) - figures) + ["--:"] * figures
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))
