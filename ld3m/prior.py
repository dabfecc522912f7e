"""The prior: a frozen, pre-trained latent diffusion model behind one small protocol."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from ld3m import registry
from ld3m.errors import UserError, one_line
from ld3m.files import write_json, write_tensors
from ld3m.recipe import PACKAGED_PRIORS, SamplerRecipe


class Prior(Protocol):
    """What the sampler and the loop need of a latent diffusion model.

    Images are [N, channels, H, W] in [-1, 1]; latents are [N, *latent_shape], scaled to about unit variance;
    conditioning is [N, *conditioning_shape]. All methods take gradients; none of the weights does.
    """

    image_channels: int
    image_size: int
    """Height and width of what `decode` gives."""
    latent_shape: tuple[int, int, int]
    conditioning_shape: tuple[int, ...]
    alphas_cumprod: Tensor
    """[T] float64, cumulative ᾱ of the training schedule."""
    null_embedding: Tensor
    """[1, *conditioning_shape], what guidance contrasts with."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images, before quantisation."""

    def quantise(self, z: Tensor) -> Tensor:
        """Q(z): the nearest codes with a straight-through gradient; the identity where the prior has no codes."""

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents; quantises first, where the prior does."""

    def denoise(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        """The noise ε that the denoiser sees in z at training time step t, in z's dtype."""

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        """[len(classes), *conditioning_shape], by name."""


class ClassConditionalLDM:
    """A VQ autoencoder, a UNet and a table of class embeddings, as diffusers folders.

    Layout: `model_index.json`, `vqvae/` (VQModel), `unet/` (UNet2DConditionModel), `scheduler/` (any diffusers
    scheduler configuration), `class_embedder/` (config.json with the class names, model.safetensors with a
    [classes + 1, width] table whose last row is the null class).
    """

    def __init__(
        self,
        autoencoder: Any,
        denoiser: Any,
        table: Tensor,
        classes: Sequence[str],
        scheduler: Any,
    ) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.table = table.detach()
        self.classes = list(classes)
        self.scheduler = scheduler
        config = denoiser.config
        self.scale = float(getattr(autoencoder.config, "scaling_factor", 1.0))
        self.image_channels = int(autoencoder.config.out_channels)
        levels = len(autoencoder.config.block_out_channels)
        self.image_size = config.sample_size * 2 ** (levels - 1)
        self.latent_shape: tuple[int, int, int] = (config.in_channels, config.sample_size, config.sample_size)
        self.conditioning_shape: tuple[int, ...] = (1, config.cross_attention_dim)
        self.alphas_cumprod = _alphas_cumprod(scheduler)
        self.null_embedding = self.table[-1].view(1, *self.conditioning_shape)

    def encode(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images).latents * self.scale

    def quantise(self, z: Tensor) -> Tensor:
        return self.autoencoder.quantize(z / self.scale)[0] * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(z / self.scale).sample

    def denoise(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        dtype = next(self.denoiser.parameters()).dtype
        times = torch.full((len(z),), t, device=z.device)
        return self.denoiser(z.to(dtype), times, c.to(dtype)).sample.to(z.dtype)

    def class_embeddings(self, classes: Sequence[str]) -> Tensor:
        if unknown := [name for name in classes if name not in self.classes]:
            raise UserError(
                f"prior.source: the prior does not know the class {unknown[0]!r}, only {', '.join(self.classes)}; "
                "train one on your classes with ld3m train-prior"
            )
        rows = [self.classes.index(name) for name in classes]
        return self.table[rows].view(len(rows), *self.conditioning_shape)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes the prior as diffusers folders, weights in `dtype`."""
        for name, model in (("vqvae", self.autoencoder), ("unet", self.denoiser)):
            model.to(dtype).save_pretrained(folder / name)
            model.to(torch.float32)
        self.scheduler.save_pretrained(folder / "scheduler")
        write_tensors(folder / "class_embedder" / "model.safetensors", {"weight": self.table.to(dtype)})
        write_json(folder / "class_embedder" / "config.json", {"classes": self.classes})
        index = {
            "_class_name": "ClassConditionalLDM",
            "vqvae": ["diffusers", type(self.autoencoder).__name__],
            "unet": ["diffusers", type(self.denoiser).__name__],
            "scheduler": ["diffusers", type(self.scheduler).__name__],
            "class_embedder": ["ld3m", "Embedding"],
        }
        write_json(folder / "model_index.json", index)

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "ClassConditionalLDM":
        """Reads what `save` wrote; the autoencoder and the class table stay in float32.

        Raises:
            UserError: naming the part of the folder that is missing or unreadable.
        """
        from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel

        part = folder / "vqvae"
        try:
            autoencoder = VQModel.from_pretrained(part, torch_dtype=torch.float32, use_safetensors=True)
            part = folder / "unet"
            denoiser = UNet2DConditionModel.from_pretrained(part, torch_dtype=dtype, use_safetensors=True)
            part = folder / "scheduler"
            scheduler = DDIMScheduler.from_pretrained(part)
            part = folder / "class_embedder"
            classes = json.loads((part / "config.json").read_text())["classes"]
            table = safetensors.torch.load_file(part / "model.safetensors")["weight"].float()
            if table.shape != (wanted := (len(classes) + 1, denoiser.config.cross_attention_dim)):
                raise ValueError(f"the table is {tuple(table.shape)}, not {wanted}")
        except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
            raise UserError(f"prior.source: {folder} is not a whole prior; {part.name}: {one_line(error)}") from None
        return cls(autoencoder.to(device), denoiser.to(device), table.to(device), classes, scheduler)


def _alphas_cumprod(scheduler: Any) -> Tensor:
    """[T] float64 ᾱ, recomputed from the scheduler's configuration, since diffusers keeps float32."""
    config = scheduler.config
    start, end, count = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64).square()
    elif config.beta_schedule == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    else:
        raise UserError(
            f"prior.source: the noise schedule {config.beta_schedule!r} is not supported, only linear and scaled_linear"
        )
    return (1 - betas).cumprod(0)


PRIORS: dict[str, Callable[[Path, torch.device | str, torch.dtype], Prior]] = {
    "ClassConditionalLDM": ClassConditionalLDM.load,
}
"""Loaders by the `_class_name` of a folder's model_index.json; other packages add theirs through entry points of the
group `ld3m.priors`."""


def load(recipe: SamplerRecipe, device: torch.device | str = "cpu") -> Prior:
    """The prior that `prior.source` names, on a device, in the recipe's dtype.

    Raises:
        UserError: where it is not a latent diffusion model in diffusers' layout, or not of a known kind.
    """
    source = recipe.source
    if source.startswith("hub:"):
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source.removeprefix("hub:")))
        except Exception as error:
            raise UserError(f"prior.source: cannot fetch {source}: {one_line(error)}") from None
    else:
        folder = PACKAGED_PRIORS.get(source, Path(source))
    try:
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"prior.source: {folder} is not a whole prior; model_index.json: {one_line(error)}") from None
    loader = registry.find("ld3m.priors", PRIORS, kind, f"prior.source: the kind of {folder}")
    prior = loader(folder, device, getattr(torch, recipe.dtype))
    if recipe.denoiser == "random":
        denoiser = getattr(prior, "denoiser", None)
        if not isinstance(denoiser, nn.Module):
            raise UserError(f"prior.denoiser: random, but a prior of kind {kind!r} has no denoiser to draw anew")
        draw_weights(denoiser)
    return prior


def draw_weights(network: nn.Module) -> None:
    """Gives a network the weights it would have before training, the same on every process and device."""
    device = next(network.parameters()).device
    network.to("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    network.to(device)
