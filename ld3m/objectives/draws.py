"""What an objective draws in an iteration: a network, real images, augmentations; each keyed by what it is for."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters

from ld3m import networks
from ld3m.data.prepared import ImageSet
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.timing import span
from ld3m.machine.transfer import send
from ld3m.objectives.backbone import Backbone
from ld3m.objectives.experts import Experts, Trajectories
from ld3m.randomness import generator
from ld3m.recipe import NetworkRecipe

REAL_CHUNK = 100
"""Real images of a class, or of all, that an objective puts through a network at a time."""
AHEAD = 2**30
"""Bytes of real images that are read before they are asked for, at most, while a GPU is at work."""
NORM_IMAGES = 16
"""Real images of each class that batch norm takes its statistics from, as in the code of Zhao et al."""


@dataclass(frozen=True)
class Draws:
    """The draws of a run's objective, each a function of the seed and of what it is for."""

    seed: int
    images: ImageSet
    settings: NetworkRecipe
    """Of the matching networks."""
    real_batch: int
    """Real images of a class in an iteration."""
    device: torch.device
    experts: Experts | None = None
    """Trained networks to match in; None for fresh random ones."""
    backbone: str | None = None
    """A pre-trained model to match in, timm/<model>, in the place of these."""

    def check_networks(self) -> None:
        """Checks that the experts or the backbone that `network` takes are there, if it takes any.

        Raises:
            UserError: naming what is missing or differs.
        """
        if self.backbone is not None:
            self._pretrained  # noqa: B018 – is loaded
        if self.experts is not None:
            built = self._random(generator(self.seed, "network", 0))
            self._trajectories(built, self.experts).require(
                self.experts.settings.count, self.experts.settings.epochs, "experts.epochs"
            )

    def network(self, number: int) -> Any:
        """The `number`-th matching network, its dropout switched off: random, an expert's snapshot, or the backbone."""
        if self.backbone is not None:
            return self._pretrained
        draws = generator(self.seed, "network", number)
        built = self._random(draws)
        if self.experts is not None:
            expert = int(torch.randint(self.experts.settings.count, (), generator=draws))
            epoch = int(torch.randint(self.experts.settings.epochs + 1, (), generator=draws))
            snapshot = self._trajectories(built, self.experts).weights(expert, epoch)
            vector_to_parameters(snapshot, built.parameters())
        if self.settings.dtype != "float32" and self.device.type != "meta":  # a plan counts its memory in float32
            built = networks.Half(built)
        return networks.without_dropout(built.to(self.device, non_blocking=self.device.type != "mps"))

    def expert(self, number: int, epoch: int) -> Any:
        """The `number`-th expert after so many epochs, its dropout switched off."""
        assert self.experts is not None
        built = self._random(generator(self.seed, "network", 0))
        vector_to_parameters(self._trajectories(built, self.experts).weights(number, epoch), built.parameters())
        return networks.without_dropout(built.to(self.device))

    @cached_property
    def _pretrained(self) -> Any:
        backbone = Backbone(str(self.backbone), self.images, self.device)
        return networks.Half(backbone) if self.settings.dtype != "float32" and self.device.type != "meta" else backbone

    def _random(self, draws: torch.Generator) -> Any:
        return networks.build(self.settings.arch, self.images.shape, self.settings, draws)

    def _trajectories(self, built: Any, experts: Experts) -> Trajectories:
        return Trajectories(experts, self.images, sum(parameter.numel() for parameter in built.parameters()))

    @span("data")
    def real(self, images: Tensor, iteration: int, label: int, chosen: Tensor | None = None) -> Tensor:
        """A class's real images in an iteration, normalised [n, channels, H, W], out of all it has, uint8 [N, …].

        They are sent as bytes, a quarter of the floats they become; `chosen` are those that `choose` gave before.
        """
        chosen = self.choose(images, iteration, label) if chosen is None else chosen
        return self.images.normalise(bytes_to_unit(send(chosen, self.device)))

    def choose(self, images: Tensor, iteration: int, label: int) -> Tensor:
        """The images that `real` draws, uint8 [n, channels, H, W] in main memory."""
        order = torch.randperm(len(images), generator=generator(self.seed, "real batch", iteration, label))
        return images[order[: self.real_batch]]

    def augmentation(self, iteration: int, label: int) -> augment.Augmentation:
        """The one augmentation that a class's real and synthetic images share in an iteration."""
        return augment.draw(generator(self.seed, "augmentation", iteration, label), self.images.resolution)

    @torch.no_grad()
    def freeze_norms(self, network: Any, iteration: int) -> None:
        """Gives batch norms the statistics of real images of all classes, for as long as the network is not trained.

        What a network makes of an image then depends neither on the other images of its batch nor on the processes
        that share the classes. A backbone keeps its own statistics.
        """
        norms = [] if self.backbone else [module for module in network.modules() if isinstance(module, _BatchNorm)]
        if not norms:
            return
        batch = []
        for label in range(len(self.images.classes)):
            real = self.images.images("train", label)
            order = torch.randperm(len(real), generator=generator(self.seed, "norm batch", iteration, label))
            batch.append(real[order[:NORM_IMAGES]])
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0  # statistics of this batch alone, not a moving mean
            norm.train()
        network(self.images.normalise(bytes_to_unit(send(torch.cat(batch), self.device))))
        for norm in norms:
            norm.eval()


class RealBatches:
    """The real images of a process's classes, asked for class by class and iteration by iteration.

    For a GPU the next ones are read and copied into pinned memory by a thread while it works, so that it need not wait:
    2,560 images of 256 pixels are half a gigabyte. What is drawn is the same, in whatever order it is asked for.

    Args:
        draws: of the run.
        own: the classes, in the order in which they are asked for.
        ahead: whether to read ahead; left out, for a GPU.
    """

    def __init__(self, draws: Draws, own: Sequence[int], ahead: bool | None = None) -> None:
        self.draws = draws
        self.sources = {label: draws.images.images("train", label) for label in own}
        self.on_gpu = draws.device.type == "cuda"
        ahead = self.on_gpu if ahead is None else ahead
        self.thread = ThreadPoolExecutor(1, "real images", self._use_device) if ahead else None
        self.begun: dict[tuple[int, int], Future[Tensor]] = {}
        """By iteration and class: what is read, or being read, and not yet asked for."""

    def draw(self, iteration: int, label: int) -> Tensor:
        """As `Draws.real`."""
        images = self.sources[label]
        if self.thread is None:
            return self.draws.real(images, iteration, label)
        with span("data"):
            begun = self.begun.pop((iteration, label), None)
            chosen = begun.result() if begun else self._choose(iteration, label)
            self._read_on(self.thread, iteration, label, each=chosen.nbytes)
        return self.draws.real(images, iteration, label, chosen)

    def _read_on(self, thread: ThreadPoolExecutor, iteration: int, label: int, each: int) -> None:
        """Has what comes next read, up to a whole iteration; what was begun and does not come next is dropped."""
        labels = list(self.sources)
        first = labels.index(label) + 1
        places = range(first, first + min(len(labels), max(1, AHEAD // each)))
        keys = [(iteration + place // len(labels), labels[place % len(labels)]) for place in places]
        self.begun = {key: self.begun.get(key) or thread.submit(self._choose, *key) for key in keys}

    def _choose(self, iteration: int, label: int) -> Tensor:
        chosen = self.draws.choose(self.sources[label], iteration, label)
        return chosen.pin_memory() if self.on_gpu else chosen

    def _use_device(self) -> None:
        """A thread begins with the first GPU, for which it would pin memory."""
        if self.on_gpu:
            torch.cuda.set_device(self.draws.device)
