"""A prior's folder in diffusers' layout: where it is, which of its files are read, and where they come from.

Without torch, which takes seconds to import: `--dry-run` shows the size of a prior.
"""

import functools
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field

from ld3m.errors import UserError, one_line, some
from ld3m.files import ASSETS
from ld3m.priors import known, stored
from ld3m.priors.file_kinds import SAFETENSORS, kind_of
from ld3m.reading import read_json, read_text
from ld3m.recipe import SamplerRecipe
from ld3m.recipe.files import shipped

PACKAGED_PRIORS = {
    **{name: each.outline for name, each in known.KNOWN.items() if not each.origin},
    "pixels": ASSETS / "prior-pixels",
}
"""Priors that come with the package, by the name that `prior.source` may give; "pixels" is none at all."""
DENOISERS = ("unet", "transformer")
"""The parts that have the recipe's precision; the others stay in float32."""
ON_DEMAND = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts that are in memory for a moment only."""
UNUSED = ("safety_checker", "image_encoder", "feature_extractor", "training", "vae_1_0", "text_encoders")
"""Folders that no prior reads: parts of pipelines, and what ld3m train-prior keeps."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number in each precision that a recipe may give a denoiser."""
WEIGHTS = re.compile(r"([^/]+/)?[^./]+(\.(?P<variant>fp16|bf16))?(-\d+-of-\d+)?\.(?P<format>safetensors|bin)")
"""Weights of a part, also in half precision, such as unet/diffusion_pytorch_model.fp16.safetensors."""
HUB_FOLDER = re.compile(r"hub:(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(?P<part>(/\w[^/@]*)*)/?(@(?P<revision>\w[\w./-]*))?")
INDEXES = ("model_index.json", "config.json")
"""What says what a folder holds: a whole prior, or an autoencoder alone."""
GET_AGAIN = "not a whole prior: get it again, or make one with ld3m train-prior or convert-prior"
"""Advice if a file of a prior is damaged."""


class HubFolder(NamedTuple):
    """A prior on the Hub: `hub:USER/NAME`, or a folder in it or a revision of it: `hub:USER/NAME/FOLDER@REVISION`."""

    name: str
    """Of the repository."""
    part: str
    """The folder in it, with a / behind it; empty for the top folder."""
    revision: str | None
    """A branch, tag or commit; None for the default branch."""

    @classmethod
    def of(cls, source: str) -> "HubFolder | None":
        """What `prior.source` names; None if it is not on the Hub.

        Raises:
            UserError: if there can be no such name.
        """
        if not source.startswith("hub:"):
            return None
        if not (match := HUB_FOLDER.fullmatch(source)):
            raise UserError(
                f"prior.source: {source!r} is no name on the Hub; give hub:USER/NAME, with /FOLDER and @REVISION "
                "behind it if need be, or a folder of this machine without hub:"
            )
        part = match["part"].strip("/")
        return cls(match["name"], f"{part}/" if part else "", match["revision"])


def check_source(source: str) -> None:
    """That `prior.source` is a known name, or a folder of a prior; no network is asked.

    A known name takes precedence over a folder, which is said.

    Raises:
        UserError: if it is not.
    """
    if source in PACKAGED_PRIORS or source in known.KNOWN:
        _say_which(source)
        return
    if HubFolder.of(source):
        return
    try:
        if any((Path(source) / name).is_file() for name in INDEXES):
            return
    except (OSError, ValueError) as error:  # no permission, a name that is too long
        raise UserError(f"prior.source: cannot look into {source!r} ({one_line(error)}); give another folder") from None
    if (recipe := f"prior-{Path(source).name}") in shipped():
        advice = f"ld3m train-prior {recipe} makes one, in priors/{Path(source).name}"
    elif near := known.meant(source):
        advice = f"did you mean {' or '.join(near)}?"
    else:
        names = ", ".join([*known.KNOWN, "pixels"])
        advice = f"make one with ld3m train-prior or convert-prior, or give hub:<id> or one of {names}"
    raise UserError(f"prior.source: {source!r} is not a folder with a model_index.json; {advice}")


