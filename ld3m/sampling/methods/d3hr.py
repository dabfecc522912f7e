"""D3HR (ICML 2025; lin-zhao-resoLve/D3HR 8ba351d): draws from what a class's real latents look like in mid-chain.

The real latents go backwards through DDIM to the step at which `sample.strength` starts, where they are about normal:
N(μ, σ²), each element for itself. Groups are drawn from it, and the one whose moments are nearest to μ, σ and no
skewness is denoised. As published: DiT-XL/2, guidance 4 both ways, 31 of 50 steps, 100,000 groups.

μ and σ are kept in the run, `statistics/`, from where `sample.d3hr.source` takes them for another number of images.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.errors import UserError, user_error_if_damaged
from ld3m.files import write_tensors
from ld3m.reading import TensorSpec, parse_json, read_tensors
from ld3m.runs import sources
from ld3m.runs.folder import METADATA_KEY, STATISTICS, classes, is_run
from ld3m.sampling.approach import Approach, ClassTask
from ld3m.sampling.inversion import inverted
from ld3m.sampling.moments import distances, of_latents

AGAIN = "remove it, and it is made again"
IMAGES = "training images with digest"
MISSED = 1e-3
"""Root mean square by which a latent misses in a step of its inversion, above which that is said."""


def d3hr(task: ClassTask) -> Approach:
    """Chains from the best of `sample.d3hr.groups` groups of draws."""
    if task.settings.start:
        raise UserError(f"sample.start: {task.settings.start}, but d3hr starts from draws of its own; leave it out")
    if not task.schedule.steps[task.first_step].level.signal:
        raise UserError(
            f"sample.strength: {task.settings.strength:g} starts at noise alone, which tells nothing of real latents; "
            "give less, such as 0.62"
        )
    mean, std = statistics(task)
    best, least = None, torch.inf
    for group in range(task.settings.d3hr.groups):
        draws = torch.randn(task.drawn, *mean.shape, generator=task.draws("group", group))
        latents = mean + std * draws
        if (distance := float(distances(latents[None], mean, std))) < least or best is None:
            best, least = latents, distance
    return Approach(start=best, first=task.first_step, noisy=True)


def statistics(task: ClassTask) -> tuple[Tensor, Tensor]:
    """μ and σ [*latent_shape] of a class: another run's, this run's, or made and kept.

    Raises:
        UserError: if another run's are missing, or of another prior, chain or number of images.
    """
    about = _about(task)
    own = task.recipe.folder / STATISTICS / f"class-{task.label:04d}.safetensors"
    if source := task.settings.d3hr.source:
        return _of_source(task, Path(source), about)
    if own.is_file():
        try:
            tensors, found = _read(task, own)
        except UserError as error:
            print(error, file=sys.stderr)
        else:
            if found == about:
                return tensors
    images = task.settings.d3hr.images
    encodings = task.encodings()
    if images and images < len(encodings):
        chosen = torch.randperm(len(encodings), generator=task.draws("inverted"))[:images]
        encodings = encodings[chosen.sort().values]
    z, missed = inverted(
        task.prior, task.schedule, encodings, task.embedding, task.first_step, task.micro_batch, task.device,
        task.settings.d3hr.calls,
    )  # fmt: skip
    count = int((missed > MISSED).sum())
    if count and task.settings.d3hr.calls > 1:
        print(
            f"d3hr: {count} of {len(z)} latents of class {task.images.classes[task.label]!r} do not lead back to where "
            f"they came from (by up to {float(missed.max()):.2g} in a step); sample.steps or a lower sample.guidance "
            "brings them nearer",
            file=sys.stderr,
        )
    mean, std = of_latents(z)
    if is_run(task.recipe.folder):  # not if a plan only looks how long it takes
        write_tensors(own, {"mean": mean, "std": std}, {METADATA_KEY: json.dumps(about)})
    return mean, std


def _about(task: ClassTask) -> dict[str, Any]:
    """What decides statistics, by the keys of a recipe, and the digests of the prior and of the class's images."""
    note, data = sources.read(task.recipe.folder)
    name = task.images.classes[task.label]
    return {
        "class": name,
        "prior": note["sha256"] if note else None,
        IMAGES: data["classes"][name]["sha256"] if data and name in data["classes"] else None,
        "sample.steps": task.settings.steps,
        "sample.guidance": task.schedule.guidance,
        "sample.strength": task.settings.strength,
        "sample.d3hr.images": task.settings.d3hr.images,
        "sample.d3hr.calls": task.settings.d3hr.calls,
    }


def _of_source(task: ClassTask, source: Path, about: dict[str, Any]) -> tuple[Tensor, Tensor]:
    name = task.images.classes[task.label]
    theirs = classes(source) if source.is_dir() else []
    path = source / STATISTICS / f"class-{theirs.index(name) if name in theirs else 0:04d}.safetensors"
    if name not in theirs or not path.is_file():
        raise UserError(
            f"sample.d3hr.source: {source} has no {STATISTICS}/ of class {name!r}; give the folder of a run that was "
            "sampled by d3hr, or leave it out"
        )
    tensors, found = _read(task, path)
    if IMAGES not in found:  # of an older version, which did not note it
        found[IMAGES] = about[IMAGES]
    if unlike := [key for key, value in about.items() if "d3hr" not in key and found.get(key) != value]:
        key = unlike[0]
        raise UserError(
            f"sample.d3hr.source: {path} has statistics of {key} {found.get(key)}, not {about[key]}; give a run with "
            "the same, or leave it out"
        )
    return tensors


def _read(task: ClassTask, path: Path) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    spec = TensorSpec(torch.float32, task.prior.latent_shape)
    tensors, metadata = read_tensors(path, AGAIN, {"mean": spec, "std": spec})
    with user_error_if_damaged(path, AGAIN):
        found = parse_json(metadata[METADATA_KEY], dict[str, Any])
    return (tensors["mean"], tensors["std"]), found
