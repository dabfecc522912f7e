"""The parts of a prior, read one at a time."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ld3m.errors import UserError, one_line
from ld3m.recipe import SamplerRecipe

DEFAULT_SCALING_FACTOR = 0.18215
"""What diffusers assumes if a VQModel's configuration has none: that of Stable Diffusion's KL autoencoder."""


class Parts:
    """The parts of a prior's folder in diffusers' layout, read one at a time."""

    def __init__(
        self,
        folder: Path,
        device: torch.device | str,
        recipe: SamplerRecipe,
        denoiser_device: torch.device | str | None = None,
    ) -> None:
        self.folder = folder
        self.device = device
        self.denoiser_device = denoiser_device or device
        self.recipe = recipe

    def model(
        self, kind: Any, part: str, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Any:
        """A model's weights, moved to the device; they are never there twice in the same memory.

        From safetensors, or else from a .bin, of which both libraries unpickle tensors only.
        """
        here = self.folder / part
        safe = any(here.glob("*.safetensors")) or not any(here.glob("*.bin"))
        device = device or self.device
        return self.read(
            part, lambda path: kind.from_pretrained(path, torch_dtype=dtype, use_safetensors=safe).to(device)
        )

    def denoiser(self, kind: Any, part: str = "unet") -> Any:
        """The model that the recipe gives a precision."""
        return self.model(kind, part, getattr(torch, self.recipe.dtype), self.denoiser_device)

    def autoencoder(self) -> Any:
        """A VQModel in `vqvae/` or an AutoencoderKL in `vae/`, in float32, with the recipe's scaling factor if any."""
        from diffusers import AutoencoderKL, VQModel

        kind, part = (AutoencoderKL, "vae") if (self.folder / "vae").is_dir() else (VQModel, "vqvae")
        autoencoder = self.model(kind, part)
        if self.recipe.scaling_factor is not None:
            autoencoder.register_to_config(scaling_factor=self.recipe.scaling_factor)
        elif kind is VQModel and autoencoder.config.scaling_factor == DEFAULT_SCALING_FACTOR:
            raise UserError(
                f"prior.scaling_factor: {self.folder / part} is a VQModel with {DEFAULT_SCALING_FACTOR}, which "
                "diffusers assumes if there is none, as Stable Diffusion's autoencoder has it; CompVis' VQ "
                "models have 1: set prior.scaling_factor=1, or =0.18215 if that is correct"
            )
        return autoencoder

    def scheduler(self) -> Any:
        """The noise schedule of the scheduler, of whatever kind it is."""
        from diffusers import DDIMScheduler

        return self.read("scheduler", DDIMScheduler.from_pretrained)

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        return self.read(name, lambda path: json.loads(path.read_text(encoding="utf-8")))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The content of a safetensors file."""
        return dict(self.read(name, safetensors.torch.load_file))

    def read(self, name: str, reader: Any) -> Any:
        """What a reader makes of a part's path; UserError if it fails."""
        try:
            return reader(self.folder / name)
        except Exception as error:  # diffusers, transformers, JSON and safetensors each raise their own
            part = name.partition("/")[0]
            raise UserError(f"prior.source: {self.folder} is not a whole prior; {part}: {one_line(error)}") from None
