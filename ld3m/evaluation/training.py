"""How a network is trained from scratch on a few images, as a protocol has it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m import networks
from ld3m.data.prepared import ImageSet, Rows
from ld3m.errors import UserError
from ld3m.evaluation.checkpoint import Checkpoint
from ld3m.evaluation.protocols import Protocol
from ld3m.evaluation.protocols.details import SCHEDULES
from ld3m.evaluation.soft_labels import SoftLabels, View
from ld3m.evaluation.together import Share
from ld3m.images import augment
from ld3m.images.augment import Augmentation, Augmentations
from ld3m.images.ranges import bytes_to_unit
from ld3m.images.transforms import ColourJitter, CutMix, Flip, Lighting, PatchShuffle, PerImage, ResizedCrop
from ld3m.machine.transfer import send
from ld3m.networks.speed import quick_on_cpus
from ld3m.networks.training import Batch, Loss, Shown, divergence, squared_error, train_epoch
from ld3m.randomness import generator
from ld3m.recipe import NetworkRecipe


def train(
    arch: str,
    pixels: Tensor | Rows,
    labels: Tensor,
    images: ImageSet,
    how: Protocol,
    seeds: tuple[int, int],
    device: torch.device,
    soft_labels: SoftLabels | None = None,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
    share: Share | None = None,
    checkpoint: Checkpoint | None = None,
    weights: Tensor | None = None,
) -> nn.Module:
    """A network trained on a few images and nothing else.

    Args:
        arch: as `networks.build` takes it; a ConvNet is the literature's, whatever the set was matched in.
        pixels: [N, channels, H, W], uint8, or float32 in [0, 1]; `Rows` of real images stay on disk.
        labels: int64 [N].
        images: the set they stand for, which normalises them.
        seeds: the recipe's and the network's, of the initial weights, the order of images, all that changes them and
            dropout.
        soft_labels: for a protocol whose labels are soft.
        after_epoch: is called after each epoch with the epochs done and the network as it would be tested then.
        share: of this process, if several train the network together; None: it is alone.
        checkpoint: where the training resumes, and is saved for that.
        weights: float32 [N], by which each image's part of the loss is multiplied; None: all count the same.

    Returns:
        The network in evaluation mode, on the device; the average of its weights, if the protocol has one.

    Raises:
        UserError: if the protocol's labels are soft and there is nothing to label with.
    """
    if how.labels == "soft" and soft_labels is None:
        raise UserError(f"evaluate.labels: {how.name} has soft labels, and there is no teacher; give labels=hard")
    network = untrained(arch, images, seeds, device)
    if how.dtype == "bfloat16":
        network = networks.Half(network)
    average = networks.averaged(network, how.ema) if how.ema else None
    final: nn.Module = average.module if average else network
    optimiser = optimiser_of(network, how)
    seen, targets = pixels.to(device), labels.to(device)
    loss: Loss = _soft_loss(how) if how.labels == "soft" else _cross_entropy
    parts = {"network": network, **({"average": average} if average else {})}
    done = checkpoint.resume(parts, optimiser, how.epochs) if checkpoint else 0
    trained = share.joined(network, arch) if share else network
    for epoch in range(done, how.epochs):
        for group in optimiser.param_groups:
            group["lr"] = how.lr * SCHEDULES[how.schedule](epoch, how.epochs)
        view = (*seeds, epoch)
        draws = epoch_draws(soft_labels.view(view) if soft_labels else view)
        shown = shown_in_epoch(seen, targets, images, how, draws, epoch, soft_labels, share, weights)
        trained.train()
        own_loss = share.weighted(loss) if share else loss
        process = share.processes.process_index if share else 0
        train_epoch(trained, optimiser, shown, len(seen), how.batch, draws, own_loss, LEAST[how.labels], process)
        if average:
            average.update_parameters(network)
        if after_epoch:
            after_epoch(epoch + 1, final.eval())
        if checkpoint:
            checkpoint.after(epoch + 1, parts, optimiser)
    if share:
        share.release()
    return final.eval()


def epoch_draws(view: View) -> torch.Generator:
    """What decides the order of images in an epoch, and all that changes them."""
    seed, network, epoch = view
    return generator(seed, "evaluation epoch", network, epoch)


def untrained(arch: str, images: ImageSet, seeds: tuple[int, int], device: torch.device) -> nn.Module:
    """A network with the initial weights of the recipe's and its own seed, on the device."""
    draws = generator(seeds[0], "evaluation network", seeds[1])
    network: nn.Module = networks.build(arch, images.shape, NetworkRecipe(), draws).to(device)
    if device.type == "cpu" and isinstance(network, networks.ConvNet):  # it is not faster for the others
        return quick_on_cpus(network)
    return network


