"""A classifier of the real images, trained briefly: what judges a prior's samples and scores images for core-sets."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ld3m import networks
from ld3m.data.prepared import ImageSet, Rows
from ld3m.images.ranges import bytes_to_unit
from ld3m.randomness import generator, global_draws
from ld3m.recipe import NetworkRecipe

BATCH = 128


def build(arch: str, width: int, images: ImageSet, seed: int) -> Any:
    """An untrained network for the classes of a set of images; the seed decides its weights.

    Args:
        arch: a name of `networks.NETWORKS`.
        width: channels of a ConvNet; other networks have sizes of their own.
        images: its training images.
        seed: keys the draw.
    """
    return networks.build(arch, images.shape, NetworkRecipe(width=width), generator(seed, "classifier"))


def train(classifier: nn.Module, images: ImageSet, epochs: int, seed: int, device: torch.device, title: str) -> None:
    """Trains on all real training images by Adam with one cosine decay, and leaves the network in evaluation mode.

    Each batch is read as it comes, so that memory does not grow with the images. The seed decides order and dropout.
    """
    classifier.to(device).train()
    real = Rows(images, "train")
    steps = epochs * math.ceil(len(real) / BATCH)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    batches = (
        batch
        for epoch in range(epochs)
        for batch in torch.randperm(len(real), generator=generator(seed, "classifier order", epoch)).split(BATCH)
    )
    with global_draws(generator(seed, "classifier dropout")):
        for batch in tqdm(batches, title, total=steps):
            logits = classifier(images.normalise(bytes_to_unit(real[batch].to(device))))
            loss = functional.cross_entropy(logits, real.labels[batch].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    classifier.eval()
