"""What a computation takes, counted rather than run: its floating point operations, and the bytes it holds."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Tally(TorchDispatchMode):
    """Counts while it is entered: on the meta device, where nothing is computed, a large model's pass takes a second.

    A multiplication and the addition after it are two operations, by PyTorch's own formulas for convolutions, matrix
    products and attention; the rest counts nothing. Bytes are of tensors, not of a kernel's working space.

    Args:
        known: tensors that are there before, such as weights; they and their views count no bytes.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.operations = 0
        self.bytes = 0
        """Alive now."""
        self.peak = 0
        """The most that were alive since it was last set."""
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until it is freed."""
        if (key := storage._cdata) in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
