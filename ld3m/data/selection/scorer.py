"""A classifier of the real images, trained briefly: what judges a prior's samples and scores images for core-sets."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ld3m import networks
from ld3m.data.prepared import ImageSet, Rows
from ld3m.images.ranges import bytes_to_unit
from ld3m.networks import training
from ld3m.randomness import generator, global_draws
from ld3m.recipe import NetworkRecipe

BATCH = 128
RATE = 2e-3
"""Highest learning rate."""


def build(arch: str, width: int, images: ImageSet, seed: int) -> Any:
    """An untrained network for the classes of a set of images; the seed decides its weights.

    Args:
        arch: a name of `networks.NETWORKS`.
        width: channels of a ConvNet; other networks have fixed sizes.
    """
    return networks.build(arch, images.shape, NetworkRecipe(width=width), generator(seed, "classifier"))


def train(classifier: nn.Module, images: ImageSet, epochs: int, seed: int, device: torch.device, title: str) -> None:
    """Trains on all real training images by Adam with one cosine decay, and leaves the network in evaluation mode.

    Each batch is read when its turn comes, so that memory does not grow with the number of images.
    """
    classifier.to(device).train()
    real = Rows(images, "train")
    steps = epochs * math.ceil(len(real) / BATCH)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(epochs):
            order = torch.randperm(len(real), generator=generator(seed, "classifier order", epoch))
            for indices in order.split(BATCH):
                pixels = images.normalise(bytes_to_unit(real[indices].to(device)))
                yield pixels, real.labels[indices].to(device)

    with global_draws(generator(seed, "classifier dropout")):
        training.train(classifier, optimiser, tqdm(batches(), title, total=steps), schedule)
    classifier.eval()
