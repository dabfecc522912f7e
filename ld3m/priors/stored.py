"""Which known priors are on this machine, and whether their files are still those that were fetched.

Each has a note beside its folder in the cache, written once all of it is there. No network is asked.
"""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from ld3m.errors import UserError, one_line
from ld3m.files import cache_folder, write_json
from ld3m.priors.known import KNOWN
from ld3m.reading import read_json


class FileNote(BaseModel):
    """A file as it was fetched or made."""

    size: int
    """Bytes."""
    changed: int
    """When it was last changed, in nanoseconds."""
    sha256: str


class Note(BaseModel):
    """What is noted of a prior once it is here."""

    folder: str
    """Where it is, from the note's own folder if it is in that."""
    origin: str
    """Where it was fetched from, or the file that it was made of."""
    files: dict[str, FileNote]
    """Those that a run reads and notes a digest of."""


def shelf() -> Path:
    """The folder of known priors in the cache."""
    return cache_folder() / "priors"


def note_path(name: str) -> Path:
    """Where the note on a prior is."""
    return shelf() / f"{name}.json"


def again(name: str) -> str:
    """What to do if a prior's files are damaged."""
    return f"get it again: ld3m priors get {name} --again"


def note(name: str) -> Note | None:
    """The note on a prior; None if it is not on this machine.

    Raises:
        UserError: if the note is damaged.
    """
    path = note_path(name)
    return read_json(path, Note, again(name), f"prior.source: {path}") if path.is_file() else None


def here(name: str) -> Path | None:
    """The folder of a prior that is on this machine, after a look at its files; None if it is not.

    A file whose time of change differs, as a copy's may, is compared by its digest.

    Raises:
        UserError: if a file is not as it was fetched.
    """
    if (noted := note(name)) is None:
        return None
    folder = shelf() / noted.folder
    if not folder.is_dir():  # the Hub's cache, or all of ours, was emptied
        return None
    copied = False
    for file, before in noted.files.items():
        try:
            now = (folder / file).stat()
        except OSError as error:
            raise UserError(
                f"prior.source: {name}: cannot look at {folder / file} ({error.strerror}); {again(name)}"
            ) from None
        if now.st_size != before.size:
            raise UserError(
                f"prior.source: {name}: {folder / file} has {now.st_size:,} bytes, not {before.size:,}; {again(name)}"
            )
        if now.st_mtime_ns != before.changed:
            compare(name, noted, {file: digest(folder / file)})
            before.changed, copied = now.st_mtime_ns, True
    if copied:
        with suppress(UserError):  # of a cache that others may only read
            write_json(note_path(name), noted.model_dump())
    return folder


def is_to_be_fetched(source: str) -> bool:
    """Whether `prior.source` is a known prior that is not on this machine."""
    known = KNOWN.get(source)
    return known is not None and known.origin is not None and here(source) is None


def compare(name: str, noted: Note, digests: Mapping[str, str]) -> None:
    """That digests of a prior's files are those that were noted.

    Raises:
        UserError: naming the first file that differs.
    """
    for file, found in digests.items():
        if file in noted.files and noted.files[file].sha256 != found:
            raise UserError(
                f"prior.source: {name}: {shelf() / noted.folder / file} is not as it was fetched (its digest differs); "
                f"{again(name)}"
            )


def write_note(name: str, folder: Path, origin: str, files: Iterable[str]) -> None:
    """Notes that a prior is here; `files` are those whose digests are kept."""
    entries = {}
    for file in files:
        path = folder / file
        seen = path.stat()
        entries[file] = FileNote(size=seen.st_size, changed=seen.st_mtime_ns, sha256=digest(path))
    ours = folder.parent == shelf()
    content = Note(folder=folder.name if ours else str(folder.absolute()), origin=origin, files=entries)
    write_json(note_path(name), content.model_dump())


def digest(path: Path) -> str:
    """The SHA-256 of a file of a prior, in hexadecimal digits.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"prior.source: cannot read {path} ({error.strerror or one_line(error)}); get it again"
        ) from None
