"""What `prior.source` names: its folder, fetched if need be, where it comes from, and its size.

Without torch, which takes seconds to import: `--dry-run` shows the size of a prior.
"""

import functools
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from ld3m.errors import UserError, one_line
from ld3m.files import ASSETS
from ld3m.launched import say_once
from ld3m.priors import known, stored
from ld3m.priors.diffusers_layout import GET_AGAIN, INDEXES, WEIGHTS, files_of, read_index, weighty_files
from ld3m.priors.file_kinds import SAFETENSORS, kind_of
from ld3m.priors.hub_folder import HubFolder, copy_of, hub_files, snapshot
from ld3m.reading import read_text
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
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number in each precision that a recipe may give a denoiser."""


def check_prior_source(source: str) -> None:
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
    if (Path(source) / "model_index.json").is_file():
        say_once(f"prior.source: {source} is the known prior; ./{source} means the folder here")


def fetch(source: str) -> Path:
    """The folder of a prior: itself, the package's, or a copy of the files of the Hub's that are read.

    Raises:
        UserError: if there is no such folder, or it cannot be fetched and there is no copy.
    """
    check_prior_source(source)
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
    check_prior_source(source)
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
            counts = {name: size // _width(name) for name, size in hub_files(hub).items()}
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
