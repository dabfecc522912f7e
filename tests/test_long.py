"""The list of long tests names files and tests that there are."""

from pathlib import Path

import pytest
from conftest import LONG


@pytest.mark.parametrize("file", LONG)
def test_long_tests_exist(file: str) -> None:
    source = (Path(__file__).parent / f"{file}.py").read_text(encoding="utf-8")
    assert [beginning for beginning in LONG[file] if f"\ndef {beginning}" not in source] == []
