"""Files that are read: what is in them is checked first, and whatever is wrong with one is one line.

The line names the file, what is wrong, and the way on. Importing this module imports no torch.
"""

import stat
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import safetensors
from pydantic import TypeAdapter, ValidationError

from ld3m.errors import UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

T = TypeVar("T")


class TensorSpec(NamedTuple):
    """What a tensor of a file must be."""

    dtype: "torch.dtype"
    shape: tuple[int, ...]
    """-1 stands for any size."""


class Tensors(NamedTuple):
    """What a safetensors file holds."""

    tensors: "dict[str, Tensor]"
    metadata: dict[str, str]


def read_text(path: Path, advice: str, name: str | None = None) -> str:
    """A UTF-8 text, without the byte order mark that some editors put before it.

    Args:
        path: a regular file.
        advice: what to do if it cannot be read; the error ends with it.
        name: what the error calls it, such as "data.subset: names.txt"; the path if None.

    Raises:
        UserError: if it is missing, no regular file, not permitted, or not UTF-8.
    """
    with _named(path, advice, name):
        return path.read_bytes().decode("utf-8-sig")


def read_json(path: Path, shape: type[T], advice: str, name: str | None = None) -> T:
    """A JSON document of a given shape.

    Args:
        path: a regular file.
        shape: a type that pydantic knows (a model, a TypedDict, dict[str, int], …). Types are taken strictly: a number
            is no text, a text no number; a whole number is a float, too.
        advice: what to do if it cannot be read; the error ends with it.
        name: what the error calls it; the path if None.

    Raises:
        UserError: if it cannot be read, is not JSON, or has another shape; the line names the first place that differs.
    """
    text = read_text(path, advice, name)
    with _named(path, advice, name):
        return parse_json(text, shape)


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


def read_metadata(path: Path, advice: str, name: str | None = None) -> dict[str, str]:
    """The metadata of a safetensors file; its tensors are not read.

    Raises:
        UserError: if the file cannot be read or its header is damaged.
    """
    with _named(path, advice, name), safetensors.safe_open(path, "np") as file:
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
        path: a regular file.
        advice: what to do if it cannot be read; the error ends with it.
        expected: the tensors that it must have, no others; whatever is there if None.
        name: what the error calls it; the path if None.
        finite: refuse NaN and infinity.

    Raises:
        UserError: if the file cannot be read, is damaged, or has tensors of other names, types, shapes or values.
    """
    with _named(path, advice, name):
        with safetensors.safe_open(path, "pt") as file:
            found = Tensors({each: file.get_tensor(each) for each in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
        if expected is not None and found.tensors.keys() != expected.keys():
            raise ValueError(f"has the tensors {_names(found.tensors)}, not {_names(expected)}")
        for each, tensor in found.tensors.items():
            if expected is not None:
                _check(each, tensor, expected[each])
            if finite and tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{each} has values that are not finite")
        return found


def _check(name: str, tensor: "Tensor", spec: TensorSpec) -> None:
    """Raises ValueError if a tensor is not what it must be."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(size in (-1, own) for size, own in zip(spec.shape, shape, strict=True))
    if tensor.dtype != spec.dtype or not fits:
        sizes = " x ".join("any" if size == -1 else str(size) for size in spec.shape)
        raise ValueError(
            f"{name} is {' x '.join(map(str, shape)) or 'one number'} of {tensor.dtype}, not {sizes} of {spec.dtype}"
        )


def _names(tensors: Mapping[str, object]) -> str:
    names = sorted(tensors)
    return ", ".join([*names[:5], *(["…"] if len(names) > 5 else [])]) or "none"


@contextmanager
def _named(path: Path, advice: str, name: str | None) -> "Iterator[None]":
    """Turns what goes wrong while `path` is read into the one line."""
    file = name or str(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise UserError(f"{file} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; {advice}")
        with path.open("rb"):  # safetensors calls a file missing that it may not read
            pass
        if path.stat().st_size == 0:
            raise UserError(f"{file} is empty; {advice}")
        yield
    except FileNotFoundError:  # which safetensors raises if it may not open a file, too
        raise UserError(f"{file} {'cannot be opened' if path.exists() else 'is missing'}; {advice}") from None
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror or one_line(error)}); {advice}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged (not UTF-8 at byte {error.start}); {advice}") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({' '.join(str(error).split())[:300]}); {advice}") from None
    except (safetensors.SafetensorError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); {advice}") from None
