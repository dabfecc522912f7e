"""A prior in diffusers' layout: which of a folder's files are read, and what its index says.

Without torch, which takes seconds to import: `--dry-run` shows the size of a prior.
"""

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field

from ld3m.errors import UserError, one_line
from ld3m.reading import read_json

UNUSED = ("safety_checker", "image_encoder", "feature_extractor", "training", "vae_1_0", "text_encoders")
"""Folders that no prior reads: parts of pipelines, and what ld3m train-prior keeps."""
WEIGHTS = re.compile(r"([^/]+/)?[^./]+(\.(?P<variant>fp16|bf16))?(-\d+-of-\d+)?\.(?P<format>safetensors|bin)")
"""Weights of a part, also in half precision, such as unet/diffusion_pytorch_model.fp16.safetensors."""
INDEXES = ("model_index.json", "config.json")
"""What says what a folder holds: a whole prior, or an autoencoder alone."""
GET_AGAIN = "not a whole prior: get it again, or make one with ld3m train-prior or convert-prior"
"""Advice if a file of a prior is damaged."""


class Weights(NamedTuple):
    """The files of a part's weights."""

    files: list[str]
    variant: str | None
    """"fp16" or "bf16" if there are none in full precision."""
    safe: bool
    """Whether they are in safetensors, or else in .bin."""


def choose_weights(paths: Iterable[str]) -> Weights:
    """The weights that are read out of the files of one part: none, if there are none in PyTorch's formats.

    Full precision before half, safetensors before .bin.
    """
    found = [match for match in map(WEIGHTS.fullmatch, paths) if match]
    for variant in (None, "fp16", "bf16"):
        for kind in ("safetensors", "bin"):
            if files := [match[0] for match in found if (match["variant"], match["format"]) == (variant, kind)]:
                return Weights(files, variant, kind == "safetensors")
    return Weights([], None, True)


def read_files(paths: Iterable[str]) -> list[str]:
    """The files of a prior that are read, out of all its files.

    Configurations, vocabularies, the card, and each part's weights. Not the weights in the top folder, in other
    precisions and for other libraries, which repositories also hold. Of an autoencoder alone those in the top folder.
    """
    every = sorted(paths)
    if INDEXES[0] not in every:
        top = [path for path in every if "/" not in path]
        return sorted([*choose_weights(top).files, *(path for path in top if path in (INDEXES[1], "README.md"))])
    chosen = []
    for part, group in groupby(every, key=lambda path: path.partition("/")[0]):
        if part not in UNUSED:
            files = list(group)
            chosen += [path for path in files if path.endswith((".json", ".txt")) or path == "README.md"]
            chosen += choose_weights(path for path in files if "/" in path).files
    return sorted(chosen)


def weighty_files(folder: Path) -> list[str]:
    """The files of a folder that decide what a prior does: those that are read, but for its card and vocabularies."""
    return [name for name in files_of(folder) if not name.endswith((".md", ".txt"))]


def files_of(folder: Path) -> list[str]:
    """The files of a folder that are read.

    Raises:
        UserError: if one cannot be looked at.
    """
    try:
        return read_files(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise UserError(f"prior.source: cannot look into {folder} ({one_line(error)}); {GET_AGAIN}") from None


def _last(name: Any) -> Any:
    """A pipeline with code of its own is saved as [module, class]."""
    return name[-1] if isinstance(name, list) and name else name


class ModelIndex(BaseModel):
    """What is read of a model_index.json."""

    kind: Annotated[str, BeforeValidator(_last)] = Field(alias="_class_name")
    vae: Any = None
    vqvae: Any = None
    """Where the autoencoder is."""
    id2label: dict[int, str] | None = None
    """A DiTPipeline's: the names of each class, between commas."""
    force_zeros_for_empty_prompt: bool = True
    """A StableDiffusionXLPipeline's: whether guidance contrasts with zeros rather than with an empty prompt."""
    original_time_embedding: bool = False
    """A DiTPipeline's: whether time steps are embedded as in the original code, which diffusers does otherwise."""


def is_whole(folder: Path) -> bool:
    """Whether a folder is one of a whole prior, with a denoiser, or else of an autoencoder alone."""
    return (folder / INDEXES[0]).is_file() or not (folder / INDEXES[1]).is_file()


def read_index(folder: Path) -> ModelIndex:
    """A prior's model_index.json; of an autoencoder alone its configuration.

    Raises:
        UserError: if it is missing or damaged.
    """
    path = folder / INDEXES[0 if is_whole(folder) else 1]
    return read_json(path, ModelIndex, GET_AGAIN, f"prior.source: {path}")
