"""The prior of a rehearsal: the recipe's own if it is on this machine, else one of its sizes with random weights."""

from pathlib import Path

from ld3m.priors import stored
from ld3m.priors.diffusers_layout import UNUSED, choose_weights, is_whole
from ld3m.priors.hub_folder import HubFolder, copy_of
from ld3m.priors.known import KNOWN
from ld3m.priors.random_copy import random_copy
from ld3m.priors.source import PACKAGED_PRIORS


def own(source: str) -> Path | None:
    """The folder of a prior that is on this machine with its weights; no network is asked.

    A folder that has the weights of some of its parts counts: what it lacks is found when it is loaded.
    """
    if source in PACKAGED_PRIORS:
        return PACKAGED_PRIORS[source]
    if source in KNOWN:
        return stored.here(source)
    hub = HubFolder.of(source)
    folder = copy_of(hub) if hub else Path(source)
    enough = all if hub else any  # what the Hub's cache lacks would be fetched
    return folder if folder and enough(_has_weights(folder)) else None


def _has_weights(folder: Path) -> list[bool]:
    """Of each part of a prior's folder, whether it has weights."""
    if not is_whole(folder):
        return [bool(choose_weights(path.name for path in folder.iterdir()).files)] if folder.is_dir() else []
    parts = [path.parent for path in folder.glob("*/config.json") if path.parent.name not in UNUSED]
    return [bool(choose_weights(f"{part.name}/{path.name}" for path in part.iterdir()).files) for part in parts]


def draw(source: str, folder: Path) -> str:
    """Writes a prior of the same sizes with random weights into a folder; how to get the weights.

    Raises:
        UserError: if not even the configurations are on this machine, or the folder cannot be written to.
    """
    random_copy(source, folder)
    if source in KNOWN:
        return f"ld3m priors get {source} gets them, {KNOWN[source].size / 1e9:.1f} GB"
    if hub := HubFolder.of(source):
        revision = f" --revision {hub.revision}" if hub.revision else ""
        return f"hf download {hub.name}{revision} gets them"
    return "the folder has configurations alone"
