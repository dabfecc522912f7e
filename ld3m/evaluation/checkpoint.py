"""Where the training of a network resumes: its weights, their average and its optimiser after an epoch."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import nn

from ld3m.errors import UserError, user_error_if_damaged
from ld3m.files import tensors_digest, write_tensors
from ld3m.reading import parse_json, read_tensors
from ld3m.training import states

SAVE_EVERY = 60.0
"""Seconds of training that an interrupt may cost at most, besides the epoch that it comes in."""
KEY = "ld3m"
"""Of the file's metadata, a JSON value."""


class Progress(BaseModel):
    """How far a training is."""

    epochs: int = Field(ge=1)
    """Done."""
    accuracies: list[float]
    """Of the tests so far, in percent."""
    sha256: str
    """Of the tensors."""


@dataclass
class Checkpoint:
    """The file of a training under way; every draw is keyed by its epoch, so that it resumes bit for bit."""

    path: Path
    writes: bool = True
    """Whether this process writes it, if several train the network together."""
    accuracies: list[float] = field(default_factory=list)
    """Of the tests so far, in percent, which are kept with it."""
    _saved: float = field(default_factory=time.monotonic, init=False)

    def resume(self, parts: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, epochs: int) -> int:
        """Takes over what is in the file; the epochs that are done. A damaged one is said, and left out.

        Args:
            parts: what is trained, by names that are the same in every session.
        """
        if not self.path.is_file():
            return 0
        try:
            tensors, metadata = read_tensors(self.path, "the network is trained from its first epoch", finite=False)
            with user_error_if_damaged(self.path, "the network is trained from its first epoch"):
                progress = parse_json(metadata[KEY], Progress)
                if progress.epochs > epochs or progress.sha256 != tensors_digest(tensors):
                    raise ValueError("it is of another training, or its tensors have another digest than it says")
                states.restore(tensors, parts, optimiser)
        except UserError as error:
            print(error, file=sys.stderr)
            return 0
        self.accuracies[:] = progress.accuracies
        return progress.epochs

    def after(self, epochs: int, parts: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
        """Writes the file after an epoch, if the last time is long enough ago."""
        if not self.writes or time.monotonic() - self._saved < SAVE_EVERY:
            return
        tensors = states.packed(parts, optimiser)
        progress = Progress(epochs=epochs, accuracies=self.accuracies, sha256=tensors_digest(tensors))
        write_tensors(self.path, tensors, {KEY: json.dumps(progress.model_dump())})
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Removes the file, once the network is tested."""
        if self.writes:
            self.path.unlink(missing_ok=True)
