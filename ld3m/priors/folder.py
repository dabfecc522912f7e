"""A prior's folder in diffusers' layout: where it is, which of its files are read, and where they come from.

Without torch, which takes seconds to import: `--dry-run` shows the size of a prior.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from ld3m.errors import UserError, one_line
from ld3m.files import ASSETS
from ld3m.recipe import SamplerRecipe

PACKAGED_PRIORS = {
    "digits": ASSETS / "prior-digits",
    "fashion-mnist": ASSETS / "prior-fashion-mnist",
    "pixels": ASSETS / "prior-pixels",
}
"""Priors that come with the package, by the name that `prior.source` may give; "pixels" is none at all."""
DENOISERS = ("unet", "transformer")
"""The parts that have the recipe's precision; the others stay in float32."""
ON_DEMAND = ("text_encoder",)
"""Parts that are in memory for a moment only."""
UNUSED = ("safety_checker", "image_encoder", "feature_extractor")
"""Parts of pipelines that no prior reads."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number in each precision that a recipe may give a denoiser."""
WEIGHTS = re.compile(r"[^/]+/[^./]+\.(safetensors|bin)")
"""Weights of a part; not its variants, such as unet/diffusion_pytorch_model.fp16.safetensors."""


def check_source(source: str) -> None:
    """That `prior.source` is a packaged prior or a folder of one; the Hub is not asked.

    Raises:
        UserError: if it is not.
    """
    if source in PACKAGED_PRIORS or source.startswith("hub:") or (Path(source) / "model_index.json").is_file():
        return
    raise UserError(
        f"prior.source: {source!r} is not a folder with a model_index.json; make one with ld3m train-prior or "
        f"convert-prior, or give hub:<id> or one of {', '.join(PACKAGED_PRIORS)}"
    )


def fetch(source: str) -> Path:
    """The folder of a prior: itself, the package's, or a copy of the files of the Hub's that are read.

    Raises:
        UserError: if there is no such folder, or the Hub has none of the name or cannot be asked and there is no copy.
    """
    check_source(source)
    if not source.startswith("hub:"):
        return PACKAGED_PRIORS.get(source, Path(source))
    return _snapshot(source.removeprefix("hub:"))


@functools.cache  # what a command loads and what it notes of it are of one revision
def _snapshot(name: str) -> Path:
    """The folder of a repository's files that are read, downloaded unless they are on this machine."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        return Path(snapshot_download(name, allow_patterns=list(_hub_files(name))))
    except Exception as error:  # the client's own, httpx's and the file system's
        if isinstance(copy := try_to_load_from_cache(name, "model_index.json"), str):
            return Path(copy).parent
        raise UserError(f"prior.source: cannot fetch hub:{name}: {one_line(error)}") from None


def read_files(paths: Iterable[str]) -> list[str]:
    """The files of a prior that are read, out of all its files.

    Configurations, vocabularies, the card, and each part's weights: safetensors, or a .bin if there are none. Not the
    weights in the top folder, in other precisions and for other libraries, which repositories also hold.
    """
    chosen = []
    for part, files in groupby(sorted(paths), key=lambda path: path.partition("/")[0]):
        if part in UNUSED:
            continue
        texts, weights = [], []
        for path in files:
            if path.endswith((".json", ".txt")) or path == "README.md":
                texts.append(path)
            elif WEIGHTS.fullmatch(path):
                weights.append(path)
        chosen += texts + ([path for path in weights if path.endswith(".safetensors")] or weights)
    return sorted(chosen)


def _files(folder: Path) -> list[str]:
    """The files of a folder that are read."""
    return read_files(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@functools.cache
def _hub_files(name: str) -> dict[str, int]:
    """The files of a repository that are read, and their bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(name, recursive=True)
    sizes = {each.path: each.size for each in entries if isinstance(each, RepoFile)}
    return {path: sizes[path] for path in read_files(sizes)}


def provenance(source: str) -> dict[str, Any]:
    """Where a prior comes from: its kind, the Hub's revision, a digest of its files, its card's licence."""
    folder = fetch(source)
    content = hashlib.sha256()
    for name in _files(folder):
        if not name.endswith((".md", ".txt")):
            content.update(name.encode())
            with (folder / name).open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
    return {
        "source": source,
        "kind": json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"],
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
    """Parameters of a prior, and the bytes that they take on a process once loaded; nothing is fetched for it.

    From the headers of safetensors; a .bin, and a file on the Hub, is counted by its size, as if in float32.
    """
    if recipe.source.startswith("hub:"):
        try:
            sizes = _hub_files(recipe.source.removeprefix("hub:"))
        except Exception as error:
            raise UserError(f"prior.source: cannot ask the Hub for {recipe.source}: {one_line(error)}") from None
        counts = {name: size // 4 for name, size in sizes.items()}
    else:
        folder = fetch(recipe.source)
        counts = {name: _numbers(folder / name) for name in _files(folder) if WEIGHTS.fullmatch(name)}
    parameters = size = 0
    for name, count in counts.items():
        if WEIGHTS.fullmatch(name) and (part := name.partition("/")[0]) not in ON_DEMAND:
            parameters += count
            size += count * BYTES[recipe.dtype if part in DENOISERS else "float32"]
    return parameters, size


def _numbers(path: Path) -> int:
    """How many numbers a file of weights holds; safetensors begins with the length of its header, which is JSON."""
    if path.suffix == ".bin":
        return path.stat().st_size // 4
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)  # a damaged one may say anything
            header = json.loads(file.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"prior.source: {path} is no safetensors file ({one_line(error)}); get it again") from None
