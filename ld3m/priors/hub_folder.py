"""Priors on the Hub: what `hub:USER/NAME` names, and its files on this machine."""

import functools
import re
import sys
from pathlib import Path
from typing import NamedTuple

from ld3m.errors import UserError, one_line, some
from ld3m.priors.diffusers_layout import INDEXES, choose_weights, read_files

HUB_FOLDER = re.compile(r"hub:(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(?P<part>(/\w[^/@]*)*)/?(@(?P<revision>\w[\w./-]*))?")


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


@functools.cache  # what a command loads and what it notes of it are of one revision
def snapshot(hub: HubFolder, again: bool = False) -> Path:
    """The folder of a repository's files that are read, downloaded unless they are on this machine, or again."""
    from huggingface_hub import snapshot_download

    from ld3m.machine.hub import ask, explained

    try:
        wanted = [hub.part + path for path in hub_files(hub)]
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


@functools.cache
def hub_files(hub: HubFolder) -> dict[str, int]:
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
