"""What the floats of a distilled set mean: pixels, normalised by whose mean and deviation, or whitened."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet
from ld3m.data.whitening import Whitening, whitening
from ld3m.errors import UserError

LARGEST = 50
"""Largest value of a normalised image; distilled images may go far beyond what real ones reach."""
PIXELS = ("normalised", "unit", "signed", "whitened")
"""What float values may mean: normalised by mean and std, in [0, 1], in [-1, 1], or whitened by ZCA."""
SIGNED = 0.9
"""How near to -1 and 1 values come that are pixels in that range."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
NORMALISATIONS: dict[str, Statistics] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and std that public codes normalise by, as `utils.get_dataset` of VICO-UoE/DatasetCondensation has them.
CIFAR-10's stds are not those of its pixels, 0.247, 0.243 and 0.262."""
TINY_IMAGENET = (0.4802, 0.4481, 0.3975)
"""The mean of Tiny ImageNet, which these codes normalise by ImageNet's."""
NEAR = 0.005
"""How far the means of the same data set may be apart, if some images are held out."""


class TensorSet(NamedTuple):
    """What a file or several hold."""

    images: Tensor
    """[N, channels, H, W]"""
    labels: Tensor
    """[N], or soft: [N, classes]."""
    statistics: tuple[Any, Any] | None
    """Mean and std by which the images are normalised, if the file has them."""
    code: str | None = None
    """The public code whose layout the files have: dc, mtt or frepo, with their successors."""
    classes: list[str] | None = None
    """What labels are called, if the file says it."""


def check_pixels(pixels: str) -> None:
    """Raises a UserError if `--pixels` means nothing."""
    if pixels not in (*PIXELS, *NORMALISATIONS):
        raise UserError(
            f"--pixels: {pixels!r} is not known; give {', '.join(PIXELS)}, or by whose mean and std they are "
            f"normalised: {', '.join(NORMALISATIONS)}"
        )


def to_pixels(path: Path, found: TensorSet, open_real: Callable[[], ImageSet], pixels: str | None) -> Tensor:
    """The images as uint8, or as float32 in units of [0, 1], which distilled pixels may exceed.

    Whole numbers are taken as bytes, or as 0 and 1. What floats mean is judged by their mean and spread, unless it is
    said, and printed. Normalised ones are those of the file's mean and std, else of the public code that wrote it and
    the data set whose mean the real images have, else of the real images.

    Args:
        open_real: prepares the images that the set stands for, if they are needed.
        pixels: of `PIXELS` or `NORMALISATIONS`, or None to judge.

    Raises:
        UserError: if the values are none of these.
    """
    images = found.images
    if not images.isfinite().all():
        raise UserError(f"RUN: {path} has values that are not finite")
    if not images.is_floating_point() and images.min() >= 0 and images.max() <= 255:
        if images.max() > 1:
            return images.to(torch.uint8)
        print(f"{path}: whole numbers 0 and 1 are taken as pixels in units of [0, 1]", file=sys.stderr)
        return images.float()
    if images.abs().max() > LARGEST and pixels is None:
        raise UserError(
            f"RUN: {path} has values to {images.abs().max():g}: neither bytes, nor pixels in [0, 1], nor normalised; "
            "save uint8, or floats divided by 255"
        )
    images, real = images.float(), open_real()
    kind = pixels or ("normalised" if found.statistics else _judged(images, real))
    told = None if pixels == "normalised" else pixels if pixels in NORMALISATIONS else _constants_of(found.code, real)
    whitened = "frepo" if found.code == "frepo" else "zca"
    if pixels is None and not found.statistics:
        others = " or ".join(each for each in PIXELS if each != kind)
        whose = f"{told}'s mean and std in public code, not those" if told else "mean and std"
        says = {
            "normalised": f"normalised by {whose} of the real images",
            "unit": "pixels in units of [0, 1]",
            "signed": "pixels from -1 to 1, as decoders of latents give them",
            "whitened": f"whitened by ZCA of the real images ({Whitening.SAYS[whitened]}; with --whitening {whitened} "
            "networks see such images, as its authors' do)",
        }
        print(
            f"{path}: values {images.min():.2f} to {images.max():.2f}, mean {images.mean():.2f}, "
            f"std {images.std(correction=0):.2f}: taken as {says[kind]}; if they are not, give --pixels {others}",
            file=sys.stderr,
        )
    if kind == "unit":
        return images
    if kind == "signed":
        return (images + 1) / 2
    if kind == "whitened":
        return whitening(real, whitened, f"RUN: {path}").undo(images)
    statistics = found.statistics or (NORMALISATIONS[told] if told else (real.mean, real.std))
    mean, std = (_statistic(path, each, images.shape[1]) for each in statistics)
    return images * std + mean


def _judged(images: Tensor, real: ImageSet) -> str:
    """By spread, real images' if in units of [0, 1], 1 if normalised; whitened ones are about 0, and narrow.

    What fills the range from -1 to 1, and does not leave it, is signed: normalised and whitened images do.
    """
    if images.min() >= 0 and images.max() <= 1:
        return "unit"
    if -1 <= images.min() < -SIGNED and SIGNED < images.max() <= 1:
        return "signed"
    if float(images.std(correction=0)) > float(real.std.mean()) ** 0.5:
        return "normalised"
    return "unit" if float(images.mean()) > float(real.mean.mean()) / 2 else "whitened"


def _constants_of(code: str | None, real: ImageSet) -> str | None:
    """The name in `NORMALISATIONS` of what a public code normalises these real images by; None if it is not known."""
    if code not in ("dc", "mtt"):
        return None
    means = {name: mean for name, (mean, _) in NORMALISATIONS.items()} | {"tiny": TINY_IMAGENET}
    known = {name for each in imagenet.classes() for name in each}
    near = [name for name, mean in means.items() if _is_near(real.mean, mean)]
    name = near[0] if near else "imagenet" if known.issuperset(real.classes) else None
    mtt = {"cifar100": "cifar10"}  # utils.get_dataset of mtt-distillation, TESLA and DATM
    return {"tiny": "imagenet", **(mtt if code == "mtt" else {})}.get(name or "", name)


def _is_near(mean: Tensor, other: tuple[float, ...]) -> bool:
    return len(mean) == len(other) and float((mean - torch.tensor(other)).abs().max()) < NEAR


def _statistic(path: Path, value: Any, channels: int) -> Tensor:
    """A mean or std of a file as [channels, 1, 1]."""
    try:
        values = torch.as_tensor(value, dtype=torch.float32).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if len(values) not in (1, channels) or not values.isfinite().all():
        raise UserError(f"RUN: {path} has a mean or std that is not {channels} finite numbers, one per channel")
    return values.view(-1, 1, 1)
