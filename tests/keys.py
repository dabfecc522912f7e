"""`python tests/keys.py` writes recipes/KEYS.md from the docstrings of all keys."""

from pathlib import Path

from ld3m.recipe.keys import markdown

PAGE = Path(__file__).parent.parent / "recipes" / "KEYS.md"

if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
