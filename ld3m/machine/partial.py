"""The beginning of a file that is being fetched: what it is the beginning of, and whether it is undamaged."""

import glob
import hashlib
import os
import time
from pathlib import Path

from pydantic import BaseModel, NonNegativeInt

from ld3m.errors import UserError
from ld3m.files import cache_key, flush, write_text
from ld3m.reading import read_json

SAVE_EVERY = 1.0
"""Seconds between two notes: a process that is killed loses so much of its work."""


class Note(BaseModel):
    """What a part is the beginning of, and how much of it is safe."""

    key: str
    """The address's `cache_key`; an address may hold a password."""
    validator: str | None
    """The file's ETag, or else when it was changed; None if the server says neither."""
    length: int | None
    """Of the whole file in bytes; None if the server does not say."""
    saved: NonNegativeInt
    """Bytes that were flushed to the disk."""
    sha256: str
    """Of these bytes."""


class Part:
    """The beginning of a file, beside its place under its name and `.part`, and a note beside that.

    Attributes:
        offset: bytes that are there.
        content: their SHA-256.
        validator, length: of the whole file, as in `Note`.
        dropped: why what an earlier process left is not used; None if it is, or nothing was left.
    """

    def __init__(self, path: Path, url: str) -> None:
        """Takes what an earlier process left, as far as its note has it.

        Args:
            path: of the whole file.
            url: that it is fetched from.
        """
        self._path, self._note_path = beside(path, ".part"), beside(path, ".part.json")
        self._key, self.dropped = cache_key(url), None
        left = self._path.is_file()
        self._file = self._path.open("r+b" if left else "w+b", buffering=0)  # what a full disk refuses is not kept
        try:
            if not left:
                raise UserError("nothing is there")
            self._resume()
        except UserError as error:
            self.dropped = str(error) if left else None
            self.restart()

    def _resume(self) -> None:
        """Raises a UserError if the part is not what its note says."""
        note = read_json(self._note_path, Note, "it is fetched again", "its note")
        if note.key != self._key:
            raise UserError("it is of another address")
        content, left = hashlib.sha256(), note.saved
        while left and (block := self._file.read(min(left, 2**20))):
            content.update(block)
            left -= len(block)
        if left or content.hexdigest() != note.sha256:
            raise UserError("it is damaged")
        self._file.truncate()  # what was written after the note
        self.offset, self.content, self.validator, self.length = note.saved, content, note.validator, note.length
        self._saved_at = time.monotonic()

    def restart(self) -> None:
        """Begins the file again."""
        self.offset, self.content, self.validator, self.length = 0, hashlib.sha256(), None, None
        self._file.seek(0)
        self._file.truncate()
        self.save()

    def write(self, chunk: bytes) -> None:
        """Appends bytes, which are safe a second later."""
        while chunk:
            count = self._file.write(chunk)  # a disk may take a part
            self.content.update(chunk[:count])
            self.offset += count
            chunk = chunk[count:]
        if time.monotonic() >= self._saved_at + SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Flushes what is there to the disk, then notes it."""
        os.fsync(self._file.fileno())
        values = {"key": self._key, "validator": self.validator, "length": self.length}
        note = Note(**values, saved=self.offset, sha256=self.content.hexdigest())
        write_text(self._note_path, note.model_dump_json())
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Saves what is there, if anything is, unless it has become the file or was removed."""
        if not self.offset:
            self.remove()
        elif not self._file.closed:
            try:
                self.save()
            finally:
                self._file.close()

    def remove(self) -> None:
        """Leaves nothing behind."""
        self.offset = 0
        self._file.close()
        self._path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def become(self, path: Path) -> None:
        """Makes it the file, in one step."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(path)
        flush(path.parent)
        self._note_path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what a killed process left beside a file and that no other needs; nobody else must be at work there."""
    note = beside(path, ".part.json")
    for temporary in path.parent.glob(f".{glob.escape(note.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)
    if not beside(path, ".part").exists():
        note.unlink(missing_ok=True)


def beside(path: Path, ending: str) -> Path:
    """The path with an ending after its name."""
    return path.with_name(path.name + ending)
