"""What a checkpoint lacks and another model lends, an autoencoder or configurations; and the folder made of both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m.errors import UserError, blamed_on
from ld3m.files import write_json
from ld3m.priors.hub_folder import HubFolder
from ld3m.priors.loading import Parts
from ld3m.recipe import SamplerRecipe


def lender(source: str, key: str, wanted: Sequence[str]) -> Path:
    """The folder of a model that lends something, fetched if it is on the Hub.

    Args:
        source: a folder, or `hub:<id>` with a folder and revision if need be.
        wanted: patterns of the files that are fetched.

    Raises:
        UserError: if there is none, or it cannot be fetched.
    """
    with blamed_on(key):
        hub = HubFolder.of(source)
    if hub is None:
        if not Path(source).is_dir():
            raise UserError(f"{key}: {source!r} is not a folder; give one in diffusers' layout, or hub:USER/NAME")
        return Path(source)
    from huggingface_hub import snapshot_download

    from ld3m.machine.hub import ask, explained

    patterns = [hub.part + pattern for pattern in wanted]
    try:
        copy = ask(lambda: snapshot_download(hub.name, revision=hub.revision, allow_patterns=patterns))
        return Path(copy) / hub.part
    except Exception as error:  # the client's own, httpx's and the file system's
        raise UserError(f"{key}: cannot fetch {source}: {explained(error)}; or give the folder of a copy") from None


def autoencoder(source: str) -> Any:
    """The AutoencoderKL of `--vae`: a folder with its config.json and weights, or one that has them in vae/.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    from diffusers import AutoencoderKL

    files = ("config.json", "diffusion_pytorch_model.safetensors")
    folder = lender(source, "--vae", [*files, *(f"vae/{name}" for name in files)])
    if not (folder / "config.json").is_file() and (folder / "vae").is_dir():
        folder /= "vae"
    with blamed_on("--vae"):
        return parts_of(folder.parent).model(AutoencoderKL, folder.name)


def save_parts(parts: Mapping[str, Any], index: Mapping[str, Any], folder: Path) -> None:
    """Writes parts of diffusers and transformers by the names of their folders, and model_index.json."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    kinds = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    write_json(folder / "model_index.json", {**index, **kinds})


def parts_of(folder: Path) -> Parts:
    """The parts of a folder, which are read on the CPU."""
    return Parts(folder, "cpu", SamplerRecipe(source=str(folder)))
