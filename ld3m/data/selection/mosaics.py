"""RDED's images, as a baseline: mosaics of those crops of real images that a classifier finds easiest.

Sun et al., "On the Diversity and Realism of Distilled Dataset" (CVPR 2024), as LINs-lab/RDED 3f6453d has it in
synthesize/utils.py (`MultiRandomCrop`, `selector`, `mix_images`) and its scripts: 300 random images of each class, five
square crops of each, of each image the crop of lowest cross-entropy, and the easiest of these side by side. Nothing is
optimised. They crop the original images; here the prepared ones, of `data.resolution`, are cropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ld3m.data.cached import REMOVE, cached
from ld3m.data.prepared import ImageSet
from ld3m.data.selection import coresets
from ld3m.files import cache_folder, cache_key, write_tensors
from ld3m.images.ranges import bytes_to_unit, unit_to_bytes
from ld3m.images.transforms import ResizedCrop
from ld3m.machine.out_of_memory import in_parts
from ld3m.randomness import generator
from ld3m.reading import TensorSpec, read_tensors
from ld3m.recipe import ScorerRecipe

LAYOUT = 1
"""Version of how mosaics are made and kept; part of their key."""
IMAGES, CROPS = 300, 5
"""Images that are drawn of each class, and crops of each (`--mipc 300 --num-crop 5`)."""
SCALE, RATIO = (0.08, 1.0), (1.0, 1.0)
"""Of the crops: their share of an image's area, and width / height; torchvision's default, and RDED's."""
LARGEST_WHOLE = 64
"""Resolution up to which RDED's scripts have one crop in each image (CIFAR, Tiny ImageNet), and beyond which four."""
CHUNK = 50
"""Images that are cropped and judged at a time."""
ADVICE = "data.resolution: memory ran out while judging a single crop; give smaller images or more memory"


@dataclass(frozen=True)
class Judge:
    """A classifier that says how easy crops are."""

    logits: Callable[[Tensor], Tensor]
    """Normalised images [n, channels, H, W] to logits [n, classes]."""
    normalise: Callable[[Tensor], Tensor]
    """Pixels in [0, 1] to what it sees."""
    identity: str
    """Changes with its weights; part of the key of what it chose."""
    device: torch.device

    @torch.no_grad()
    def losses(self, crops: Tensor, label: int, resolution: int) -> Tensor:
        """Cross-entropies [n] of small crops [n, channels, h, w] in [0, 1], each in the centre of zeros, on the CPU."""

        def look(some: Tensor) -> Tensor:
            seen = self.normalise(some.to(self.device))
            logits = self.logits(functional.pad(seen, _margins(seen.shape[-1], resolution)))
            targets = torch.full((len(some),), label, device=self.device)
            return functional.cross_entropy(logits, targets, reduction="none").float().cpu()

        return in_parts(look, crops, CHUNK * CROPS, ADVICE)


def _margins(size: int, resolution: int) -> tuple[int, int, int, int]:
    """Zeros left, right, above and below; of an odd number, the one more is on the right and below."""
    before = (resolution - size) // 2
    return (before, resolution - size - before) * 2


def by_scorer(images: ImageSet, recipe: ScorerRecipe, device: torch.device) -> Judge:
    """The network that scores real images for core-sets, trained if it was not before, as a judge of crops."""
    folder = coresets.score(images, recipe, device)
    return Judge(coresets.scoring_network(folder, images, recipe, device), images.normalise, folder.name, device)


def factor_at(resolution: int, factor: int) -> int:
    """Crops on a side of each mosaic: as many as images of the set it is compared with have, else as RDED's scripts."""
    return factor if factor > 1 else 1 if resolution <= LARGEST_WHOLE else 2


