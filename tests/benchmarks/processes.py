"""Two processes of one thread against one: images a second of `dm`, and the bytes that an iteration communicates.

    python tests/benchmarks/processes.py [KEY=VALUE …]

recipes/quickstart.yaml with two images per class on one process, on two of one launch, and, as the limit that the
machine sets, two runs side by side that know nothing of each other. All take ten images at a time through the prior:
half as many cost more than half as much, as every call packs the same weights for the processor, which is no matter of
sharding.

Seconds are the main process's own for rendering, matching and pulling back, the median of all iterations but the first:
neither loading nor waiting for the other process counts. The three take turns, and a ratio is of one round, since a
machine's speed drifts by more than what is looked for; the median of all rounds is printed with the quartiles. Pictures
are off: they are drawn and sent `distill.pictures=20` times a run, which in runs so short would be at every iteration.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 7
IMAGES = 20
CONFIG = Path(__file__).parents[2] / "launch" / "cpu2.yaml"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
ALONE = [sys.executable]
COUNTED = """
import pickle

from accelerate import Accelerator
from ld3m.machine import processes as parallel

sent = 0
gather_object, gather = parallel.gather_object, Accelerator.gather

def counted(items):
    global sent
    sent += len(pickle.dumps(items))
    return gather_object(items)

def counted_tensors(self, tensor):
    global sent
    sent += tensor.numel() * tensor.element_size()
    return gather(self, tensor)

parallel.gather_object, Accelerator.gather = counted, counted_tensors
from ld3m.__main__ import main
try:
    main()
finally:
    print(f"SENT {sent}", flush=True)
"""


def distill(iterations: int, folder: Path, overrides: list[str]) -> list[str]:
    """The arguments of the run that is timed and counted."""
    settings = [f"distill.images_per_class={IMAGES // 10}", "prior.micro_batch=10", f"distill.iterations={iterations}"]
    unasked = ["distill.checkpoint_every=1000", "distill.log_every=1", "distill.pictures=0"]
    return ["distill", "quickstart", *settings, *unasked, *overrides, "--no-resume", "-o", str(folder)]


def start(command: list[str], folder: Path, iterations: int, overrides: list[str]) -> subprocess.Popen[bytes]:
    arguments = [*command, "-m", "ld3m", *distill(iterations, folder, overrides)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rate(processes: list[subprocess.Popen[bytes]], folders: list[Path]) -> float:
    """Images a second of runs that were started together."""
    for process in processes:
        if process.wait():
            raise SystemExit(f"{process.args} ended with {process.returncode}")
    total = 0.0
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[1:]]
        total += IMAGES / statistics.median(sum(row["seconds"].values()) for row in rows)
    return total


def sent(place: Path, iterations: int, overrides: list[str]) -> int:
    """Bytes that the two processes hand to collectives in a run without its end's pictures and checkpoint counted."""
    script = place / "counted.py"
    script.write_text(COUNTED)
    command = [*LAUNCH, str(script), *distill(iterations, place / "counted", overrides)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(line.split()[1]) for line in said.splitlines() if line.startswith("SENT"))


def main(overrides: list[str]) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    rates: dict[str, list[float]] = {"one process": [], "two processes": [], "two runs side by side": []}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        one, two = place / "one", place / "two"
        for _ in range(ROUNDS):
            rates["one process"].append(rate([start(ALONE, one, 8, overrides)], [one]))
            rates["two processes"].append(rate([start(LAUNCH, one, 8, overrides)], [one]))
            both = [start(ALONE, folder, 8, overrides) for folder in (one, two)]
            rates["two runs side by side"].append(rate(both, [one, two]))
        few, more = (sent(place, iterations, overrides) for iterations in (2, 12))
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["one process"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:<22} {statistics.median(values):6.2f} images/s  × {middle:.2f} ({low:.2f} to {high:.2f})")
    print(f"communicated: {(more - few) / 10:,.0f} bytes an iteration, of both processes together")


if __name__ == "__main__":
    main(sys.argv[1:])
