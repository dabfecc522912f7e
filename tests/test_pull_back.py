"""Pull-backs through some of the denoiser's calls: against autograd through a chain that holds the others' answers."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import distilled, latents
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ld3m.priors.noise_schedule import NoiseSchedule
from ld3m.recipe import Recipe
from ld3m.sampling import Schedule, render
from ld3m.sampling.differentiated import Differentiated, Kind, Through, passed_on
from ld3m.sizing.bench import differentiated_calls

SKIPS = ("paper", "reference", "none")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = 5
CALLS = {"paper": STEPS - 1, "reference": STEPS, "none": STEPS}


class Small:
    """A prior of a few numbers in float64: its denoiser is a function of z, c and time, its decoder the identity."""

    image_channels = 1
    image_size = 2
    latent_shape = (1, 2, 2)
    conditioning_shape = (4,)
    null_embedding = torch.zeros(1, 4, dtype=torch.float64)

    def __init__(self, prediction: str = "epsilon", velocity: Any = None) -> None:
        alphas = torch.linspace(0.999, 0.99, 50, dtype=torch.float64).cumprod(0)
        self.noise_schedule = NoiseSchedule(alphas, prediction=prediction)  # type: ignore[arg-type]
        self.velocity = velocity
        draws = torch.Generator().manual_seed(0)
        self.weights = torch.randn(4, 4, generator=draws, dtype=torch.float64) / 2
        self.calls: list[bool] = []

    def denoise(self, z: Tensor, t: int, c: Tensor) -> Tensor:
        self.calls.append(torch.is_grad_enabled())
        if self.velocity is None:
            return torch.tanh((z.flatten(1) + c) @ self.weights * (1 + t / 50)).view_as(z)
        signal, noise = self.noise_schedule.level(t)
        v = self.velocity(c, t).view_as(z)
        match self.noise_schedule.prediction:
            case "epsilon":
                return signal * v + noise * z
            case "v_prediction":
                return v
        return signal * z - noise * v

    def quantise(self, z: Tensor) -> Tensor:
        return z

    def decode(self, z: Tensor) -> Tensor:
        return z / 100  # far from where pixels are clamped


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    z, noise, grad = (torch.randn(3, 1, 2, 2, generator=draws, dtype=torch.float64) for _ in range(3))
    return z, torch.randn(3, 4, generator=draws, dtype=torch.float64), noise, grad


def pulled(prior: Small, skip: str, through: Through | None, **options: Any) -> tuple[Tensor, Tensor]:
    z, c, noise, grad = inputs()
    schedule = Schedule.of(prior.noise_schedule, STEPS, skip, 3.0)  # type: ignore[arg-type]
    return render(prior, schedule, z, c, noise, through=through, **options)[1](grad)  # type: ignore[arg-type]


def through(prior: Small, skip: str, kind: Kind, count: int, iteration: int = 0) -> Through:
    schedule = Schedule.of(prior.noise_schedule, STEPS, skip, 3.0)  # type: ignore[arg-type]
    return Differentiated(kind, count).through(schedule, iteration)


def surrogate(prior: Small, skip: str, steps: frozenset[int], carried: bool) -> tuple[Tensor, Tensor]:
    """Autograd through the chain written out once more, with the velocity a constant in all steps but some."""
    z, c, noise, grad = inputs()
    z, c = z.requires_grad_(), c.requires_grad_()
    levels = [prior.noise_schedule.level(1 + i * 10) for i in range(STEPS)]
    before = [prior.noise_schedule.level(1 + i * 10 - 10) for i in range(STEPS)]
    start = state = levels[-1].signal * z + levels[-1].noise * noise
    for place, i in enumerate(reversed(range(STEPS))):
        (signal, sigma), (next_signal, next_sigma) = levels[i], before[i]
        if place not in steps and not carried:
            state = state.detach()
        null = prior.denoise(state, 1 + i * 10, prior.null_embedding.expand_as(c))
        answer = null + 3 * (prior.denoise(state, 1 + i * 10, c) - null)
        clean, epsilon = {
            "epsilon": ((state - sigma * answer) / signal, answer),
            "v_prediction": (signal * state - sigma * answer, signal * answer + sigma * state),
            "sample": (answer, (state - signal * answer) / sigma),
        }[prior.noise_schedule.prediction]
        if place not in steps:
            velocity = (signal * epsilon - sigma * clean).detach()
            clean, epsilon = signal * state - sigma * velocity, signal * velocity + sigma * state
        detached = not carried and place not in steps
        anchor = z if skip == "reference" else start
        anchor = anchor.detach() if detached else anchor
        if skip == "reference":
            clean = (1 - i / (STEPS - 1)) * clean + i / (STEPS - 1) * anchor
        state = next_signal * clean + next_sigma * epsilon
        if skip == "paper":
            state = (1 - (i + 1) / STEPS) * state + (i + 1) / STEPS * anchor
    pixels = (prior.decode(state) + 1) / 2
    return torch.autograd.grad(pixels, (z, c), grad, allow_unused=True, materialize_grads=True)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["shortcut", "drawn", "last"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("skip", SKIPS)
def test_all_calls_are_the_exact_gradient(skip: str, prediction: str, kind: Kind) -> None:
    prior = Small(prediction)
    exact = pulled(prior, skip, None)
    for found, wanted in zip(pulled(prior, skip, through(prior, skip, kind, STEPS)), exact, strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(exact, surrogate(prior, skip, frozenset(range(STEPS)), True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "count"),
    [("shortcut", 0), ("shortcut", 3), ("drawn", 0), ("drawn", 1), ("drawn", 3), ("last", 1), ("last", 3)],
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("skip", SKIPS)
def test_some_calls_are_the_gradient_of_the_surrogate(skip: str, prediction: str, kind: Kind, count: int) -> None:
    prior = Small(prediction)
    chosen = through(prior, skip, kind, count)
    assert len(chosen.steps) == count
    assert chosen.weight == (CALLS[skip] / max(1, count) if kind == "drawn" else 1)
    grad_z, grad_c = pulled(prior, skip, chosen, micro_batch=2, keep_graph_steps="all" if count == 1 else 0)
    wanted_z, wanted_c = surrogate(prior, skip, chosen.steps, kind != "last")
    torch.testing.assert_close(grad_z, wanted_z, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad_c, chosen.weight * wanted_c, rtol=1e-12, atol=1e-14)
    assert grad_c.any() == (count > 0)


@pytest.mark.parametrize(("skip", "least"), [("paper", 1), ("reference", 2), ("none", STEPS)])
def test_as_many_last_calls_as_a_recipe_must_have_reach_z(skip: str, least: int) -> None:
    prior = Small()
    for count in range(STEPS + 1):
        assert pulled(prior, skip, through(prior, skip, "last", count))[0].any() == (count >= least)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("skip", SKIPS)
def test_without_a_jacobian_of_the_velocity_all_are_exact(skip: str, prediction: str) -> None:
    prior = Small(prediction, velocity=lambda c, t: torch.full_like(c, 0.3))
    exact, _ = pulled(prior, skip, None)
    for count in range(STEPS):
        torch.testing.assert_close(
            pulled(prior, skip, through(prior, skip, "shortcut", count))[0], exact, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("skip", SKIPS)
def test_drawn_calls_give_the_gradient_of_c_on_average(skip: str) -> None:
    """Of a velocity that depends on c alone, over the draws of one call, all of which are as likely."""
    prior = Small("v_prediction", velocity=lambda c, t: (c @ prior.weights) * (1 + t))
    exact = pulled(prior, skip, None)[1]
    calls = sorted(through(prior, skip, "exact", 0).steps)
    drawn = [pulled(prior, skip, Through(frozenset({i}), True, float(len(calls))))[1] for i in calls]
    torch.testing.assert_close(torch.stack(drawn).mean(0), exact, rtol=1e-12, atol=1e-14)


def test_each_call_is_drawn_as_often_and_by_the_iteration_alone() -> None:
    prior, counts = Small(), Counter[int]()
    for iteration in range(600):
        chosen = through(prior, "reference", "drawn", 2, iteration)
        assert chosen == through(prior, "reference", "drawn", 2, iteration)
        counts.update(chosen.steps)
    schedule = Schedule.of(prior.noise_schedule, STEPS, "reference", 3.0)
    of_seeds = {Differentiated("drawn", 2, seed).through(schedule, 0).steps for seed in range(20)}
    assert len(of_seeds) > 5, "of ten pairs"
    expected = 600 * 2 / STEPS
    assert sum((counts[i] - expected) ** 2 / expected for i in range(STEPS)) < 18.5  # χ² of 4 degrees, p = 0.001


@pytest.mark.parametrize(("kind", "count"), [("exact", 1), ("shortcut", 0), ("shortcut", 2), ("drawn", 2), ("last", 3)])
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("keep", [0, "all"])
def test_cost_in_calls(skip: str, kind: Kind, count: int, keep: int | str) -> None:
    """S F + K (F + B) flat, S F + K B with graphs kept: a call is (z, c) of the null class and the class in one."""
    prior = Small()
    pulled(prior, skip, through(prior, skip, kind, count), keep_graph_steps=keep)
    through_calls = CALLS[skip] if kind == "exact" else count
    assert prior.calls.count(True) == through_calls
    assert len(prior.calls) == CALLS[skip] + (through_calls if keep == 0 else 0)
    sampler = SimpleNamespace(steps=STEPS, steps_made=STEPS, skip=skip, pull_back=kind, differentiated=count)
    assert differentiated_calls(sampler) == through_calls  # type: ignore[arg-type]


@given(steps=st.integers(1, 40), skip=st.sampled_from(SKIPS))
def test_what_is_passed_on_is_the_cosine_between_levels(steps: int, skip: str) -> None:
    """s' s + n' n = cos(angle), with angles arccos(s); the skip takes its weight from it, or from its first part."""
    schedule = Schedule.of(Small().noise_schedule, steps, skip, 1.0)  # type: ignore[arg-type]
    for step in schedule.steps:
        angles = [torch.tensor(level.signal, dtype=torch.float64).arccos() for level in (step.level, step.next)]
        cosine = float((angles[0] - angles[1]).cos())
        signals = step.level.signal * step.next.signal
        wanted = {
            "none": (cosine, 0.0),
            "paper": ((1 - step.weight) * cosine, step.weight),
            "reference": (cosine - step.weight * signals, step.weight * step.next.signal),
        }[skip]
        assert passed_on(schedule, step) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_a_run_goes_through_the_calls_that_its_recipe_names(recipe_file: Path, tmp_path: Path) -> None:
    """All of them: the exact run's latents bit for bit; one: others."""
    few = ["distill.iterations=2", "prior.steps=3"]
    exact = latents(distilled(recipe_file, tmp_path / "exact", *few))
    for count, same in ((3, True), (1, False)):
        cheaper = [*few, "prior.pull_back=shortcut", f"prior.differentiated={count}"]
        found = latents(distilled(recipe_file, tmp_path / str(count), *cheaper))
        assert torch.equal(found["z"], exact["z"]) == torch.equal(found["c"], exact["c"]) == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pull_back": "last", "differentiated": 1}, "leave Z without a gradient; give 2 or more"),
        ({"pull_back": "last", "differentiated": 0, "skip": "paper"}, "leave Z without a gradient; give 1 or more"),
        ({"pull_back": "last", "differentiated": 9, "skip": "none"}, "leave Z without a gradient; give 10 or more"),
        ({"pull_back": "shortcut", "differentiated": 0}, "leaves c without a gradient"),
    ],
)
def test_what_would_have_no_gradient_is_refused(options: dict[str, Any], message: str) -> None:
    content = {"name": "a", "data": {"source": "digits"}, "prior": {"source": "digits", **options}}
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(content)
