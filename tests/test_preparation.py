"""Preparing images: interrupted, by several workers or processes, in little memory, always the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ld3m.data.decoding.decode import convert, convert_grey
from ld3m.data.examples import GreyArrays, Source
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.sources import SOURCES
from ld3m.recipe import DataRecipe

SIZE = 32
CLASSES = "abcdef"
PREPARE = """
import sys
from ld3m.data.prepared import prepare
from ld3m.recipe import DataRecipe
prepare(DataRecipe.model_validate_json(sys.argv[1]), workers=int(sys.argv[2]))
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six classes of 40 JPEGs of random size."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 256, (*rng.integers(20, 60, 2), 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.jpg")
    return tmp_path / "photos"


def recipe(source: Path, **settings: Any) -> DataRecipe:
    content = {"source": str(source), "resolution": SIZE, "test_share": 0.2, "validation_share": 0.1, **settings}
    return DataRecipe.model_validate(content)


def prepared(source: Path, cache: Path, workers: int = 2, **settings: Any) -> ImageSet:
    os.environ["LD3M_CACHE"] = str(cache)
    return prepare(recipe(source, **settings), workers=workers)


@pytest.fixture(autouse=True)
def cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the variable back that `prepared` sets."""
    monkeypatch.setenv("LD3M_CACHE", "")


def start(source: Path, cache: Path, workers: int = 2, **settings: Any) -> "subprocess.Popen[bytes]":
    """A process that prepares."""
    arguments = [sys.executable, "-c", PREPARE, recipe(source, **settings).model_dump_json(), str(workers)]
    return subprocess.Popen(arguments, env={**os.environ, "LD3M_CACHE": str(cache)})


def contents(folder: Path) -> dict[str, bytes]:
    """All files that say something."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_pixels_are_those_of_every_image_by_itself(photos: Path, tmp_path: Path) -> None:
    """In the order of names, those held out taken away, whichever worker is first."""
    images = prepared(photos, tmp_path / "cache", workers=3)
    every = [convert(Image.open(path), SIZE, 3) for path in sorted((photos / "a").iterdir())]
    kept = [image.numpy() for image in images.images("train", 0)]
    places = [next(i for i, image in enumerate(every) if np.array_equal(image, pixels)) for pixels in kept]
    assert places == sorted(places)
    held_out = [image.numpy().tobytes() for split in ("test", "validation") for image in images.images(split, 0)]
    assert sorted([*held_out, *(image.tobytes() for image in kept)]) == sorted(image.tobytes() for image in every)


def test_any_number_of_workers_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    one, three = (prepared(photos, tmp_path / f"{workers}", workers=workers) for workers in (1, 3))
    assert one.folder.name == three.folder.name  # the same key
    assert contents(one.folder) == contents(three.folder)