@functools.cache
def _say_which(source: str) -> None:
    """Says that a known name is not taken for the folder of that name, if there is one; once, on one process."""
    if (Path(source) / "model_index.json").is_file() and (os.environ.get("RANK") or "0") == "0":
        print(f"prior.source: {source} is the known prior; ./{source} means the folder here", file=sys.stderr)


def fetch(source: str) -> Path:
    """The folder of a prior: itself, the package's, or a copy of the files of the Hub's that are read.

    Raises:
        UserError: if there is no such folder, or it cannot be fetched and there is no copy.
    """
    check_source(source)
    if hub := HubFolder.of(source):
        return snapshot(hub)
    if source in PACKAGED_PRIORS:
        return PACKAGED_PRIORS[source]
    if source in known.KNOWN:
        from ld3m.priors.getting import get

        return get(source)
    return Path(source)


def outline(source: str) -> Path:
    """A folder of a prior's configurations, which may be without weights; nothing is fetched.

    Raises:
        UserError: if there are none on this machine.
    """
    check_source(source)
    if source in known.KNOWN:
        return known.KNOWN[source].outline
    if not (hub := HubFolder.of(source)):
        return fetch(source)
    if copy := copy_of(hub):
        return copy
    revision = f" --revision {hub.revision}" if hub.revision else ""
    raise UserError(
        f"prior.source: {source} is not on this machine; its configurations are enough: hf download {hub.name}"
        f"{revision} --include '{hub.part}*.json'; or give a known name, as cin256-v2"
    )


@functools.cache  # what a command loads and what it notes of it are of one revision
def snapshot(hub: HubFolder, again: bool = False) -> Path:
    """The folder of a repository's files that are read, downloaded unless they are on this machine, or again."""
    from huggingface_hub import snapshot_download

    from ld3m.machine.hub import ask, explained

    try:
        wanted = [hub.part + path for path in _hub_files(hub)]
        copy = ask(
            lambda: snapshot_download(hub.name, revision=hub.revision, allow_patterns=wanted, force_download=again)
        )
        return Path(copy) / hub.part
    except UserError:
        raise
    except Exception as error:  # the client's own, httpx's and the file system's
        if before := copy_of(hub):
            print(f"ld3m: prior.source: {one_line(error)}; what was fetched before is used", file=sys.stderr)
            return before
        at = f"@{hub.revision}" if hub.revision else ""
        source = f"hub:{hub.name}{'/' + hub.part.rstrip('/') if hub.part else ''}{at}"
        raise UserError(f"prior.source: cannot fetch {source}: {explained(error)}") from None


def copy_of(hub: HubFolder) -> Path | None:
    """The folder on this machine that was fetched before, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    copies = (try_to_load_from_cache(hub.name, f"{hub.part}{name}", revision=hub.revision) for name in INDEXES)
    return next((Path(copy).parent for copy in copies if isinstance(copy, str)), None)


# --- the files that are read -------------------------------------------------------------------------------


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


@functools.cache
def _hub_files(hub: HubFolder) -> dict[str, int]:
    """The files of a folder on the Hub that are read, by their paths in it, and their bytes.

    Raises:
        UserError: if there is no prior in it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    from ld3m.machine.hub import ask

    entries = ask(lambda: list(HfApi().list_repo_tree(hub.name, recursive=True, revision=hub.revision)))
    every = {each.path: each.size for each in entries if isinstance(each, RepoFile)}
    sizes = {path.removeprefix(hub.part): size for path, size in every.items() if path.startswith(hub.part)}
    if INDEXES[0] not in sizes and not (INDEXES[1] in sizes and choose_weights(read_files(sizes)).files):
        priors = sorted(path.rpartition("/")[0] for path in every if path.endswith("/model_index.json"))
        elsewhere = f"it has priors in {some(priors)}" if priors else "it holds no prior in diffusers' layout"
        raise UserError(f"prior.source: hub:{hub.name} has no {hub.part}model_index.json; {elsewhere}")
    return {path: sizes[path] for path in read_files(sizes)}