def optimiser_of(network: nn.Module, how: Protocol) -> torch.optim.Optimizer:
    """The optimiser of a network's weights, as a protocol has it.

    Without decay of all, that of "weights" with two dimensions or more remains: the rule of RDED's and the SRe2L code's
    `get_parameters`.
    """
    if how.optimiser not in ("sgd", "adam", "adamw"):
        raise ValueError(f"optimiser {how.optimiser!r}")
    decaying = [how.decay_all or ("weight" in name and each.dim() > 1) for name, each in network.named_parameters()]
    groups = [
        {"params": [each for each, decays in zip(network.parameters(), decaying, strict=True) if decays == wanted],
         "weight_decay": how.weight_decay if wanted else 0.0}
        for wanted in (True, False) if wanted in decaying
    ]  # fmt: skip
    if how.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum)
    kind = torch.optim.Adam if how.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=how.lr, betas=(how.momentum, 0.999))


def _soft_loss(how: Protocol) -> Loss:
    return squared_error if how.soft_loss == "squared" else divergence(how.temperature, how.temperature_squared)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """With labels, or with shares of classes as CutMix and weights make them."""
    return functional.cross_entropy(logits, targets)


def shown_in_epoch(
    pixels: Tensor | Rows,
    labels: Tensor,
    images: ImageSet,
    how: Protocol,
    draws: torch.Generator,
    epoch: int,
    soft_labels: SoftLabels | None,
    share: Share | None = None,
    weights: Tensor | None = None,
) -> Shown:
    """What a network is shown of a batch in an epoch: changed, normalised and mixed images, and their targets.

    An image's weight stays with its label: in a batch mixed by CutMix, that of each hard label is its own image's, and
    that of a soft one, which is of the mixture, is mixed by area.
    """
    classes, size = len(images.classes), pixels.shape[-1]

    @torch.no_grad()
    def shown(indices: Tensor) -> Batch:
        count = len(indices)
        operations = [
            OPERATIONS[name](draws, count, size, *numbers) for name, numbers in how.augment if name in OPERATIONS
        ]
        siamese = [SIAMESE[name](draws, size, count) for name, _ in how.augment if name in SIAMESE]
        mixed = how.cutmix and (how.cutmix_share == 1 or float(torch.rand((), generator=draws)) < how.cutmix_share)
        mix = CutMix.draw(draws, count, size, how.cutmix) if mixed else None
        own = share.of(count) if share else torch.arange(count)
        needed = torch.cat([own, mix.partners[own]]) if mix and share else own  # partners may be in others' shares
        chosen = pixels[send(indices[needed], pixels.device)]
        seen = bytes_to_unit(send(chosen, labels.device) if isinstance(pixels, Rows) else chosen)
        for operation in operations:
            seen = (operation.of(needed) if share else operation)(seen)
        seen = images.normalise(seen)
        for each in siamese:
            seen = (each.of(needed) if share else each)(seen)
        if mix:
            seen = mix.paste(seen[: len(own)], seen[len(own) :]) if share else mix(seen)
        targets = labels[send(indices, labels.device)]
        counted = None if weights is None else send(weights[indices], labels.device)[:, None]
        if how.labels == "hard" and (mix or counted is not None):
            targets = functional.one_hot(targets, classes).to(seen.dtype)
            targets = targets if counted is None else counted * targets
            targets = mix.labels(targets) if mix else targets
        if soft_labels and how.labels == "soft":
            logits = soft_labels(seen, indices, epoch, mix, own if share else None)
            if counted is None:
                return seen, logits
            counted = (mix.labels(counted) if mix else counted).squeeze(1)
            return seen, logits, counted[send(own, counted.device)] if share else counted
        return seen, targets[send(own, targets.device)] if share else targets

    return shown


LEAST = {"hard": 1, "soft": 2}
"""Images of the last batch, by the kind of labels: stored ones are for the same batches, whatever the network needs."""

OPERATIONS: dict[str, Callable[..., PerImage]] = {
    "shuffle": lambda draws, count, size, side: PatchShuffle.draw(draws, count, int(side)),
    "crop": lambda draws, count, size, low, high: ResizedCrop.draw(draws, count, size, (low, high)),
    "flip": lambda draws, count, size, share: Flip.draw(draws, count, share),
    "jitter": lambda draws, count, size, *strengths: ColourJitter.draw(draws, count, *strengths),
    "lighting": lambda draws, count, size, deviation: Lighting.draw(draws, count, deviation),
}
"""Operations of `evaluate.augment` on images in [0, 1]."""

SIAMESE: dict[str, Callable[..., Augmentation | Augmentations]] = {
    "dsa": augment.draw,
    "idc": augment.draw_colour_and_place,
}
"""Those on normalised images."""
