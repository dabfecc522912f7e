"""Folders and the images in them, as a file system has them: links, loops, pipes, hidden files, names of any bytes."""

import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ld3m.data.decoding.formats import SUFFIXES, is_image
from ld3m.errors import UserError

HIDDEN = (
    "__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db",
    "desktop.ini",
)  # fmt: skip
"""What systems and tools leave beside images, as they do whatever begins with a dot."""


def image_files(root: Path, ignored: list[str] | None = None) -> list[str]:
    """Images anywhere below a folder, by their paths below it, in order.

    Linked folders are followed, each folder once, and never back to one that holds this folder. Links that lead
    nowhere, pipes and the like are among them if they are named as images are, so that they are reported.

    Args:
        ignored: takes the paths of files that are no images.

    Raises:
        UserError: naming a folder that cannot be read.
    """
    return ["/".join(parts) for parts in sorted(_walk(root, ignored))]


def holds_images(folder: Path) -> bool:
    """Whether there is an image anywhere below a folder."""
    return has_images_itself(folder) or any(True for _ in _walk(folder))


def has_images_itself(folder: Path) -> bool:
    """Whether there is an image in a folder, not only in folders below it."""
    with _scanned(folder) as entries:  # which stops at the first: a class may have thousands
        return any(_is_image(entry) for entry in entries)


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder."""
    return not _entries(folder)


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in order; linked ones too, unless they lead back to one that holds it."""
    entries = [entry for entry in _entries(folder) if _is_folder(entry)]
    if any(entry.is_symlink() for entry in entries):
        way = {each.resolve() for each in (folder, *folder.parents)} | set(folder.resolve().parents)
        entries = [entry for entry in entries if not (entry.is_symlink() and Path(entry.path).resolve() in way)]
    return [folder / entry.name for entry in entries]


def printable(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are read as Windows' western letters, which most such names are.

    Letters with accents are one character each, however the file system takes them apart.
    """
    content = os.fsencode(name)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    return unicodedata.normalize("NFC", text)


def files_below(root: Path, suffixes: tuple[str, ...], deepest: int = 4) -> list[Path]:
    """The files of some endings in a folder and in those below it that hold no images themselves, in order."""
    found = [root / entry.name for entry in _entries(root) if entry.name.lower().endswith(suffixes)]
    below = [folder for folder in sub_folders(root) if deepest and not has_images_itself(folder)]
    files = [path for path in found if not path.is_dir()]
    return files + [path for folder in below for path in files_below(folder, suffixes, deepest - 1)]


def is_hidden(path: str) -> bool:
    """Whether a part of a path is what systems and tools leave beside images."""
    return any(part.startswith(".") or part in HIDDEN for part in path.split("/"))


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name, which may be no name at all: too long, or of odd characters."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def check_regular(path: Path) -> None:
    """Raises an OSError if there is no regular file: opening a pipe would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")


def _walk(root: Path, ignored: list[str] | None = None) -> Iterator[tuple[str, ...]]:
    """The images below a folder, each by the parts of its path."""
    visited = {_identity(folder) for folder in root.resolve().parents}
    pending: list[tuple[Path, tuple[str, ...]]] = [(root, ())]
    links: list[tuple[Path, tuple[str, ...]]] = []
    while pending or links:  # what is really there comes before what is linked
        folder, parts = pending.pop() if pending else links.pop(0)
        if (identity := _identity(folder)) in visited:
            continue
        visited.add(identity)
        for entry in _entries(folder):
            below = (*parts, entry.name)
            if _is_folder(entry):
                (links if entry.is_symlink() else pending).append((folder / entry.name, below))
            elif _is_image(entry):
                yield below
            elif ignored is not None:
                ignored.append(printable(str(root.joinpath(*below))))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in order, so that nothing depends on the file system's."""
    with _scanned(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


@contextmanager
def _scanned(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """What is in a folder, but for what is hidden, in any order."""
    try:
        with os.scandir(folder) as entries:
            yield (entry for entry in entries if not is_hidden(entry.name))
    except OSError as error:
        raise UserError(
            f"data.source: cannot read the folder {printable(str(folder))} ({error.strerror}); change its permissions, "
            "or give another"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    return not _is_folder(entry) and (entry.name.lower().endswith(SUFFIXES) or is_image(Path(entry.path)))


def _identity(folder: Path) -> tuple[int, int]:
    """What is the same for all names of one folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino
