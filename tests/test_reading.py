"""Files that are read: whatever is wrong with one is a line that names it, what is wrong, and the way on."""

import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from ld3m.errors import UserError
from ld3m.reading import TensorSpec, read_json, read_metadata, read_tensors, read_text

ADVICE = "make it again"
EXPECTED = {"z": TensorSpec(torch.float32, (-1, 3)), "label": TensorSpec(torch.int64, ())}


class Index(BaseModel):
    classes: list[str]
    scale: float = 1.0


JSON = {
    b"": "empty",
    b"\xef\xbb\xbf": "Invalid JSON: EOF",
    b"\xff\xfe": "not UTF-8 at byte 0",
    b'{"classes": ["a"': "Invalid JSON: EOF",
    b"[]": "Input should be an object",
    b"{}": "classes: Field required",
    b'{"classes": ["a", 3]}': r"classes\.1: Input should be a valid string",
    b'{"classes": [], "scale": "1"}': "scale: Input should be a valid number",
    b"[" * 100_000: "Invalid JSON: recursion limit",
    b"\n<!DOCTYPE html><p>404": "a web page, such as of a login or an error; download it again",
    b"version https://git-lfs.github.com/spec/v1": "a Git LFS pointer, not the file itself; git lfs pull fetches it",
}


@pytest.mark.parametrize("content", JSON, ids=lambda content: str(content[:20]))
def test_a_damaged_document_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"index\.json is .*{JSON[content]}.* make it again$") as raised:
        read_json(path, Index, ADVICE)
    assert len(raised.value.lines) == 1
    assert "\n" not in str(raised.value)


def test_a_document_is_read_whatever_editor_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_bytes('\ufeff{"classes": ["grün"], "scale": 2}\r\n'.encode())
    assert read_json(path, Index, ADVICE) == Index(classes=["grün"], scale=2.0)


def test_what_is_no_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, fault in {"missing": "is missing", "": "is a folder", "pipe": "is no regular file"}.items():
        for read in (read_text, read_metadata, read_tensors):
            with pytest.raises(UserError, match=f"{fault}; make it again"):
                read(tmp_path / name, ADVICE)
    (tmp_path / "closed").write_text("text")
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UserError, match=r"^cannot read data\.subset: closed \(Permission denied\); make it again$"):
        read_text(tmp_path / "closed", ADVICE, "data.subset: closed")


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"z": torch.zeros(2, 3)}, "has the tensors z, not label, z"),
        ({"z": torch.zeros(2, 4), "label": torch.tensor(0)}, "z is 2 x 4 of torch.float32, not any x 3 of"),
        ({"z": torch.zeros(2, 3).half(), "label": torch.tensor(0)}, "z is 2 x 3 of torch.float16"),
        ({"z": torch.zeros(2, 3, 1), "label": torch.tensor(0)}, "z is 2 x 3 x 1"),
        ({"z": torch.full((2, 3), torch.nan), "label": torch.tensor(0)}, "z has values that are not finite"),
    ],
)
def test_tensors_are_what_they_must_be(tensors: dict[str, torch.Tensor], fault: str, tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UserError, match=rf"latents\.safetensors is damaged \({fault}.*\); make it again$"):
        read_tensors(path, ADVICE, EXPECTED)
    safetensors.torch.save_file({"z": torch.ones(5, 3), "label": torch.tensor(4)}, path, {"classes": "[]"})
    tensors, metadata = read_tensors(path, ADVICE, EXPECTED)
    assert tensors["z"].sum() == 15
    assert metadata == read_metadata(path, ADVICE) == {"classes": "[]"}


@settings(max_examples=50)
@given(keep=st.integers(0, 200), garbage=st.binary(max_size=50))
def test_no_damage_of_a_header_is_a_traceback(
    keep: int, garbage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "latents.safetensors"
    whole = safetensors.torch.save({"z": torch.ones(5, 3), "label": torch.tensor(4)})
    path.write_bytes(whole[:keep] + garbage + whole[keep + len(garbage) :])
    shape, fault = None, ""
    try:
        shape = read_tensors(path, ADVICE, EXPECTED).tensors["z"].shape
    except UserError as error:
        fault = str(error)
    assert shape == (5, 3) or re.search(r"latents\.safetensors is .*make it again$", fault)
