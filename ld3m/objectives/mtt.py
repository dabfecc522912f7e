"""Trajectory matching (Cazenavette et al., CVPR 2022) in constant memory (TESLA: Cui et al., ICML 2023)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ld3m.images import augment
from ld3m.machine.transfer import send
from ld3m.networks.flat import FlatNetwork
from ld3m.objectives.base import GatherClasses, Objective
from ld3m.objectives.draws import Draws
from ld3m.objectives.experts import Experts, Trajectories
from ld3m.randomness import generator
from ld3m.recipe.objectives import MttRecipe

CHUNK = 256
"""Synthetic images through the student at a time."""
TOGETHER = 16
"""Classes that have few images go through it together, up to so many images, where the gradient is followed back."""


class TrajectoryMatching(Objective):
    """Distance of a student, trained on the synthetic images, from where an expert got to on the real ones.

    The student starts as one of the expert's snapshots and takes a few steps; their size is learnt. Every process
    trains the same student, and follows the gradient back to its own classes' images.

    The gradient is the true one. The authors' code drops the derivative's factor of two, so that a learning rate there
    is half of it here; and it never starts from `max_start_epoch` itself.
    """

    def __init__(
        self,
        settings: MttRecipe,
        momentum: float,
        draws: Draws,
        experts: Experts,
        own: Sequence[int],
        gather_classes: GatherClasses,
    ) -> None:
        self.settings = settings
        self.decay = momentum
        self.draws = draws
        self.own = torch.tensor(list(own), dtype=torch.long)
        self.gather_classes = gather_classes
        self.student = FlatNetwork(draws.network(0))
        self.experts = Trajectories(experts, draws.images, self.student.count)
        epochs = settings.max_start_epoch + settings.expert_epochs
        self.experts.require(experts.settings.count, epochs, "distill.mtt.max_start_epoch + expert_epochs")
        self.count = experts.settings.count
        # On the device, which is never waited for; in float32, as the authors' code has it.
        self.step_size, self.momentum = torch.tensor([settings.step_size, 0.0], device=draws.device).unbind()

    def match(self, iteration: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Objective.match`; the loss is of all classes together, and shared out evenly among them."""
        settings, seed, device = self.settings, self.draws.seed, self.draws.device
        classes, per_class = len(self.draws.images.classes), pixels.shape[1]
        every = self.gather_classes(pixels, classes).flatten(0, 1)
        labels = torch.arange(classes).repeat_interleave(per_class)
        numbers = generator(seed, "trajectory", iteration)
        expert = int(torch.randint(self.count, (), generator=numbers))
        epoch = int(torch.randint(settings.max_start_epoch + 1, (), generator=numbers))
        batches = draw_batches(len(every), settings.batch_syn or len(every), settings.syn_steps, numbers)

        def show(step: int, indices: Tensor, images: Tensor) -> Tensor:
            """Images of a batch, by their indices in it, as the student sees them."""
            images = self.draws.images.normalise(images)
            if not settings.augment:
                return images
            augmentation = augment.draw(
                generator(seed, "augmentation", iteration, step), images.shape[-1], len(batches[step])
            )
            return augmentation.of(indices)(images)

        own = torch.isin(labels, self.own)
        with torch.enable_grad():
            loss, gradient, slope = match_trajectory(
                self.student,
                send(self.experts.weights(expert, epoch), device),
                send(self.experts.weights(expert, epoch + settings.expert_epochs), device),
                self.step_size,
                batches,
                show,
                every,
                labels,
                own,
            )
        momentum = self.decay * self.momentum + slope
        # By a factor of two at most: a step size never becomes zero, negative or huge at one bad slope.
        wanted = (self.step_size - settings.lr_step_size * momentum).clamp(self.step_size / 2, self.step_size * 2)
        self.step_size = torch.where(slope.isfinite(), wanted, self.step_size)
        self.momentum = torch.where(slope.isfinite(), momentum, self.momentum)
        own_gradient = gradient.unflatten(0, (classes, per_class))[send(self.own, device)]
        return loss.expand(len(self.own)) / classes, own_gradient

    def state(self) -> dict[str, Tensor]:
        """The step size and its momentum."""
        return {"step_size": torch.stack([self.step_size, self.momentum])}

    def restore(self, iteration: int, state: dict[str, Tensor]) -> None:
        """The step size and its momentum."""
        self.step_size, self.momentum = state["step_size"].to(self.draws.device, torch.float32).unbind()

    def learnt(self) -> dict[str, float]:
        """The step size, at which networks are to be trained on the result."""
        return {"step_size": float(self.step_size)}


