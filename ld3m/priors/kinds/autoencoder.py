"""An autoencoder without a denoiser as a prior: any of diffusers' that takes and gives images, by its own folder."""

from typing import Any

import torch
from torch import Tensor

from ld3m.errors import UserError, one_line
from ld3m.priors.base import Coder, WithoutDenoiser, latents_of
from ld3m.priors.loading import Parts

UNIT = "AutoencoderRAE"
"""The kind whose images are in [0, 1], and that applies the `scaling_factor` of its configuration itself."""
FACTORS = (2, 4, 8, 16, 32, 64, 128, 256)
"""Of which the sizes that an autoencoder takes are multiples."""


class Autoencoder(WithoutDenoiser, Coder):
    """A folder with `config.json` and weights, such as AutoencoderKL, VQModel, AutoencoderDC or AutoencoderTiny.

    It renders at `prior.resolution`, or at the size of the images.
    """

    def __init__(
        self, autoencoder: Any, shape: tuple[int, int, int], channels: int, size: int, device: torch.device | str
    ) -> None:
        WithoutDenoiser.__init__(self, device)
        Coder.__init__(self, autoencoder)
        self.latent_shape, self.image_channels = shape, channels
        self.unit = type(autoencoder).__name__ == UNIT
        if self.unit:
            self.scale = 1.0
        self.image_size = size

    def encode(self, images: Tensor) -> Tensor:
        return super().encode((images + 1) / 2 if self.unit else images)

    def decode(self, z: Tensor) -> Tensor:
        images = super().decode(z)
        return 2 * images - 1 if self.unit else images

    @classmethod
    def load(cls, parts: Parts) -> "Autoencoder":
        """Reads the folder of an autoencoder.

        Raises:
            UserError: if the recipe asks for steps, or it takes no images, or none of their size.
        """
        kind, part = parts.autoencoder_kind()
        if parts.recipe.steps:
            raise UserError(
                f"prior.steps: {parts.recipe.steps}, but {parts.recipe.source} is an autoencoder alone, a "
                f"{kind.__name__}, and has no denoiser; set prior.steps=0, or give a whole prior"
            )
        if not parts.size:
            raise UserError(f"prior.resolution: give the size in pixels of the images of {parts.recipe.source}")
        shape, channels = _shapes(parts.outline(kind, part), parts.size)
        return cls(parts.autoencoder(), shape, channels, parts.size, parts.device)


def _shapes(outline: Any, size: int) -> tuple[tuple[int, int, int], int]:
    """[C, h, w] of an autoencoder's latents of square images, and the channels of the images; nothing is computed."""
    channels = int(getattr(outline.config, "in_channels", None) or 3)
    shape, why = _latent_shape(outline, channels, size)
    if shape:
        return shape, channels
    larger = (-(-size // factor) * factor for factor in FACTORS)
    if fits := next((each for each in larger if _latent_shape(outline, channels, each)[0]), None):
        raise UserError(
            f"prior.resolution: a {type(outline).__name__} gives no images of {size} pixels back; set "
            f"prior.resolution={fits}, to which images are resized"
        )
    raise UserError(
        f"prior.source: a {type(outline).__name__} does not encode and decode images ({why}); give an autoencoder of "
        "images, such as AutoencoderKL"
    )


@torch.no_grad()
def _latent_shape(outline: Any, channels: int, size: int) -> tuple[tuple[int, int, int] | None, str]:
    """The shape of the latents of square images, or else why they do not come back as they went in."""
    images = torch.empty(1, channels, size, size, device="meta")
    try:
        latents = latents_of(outline.encode(images))
        back = outline.decode(latents).sample
    except Exception as error:  # of whatever kind a model for videos or sound raises
        return None, one_line(error)
    if latents.dim() != 4 or back.shape != images.shape:
        return None, f"{list(images.shape[1:])} come back as {list(back.shape[1:])}"
    return (latents.shape[1], latents.shape[2], latents.shape[3]), ""
