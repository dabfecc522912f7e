"""JSON files of the cache with a digest of their content, so that no damage to them goes unnoticed."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ld3m.errors import UserError
from ld3m.files import cache_key, write_json
from ld3m.reading import read_json


class Sealed(BaseModel):
    """The content of such a file."""

    digest: str = ""
    """Of all other fields."""

    def true_digest(self) -> str:
        """What `digest` must be."""
        return cache_key(self.model_dump(exclude={"digest"}))

    def write(self, path: Path) -> None:
        """Writes the file, with its digest."""
        write_json(path, self.model_dump() | {"digest": self.true_digest()})


T = TypeVar("T", bound=Sealed)


def read_sealed(path: Path, shape: type[T], advice: str) -> T:
    """Reads what `write` wrote.

    Raises:
        UserError: as `read_json`, and if the digest differs.
    """
    content = read_json(path, shape, advice)
    if content.digest != content.true_digest():
        raise UserError(f"{path} is damaged (its digest differs); {advice}")
    return content