def draw_batches(count: int, size: int, steps: int, numbers: torch.Generator) -> list[Tensor]:
    """Indices of the images of each step: every image once before any a second time."""
    left: list[Tensor] = []
    batches = []
    for _ in range(steps):
        left = left or list(torch.randperm(count, generator=numbers).split(size))
        batches.append(left.pop())
    return batches


def match_trajectory(
    student: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    target: Tensor,
    step_size: Tensor | float,
    batches: Sequence[Tensor],
    show: Callable[[int, Tensor, Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    own: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss ‖θ_0 − α Σ g_i − θ*‖² / ‖θ_0 − θ*‖² of a student's steps, and its gradients in constant memory.

    A first pass adds up the gradients g_i of the steps. With the loss's derivative by that sum,
    2 α (α Σ g_i + θ* − θ_0) / ‖θ_0 − θ*‖², a second pass takes each step again and pulls back through it alone, its θ_i
    being held constant (TESLA).

    Args:
        student: (weights [P], shown images [n, …]) to logits [n, classes].
        start: θ_0, [P].
        target: θ*, [P].
        step_size: α.
        batches: for each step the indices of its images, on the CPU.
        show: (step, indices in its batch, their pixels) to what the student sees.
        pixels: all images [N, channels, H, W].
        labels: [N], on the CPU.
        own: bool [N], on the CPU, the images whose gradient is wanted; it is zero for all others.

    Returns:
        The loss, its gradient at `pixels`, and its derivative by α with the sum held constant.
    """

    def gradient(weights: Tensor, step: int, indices: Tensor, images: Tensor, keep_graph: bool = False) -> Tensor:
        """What some of a batch's images add to g_i."""
        weights = weights.detach().requires_grad_()
        logits = student(weights, show(step, indices, images))
        targets = send(labels[batches[step][indices]], logits.device)
        loss = functional.cross_entropy(logits, targets, reduction="sum") / len(batches[step])
        return torch.autograd.grad(loss, weights, create_graph=keep_graph)[0]

    weights, total = start, torch.zeros_like(start)
    for step, batch in enumerate(batches):
        mean = torch.zeros_like(start)
        for indices in torch.arange(len(batch)).split(CHUNK):
            mean += gradient(weights, step, indices, pixels[send(batch[indices], pixels.device)])
        total += mean
        weights = weights - step_size * mean
    distance = (start - target).square().sum()
    gap = start - step_size * total - target
    loss = gap.square().sum() / distance
    slope = -2 * gap.dot(total) / distance
    direction = -2 * step_size * gap / distance

    result = torch.zeros_like(pixels)
    weights = start
    for step, batch in enumerate(batches):
        mean = torch.zeros_like(start)
        for indices in by_class(labels[batch]):
            wanted = own[batch[indices]].nonzero().flatten()
            images = pixels[send(batch[indices], pixels.device)].detach().requires_grad_()
            part = gradient(
                weights, step, indices, images, keep_graph=True
            )  # for others' too, or it rounds differently
            if len(wanted):
                pulled = torch.autograd.grad(part.dot(direction), images)[0]
                result[send(batch[indices[wanted]], pixels.device)] += pulled[send(wanted, pixels.device)]
            mean += part.detach()
        weights = weights - step_size * mean
    return loss, result, slope


def by_class(labels: Tensor) -> list[Tensor]:
    """Places in a batch in parts of whole classes, up to `TOGETHER` images; larger classes alone, `CHUNK` at a time.

    A part is the same whoever owns its classes: sums are then rounded alike on any number of processes.
    """
    parts: list[Tensor] = []
    _, counts = labels.unique(return_counts=True)
    for indices in labels.argsort(stable=True).split(counts.tolist()):
        if parts and len(parts[-1]) + len(indices) <= TOGETHER:
            parts[-1] = torch.cat([parts[-1], indices])
        else:
            parts.extend(indices.split(CHUNK))
    return parts
