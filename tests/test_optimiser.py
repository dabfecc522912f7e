"""What moves Z and c: against the optimisers of torch, and through runs."""

import math
from pathlib import Path

import pytest
import torch
from conftest import distilled, latents

from ld3m.distillation.latents import LearntLatents
from ld3m.recipe import DistillRecipe


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
