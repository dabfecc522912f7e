"""ZCA whitening, fitted once on the real training images and cached: what some sets are distilled in, and seen in."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError
from ld3m.files import ANOTHER_CACHE, cache_folder, cache_key, writable, write_tensors
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.lock import hold
from ld3m.machine.transfer import send
from ld3m.reading import TensorSpec, read_tensors

LAYOUT = 1
"""Version of how transforms are fitted and kept; part of their key."""
EPSILON = 0.1
"""What is added to the variances: of pixels in [0, 1] (zca), or as a share of their mean (frepo)."""
MOST = 8192
"""Most values of an image that is whitened: the covariance has the square of them."""
CHUNK = 1000
"""Images whose covariance is summed at a time."""


@dataclass(frozen=True)
class Whitening:
    """A linear map of pixels in [0, 1] to values of nearly unit covariance, and its inverse."""

    centre: Tensor
    """[d], the mean image."""
    forward: Tensor
    """[d, d], by which centred rows are multiplied."""
    inverse: Tensor
    """[d, d]."""

    SAYS: ClassVar[dict[str, str]] = {
        "zca": f"ε = {EPSILON}, as MTT and its successors",
        "frepo": f"normalised first, ε = {EPSILON} of the mean variance, as FRePo",
    }
    """How each kind is fitted, in words."""

    def apply(self, pixels: Tensor) -> Tensor:
        """Pixels [N, channels, H, W] in [0, 1], whitened."""
        centre, forward = (send(each, pixels.device).to(pixels.dtype) for each in (self.centre, self.forward))
        return ((pixels.flatten(1) - centre) @ forward).view(pixels.shape)

    def undo(self, values: Tensor) -> Tensor:
        """Whitened values [N, channels, H, W] as pixels in units of [0, 1]; float32, computed in float64."""
        pixels = values.flatten(1).double() @ self.inverse.double() + self.centre.double()
        return pixels.float().view(values.shape)


def whitening(images: ImageSet, kind: str = "zca", what: str = "evaluate.whitening") -> Whitening:
    """The transform of a set's training images, from the cache or fitted.

    Of W = U (Λ + ε)^−½ Uᵀ, with the covariance UΛUᵀ of all training images: "zca" as kornia's `ZCAWhitening(eps=0.1)`
    fits it to pixels in [0, 1] (MTT, TESLA, DATM); "frepo" as FRePo and KIP do, to normalised pixels, with ε a tenth of
    the mean variance (yongchaoz/FRePo, lib/dataset/ops.py).

    Args:
        images: whose training split counts.
        kind: of `Whitening.SAYS`.

    Raises:
        UserError: if images have too many values for a covariance.
    """
    size = len(images.mean) * images.resolution**2
    if size > MOST:
        raise UserError(
            f"{what}: ZCA whitening of images with {size:,} values needs a covariance of {size:,}², and {MOST:,} "
            "is the most; give the pixels before whitening, such as MTT's images_zca_*.pt"
        )
    path = cache_folder() / "whitening" / f"{cache_key([LAYOUT, images.folder.name, kind])}.safetensors"
    if not path.is_file():
        writable(path.parent, ANOTHER_CACHE)
        with hold(path.with_suffix(".lock")):
            if not path.is_file():
                _write(path, _fit(images, kind))
    expected = {name: TensorSpec(torch.float32, shape) for name, shape in _shapes(size).items()}
    try:
        return Whitening(**read_tensors(path, "it is fitted again", expected).tensors)
    except UserError as error:
        print(error, file=sys.stderr)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        fitted = _fit(images, kind)
        _write(path, fitted)
        return fitted


def _shapes(size: int) -> dict[str, tuple[int, ...]]:
    return {"centre": (size,), "forward": (size, size), "inverse": (size, size)}


def _write(path: Path, fitted: Whitening) -> None:
    write_tensors(path, {name: getattr(fitted, name) for name in _shapes(0)})


def _fit(images: ImageSet, kind: str) -> Whitening:
    channels, pixels = len(images.mean), images.resolution**2
    size = channels * pixels
    scale = images.std.double().repeat_interleave(pixels) if kind == "frepo" else torch.ones(size, dtype=torch.float64)
    total, squares = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    count = sum(images.counts["train"])
    for label in range(len(images.classes)):
        for chunk in images.images("train", label).split(CHUNK):
            values = bytes_to_unit(chunk).flatten(1).double() / scale
            total, squares = total + values.sum(0), squares + values.T @ values
    mean = total / count
    freedom = count if kind == "frepo" else max(1, count - 1)
    variances, axes = torch.linalg.eigh((squares - count * mean.outer(mean)) / freedom)
    variances = variances.clamp(min=0)
    widths = (variances + EPSILON * (variances.mean() if kind == "frepo" else 1)).sqrt()
    if kind == "frepo" and count < size:  # it leaves axes that no image has a part of as they are
        widths[: size - count + 1] = 1
    forward, inverse = (axes / widths) @ axes.T / scale[:, None], (axes * widths) @ axes.T * scale
    return Whitening((mean * scale).float(), forward.float(), inverse.float())
