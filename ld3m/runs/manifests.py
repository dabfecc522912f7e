"""Which checkpoints of a run are whole: their manifests, and the digests by which damage is noticed.

Importing this module imports no torch.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from ld3m.errors import UserError
from ld3m.reading import read_json
from ld3m.runs.folder import checkpoint_folders

FORMAT = "ld3m-1"


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """What a checkpoint is of, and the digests by which its files are known to be whole."""

    format: Literal["ld3m-1"]
    iteration: int = Field(ge=0)
    """The next to do."""
    recipe: str
    """Digests of the run's recipe, prior and data; older versions noted the first alone."""
    prior: str | None = None
    data: str | None = None
    files: dict[str, str]
    """The SHA-256 of each file, by name."""
    sha256: str | None = None
    """Of all the above; older versions did not write it."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest without its own."""
        content = json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def newest(folder: Path, say: Callable[[str], None], most: float = math.inf) -> Path | None:
    """A run's newest checkpoint that is whole; damaged ones are reported and skipped.

    Args:
        say: is called with a line for each that is damaged.
        most: as `check` takes it.
    """
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            manifest = check(checkpoint, "going back to the checkpoint before it", most)
            if manifest.iteration == int(checkpoint.name):
                return checkpoint
            say(f"{checkpoint} holds iteration {manifest.iteration}; going back to the checkpoint before it")
        except UserError as error:
            say(error.lines[0])
    return None


def check(folder: Path, advice: str, most: float = math.inf) -> Manifest:
    """The manifest of a checkpoint that is whole: all its files are as the manifest says.

    Args:
        advice: what to do if it is damaged; the error ends with it.
        most: bytes of files whose content is looked at; of further ones only whether they are there.

    Raises:
        UserError: naming the file that is missing or damaged.
    """
    path = folder / "manifest.json"
    manifest = read_json(path, Manifest, advice)
    if manifest.sha256 not in (None, manifest.digest):
        raise UserError(f"{path} is damaged (it has another digest than it says); {advice}")
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                most -= path.stat().st_size
                found = hashlib.file_digest(file, "sha256").hexdigest() if most >= 0 else expected
        except OSError as error:
            raise UserError(f"{path} is damaged ({error.strerror}); {advice}") from None
        if found != expected:
            raise UserError(f"{path} is damaged (it has another digest than the manifest says); {advice}")
    return manifest
