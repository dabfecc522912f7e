"""Files that are either whole or not there: written under a temporary name, flushed, renamed.

Where that is impossible (a full disk, a folder that cannot be written to), the old file stays, and a UserError says so.
"""

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from PIL import Image
from torch import Tensor

from ld3m.errors import UserError, one_line

PACKAGE = Path(__file__).parent
ASSETS = PACKAGE / "assets"
"""Files that come with the package."""


ANOTHER_CACHE = "set LD3M_CACHE to a folder that can be written to"
"""What to do where the cache is not one."""


def cache_folder() -> Path:
    """Where prepared data is kept: $LD3M_CACHE, or ld3m below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LD3M_CACHE") or Path(base) / "ld3m")


def writable(folder: Path, instead: str) -> Path:
    """A folder that files can be written to, made where it is not there; the error ends in what to give `instead`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); {instead}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}; {instead}")
    return folder


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under, which the caller renames; what is left of it is removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write under; what is there at the end is flushed and takes its place."""
    with _temporary(path) as temporary:
        yield temporary
        _flush(temporary)
        temporary.replace(path)


def _cannot_write(path: Path, error: Exception) -> UserError:
    why = getattr(error, "strerror", None) or one_line(error)
    return UserError(
        f"cannot write {path} ({why}); what was saved before is whole, and the same command goes on from it"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step; a crash leaves the old file or the new one, never a part."""
    with _replaced(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON document."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """As `write_bytes`, a safetensors file; tensors that lie on the CPU are not copied."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _replaced(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors makes files that only they can read
        safetensors.torch.save_file(content, temporary, dict(metadata) if metadata else None)
        temporary.chmod(mode)


def write_image(path: Path, image: Image.Image) -> None:
    """`write_bytes` for a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write a folder under a temporary name, then renames it to `path`.

    If another process finished the same folder meanwhile, its copy stays and ours is dropped.
    """
    with _temporary(path) as temporary:
        temporary.mkdir()
        fill(temporary)
        for file in temporary.rglob("*"):
            _flush(file)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def append_line(path: Path, line: str) -> None:
    """Adds a line; a crash may leave a part of it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


def _flush(path: Path) -> None:
    """Sees a file's content, or the names in a folder, onto the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle of a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
