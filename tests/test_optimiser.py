"""What moves Z and c: against the optimisers of torch, and through runs."""

import math
from pathlib import Path

import pytest
import torch
from conftest import distilled, latents
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ld3m.distillation.latents import LearntLatents, unmoved
from ld3m.recipe import DistillRecipe

LARS = DistillRecipe(optimiser="lars", momentum=0.5, lr_latents=0.1, lr_conditioning=0.2)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_steps_are_those_of_torch(optimiser: str, schedule: str) -> None:
    recipe = DistillRecipe(
        optimiser=optimiser, schedule=schedule, momentum=0.7, lr_latents=0.3, lr_conditioning=0.02, iterations=12
    )
    draws = torch.Generator().manual_seed(0)
    z, c = torch.randn(3, 2, 3, 4, 4, generator=draws), torch.randn(3, 2, 5, generator=draws)
    squares = {"z_square": torch.zeros_like(z), "c_square": torch.zeros_like(c)} if optimiser == "adam" else {}
    learnt = LearntLatents(z, c, torch.zeros_like(z), torch.zeros_like(c), **squares)
    theirs = [z.clone().requires_grad_(), c.clone().requires_grad_()]
    groups = [{"params": [theirs[0]], "lr": 0.3}, {"params": [theirs[1]], "lr": 0.02}]
    reference: torch.optim.Optimizer
    if optimiser == "adam":
        reference = torch.optim.Adam(groups, betas=(0.7, 0.999))
    else:
        reference = torch.optim.SGD(groups, momentum=0.7)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=12)
    for iteration in range(12):
        grads = [torch.randn(tensor.shape, generator=draws) * 10**-iteration for tensor in theirs]
        for tensor, grad in zip(theirs, grads, strict=True):
            tensor.grad = grad.clone()
        reference.step()
        if schedule == "cosine":
            falling.step()
        learnt = learnt.step(iteration, *grads, recipe)
    torch.testing.assert_close(learnt.z, theirs[0].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(learnt.c, theirs[1].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_adam_goes_on_bit_for_bit(recipe_file: Path, tmp_path: Path) -> None:
    options = ["distill.optimiser=adam", "distill.lr_latents=0.05", "distill.iterations=4"]
    whole = latents(distilled(recipe_file, tmp_path / "whole", *options))
    parts = tmp_path / "parts"
    distilled(recipe_file, parts, *options[:2], "distill.iterations=2")
    assert not torch.equal(latents(parts)["z"], whole["z"])
    distilled(recipe_file, parts, *options)
    assert torch.equal(latents(parts)["z"], whole["z"])
    moved = (whole["c"] - latents(distilled(recipe_file, tmp_path / "still", "distill.iterations=0"))["c"]).abs()
    assert moved.max() <= 4 * 0.1 / math.sqrt(1 - 0.5**2)  # steps of about the rate, whatever the gradient


def test_a_rate_that_falls_ends_where_it_was_said_to(recipe_file: Path, tmp_path: Path) -> None:
    from ld3m.errors import UserError

    distilled(recipe_file, tmp_path / "run", "distill.schedule=cosine")
    with pytest.raises(UserError, match=r"distill\.iterations differ"):
        distilled(recipe_file, tmp_path / "run", "distill.schedule=cosine", "distill.iterations=6")


def at_rest(z: torch.Tensor, c: torch.Tensor, settings: DistillRecipe = LARS) -> LearntLatents:
    """Z and c [classes, latents per class, …] before the first step."""
    return LearntLatents.stack([unmoved(settings, *each) for each in zip(z, c, strict=True)], len(z))


def test_lars_moves_each_latent_by_a_share_of_its_norm() -> None:
    """By hand: norms of 5 and 13, so gradients of any length become as long, and enter the momentum so."""
    z, c = torch.tensor([[[3.0, 4.0], [5.0, 12.0]]]), torch.tensor([[[8.0, 6.0], [0.0, 1.0]]])
    down, right = torch.tensor([[[0.0, 0.2], [0.0, 700.0]]]), torch.tensor([[[1e-9, 0.0], [3.0, 0.0]]])
    once = at_rest(z, c).step(0, down, right, LARS)
    torch.testing.assert_close(once.z, torch.tensor([[[3.0, 3.5], [5.0, 10.7]]]))
    torch.testing.assert_close(once.c, torch.tensor([[[6.0, 6.0], [-0.2, 1.0]]]))
    twice = once.step(1, -down, right, LARS)
    lengths = torch.tensor([math.hypot(3, 3.5), math.hypot(5, 10.7)])
    torch.testing.assert_close(twice.z[0, :, 1], once.z[0, :, 1] - 0.1 * (0.5 * torch.tensor([5.0, 13.0]) - lengths))


@examples(max_examples=30)
@given(st.floats(1e-25, 1e25), st.integers(-80, 80), st.integers(0, 2**32))
def test_the_length_of_the_gradient_does_not_matter_to_lars(factor: float, exponent: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    z, c, grad_z, grad_c = (torch.randn(2, 3, 4, generator=draws) for _ in range(4))
    start = at_rest(z, c)
    once = start.step(0, grad_z, grad_c, LARS)
    other = start.step(0, grad_z * factor, grad_c * factor, LARS)
    torch.testing.assert_close(other.z, once.z)
    torch.testing.assert_close(other.c, once.c)
    assert torch.equal(start.step(0, grad_z * 2.0**exponent, grad_c, LARS).z, once.z)  # a power of two rounds nothing
    moved = (once.z - z).norm(dim=2)
    torch.testing.assert_close(moved, 0.1 * z.norm(dim=2))


def test_lars_without_a_gradient_stands_still_and_leaves_zero() -> None:
    """A latent of zeros, such as mid-grey pixels, has no norm to take a share of: it moves as one of rms 1."""
    z, nothing = torch.zeros(1, 2, 9), torch.zeros(1, 2, 9)
    grad = torch.stack([torch.zeros(9), torch.full((9,), -5.0)])[None]
    moved = at_rest(z, nothing).step(0, grad, nothing, LARS)
    torch.testing.assert_close(moved.z, torch.stack([torch.zeros(9), torch.full((9,), 0.1)])[None])
    assert torch.equal(moved.c, nothing)


def test_a_step_of_lars_depends_neither_on_other_classes_nor_on_a_checkpoint() -> None:
    draws = torch.Generator().manual_seed(5)
    z, c = torch.randn(7, 3, 4, 5, 5, generator=draws), torch.randn(7, 3, 9, generator=draws)
    grads = [(torch.randn(z.shape, generator=draws), torch.randn(c.shape, generator=draws)) for _ in range(3)]
    everyone = at_rest(z, c)
    first, others = at_rest(z[:1], c[:1]), at_rest(z[1:], c[1:])
    for i, (grad_z, grad_c) in enumerate(grads):
        everyone = everyone.step(i, grad_z, grad_c, LARS)
        first = LearntLatents.stack(first.by_class(), 1).step(i, grad_z[:1], grad_c[:1], LARS)
        others = LearntLatents.stack(others.by_class(), 6).step(i, grad_z[1:], grad_c[1:], LARS)
    assert torch.equal(torch.cat([first.z, others.z]), everyone.z)
    assert torch.equal(torch.cat([first.c, others.c]), everyone.c)
    idle = LearntLatents.stack([unmoved(LARS, z[0], c[0])], count=0)
    assert idle.step(0, grads[0][0][:0], grads[0][1][:0], LARS).z.shape == (0, 3, 4, 5, 5)


@pytest.mark.parametrize("objective", ["dm", "dc", "mtt", "lgm"])
def test_lars_has_one_rate_for_all_objectives(objective: str) -> None:
    left_out = DistillRecipe(objective=objective, optimiser="lars")
    assert (left_out.lr_latents, left_out.lr_conditioning) == (0.1, 0.1)
    assert DistillRecipe(objective=objective, optimiser="lars", lr_latents=0.3).lr_latents == 0.3
    assert DistillRecipe(objective=objective).lr_latents == {"dm": 1, "dc": 0.1, "mtt": 1000, "lgm": 1000}[objective]
