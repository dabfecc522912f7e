"""Files that are either whole or missing: written under a temporary name, flushed, renamed; and the cache folder.

If that is impossible (a full disk, a folder without write access), the old file stays, and a UserError says so.
Importing this module imports neither torch nor PIL.
"""

import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from ld3m.errors import UserError, one_line

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

PACKAGE = Path(__file__).parent
ASSETS = PACKAGE / "assets"
"""Files that come with the package."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of files and folders that are being written."""
ANOTHER_CACHE = "set LD3M_CACHE to a folder that can be written to"
"""Advice if the cache folder cannot be written to."""


def cache_folder() -> Path:
    """The folder of prepared data, scores and baselines: $LD3M_CACHE, or ld3m below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LD3M_CACHE") or Path(base) / "ld3m")


def cache_key(description: Any, *content: bytes | memoryview) -> str:
    """The name under which something is kept in the cache: 20 hexadecimal digits of a SHA-256.

    Args:
        description: whatever decides the content, as a JSON value; the order of keys does not matter, nor whether a
            whole number is written 2 or 2.0: a default and the same value read from a recipe's file may differ in that.
        content: bytes that decide it too, such as pixels; they are not copied.
    """
    digest = hashlib.sha256(json.dumps(_whole_as_int(description), sort_keys=True).encode())
    for part in content:
        digest.update(part)
    return digest.hexdigest()[:20]


def _whole_as_int(value: Any) -> Any:
    """A JSON value in which whole numbers are int, however deep."""
    if isinstance(value, dict):
        return {key: _whole_as_int(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_as_int(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tensors_digest(tensors: "Mapping[str, Tensor]") -> str:
    """The SHA-256 of tensors' names and values, in the order of their names; 64 hexadecimal digits."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode())
        content.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def writable(folder: Path, instead: str) -> Path:
    """Makes a folder if it is missing, and returns it.

    Args:
        instead: what to give if that is impossible; the error ends with it.

    Raises:
        UserError: if the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); {instead}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}; {instead}")
    return folder


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which the caller writes to and renames; whatever is left of it is removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing below a folder, in which nobody is at work."""
    for path in list(folder.rglob(".*.tmp")):
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; at the end the file is flushed and replaces `path`."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the name of a file")
    with _temporary(path) as temporary:
        yield temporary
        flush(temporary)
        temporary.replace(path)


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or one_line(error)
    return UserError(
        f"cannot write {path} ({reason}); what was saved before is whole, and the same command resumes from it"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step; a crash leaves the old file or the new one, never a part."""
    with _replaced(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text; a part of a name that is not UTF-8 is escaped, as JSON and YAML do."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON document."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """`write_bytes` for a safetensors file; tensors on the CPU are not copied."""
    import safetensors.torch

    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _replaced(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask's; safetensors writes files that only the user can read
        safetensors.torch.save_file(content, temporary, dict(metadata) if metadata else None)
        temporary.chmod(mode)


def write_image(path: Path, image: "Image.Image") -> None:
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
            flush(file)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def append_line(path: Path, line: str) -> None:
    """Appends a line; a crash may leave a part of it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


def flush(path: Path) -> None:
    """Flushes a file's content, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