def description(factor: int, judge: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """How mosaics are made, for rows of results, and by whose judgement, if it is not that of `data.scorer`.

    Args:
        factor: crops on a side of each.
        weights: the beginning of the digest of its weights.
    """
    whose = {"judge": judge, "weights": weights} if judge else {}
    return {"images": IMAGES, "crops": CROPS, "factor": factor} | whose


def of_class(pixels: Tensor, label: int, count: int, factor: int, judge: Judge, draws: torch.Generator) -> Tensor:
    """Mosaics of a class, those with the easiest crops first in each place.

    If there are fewer images than crops are needed, images give further ones: the second easiest of each, and so on.

    Args:
        pixels: uint8 [n, channels, H, H], all of a class.
        factor: crops on a side of each.
        judge: tells how easy crops are.
        draws: decides which images are drawn, and the crops.

    Returns:
        uint8 [count, channels, H, H].
    """
    resolution, places = pixels.shape[-1], count * factor**2
    drawn = pixels[torch.randperm(len(pixels), generator=draws)[:IMAGES]]
    depth = min(CROPS, max(1, -(-places // len(drawn))))
    crops, losses = [], []
    for chunk in drawn.split(CHUNK):
        tried = [
            ResizedCrop.draw(draws, len(chunk), resolution, SCALE, RATIO, resolution // factor)(bytes_to_unit(chunk))
            for _ in range(CROPS)
        ]
        stacked = torch.stack(tried)
        loss = judge.losses(stacked.flatten(0, 1), label, resolution).view(CROPS, len(chunk))
        order = loss.argsort(dim=0, stable=True)[:depth]
        losses.append(loss.gather(0, order))
        crops.append(stacked[order, torch.arange(len(chunk))])
    ranked = [loss.argsort(stable=True) for loss in torch.cat(losses, 1)]
    easiest = torch.cat([of_rank[order] for of_rank, order in zip(torch.cat(crops, 1), ranked, strict=True)])
    return unit_to_bytes(side_by_side(easiest[torch.arange(places) % len(easiest)], factor, resolution))


def side_by_side(crops: Tensor, factor: int, resolution: int) -> Tensor:
    """Crops [count · factor², channels, h, h] to mosaics: the first `count` are top left, the next right of them, ….

    The first rows and columns are a pixel larger if `factor` does not divide the resolution.
    """
    count = len(crops) // factor**2
    sizes = [resolution // factor + (index < resolution % factor) for index in range(factor)]
    places = crops.view(factor, factor, count, *crops.shape[1:])
    rows = [
        torch.cat([functional.interpolate(place, (height, width)) for place, width in zip(row, sizes, strict=True)], 3)
        for row, height in zip(places, sizes, strict=True)
    ]
    return torch.cat(rows, 2)


def mosaics(images: ImageSet, counts: Sequence[int], factor: int, judge: Judge, seed: int) -> list[Tensor]:
    """As many mosaics of each class as `counts` says, from the cache or made: uint8 [count, channels, H, H] of each.

    Args:
        images: prepared; their training images are cropped.
        factor: crops on a side of each.
        judge: tells how easy crops are.
    """
    key = cache_key([LAYOUT, images.folder.name, list(counts), factor, seed, judge.identity, description(factor)])
    folder = cache_folder() / "mosaics" / key

    def fill(target: Path) -> None:
        for label, count in enumerate(tqdm(counts, "making mosaics")):
            made = of_class(
                images.images("train", label), label, count, factor, judge, generator(seed, "mosaics", label)
            )
            write_tensors(target / f"{label}.safetensors", {"images": made})

    return cached(folder, lambda: _read(folder, images, counts), fill, "mosaics")


def _read(folder: Path, images: ImageSet, counts: Sequence[int]) -> list[Tensor]:
    shape = len(images.mean), images.resolution, images.resolution
    expected = [{"images": TensorSpec(torch.uint8, (count, *shape))} for count in counts]
    paths = [folder / f"{label}.safetensors" for label in range(len(counts))]
    return [read_tensors(path, REMOVE, each).tensors["images"] for path, each in zip(paths, expected, strict=True)]
