"""What a file of weights is, by its content: names tell little, and downloads end as pages, pointers and halves."""

import zipfile
from pathlib import Path

import safetensors

from ld3m.errors import some
from ld3m.reading import HEAD, foreign_kind

COMPUTED = ("position_ids", "pos_embed")
"""Tables that older versions saved with the weights, and that newer ones compute; by the end of their names."""
SAFETENSORS = "safetensors"
TORCH = "a checkpoint of PyTorch"
LEGACY = "a checkpoint in PyTorch's format from before 1.6"
READABLE = (SAFETENSORS, TORCH, LEGACY)
"""The kinds that `kind_of` may name and that hold weights; the others are to be shown, with what to do."""
BEGINNINGS = {
    b"\x89HDF": "an HDF5 file, of Keras; get the PyTorch weights",
    b"GGUF": "a GGUF file, of quantised weights; get the PyTorch weights",
    b"\x93NUMPY": "a NumPy array; get the PyTorch weights",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}


def kind_of(path: Path) -> str:
    """What a file is: one of `READABLE`, or words for people.

    Raises:
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "empty; get it again"
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if foreign := foreign_kind(head):
        return foreign
    if head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        return SAFETENSORS if length <= size - 8 else "the beginning of a safetensors file; get it again as a whole"
    if head.startswith(b"\x80"):  # a pickle
        return LEGACY if b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19" in head[:32] else "a pickle that PyTorch did not write"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return "a JSON text; get the file with the weights"
    return "of no known kind; get it again"


def _kind_of_zip(path: Path) -> str:
    """PyTorch's checkpoints are zip archives too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "the beginning of a checkpoint of PyTorch or of a zip archive; get it again as a whole"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program; get the checkpoint with its state_dict"
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH
    return f"a zip archive of {some(names, 3)}; unpack it first"


def check_weights(path: Path) -> None:
    """That a file of weights is whole, as far as its kind and its header tell, and holds real numbers.

    Raises:
        ValueError: if not.
    """
    kind = kind_of(path)
    if kind not in READABLE:
        raise ValueError(f"{path.name} is {kind}")
    if kind == SAFETENSORS:
        with safetensors.safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                dtype = file.get_slice(name).get_dtype()
                if not dtype.startswith(("F", "BF")) and not name.endswith(COMPUTED):
                    raise ValueError(f"{path.name} has {name} of {dtype}, not of floats")
