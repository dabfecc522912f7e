"""The prior of a rehearsal: the recipe's own if its weights are on this machine; nothing is fetched."""

from pathlib import Path

from ld3m.errors import UserError
from ld3m.priors.folder import UNUSED, HubFolder, choose_weights, copy_of


def find(source: str) -> str:
    """What a rehearsal takes for `prior.source`: the same, or the copy of what is on the Hub.

    Raises:
        UserError: if it is on the Hub and was not fetched.
    """
    if not (hub := HubFolder.of(source)):
        return source
    if (copy := copy_of(hub)) and _has_weights(copy):
        return str(copy)
    revision = f" --revision {hub.revision}" if hub.revision else ""
    raise UserError(
        f"prior.source: {source} is not on this machine, and a rehearsal fetches nothing so large; fetch it by "
        f"hf download {hub.name}{revision}"
    )


def _has_weights(folder: Path) -> bool:
    """Whether each part of a prior's folder has weights."""
    parts = [path.parent for path in folder.glob("*/config.json") if path.parent.name not in UNUSED]
    return all(choose_weights(f"{part.name}/{path.name}" for path in part.iterdir()).files for part in parts)
