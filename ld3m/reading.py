"""Files that are read: what is in them is checked first, and whatever is wrong with one is one line.

The line names the file, what is wrong, and the way on: readers take a `name` for the file, if errors call it by more
than its path, and the `advice` that ends them. Importing this module imports no torch.
"""

import stat
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import safetensors
from pydantic import TypeAdapter, ValidationError

from ld3m.errors import UserError, one_line, some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import Tensor

T = TypeVar("T")
D = TypeVar("D")
HEAD = 512
"""Bytes of a file's beginning that `foreign_kind` looks at."""
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
"""How web pages begin, in lower case."""
POINTER = b"version https://git-lfs"
"""How a Git LFS pointer begins."""
BEGINNINGS = {
    POINTER: "a Git LFS pointer, not the file itself; git lfs pull fetches it",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"%PDF": "a PDF; get the file itself",
}
"""How files begin that downloads and archives leave in the place of any other."""


class TensorSpec(NamedTuple):
    """What a tensor of a file must be."""

    dtype: "torch.dtype"
    shape: tuple[int, ...]
    """-1 stands for any size."""


class Tensors(NamedTuple):
    """What a safetensors file holds."""

    tensors: "dict[str, Tensor]"
    metadata: dict[str, str]


def foreign_kind(head: bytes) -> str | None:
    """What a file is that lies in the place of another, and the way on: a page, a pointer, an archive; or None.

    Args:
        head: its first `HEAD` bytes.
    """
    if is_web_page(head):
        return "a web page, such as of a login or an error; download it again"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return next((kind for beginning, kind in BEGINNINGS.items() if head.startswith(beginning)), None)


def is_web_page(head: bytes) -> bool:
    """Whether a file is one, by its first `HEAD` bytes."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES)


def read_text(path: Path, advice: str, name: str | None = None) -> str:
    """A UTF-8 text, without the byte order mark that some editors put before it.

    Args:
        name: what the error calls it, such as "data.subset: names.txt"; the path if None.

    Raises:
        UserError: if it is missing, no regular file, not permitted, or not UTF-8.
    """
    with _named(path, advice, name):
        return path.read_bytes().decode("utf-8-sig")


def read_json(path: Path, shape: type[T], advice: str, name: str | None = None) -> T:
    """A JSON document of a given shape.

    Args:
        shape: a type that pydantic knows (a model, a TypedDict, dict[str, int], …). Types are taken strictly: a number
            is no text, a text no number; a whole number is a float, too.

    Raises:
        UserError: if it cannot be read, is not JSON, or has another shape; the line names the first place that differs.
    """
    text = read_text(path, advice, name)
    with _named(path, advice, name):
        return parse_json(text, shape)


def read_json_if_whole(path: Path, shape: type[T], advice: str) -> T | None:
    """`read_json` for what can be made again: None if the file is missing, or, which is printed, damaged."""
    if not path.is_file():
        return None
    try:
        return read_json(path, shape, advice)
    except UserError as error:
        print(error, file=sys.stderr)
        return None


def parse_json(text: str | bytes, shape: type[T]) -> T:
    """`read_json` for a text, such as a value of a safetensors file's metadata.

    Raises:
        ValueError: if it is not JSON or has another shape; one line.
    """
    try:
        return TypeAdapter(shape).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


@contextmanager
def open_tensors(path: Path, advice: str, name: str | None = None, framework: str = "pt") -> "Iterator[Any]":
    """A safetensors file, of which only what is asked for is read; what goes wrong inside is the file's fault, too.

    Args:
        framework: of its tensors, as `safetensors.safe_open` takes it.

    Raises:
        UserError: if the file cannot be read or is damaged, or for a ValueError that is raised inside.
    """
    with _named(path, advice, name), safetensors.safe_open(path, framework) as file:
        yield file


def read_metadata(path: Path, advice: str, name: str | None = None) -> dict[str, str]:
    """The metadata of a safetensors file; its tensors are not read, and torch is not imported.

    Raises:
        UserError: if the file cannot be read or its header is damaged.
    """
    with open_tensors(path, advice, name, "np") as file:
        return dict(file.metadata() or {})


def read_tensors(
    path: Path,
    advice: str,
    expected: Mapping[str, TensorSpec] | None = None,
    name: str | None = None,
    finite: bool = True,
) -> Tensors:
    """The tensors of a safetensors file, and its metadata.

    Args:
        expected: the tensors that it must have, no others; whatever is there if None.
        finite: refuse NaN and infinity.

    Raises:
        UserError: if the file cannot be read, is damaged, or has tensors of other names, types, shapes or values.
    """
    with open_tensors(path, advice, name) as file:
        found = Tensors({each: file.get_tensor(each) for each in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
        if expected is not None and found.tensors.keys() != expected.keys():
            raise ValueError(f"has the tensors {some(sorted(found.tensors)) or 'none'}, not {some(sorted(expected))}")
        for each, tensor in found.tensors.items():
            if expected is not None:
                _check(each, tensor, expected[each])
            if finite and tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{each} has values that are not finite")
        return found


def unless_unreadable(unread: list[str], otherwise: D, read: "Callable[..., T]", *arguments: Any) -> T | D:
    """What `read` gives; or `otherwise`, if what it reads is damaged or not to be read.

    For commands that show what they can of a folder.

    Args:
        unread: is added a line that says so.
        otherwise: to return then.
    """
    try:
        return read(*arguments)
    except UserError as error:
        unread += error.lines
    except OSError as error:  # such as of a folder that may not be looked into
        unread.append(f"cannot read {error.filename} ({error.strerror or one_line(error)})")
    return otherwise


def _check(name: str, tensor: "Tensor", spec: TensorSpec) -> None:
    """Raises ValueError if a tensor is not what it must be."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(size in (-1, own) for size, own in zip(spec.shape, shape, strict=True))
    if tensor.dtype != spec.dtype or not fits:
        sizes = " x ".join("any" if size == -1 else str(size) for size in spec.shape)
        raise ValueError(
            f"{name} is {' x '.join(map(str, shape)) or 'one number'} of {tensor.dtype}, not {sizes} of {spec.dtype}"
        )


@contextmanager
def _named(path: Path, advice: str, name: str | None) -> "Iterator[None]":
    """Turns what goes wrong while `path` is read into the one line."""
    file, head = name or str(path), b""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise UserError(f"{file} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; {advice}")
        with path.open("rb") as opened:  # safetensors calls a file missing that it may not read
            head = opened.read(HEAD)
        if not head:
            raise UserError(f"{file} is empty; {advice}")
        yield
    except FileNotFoundError:  # which safetensors raises if it may not open a file, too
        raise UserError(f"{file} {'cannot be opened' if path.exists() else 'is missing'}; {advice}") from None
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror or one_line(error)}); {advice}") from None
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if kind := foreign_kind(head):
            raise UserError(f"{file} is {kind}, or {advice}") from None
        raise UserError(f"{file} is damaged ({_fault(error)}); {advice}") from None


def _fault(error: Exception) -> str:
    """What is wrong with a file; a ValueError is ours, or says it as well as we could."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return " ".join(str(error).split())[:300] if isinstance(error, ValueError) else one_line(error)
