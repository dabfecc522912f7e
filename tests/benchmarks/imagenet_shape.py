"""One iteration of each objective at the size of the paper's 256-pixel runs: seconds of its parts, and peak memory.

    python tests/benchmarks/imagenet_shape.py [KEY=VALUE …]

recipes/imagenet256.yaml on two classes of synthetic photographs in ImageNet's layout, through a latent diffusion model
of cin256-v2's configuration (401 M parameters, 64 × 64 latents) with random weights. Steps and real images are few, so
that it ends on a CPU; overrides make them more. Each objective runs in a process of its own, whose peak is the
operating system's figure.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

WORDNET_IDS = ["n02093428", "n02086240"]
SETTINGS = [
    f"data.subset=[{', '.join(WORDNET_IDS)}]",
    "prior.steps=4",
    "prior.micro_batch=1",
    "distill.iterations=1",
    "distill.real_batch=16",
    "distill.mtt.max_start_epoch=0",
    "distill.mtt.expert_epochs=1",
    "experts.count=1",
    "experts.epochs=1",
    "experts.batch=16",
]


def save_prior(folder: Path) -> int:
    """A prior of cin256-v2's configuration with random weights, which are counted."""
    from ld3m.priors.originals.latent_diffusion import untrained

    torch.manual_seed(0)
    prior = untrained("cin256-v2")
    prior.save(folder)
    return sum(parameter.numel() for parameter in prior.denoiser.parameters())


def save_photographs(root: Path, count: int = 32) -> None:
    """Colour noise whose spectrum falls as that of photographs does, by 1/f, of 320 × 280 pixels."""
    numbers = torch.Generator().manual_seed(0)
    height, width = 280, 320
    frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    for split in ("train", "val"):
        for name in WORDNET_IDS:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                spectrum = torch.fft.rfft2(torch.randn(3, height, width, generator=numbers))
                pixels = torch.fft.irfft2(spectrum / frequency.clamp(min=1 / width), s=(height, width))
                pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
                image = Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
                image.save(folder / f"{name}_{index}.JPEG")


def run(command: str, *settings: str) -> float:
    """Runs a command in a process of its own; its peak resident memory in GiB."""
    process = subprocess.Popen([sys.executable, "-m", "ld3m", command, "imagenet256", *settings])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 2**20


def main(overrides: list[str]) -> None:
    """Makes prior and photographs, and prints a line an objective."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        os.environ["LD3M_CACHE"] = str(place / "cache")
        print(f"{save_prior(place / 'prior') / 1e6:.1f} M parameters")
        save_photographs(place / "imagenet")
        shared = [f"prior.source={place / 'prior'}", f"data.root={place / 'imagenet'}", *SETTINGS, *overrides]
        shared.append(f"experts.folder={place / 'experts'}")
        run("experts", *shared)
        lines = []
        for objective in ("dm", "dc", "mtt"):
            folder = place / objective
            peak = run("distill", *shared, f"distill.objective={objective}", f"output={folder}")
            seconds = json.loads((folder / "metrics.jsonl").read_text())["seconds"]
            lines.append(f"{objective:<4} {seconds}  {peak:.1f} GiB")
        print(*lines, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
