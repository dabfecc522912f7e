"""Runs that were pushed to the Hugging Face Hub, as folders in the layout of a run."""

import functools
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ld3m.errors import UserError, user_error_if_damaged
from ld3m.files import write_folder
from ld3m.machine.hub import ask, explained, status_of
from ld3m.reading import read_metadata
from ld3m.runs import labels, weights
from ld3m.runs.folder import IMPORTED, check_folder_names, parse_metadata

T = TypeVar("T")
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
"""A data set of the Hub with a config and a branch, tag or commit: me/garments:ipc1-32px@main."""
COPIED = ("metrics.jsonl", "grid.png", weights.FILE)
"""Files of a run that are in its config's folder unchanged, if the run has them."""
WRITTEN = ("recipe.yaml", "prior.json", "evaluation.json")
"""Files that are there without paths of the machine they were made on."""


def fetch(name: str) -> Path | None:
    """Downloads a pushed run into a folder below imported/, in the layout of a run; None for other data sets.

    Args:
        name: `user/name`, with `:config` if it has several, and `@revision` for a branch, tag or commit.

    Raises:
        UserError: if there is no such data set or config, or the Hub cannot be reached.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise UserError(f"{name}: not the name of a data set; give USER/NAME, USER/NAME:CONFIG or USER/NAME@REVISION")
    repo, config, revision = match["repo"], match["config"], match["revision"]
    from huggingface_hub import HfApi, snapshot_download

    files = _ask_hub(name, lambda: HfApi().list_repo_files(repo, repo_type="dataset", revision=revision))
    recipes = [path for path in files if path.count("/") == 1 and path.endswith("/recipe.yaml")]
    configs = sorted(path.partition("/")[0] for path in recipes)
    if not configs:
        return None
    if (config and config not in configs) or (not config and len(configs) > 1):
        raise UserError(f"{name}: has the configs {', '.join(configs)}; name one, as in {repo}:{configs[0]}")
    config = config or configs[0]
    wanted = [f"{config}/*", f"latents/{config}.safetensors"]
    copy = Path(
        _ask_hub(name, lambda: snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted))
    )
    folder = IMPORTED / f"{repo.replace('/', '-')}-{config}-{copy.name[:8]}"
    if not folder.is_dir():
        write_folder(folder, functools.partial(_unpack, copy, config))
    return folder


def _unpack(copy: Path, config: str, target: Path) -> None:
    """Writes the images of a config by class, byte for byte as its Parquet files hold them, and its other files.

    Raises:
        UserError: if the names of classes cannot be folders, or the images are of other classes than the latents.
    """
    import datasets
    import pyarrow.parquet

    published = copy / "latents" / f"{config}.safetensors"
    name, advice = f"latents/{published.name}", "nothing of this data set is kept; ask who pushed it to push it again"
    names = parse_metadata(name, read_metadata(published, advice, name), advice).classes
    check_folder_names(names, config)
    counts = Counter[str]()
    shutil.copyfile(published, target / "latents.safetensors")
    for part in sorted((copy / config).glob("*.parquet")):
        with user_error_if_damaged(f"{config}/{part.name}", advice):
            table = pyarrow.parquet.read_table(part)
            if datasets.Features.from_arrow_schema(table.schema)["label"].names != names:
                raise UserError(f"{config}: {part.name} has other classes than the latents; {advice}")
            for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
                if not 0 <= label < len(names):
                    raise ValueError(f"it has the label {label}")
                folder = target / "images" / names[label]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{counts[names[label]]}.png").write_bytes(image["bytes"])
                counts[names[label]] += 1
    if (copy / config / labels.FOLDER).is_dir():
        shutil.copytree(copy / config / labels.FOLDER, target / labels.FOLDER)
    for file in (*COPIED, *WRITTEN):
        if (copy / config / file).is_file():
            shutil.copyfile(copy / config / file, target / file)


def _ask_hub(name: str, call: Callable[[], T]) -> T:
    """The Hub's answer to a request about a data set, tried several times; an error is the user's to read."""
    try:
        return ask(call)
    except Exception as error:
        if status_of(error)[0] in (401, 403, 404):
            raise UserError(
                f"{name}: there is no such data set on the Hub, or it is not yours to see; give another name or "
                "revision, or log in with hf auth login"
            ) from None
        raise UserError(f"{name}: cannot be fetched from the Hub: {explained(error)}") from None