# --- what they say -----------------------------------------------------------------------------------------


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


def provenance(source: str) -> dict[str, Any]:
    """Where a prior comes from: its kind, the Hub's revision, a digest of its files, its card's licence.

    Raises:
        UserError: if one of them cannot be read.
    """
    folder = fetch(source)
    content = hashlib.sha256()
    digests = {name: stored.digest(folder / name) for name in weighty_files(folder)}
    for name, digest in digests.items():
        content.update(name.encode(errors="surrogateescape"))
        content.update(bytes.fromhex(digest))
    about, noted = known.KNOWN.get(source), stored.note(source) if source in known.KNOWN else None
    if noted:
        stored.compare(source, noted, digests)
    hub = HubFolder.of(noted.origin if noted else source)
    commit = folder.parents[hub.part.count("/") - 1] if hub and hub.part else folder
    return {
        "source": source,
        "kind": read_index(folder).kind,
        "revision": commit.name if hub else None,
        "sha256": content.hexdigest(),
        "licence": _licence(folder) or (about.licence if about else None),
    }


@functools.cache
def _licence(folder: Path) -> str | None:
    """What the model card in the folder says, if anything; a card that cannot be read is reported."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.exists():
        return None
    try:
        data: Any = ModelCard(read_text(path, "mend or remove it")).data
        licence = data.license
    except UserError as error:
        why = str(error)
    except Exception as error:  # PyYAML's, and the client's own
        why = f"{path} has damaged front matter ({one_line(error)})"
    else:
        return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence) if licence else None
    print(f"prior.source: {why}; its licence is unknown", file=sys.stderr)
    return None


def weight_bytes(recipe: SamplerRecipe) -> tuple[int, int]:
    """Parameters of a prior, and the bytes that they take on a process once loaded; nothing is fetched for it.

    Of a known name as its table says; from the headers of safetensors; a .bin, and a file on the Hub, is counted by its
    size and the precision in its name.
    """
    if (about := known.KNOWN.get(recipe.source)) and about.origin:
        denoiser, others = about.parameters
        return denoiser + others, denoiser * BYTES[recipe.dtype] + others * BYTES["float32"]
    if hub := HubFolder.of(recipe.source):
        try:
            counts = {name: size // _width(name) for name, size in _hub_files(hub).items()}
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"prior.source: cannot ask the Hub for {recipe.source}: {one_line(error)}") from None
    else:
        folder = fetch(recipe.source)
        counts = {name: _numbers(folder, name) for name in files_of(folder) if WEIGHTS.fullmatch(name)}
    parameters = size = 0
    for name, count in counts.items():
        if WEIGHTS.fullmatch(name) and (part := name.partition("/")[0]) not in ON_DEMAND:
            parameters += count
            size += count * BYTES[recipe.dtype if part in DENOISERS else "float32"]
    return parameters, size


def _width(name: str) -> int:
    """Bytes per number that a file's name promises."""
    match = WEIGHTS.fullmatch(name)
    return 2 if match and match["variant"] else 4


def _numbers(folder: Path, name: str) -> int:
    """How many numbers a file of weights holds; safetensors begins with the length of its header, which is JSON."""
    path = folder / name
    try:
        if path.suffix == ".bin":
            return path.stat().st_size // _width(name)
        if (kind := kind_of(path)) != SAFETENSORS:
            raise ValueError(kind)
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)  # a damaged one may say anything
            header = json.loads(file.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except OSError as error:
        raise UserError(f"prior.source: cannot read {path} ({error.strerror}); {GET_AGAIN}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"prior.source: {path} is no safetensors file ({one_line(error)}); get it again") from None
