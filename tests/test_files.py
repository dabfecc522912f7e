"""Files are whole or not there."""

from pathlib import Path

import pytest
import torch

from ld3m import files
from ld3m.errors import UserError


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    files.write_text(path, "a long first text")
    files.write_text(path, "short")
    assert path.read_text() == "short"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")

    def full_disk(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*file \(No space left on device\)"):
        files.write_tensors(path, {"a": torch.zeros(3)})
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(target: Path) -> None:
        (target / "one").write_text("1")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        files.write_folder(tmp_path / "folder", half)
    assert list(tmp_path.iterdir()) == []
    files.write_folder(tmp_path / "folder", lambda target: (target / "one").touch())
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["one"]


def test_a_cache_key_depends_on_the_description_and_the_bytes_alone() -> None:
    """The SHA-256 of `{"a": 1, "b": [2, null]}` and of the bytes after it, as coreutils' sha256sum has it."""
    assert files.cache_key({"b": [2, None], "a": 1}) == files.cache_key({"a": 1, "b": [2, None]})
    assert files.cache_key({"a": 1, "b": [2, None]}) == "c8caf5ad035ad1d6a15b"
    assert files.cache_key({"a": 1, "b": [2, None]}, b"pixels") == "cca72f6c83c76914e984"
    assert files.cache_key({"b": [2.0, None], "a": 1.0}) == "c8caf5ad035ad1d6a15b"  # as a recipe's file may have it


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """`ld3m report -o .`."""
    with pytest.raises(UserError, match="it is a folder; give the name of a file"):
        files.write_text(tmp_path, "page")
    with pytest.raises(UserError, match=r"cannot write \.: it is a folder"):
        files.write_text(Path(), "page")
