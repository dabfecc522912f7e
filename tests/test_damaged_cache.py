"""Prepared images that were damaged: made again, said, and never used as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError
from ld3m.machine import lock
from ld3m.recipe import DataRecipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path: Path) -> DataRecipe:
    """Two classes of two training images and one test image."""
    rng = np.random.default_rng(0)
    for name, count in (("train/a", 2), ("train/b", 2), ("test/a", 1), ("test/b", 1)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "set" / name / f"{index}.png")
    return DataRecipe.model_validate({"source": str(tmp_path / "set"), "resolution": 8, "channels": 1})


def everything(images: ImageSet) -> list[Any]:
    tensors = [images.everything(split) for split in ("train", "test")]
    return [[each.tolist() for each in pair] for pair in tensors] + [images.mean.tolist(), images.fingerprints]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def number_for_a_word(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"corrupt": 5}))


def another_count(path: Path) -> None:
    note = json.loads(path.read_text())
    note["histogram"][0][7] += 1
    path.write_text(json.dumps(note))


def without_a_key(path: Path) -> None:
    path.write_text(json.dumps({"counts": {"train": 2}}))


def a_tensor(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: safetensors.torch.save_file({name: tensor}, path)


ZEROS = torch.zeros(2, 1, 8, 8)
DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "emptied note": ("classes/1.json", lambda path: path.write_text(""), "is empty"),
    "truncated note": ("classes/1.json", lambda path: path.write_bytes(path.read_bytes()[:50]), "is damaged"),
    "garbage for a note": ("classes/1.json", lambda path: path.write_bytes(b"\xff\0"), "not UTF-8"),
    "a list for a note": ("classes/1.json", lambda path: path.write_text("[]"), "is damaged"),
    "a number for a word": ("classes/1.json", number_for_a_word, "corrupt: Input should be a valid array"),
    "a key missing": ("classes/1.json", without_a_key, "corrupt: Field required"),
    "another count": ("classes/1.json", another_count, "its digest differs"),
    "a folder for a note": ("classes/1.json", lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "emptied images": ("train/1.safetensors", lambda path: path.write_bytes(b""), "is empty"),
    "truncated images": ("train/1.safetensors", lambda path: path.write_bytes(path.read_bytes()[:90]), "is damaged"),
    "a bit of the images": ("train/1.safetensors", flip_a_bit, "its digest differs"),
    "another name": ("train/1.safetensors", a_tensor("pictures", ZEROS.byte()), "has the tensors pictures"),
    "floats": ("train/1.safetensors", a_tensor("images", ZEROS), r"of torch.float32, not 2 x 1 x 8 x 8 of torch.uint8"),
    "another shape": ("train/1.safetensors", a_tensor("images", ZEROS[:1].byte()), "is 1 x 1 x 8 x 8"),
    "another class's": ("train/1.safetensors", a_tensor("images", ZEROS.byte()), "its digest differs"),
    "no images": ("test/1.safetensors", Path.unlink, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_damaged_is_prepared_again_and_said(
    damage: str, recipe: DataRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = prepare(recipe)
    expected, untouched = everything(whole), (whole.folder / "classes" / "0.json").stat().st_mtime_ns
    assert capsys.readouterr().err == ""
    name, do_damage, message = DAMAGES[damage]
    do_damage(whole.folder / name)
    assert everything(prepare(recipe)) == expected
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(whole.folder / name) in said
    assert message in said
    assert said.endswith("; the class is prepared again\n")
    assert (whole.folder / "classes" / "0.json").stat().st_mtime_ns == untouched
    assert everything(prepare(recipe)) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"classes": ["x", "y"]}'])
def test_the_index_is_written_again(content: str, recipe: DataRecipe) -> None:
    """It is for people: what is prepared goes by the notes."""
    whole = prepare(recipe)
    index = (whole.folder / "index.json").read_text()
    (whole.folder / "index.json").write_text(content)
    assert everything(prepare(recipe)) == everything(whole)
    assert (whole.folder / "index.json").read_text() == index


def test_images_damaged_while_they_are_used_are_one_line(recipe: DataRecipe) -> None:
    images = prepare(recipe)
    (images.folder / "train" / "0.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"0\.safetensors is damaged \(.*\); the same command prepares it again$"):
        images.images("train", 0)


@pytest.mark.parametrize(
    ("free", "total", "message"),
    [
        (2, 16, r"6 prepared images take 3\.0 GiB, and 2\.0 are free in .*/data; set LD3M_CACHE"),
        (16, 1, r"a class of 3 images takes 1\.5 GiB of memory .*, and this machine has 1\.0; give"),
    ],
)
def test_what_has_no_room_is_said_before_an_image_is_read(
    free: int, total: int, message: str, recipe: DataRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images of half a GiB each, larger than a recipe allows; ``free`` on disk and ``total`` memory in GiB."""
    monkeypatch.setattr("ld3m.data.preparation.convert", None)
    monkeypatch.setattr("shutil.disk_usage", lambda *_: SimpleNamespace(free=free * 2**30))
    monkeypatch.setattr("psutil.virtual_memory", lambda *_: SimpleNamespace(total=total * 2**30))
    large = recipe.model_copy(update={"resolution": 2**14, "channels": 2})
    with pytest.raises(UserError, match=message):
        prepare(large)


# --- locks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), NotImplementedError("no flock")])
def test_a_disk_without_locks_is_said(error: Exception, recipe: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    reason = "(Operation not supported|NotImplementedError: no flock)"
    with pytest.raises(UserError, match=rf"^cannot lock .*0\.lock \({reason}\); set LD3M_CACHE to a folder"):
        prepare(recipe)


def test_who_waits_for_a_lock_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    released = filelock.FileLock(tmp_path / "some.lock")
    acquire = filelock.FileLock.acquire

    def once_released(self: filelock.FileLock, timeout: float | None = None) -> Any:
        if timeout is None:
            released.release()
        return acquire(self, timeout)

    monkeypatch.setattr(filelock.FileLock, "acquire", once_released)
    acquire(released, 0)
    with lock.hold(tmp_path / "some.lock", wait=False) as held:
        assert not held
    with lock.hold(tmp_path / "some.lock") as held:
        assert held
    assert capsys.readouterr().err == f"waiting for another process, which holds {tmp_path / 'some.lock'}\n"
