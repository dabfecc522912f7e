"""One network trained by all processes of a launch, on a thousand classes of synthetic images of 64 px.

    python tests/benchmarks/together.py [--images 1000] [--epochs 2] [--arch convnet]
    accelerate launch --config_file launch/cpu2.yaml tests/benchmarks/together.py

Prints, for each process and epoch, seconds on the clock and of the processor, and resident memory; at the end a digest
of what the network says of some images. On a busy machine compare processor seconds: one process's are to be divided by
those of the process of two that took most.
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from torch import nn

from ld3m.data.prepared import ImageSet
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.together import Share
from ld3m.evaluation.training import train
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import start
from ld3m.recipe import EvaluateRecipe

CLASSES, SIDE = 1000, 64


def main() -> None:
    """Trains, and prints what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--arch", default="convnet")
    given = parser.parse_args()
    processes = start()
    keep_freed_memory()
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (given.images, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
    labels = torch.arange(given.images) % CLASSES
    names, half = [str(label) for label in range(CLASSES)], torch.full((3,), 0.5)
    images = ImageSet(names, half, half / 2, {}, [*range(CLASSES)], [], Path(), SIDE)
    settings = EvaluateRecipe(protocol="rethinkdc", labels="hard", epochs=given.epochs, batch=128)
    how = protocol(settings, Task(given.arch, CLASSES, given.images, SIDE))
    share = Share(processes) if processes.num_processes > 1 else None
    last = [time.perf_counter(), time.process_time()]

    def after_epoch(epoch: int, network: nn.Module) -> None:
        now = [time.perf_counter(), time.process_time()]
        clock, busy = (after - before for after, before in zip(now, last, strict=True))
        last[:] = now
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        said = f"epoch {epoch}: {clock:.1f} s, {busy:.1f} s of the processor, at most {memory:,.0f} MiB so far"
        print(f"{processes.label}{said}", flush=True)

    network = train(given.arch, pixels, labels, images, how, (0, 0), processes.device, None, after_epoch, share)
    with torch.no_grad():
        logits = network(images.normalise(pixels[:16].to(processes.device) / 255))
    print(f"{processes.label}logits of 16 images: {', '.join(f'{each:.5f}' for each in logits[0, :3].tolist())}, …")


if __name__ == "__main__":
    main()