def test_where_images_lie_and_who_reads_them_is_not_in_the_key(photos: Path, tmp_path: Path) -> None:
    whole = prepared(photos, tmp_path / "cache")
    for settings in ({"workers": 5}, {"on_corrupt": "skip"}, {"subset": list(CLASSES)}, {"subset": [0, 1, 2, 3, 4, 5]}):
        assert prepared(photos, tmp_path / "cache", **settings).folder == whole.folder


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_killed_in_the_middle_it_goes_on_with_the_class_it_was_at(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(photos, tmp_path / "whole")
    folder = tmp_path / "killed" / "data" / whole.folder.name
    (photos / "c" / "7.jpg").rename(tmp_path / "7.jpg")
    os.mkfifo(photos / "c" / "7.jpg")  # holds the process in the middle of the third class
    shutil.copystat(tmp_path / "7.jpg", photos / "c" / "7.jpg")
    process = start(photos, tmp_path / "killed", workers=2)
    try:
        (notes,) = wait_for(
            lambda: [p for p in (tmp_path / "killed").glob("data/*/classes") if (p / "1.json").exists()]
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert sorted(path.name for path in notes.glob("*.json")) == ["0.json", "1.json"]
    (photos / "c" / "7.jpg").unlink()
    (tmp_path / "7.jpg").rename(photos / "c" / "7.jpg")
    notes.parent.rename(folder)  # the pipe had another size, hence another key
    (folder / "train" / ".2.safetensors.0123.tmp").write_text("half a file")

    read = []

    def noted(image: Any, resolution: int, channels: int) -> np.ndarray:
        read.append(Path(image.filename).parent.name)
        return convert(image, resolution, channels)

    monkeypatch.setattr("ld3m.data.preparation.convert", noted)
    resumed = prepared(photos, tmp_path / "killed")
    assert sorted(set(read)) == ["c", "d", "e", "f"]
    assert resumed.folder == folder
    assert contents(folder) == contents(whole.folder)


def wait_for(condition: Any, seconds: float = 60) -> Any:
    """The first value of `condition` that is not empty."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


@pytest.mark.slow
def test_processes_that_prepare_at_once_share_the_classes(photos: Path, tmp_path: Path) -> None:
    whole = prepared(photos, tmp_path / "whole")
    processes = [start(photos, tmp_path / "shared", workers=1) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "shared" / "data" / whole.folder.name) == contents(whole.folder)


@pytest.mark.slow
def test_a_class_that_another_process_is_at_comes_last(photos: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    whole = prepared(photos, tmp_path / "whole")
    folder = tmp_path / "shared" / "data" / whole.folder.name
    (folder / "classes").mkdir(parents=True)
    with FileLock(folder / "classes" / "1.lock"):
        process = start(photos, tmp_path / "shared")
        wait_for(lambda: (folder / "classes" / "5.json").exists())
        assert process.poll() is None
        assert not (folder / "classes" / "1.json").exists()
    assert process.wait() == 0
    assert contents(folder) == contents(whole.folder)


MEASURE = """
import re, sys
from pathlib import Path
from ld3m.data.prepared import prepare
from ld3m.recipe import DataRecipe

def megabytes(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = megabytes("VmHWM")
images = prepare(DataRecipe.model_validate_json(sys.argv[1]), workers=4)
preparing = megabytes("VmHWM") - before
held = megabytes("RssAnon")
mapped = [images.images("train", label) for label in range(len(images.classes))]
batch = [part[:8].clone() for part in mapped]
print(preparing, megabytes("RssAnon") - held)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_memory_holds_a_class_at_a_time_and_then_no_more_than_a_batch(tmp_path: Path) -> None:
    """Eight classes of 38 MB each, 307 MB in all: preparing takes less than three, using 8 images of each a tenth."""
    Image.new("RGB", (160, 160), "teal").save(tmp_path / "one.jpg")
    for split, count in (("train", 500), ("test", 1)):
        for name in "abcdefgh":
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for index in range(count):
                os.link(tmp_path / "one.jpg", tmp_path / "set" / split / name / f"{index}.jpg")
    given = recipe(tmp_path / "set", resolution=160, validation_share=0).model_dump_json()
    environment = {**os.environ, "LD3M_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", MEASURE, given], env=environment, capture_output=True, check=True)
    preparing, using = map(float, done.stdout.split())
    assert preparing < 3 * 38.4
    assert using < 307 / 10
    note = json.loads(next((tmp_path / "cache").glob("data/*/index.json")).read_text())
    assert note["counts"]["train"] == [500] * 8


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (30, 41), (41, 30), (32, 45), (90, 64)])
@pytest.mark.parametrize("resolution", [16, 32, 33])
def test_images_resized_many_at_a_time_are_those_resized_by_themselves(size: tuple[int, int], resolution: int) -> None:
    """Bit for bit; images of noise, so that a row or column of a neighbour would be seen."""
    images = np.random.default_rng(0).integers(0, 256, (9, *size), np.uint8)
    alone = np.stack([convert(Image.fromarray(image), resolution, 1) for image in images])
    assert np.array_equal(convert_grey(images, resolution), alone)


def test_images_in_memory_are_prepared_as_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In grey and as three equal channels, more of a class than a thread is given at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 28, 28), np.uint8)
    arrays = GreyArrays("made up", pixels, np.arange(200) % 2)
    monkeypatch.setitem(SOURCES, "fashion-mnist", lambda recipe: Source(["even", "odd"], {"train": arrays}, "arrays"))
    for place, image in enumerate(pixels):
        path = tmp_path / "files" / ("even", "odd")[place % 2] / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    for channels in (1, 3):
        made = [
            prepared(Path(source), tmp_path / "cache", channels=channels, resolution=20)
            for source in ("fashion-mnist", tmp_path / "files")
        ]
        assert contents(made[0].folder) == contents(made[1].folder)
        assert made[0].images("train", 0).shape[1] == channels
