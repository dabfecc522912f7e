"""What a whole run will take, from what its rehearsal took."""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ld3m.data.prepared import prepare
from ld3m.errors import UserError, counted
from ld3m.evaluation.effort import costs
from ld3m.evaluation.protocols import Task, protocol
from ld3m.images.multi_formation import shown
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.processes import Processes
from ld3m.recipe import Recipe
from ld3m.runs import checkpoints, metrics
from ld3m.runs.folder import SAMPLING, checkpoint_folders, classes, document
from ld3m.runs.metrics import duration
from ld3m.runs.result import read_images
from ld3m.sizing.cost import RunCost


@dataclass(frozen=True)
class Part:
    """Seconds of a command, and what they are made of."""

    seconds: float
    text: str


def distilling(recipe: Recipe, rows: Sequence[metrics.Row], last: float, save: float, done: int) -> Part:
    """What `ld3m distill` will take.

    Args:
        last: seconds of its last command, which loaded everything, did all iterations but the first, and ended the run.
        save: seconds of a checkpoint.
        done: iterations of the run that it resumes.
    """
    first, *later = map(metrics.seconds, rows)
    each = later[-1] if later else first  # the first one prepares kernels
    around = max(0.0, last - sum(later)) + max(0.0, first - each)
    left = max(0, recipe.distill.iterations - done)
    saving = save * math.ceil(left / recipe.distill.checkpoint_every)
    of_it = f" of {recipe.distill.iterations:,}" if done else ""
    return Part(
        around + left * each + saving,
        f"{left:,}{of_it} iteration{'s' * (left != 1)} of {each:.3g} s, {duration(around)} for the start and the end, "
        f"{duration(saving)} for checkpoints",
    )


def sampling(recipe: Recipe, rehearsed: Recipe) -> Part:
    """What sampling Z at the start will take, in proportion to its steps; of the real images the rehearsal has few."""
    took, steps = document(rehearsed.folder, SAMPLING), recipe.sample.steps
    seconds = took["seconds"] / took["processes"] * steps / rehearsed.sample.steps
    return Part(seconds, f"{took['images']:,} images through {steps:,} steps by {recipe.sample.method}")


def saving(rehearsed: Recipe, processes: Processes) -> float:
    """Seconds of a checkpoint, saved once more by all processes."""
    newest = checkpoint_folders(rehearsed.folder)[-1]
    own = processes.shard(range(len(classes(rehearsed.folder))))
    states, objective = checkpoints.read_states(newest, own, "cpu")
    processes.wait_for_everyone()
    began = time.perf_counter()
    checkpoints.save(rehearsed, int(newest.name), dict(zip(own, states, strict=True)), objective, processes)
    return time.perf_counter() - began


def evaluating(recipe: Recipe, arch: str, rehearsed: Recipe, tested: int, processes: Processes) -> Part:
    """What an architecture will take in `ld3m evaluate`, by a step and a test that are timed here.

    Args:
        rehearsed: of the rehearsal; of its data a few images are looked at.
        tested: images to test on.
    """
    settings, images = recipe.evaluate, prepare(rehearsed.data, progress=False)
    pixels, labels = read_images(rehearsed.folder, images.classes, recipe.data.channels, recipe.data.resolution)
    if recipe.distill.factor > 1:
        pixels, labels = shown(bytes_to_unit(pixels), labels, recipe.distill.factor)
    how = protocol(settings, Task(arch, len(images.classes), len(pixels), images.resolution))
    cost = costs({arch: (pixels, labels, how)}, images, processes.device)[arch]
    count = counted(settings.seeds, "network")
    networks = math.ceil(settings.seeds / processes.num_processes)
    return Part(
        networks * cost.seconds(len(pixels), how.epochs, tested),
        f"{count}, {how.epochs:,} epochs of {len(pixels):,} images, tested on {tested:,}",
    )


# --- disk --------------------------------------------------------------------------------------------------


def check_room(
    recipe: Recipe, latent: tuple[int, ...], conditioning: tuple[int, ...], classes: int, place: Path
) -> None:
    """That a run's checkpoints, latents and images fit on a disk, by arithmetic on their shapes.

    Raises:
        UserError: if not.
    """
    cost = RunCost(recipe, 1, classes, latent, conditioning)
    pixels = cost.everyone * recipe.data.channels * recipe.rendered_size**2
    _check_fits((checkpoints.KEPT + 1) * cost.everyone * cost.learnt_bytes + pixels, recipe, place)


def disk(recipe: Recipe, rehearsed: Recipe, place: Path) -> str:
    """The bytes that a run takes, from what its rehearsal took.

    Raises:
        UserError: if so many are not free.
    """
    run, iterations = rehearsed.folder, recipe.distill.iterations
    files = {path: path.stat().st_size for path in run.rglob("*") if path.is_file()}
    frames = [size for path, size in files.items() if path.is_relative_to(run / "evolution")]
    rows = metrics.read(run).rows
    per_row = (run / metrics.FILE).stat().st_size / len(rows) if rows else 0.0
    once = [size for path, size in files.items() if path.relative_to(run).parts[0] not in ("evolution", "hub")]
    pictures = min(recipe.distill.pictures, iterations) + 1
    needed = sum(once) + pictures * max(frames, default=0) + per_row * iterations / recipe.distill.log_every
    _check_fits(needed, recipe, place)
    return f"about {size_text(needed)} in {recipe.folder}, where {size_text(shutil.disk_usage(place).free)} are free"


def _check_fits(needed: float, recipe: Recipe, place: Path) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"output: the run takes {size_text(needed)}, and {size_text(free)} are free in {place}; free some, or give "
            "--output on another disk"
        )


def size_text(size: float) -> str:
    """Bytes in the unit that people use: 12 kB, 3.4 MB, 65 GB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.{0 if size >= 10 * unit else 1}f} {name}"
