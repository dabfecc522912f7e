"""Images in tars, read where they are: a tar is indexed once, and each image is found by its place in the file."""

import stat
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ld3m.data.decoding.formats import SUFFIXES, UnreadableImageError, open_image
from ld3m.data.layouts.listing import is_hidden, printable
from ld3m.data.sealed import Sealed, read_sealed
from ld3m.errors import UserError, one_line
from ld3m.files import cache_folder, cache_key
from ld3m.reading import HEAD, foreign_kind

BLOCK = 512
"""Bytes of a header, and of the zeros that end a tar (POSIX.1-1988; GNU tar's manual, "Basic Tar Format")."""
MOST_PADDING = 2**20
"""Bytes that may follow the last file: GNU tar fills up to 10 KiB unless a larger blocking factor is set."""
OFFICIAL = {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160}
"""Bytes of ImageNet's tars."""
AGAIN = "download or copy it again"


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    offset: int
    """Where its content begins, in bytes from the beginning of the outermost file."""
    size: int


class Tar(NamedTuple):
    """A tar that is not compressed, and may itself be a member of another."""

    path: Path
    """The file on disk."""
    member: Member | None = None
    """Which of its members, if the tar lies in it."""

    def __str__(self) -> str:
        return printable(str(self.path)) + (f"/{self.member.name}" if self.member else "")

    def members(self) -> list[Member]:
        """Its regular files, but for what is hidden, in the order of their names' parts.

        The index is kept in the cache by path, size and time of change, since it takes a read for each member.

        Raises:
            UserError: if the tar cannot be read, is something else, or does not end as a tar does.
        """
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{self} is no regular file; put the tar itself there")
            about = [str(self.path.resolve()), status.st_size, status.st_mtime_ns, self.member]
            cached = cache_folder() / "tars" / f"{cache_key(about)}.json"
            index = _cached(cached)
            if index is None:
                index = self._read_index(status.st_size)
                index.write(cached)
        except OSError as error:
            raise UserError(f"cannot read {self} ({error.strerror or one_line(error)}); make it readable") from None
        members = (Member(name, int(offset), int(size)) for name, offset, size in index.rows())
        return sorted((each for each in members if not is_hidden(each.name)), key=lambda each: each.name.split("/"))

    def images(self, ignored: list[str]) -> list[Member]:
        """Its images, by their names' endings; the names of what is none go to `ignored`."""
        members = self.members()
        ignored += [f"{self}/{each.name}" for each in members if not is_image_name(each.name)]
        return [each for each in members if is_image_name(each.name)]

    def inside(self, member: Member) -> "Tar":
        """A tar that is a member of this one."""
        return Tar(self.path, member)

    def _sizes(self, file_size: int) -> str:
        """How large it is, and should be if that is known."""
        size = self.member.size if self.member else file_size
        official = OFFICIAL.get(self.path.name) if not self.member else None
        return f"it has {size:,} bytes" + (f", ImageNet's own {official:,}" if official else "")

    def _read_index(self, file_size: int) -> "_Index":
        start, end = (self.member.offset, self.member.offset + self.member.size) if self.member else (0, file_size)
        found: list[Member] = []
        with self.path.open("rb") as file:
            file.seek(start)
            head = file.read(min(HEAD, end - start))
            if head[257:262] != b"ustar" and (kind := foreign_kind(head)):
                raise UserError(f"{self} is {kind}")
            file.seek(start)
            try:
                archive = tarfile.TarFile(fileobj=file)
                while info := archive.next():
                    if info.isreg() and not info.sparse:
                        name = info.name.encode(errors="surrogateescape").decode(errors="replace").replace("\0", "?")
                        found.append(Member(name.removeprefix("./"), info.offset_data, info.size))
                stopped = archive.offset
            except (tarfile.TarError, ValueError, LookupError, ArithmeticError, EOFError) as error:
                if "end of data" in str(error):
                    raise UserError(f"{self} is not whole: {self._sizes(file_size)}; {AGAIN}") from None
                raise UserError(f"{self} is no tar, or damaged ({one_line(error)}); {AGAIN}") from None
            file.seek(stopped)
            closing = file.read(BLOCK)
        if len(closing) < BLOCK or not stopped + BLOCK <= end < stopped + MOST_PADDING:  # else made ready, not filled
            raise UserError(f"{self} is not whole: {self._sizes(file_size)}; {AGAIN}")
        if closing.strip(b"\0"):
            raise UserError(f"{self} is damaged at byte {stopped:,}; {AGAIN}")
        return _Index(members="\0".join(f"{size}/{offset}/{name}" for name, offset, size in found))


class _Index(Sealed):
    """The members of a tar, as the cache keeps them."""

    members: str
    """Size, offset and name of each, with slashes between; one text, since 50,000 values would take seconds."""

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Name, offset and size of each member."""
        for row in self.members.split("\0") if self.members else ():
            size, offset, name = row.split("/", 2)
            yield name, offset, size


def _cached(path: Path) -> _Index | None:
    """An index that was kept; None if there is none, or it is damaged."""
    try:
        return read_sealed(path, _Index, "it is made again") if path.exists() else None
    except UserError:
        return None


def is_image_name(name: str) -> bool:
    """Whether a member is an image, by its name: nothing is read."""
    return name.lower().endswith(SUFFIXES)


def open_member(path: Path, offset: int, size: int) -> Image.Image:
    """An image inside a file on disk, which is not loaded yet.

    Raises:
        UnreadableImageError: if it is not an image that Pillow reads, or the file ends before it does.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise UnreadableImageError("the tar ends before it does")
    return open_image(BytesIO(content))
