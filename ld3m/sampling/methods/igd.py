"""IGD, influence-guided sampling (ICLR 2025), as its code has it (Lokshaw-Chau/MinimaxDiffusion dd6a9d7).

Networks θ_i along a training on real images say what an image is worth to them: g = ∇_z Σ_i [1 − cos(∇_θ ℓ(D(x̂0), y;
θ_i), Ḡ_i)]/n, through decoder and denoiser, with the mean gradient Ḡ_i of the class's real images. In the middle of the
chain each step is moved by −k ρ g, ρ = 0.0015 rms(ε̂) √(1 − ᾱ)/rms(g), and by −γ ∇_z cos(z, m), away from the nearest m
of the latest 64 images of the class. That gradient is about 1/‖z‖, so that γ is multiplied by the elements of a latent
over DiT's 4,096, and moves others by the same share. As published: DiT-XL/2, guidance 4, DDPM's noise, steps 45 to 30
of 50, ConvNet-6 after four or five epochs, 200 real images, k 5 and γ 120 (10 and 100 for ImageNet-1k).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.transfer import send
from ld3m.networks import without_dropout
from ld3m.objectives.draws import Draws
from ld3m.objectives.experts import experts_of
from ld3m.sampling.algorithm import decoded, guided
from ld3m.sampling.approach import Approach, ClassTask, Correction, Moment
from ld3m.sampling.judged import scoring_network, seen

RATE = 0.0015
"""Of the move, as a share of ε̂."""
ELEMENTS = 4096
"""Of a latent of DiT-XL/2 at 256 pixels, by which γ is published."""
MEMORY = 64
"""Earlier images that an image deviates from."""
CHUNK = 50
"""Real images whose gradient is taken at a time."""


def igd(task: ClassTask) -> Approach:
    """Chains one after the other, each guided by networks and away from those before it."""
    settings, approach = task.settings.igd, task.starting_at("noise")
    if not settings.scale and not settings.deviation:
        return approach
    networks = networks_of(task) if settings.scale else []
    real = [real_gradient(task, network) for network in networks]

    def guide(moment: Moment) -> Correction | None:
        left = moment.steps - 1 - moment.index
        if not settings.low * moment.steps <= left <= settings.high * moment.steps:
            return None
        shift = torch.zeros_like(moment.z)
        if networks:
            gradient = influence(task, moment, networks, real)
            rate = RATE * _rms(moment.noise) * moment.step.level.noise / _rms(gradient).clamp_min(1e-12)
            shift = -settings.scale * rate * gradient
        if len(moment.earlier) and settings.deviation:
            deviation = settings.deviation * moment.z[0].numel() / ELEMENTS
            shift = shift - deviation * towards_nearest(moment.z, moment.earlier[-MEMORY:])
        return Correction(shift=shift)

    return replace(approach, guide=guide, together=1)


def networks_of(task: ClassTask) -> list[nn.Module]:
    """The scorer of real images, or an expert after some of its epochs.

    Raises:
        UserError: if there are no experts.
    """
    settings, recipe = task.settings.igd, task.recipe
    if settings.networks == "scorer":
        return [without_dropout(scoring_network(task))]
    draws = Draws(recipe.seed, task.images, recipe.network, recipe.distill.real_batch, task.device, experts_of(recipe))
    draws.check_networks()
    last = recipe.experts.epochs
    epochs = sorted({round(i * last / settings.snapshots) for i in range(settings.snapshots)})
    found = [draws.expert(0, epoch) for epoch in epochs]
    for number, network in enumerate(found):
        draws.freeze_norms(network, number)
    return found


def real_gradient(task: ClassTask, network: nn.Module) -> Tensor:
    """Ḡ, the mean gradient of the loss of a class's real images, `igd.real` of them, at all weights, flat."""
    images = task.images.images("train", task.label)
    chosen = torch.randperm(len(images), generator=task.draws("real"))[: task.settings.igd.real]
    total = torch.zeros((), device=task.device)
    for part in chosen.sort().values.split(CHUNK):
        pixels = task.images.normalise(bytes_to_unit(send(images[part], task.device)))
        total = total + gradient_of_loss(network, pixels, task.label, False) * (len(part) / len(chosen))
    return total


def gradient_of_loss(network: nn.Module, images: Tensor, label: int, differentiable: bool) -> Tensor:
    """The gradient of the mean cross-entropy of images [n, channels, H, W] of a class at all weights, flat."""
    weights = [weight.requires_grad_() for weight in network.parameters()]
    with torch.enable_grad():
        targets = torch.full((len(images),), label, device=images.device)
        loss = functional.cross_entropy(network(images), targets)
        parts = torch.autograd.grad(loss, weights, create_graph=differentiable)
    return torch.cat([part.flatten() for part in parts])


def influence(task: ClassTask, moment: Moment, networks: Sequence[nn.Module], real: Sequence[Tensor]) -> Tensor:
    """g at z [1, *latent_shape]."""
    prior, step = task.prior, moment.step
    with torch.enable_grad():
        z = moment.z.detach().requires_grad_()
        c = task.embedding.expand(len(z), *prior.conditioning_shape)
        answer = guided(prior, z, step.time, c, task.schedule.guidance)
        clean, _ = prior.noise_schedule.clean_and_noise(z, answer, step.level)
        pixels = seen(task, decoded(prior, clean, task.recipe.rendered_size))
        distance = torch.zeros((), device=z.device)
        for network, wanted in zip(networks, real, strict=True):
            own = gradient_of_loss(network, pixels, task.label, True)
            distance = distance + (1 - functional.cosine_similarity(own, wanted, dim=0)) / len(networks)
        (gradient,) = torch.autograd.grad(distance, z)
    return gradient


def towards_nearest(z: Tensor, others: Tensor) -> Tensor:
    """∇_z cos(z, m) for each z [n, *latent_shape], m the most similar of others: (m/‖m‖ − cos z/‖z‖)/‖z‖."""
    flat = z.flatten(1)
    length = flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit, units = flat / length, functional.normalize(others.flatten(1), dim=1)
    cosine, nearest = (unit @ units.T).max(1, keepdim=True)
    return ((units[nearest.flatten()] - cosine * unit) / length).view_as(z)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
