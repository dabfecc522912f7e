"""What `ld3m evaluate` will take after a run: hours by architecture, measured here or from a table of devices."""

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from ld3m.data.prepared import ImageSet
from ld3m.evaluation.effort import MOST, Cost, costs
from ld3m.evaluation.protocols import Protocol, Task, protocol
from ld3m.evaluation.training import untrained
from ld3m.recipe import Recipe
from ld3m.sizing.devices import Device

BACKWARD = 2
"""Operations of a backward pass, in those of a forward pass."""


def evaluation_hours(
    recipe: Recipe, images: ImageSet, processes: int, device: torch.device, chosen: Device | None
) -> dict[str, float]:
    """Hours on the clock of each architecture of `evaluate.arch`, without baselines and what a teacher takes.

    Args:
        images: the real images; without a test split, tests are not counted.
        processes: that share the networks, or each of them (`evaluate.together`).
        device: where a step and a test are timed, if no device is chosen.
    """
    settings = recipe.evaluate.before_a_run  # a learnt rate takes as long as any
    count = recipe.distill.latents_per_class * len(images.classes)
    tested, hours = sum(images.counts.get("test", ())), {}
    for arch in dict.fromkeys(settings.arch):
        how = protocol(settings, Task(arch, len(images.classes), count, images.resolution))
        cost = _looked_up(arch, how, images, recipe, chosen) if chosen else _timed(arch, how, images, count, device)
        networks = settings.seeds / processes if settings.together else math.ceil(settings.seeds / processes)
        hours[arch] = networks * cost.seconds(count, how.epochs, tested) / 3600
    return hours


def _timed(arch: str, how: Protocol, images: ImageSet, count: int, device: torch.device) -> Cost:
    """By a step and a test on images of noise."""
    some = (min(MOST, count), len(images.mean), images.resolution, images.resolution)
    pixels = torch.zeros(some, dtype=torch.uint8)
    return costs({arch: (pixels, torch.zeros(len(pixels), dtype=torch.long), how)}, images, device)[arch]


def _looked_up(arch: str, how: Protocol, images: ImageSet, recipe: Recipe, chosen: Device) -> Cost:
    """By the operations of a forward pass on one image."""
    network = untrained(arch, images, (0, 0), torch.device("cpu")).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, len(images.mean), images.resolution, images.resolution))
    test = chosen.seconds(counter.get_total_flops(), how.dtype, recipe.tf32)
    return Cost((1 + BACKWARD) * test, test)
