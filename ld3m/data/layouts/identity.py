"""What a source's files are, as one digest: it decides whether images are prepared again."""

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHEAP = 2**28
"""Bytes of all files up to which their contents are read, some 60,000 small images; of more, only path, size and time
of change are looked at."""
READERS = 8
"""Threads, since a file on a network costs more waiting than reading."""

AT_ONCE = 64
"""Files that a thread is given at a time: handing over one costs as much as reading a small image does."""


class Identity:
    """Collects the files of a source.

    Up to `CHEAP` bytes, the digest changes with the content of any file, its path and its mark, and with nothing else;
    beyond, with its size and time of change in place of the content.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._stamps = hashlib.sha256()
        self._files: list[tuple[str, Path]] = []

    def add(self, path: Path, mark: str = "") -> None:
        """Takes in a file; a link counts as the file that it leads to, and may lead nowhere.

        Args:
            mark: what else decides its part in the source, such as split and class.
        """
        try:
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                path, status = path.resolve(), path.stat()
            described = f"{mark} {path} {status.st_size} {status.st_mtime_ns}"
            self._bytes += status.st_size
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            described = f"{mark} {path} is not there"
        self._stamps.update(_line(described))
        if self._bytes <= CHEAP:
            self._files.append((mark, path))
        else:
            self._files.clear()  # 1.3 million paths would take a few hundred megabytes

    def digest(self) -> str:
        """64 hexadecimal digits; the order in which files were added counts."""
        if self._bytes > CHEAP:
            return self._stamps.hexdigest()
        contents = hashlib.sha256()
        with ThreadPoolExecutor(READERS) as pool:
            parts = [self._files[start : start + AT_ONCE] for start in range(0, len(self._files), AT_ONCE)]
            for lines in pool.map(_contents, parts):
                contents.update(lines)
        return contents.hexdigest()


def _contents(files: list[tuple[str, Path]]) -> bytes:
    return b"".join(_line(f"{mark} {path} {_content(path)}") for mark, path in files)


def _content(path: Path) -> str:
    """A digest of a file's content, or why it cannot be read; only regular files are opened, since a pipe waits."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "no regular file"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _line(text: str) -> bytes:
    return f"{text}\n".encode(errors="surrogateescape")  # names of files need not be UTF-8
