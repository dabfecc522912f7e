"""Whether this checkout and another make the same latents and images, bit for bit, on this machine.

    python tests/same_latents.py OTHER_CHECKOUT [NAME …]

Runs a few iterations of each of `RUNS` with the code of both, in one environment, and compares every tensor and image.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch

HERE = Path(__file__).parent.parent
SMALL = ["distill.iterations=6", "distill.real_batch=32", "distill.checkpoint_every=3", "network.width=16"]
PIXELS = ["prior.source=pixels", "prior.steps=0", "prior.guidance=1", "distill.learn=latents"]
EXPERTS = ["experts.count=2", "experts.epochs=2", "experts.batch=512", "experts.folder=experts"]
RUNS = {
    "dm": [],
    "dm-paper": ["prior.skip=paper", "prior.noise=fixed", "distill.optimiser=adam", "distill.schedule=cosine"],
    "dm-no-skip": ["prior.skip=none", "prior.keep_graph_steps=0", "prior.micro_batch=3", "distill.images_per_class=2"],
    "dm-pool": ["distill.dm.pool=2", "distill.dm.match=moments", "distill.images_per_class=2", "distill.init=noise"],
    "prototypes": ["distill.init=prototype", "distill.iterations=1"],
    "dc": ["distill.objective=dc", "distill.dc.outer=3", "distill.dc.inner=2", "distill.lr_latents=0.1"],
    "mtt": ["distill.objective=mtt", "distill.mtt.syn_steps=3", "distill.mtt.max_start_epoch=1", *EXPERTS,
            "distill.mtt.expert_epochs=1"],
    "pixels": [*PIXELS, "distill.factor=2"],
    "autoencoder": ["prior.steps=0", "distill.learn=latents", "data.keep=0.6", "distill.init=herding",
                    "data.scorer.width=8", "data.scorer.epochs=1"],
    "trained-networks": ["distill.networks=experts", *EXPERTS],
}  # fmt: skip
"""Overrides of the quickstart, by name."""


def make(checkout: Path, name: str, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's latents, and the bytes of its images, made by the code of a checkout."""
    own = {"PYTHONPATH": str(checkout), "LD3M_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)

    def ld3m(command: str) -> None:
        recipe = str(HERE / "recipes" / "quickstart.yaml")
        line = [sys.executable, "-m", "ld3m", command, recipe, *SMALL, *RUNS[name], f"output={folder / name}"]
        subprocess.run(line, cwd=folder, env=os.environ | own, check=True, capture_output=True, text=True)

    if any(override in RUNS[name] for override in EXPERTS):
        ld3m("experts")
    ld3m("distill")
    tensors = safetensors.torch.load_file(folder / name / "latents.safetensors")
    for image in sorted((folder / name / "images").rglob("*.png")):
        tensors[image.relative_to(folder).as_posix()] = torch.frombuffer(
            bytearray(image.read_bytes()), dtype=torch.uint8
        )
    return tensors


def main() -> None:
    """Prints a line for each run, and fails where one differs."""
    other, *names = sys.argv[1:]
    differ = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or RUNS:
            theirs = make(Path(other).resolve(), name, Path(folder, "theirs"))
            ours = make(HERE, name, Path(folder, "ours"))
            same = theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
            print(f"{name:<20}{'the same' if same else 'DIFFERENT'}, {len(ours)} tensors and images", flush=True)
            differ += [] if same else [name]
    sys.exit(f"different: {', '.join(differ)}" if differ else 0)


if __name__ == "__main__":
    main()
