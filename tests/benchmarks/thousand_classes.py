"""An evaluation at a thousand classes through the command line: memory flat, killed and resumed to the same figure.

    python tests/benchmarks/thousand_classes.py [ARCH [EPOCHS]]

Synthetic images of 64 pixels, each class a pattern of its own under noise: two training images, a test image, and
a set of one image of each class. The command is run once undisturbed; then it is killed twice in its own cache, while
it prepares the images and while it trains, and run to its end. Memory is the resident set, looked at ten times a
second.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

CLASSES, SIZE = 1000, 64
RECIPE = """
name: thousand
data: {source: real, resolution: 64, channels: 3}
prior: {source: pixels, steps: 0, guidance: 1}
"""


def write_images(root: Path) -> None:
    """`real/train`, `real/test` and `set`, a folder per class in each."""
    numbers = np.random.default_rng(0)
    for label in range(CLASSES):
        pattern = np.kron(numbers.integers(0, 200, (8, 8, 3)), np.ones((8, 8, 1), dtype=int))
        for part, count in (("real/train", 2), ("real/test", 1), ("set", 1)):
            folder = root / part / f"class{label:04d}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = (pattern + numbers.integers(0, 56, (SIZE, SIZE, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png", compress_level=1)


def run(root: Path, cache: str, options: list[str], until: str | None = None) -> tuple[list[float], str]:
    """Runs the command, and kills it in its `until`; MiB over time, and what it printed."""
    words = ["evaluate", "set", "--recipe", "thousand.yaml", "--seeds", "1", *options, "-o", cache]
    environment = {**os.environ, "LD3M_CACHE": str(root / cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    log = root / f"{cache}.txt"
    resident: list[float] = []
    with log.open("ab") as out:
        command = [sys.executable, "-m", "ld3m", *words]
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=out, stderr=out)
        while process.poll() is None:
            try:
                resident.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                break
            if (until == "preparing" and len(list((root / cache).rglob("train/*.safetensors"))) > CLASSES // 4) or (
                until == "training" and list((root / cache).glob("evaluating/*.safetensors"))
            ):
                process.kill()
            time.sleep(0.1)
    if until is None and process.returncode:
        raise SystemExit(log.read_text())
    return resident, log.read_text()


def main(arch: str, epochs: int) -> None:
    options = ["--arch", arch, "--protocol", "minimax", f"evaluate.epochs={epochs}"]
    root = Path(tempfile.mkdtemp())
    try:
        write_images(root)
        (root / "thousand.yaml").write_text(RECIPE)
        began = time.monotonic()
        resident, _ = run(root, "whole", options)
        parts = np.array_split(np.array(resident), 4)
        print(f"undisturbed: {time.monotonic() - began:.0f} s, peak {max(resident):.0f} MiB")
        print("quarters of the time, highest MiB:", ", ".join(f"{part.max():.0f}" for part in parts), flush=True)
        for until in ("preparing", "training"):
            run(root, "killed", options, until)
            print(f"killed while {until}", flush=True)
        run(root, "killed", options)
        whole, killed = (json.loads((root / name / "evaluation.json").read_text()) for name in ("whole", "killed"))
        figures = [report["results"][0]["accuracies"] for report in (whole, killed)]
        print(f"accuracies {figures[0]} undisturbed, {figures[1]} killed and resumed: the same?", end=" ")
        print("yes" if figures[0] == figures[1] else "NO")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["convnet"], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
