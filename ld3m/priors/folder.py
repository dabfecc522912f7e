"""A prior's folder in diffusers' layout: where it is, what it is, and its parts."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ld3m.errors import UserError, one_line
from ld3m.recipe import PACKAGED_PRIORS, SamplerRecipe

DEFAULT_SCALING_FACTOR = 0.18215
"""What diffusers takes where a VQModel's configuration says nothing: the KL autoencoder's of Stable Diffusion."""
DENOISERS = ("unet", "transformer")
"""The parts that have the recipe's precision; the others stay in float32."""
ON_DEMAND = ("text_encoder", "safety_checker", "image_encoder")
"""Parts that are in memory for a moment only, or never."""


def fetch(source: str) -> Path:
    """The folder of a prior: itself, the package's, or what the Hub has."""
    if not source.startswith("hub:"):
        return PACKAGED_PRIORS.get(source, Path(source))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.removeprefix("hub:")))
    except Exception as error:
        raise UserError(f"prior.source: cannot fetch {source}: {one_line(error)}") from None


def provenance(source: str) -> dict[str, Any]:
    """Where a prior is from: its kind, the Hub's revision, a digest of its files, the licence that its card names."""
    folder = fetch(source)
    content = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        content.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return {
        "source": source,
        "kind": json.loads((folder / "model_index.json").read_text())["_class_name"],
        "revision": folder.name if source.startswith("hub:") else None,
        "sha256": content.hexdigest(),
        "licence": _licence(folder),
    }


def _licence(folder: Path) -> str | None:
    """What the model card in the folder says, if anything."""
    from huggingface_hub import ModelCard

    try:
        licence = ModelCard.load(folder / "README.md").data.license
    except (OSError, ValueError):
        return None
    return str(licence) if licence else None


def weight_bytes(recipe: SamplerRecipe) -> tuple[int, int]:
    """Parameters of a prior in a folder here, and the bytes that they take once loaded, from their files' headers."""
    parameters = size = 0
    for path in fetch(recipe.source).glob("*/*.safetensors"):
        if (part := path.parent.name) not in ON_DEMAND:
            with safetensors.safe_open(path, "pt") as file:
                count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
            parameters += count
            size += count * (getattr(torch, recipe.dtype) if part in DENOISERS else torch.float32).itemsize
    return parameters, size


class Parts:
    """The parts of a prior's folder in diffusers' layout, read one at a time."""

    def __init__(self, folder: Path, device: torch.device | str, recipe: SamplerRecipe) -> None:
        self.folder = folder
        self.device = device
        self.recipe = recipe

    def model(self, kind: Any, part: str, dtype: torch.dtype = torch.float32) -> Any:
        """A model's weights, moved to the device; they are never there twice in the same memory."""
        return self.read(
            part, lambda path: kind.from_pretrained(path, torch_dtype=dtype, use_safetensors=True).to(self.device)
        )

    def denoiser(self, kind: Any, part: str = "unet") -> Any:
        """The model that the recipe gives a precision."""
        return self.model(kind, part, getattr(torch, self.recipe.dtype))

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
                "diffusers takes where nothing is said and is that of Stable Diffusion's autoencoder; CompVis' "
                "VQ models have 1: set prior.scaling_factor=1, or =0.18215 if that is right"
            )
        return autoencoder

    def scheduler(self) -> Any:
        """The noise schedule of whatever scheduler is there."""
        from diffusers import DDIMScheduler

        return self.read("scheduler", DDIMScheduler.from_pretrained)

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        return self.read(name, lambda path: json.loads(path.read_text()))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The content of a safetensors file."""
        return dict(self.read(name, safetensors.torch.load_file))

    def read(self, name: str, reader: Any) -> Any:
        try:
            return reader(self.folder / name)
        except Exception as error:  # diffusers, transformers, JSON and safetensors each raise their own
            part = name.partition("/")[0]
            raise UserError(f"prior.source: {self.folder} is not a whole prior; {part}: {one_line(error)}") from None
