"""Files that are either whole or not there: written under a temporary name, flushed, renamed."""

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from PIL import Image
from torch import Tensor


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write under; what is there at the end is flushed and takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir()
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
