"""The sampler: equal to autograd through the whole chain and to diffusers' DDIM; test_convert has the authors' code."""

import pytest
import torch
from conftest import make_prior
from torch import Tensor

from ld3m.errors import UserError
from ld3m.priors import ClassConditionalLDM
from ld3m.priors.noise_schedule import NoiseSchedule
from ld3m.recipe import Recipe, SamplerRecipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule, images_of, render

SKIPS = ("paper", "reference", "none")


@pytest.fixture(scope="module")
def prior() -> ClassConditionalLDM:
    """The small prior in float64; quantises with 64 codes."""
    prior = make_prior(size=8)
    prior.autoencoder.double()
    prior.denoiser.double()
    prior.table = prior.table.double()
    prior.null_embedding = prior.null_embedding.double()
    return prior


def inputs(prior: ClassConditionalLDM, count: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(count, *prior.latent_shape, generator=draws, dtype=torch.float64) for _ in range(2))
    c = torch.randn(count, *prior.conditioning_shape, generator=draws, dtype=torch.float64)
    grad = torch.randn(count, 1, 8, 8, generator=draws, dtype=torch.float64)
    return z, c, noise, grad


def chain(
    prior: ClassConditionalLDM,
    steps: int,
    skip: str,
    g: float,
    z: Tensor,
    c: Tensor,
    noise: Tensor,
    made: int | None = None,
) -> Tensor:
    """The method written out once more, for autograd to differentiate as a whole: no code of the sampler's."""
    made = made or steps
    times = [1 + i * (1000 // steps) for i in range(steps)]
    alphas = prior.noise_schedule.alphas_cumprod
    a = [alphas[0], *alphas[times]]
    start = state = a[made].sqrt() * z + (1 - a[made]).sqrt() * noise
    for i in range(made, 0, -1):
        null = prior.denoise(state, times[i - 1], prior.null_embedding.expand_as(c))
        e = null + g * (prior.denoise(state, times[i - 1], c) - null)
        x = (state - (1 - a[i]).sqrt() * e) / a[i].sqrt()
        if skip == "reference":
            w = (i - 1) / (steps - 1) if steps > 1 else 0.0
            x = (1 - w) * x + w * prior.quantise(z)
        state = a[i - 1].sqrt() * x + (1 - a[i - 1]).sqrt() * e
        if skip == "paper":
            state = (1 - i / steps) * state + i / steps * start
    return ((prior.decode(state) + 1) / 2).clamp(0, 1)


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm()) if b.any() else float(a.norm())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (4, 8, 12))])
@pytest.mark.parametrize("skip", SKIPS)
def test_pull_back_is_autograd_through_the_whole_chain(
    prior: ClassConditionalLDM, skip: str, steps: int, guidance: float
) -> None:
    z, c, noise, grad = inputs(prior)
    leaf_z, leaf_c = z.clone().requires_grad_(), c.clone().requires_grad_()
    expected = chain(prior, steps, skip, guidance, leaf_z, leaf_c, noise)
    expected_z, expected_c = torch.autograd.grad(expected, (leaf_z, leaf_c), grad, materialize_grads=True)

    schedule = Schedule.of(prior.noise_schedule, steps, skip, guidance)
    pixels, pull_back = render(prior, schedule, z, c, noise, micro_batch=1)
    grad_z, grad_c = pull_back(grad)
    assert not pixels.requires_grad
    assert relative(pixels, expected) <= 1e-10
    assert relative(grad_z, expected_z) <= 1e-10
    assert relative(grad_c, expected_c) <= 1e-10


@pytest.mark.parametrize("skip", SKIPS)
def test_a_start_in_mid_chain_is_the_end_of_the_whole_chain(prior: ClassConditionalLDM, skip: str) -> None:
    """Two of five steps, as `prior.start=0.4` makes, with the levels and shares of the skip that they have of five."""
    recipe = load(Recipe, "quickstart", ["prior.steps=5", "prior.start=0.4"]).prior
    z, c, noise, grad = inputs(prior)
    leaf_z, leaf_c = z.clone().requires_grad_(), c.clone().requires_grad_()
    expected = chain(prior, 5, skip, 3.0, leaf_z, leaf_c, noise, made=2)
    wanted = torch.autograd.grad(expected, (leaf_z, leaf_c), grad)
    schedule = Schedule.of(prior.noise_schedule, recipe.steps, skip, 3.0, recipe.steps_made)  # type: ignore[arg-type]
    pixels, pull_back = render(prior, schedule, z, c, noise)
    for found, true in zip((pixels, *pull_back(grad)), (expected, *wanted), strict=True):
        assert relative(found, true) <= 1e-10


@pytest.mark.parametrize(
    ("steps", "start", "made"), [(25, 0.28, 7), (10, 0.01, 1), (10, 1, 10), (3, 0.5, 2), (0, 0.5, 0)]
)
def test_a_start_is_a_share_of_the_steps_rounded_up(steps: int, start: float, made: int) -> None:
    """0.28 · 25 is 7.000000000000001 in floating point."""
    assert SamplerRecipe(source="digits", steps=steps, start=start).steps_made == made


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("skip", SKIPS)
def test_the_algorithm_on_one_screen_is_what_render_computes(prior: ClassConditionalLDM, skip: str, steps: int) -> None:
    """Its images bit for bit, and, differentiated as a whole, its gradients."""
    z, c, noise, grad = inputs(prior)
    schedule = Schedule.of(prior.noise_schedule, steps, skip, 3.0)
    leaf_z, leaf_c = z.clone().requires_grad_(), c.clone().requires_grad_()
    whole = images_of(prior, schedule, leaf_z, leaf_c, noise)
    expected = torch.autograd.grad(whole, (leaf_z, leaf_c), grad, allow_unused=True, materialize_grads=True)
    pixels, pull_back = render(prior, schedule, z, c, noise)
    assert torch.equal(pixels, whole.detach())
    for found, wanted in zip(pull_back(grad), expected, strict=True):
        assert relative(found, wanted) <= 1e-12


@pytest.mark.parametrize("keep", [1, 3, 5, "all"])
@pytest.mark.parametrize("skip", SKIPS)
def test_kept_graphs_change_nothing(prior: ClassConditionalLDM, skip: str, keep: int | str) -> None:
    z, c, noise, grad = inputs(prior, 3)
    schedule = Schedule.of(prior.noise_schedule, 5, skip, 3.0)
    flat, flat_pull_back = render(prior, schedule, z, c, noise, micro_batch=2)
    kept, kept_pull_back = render(prior, schedule, z, c, noise, micro_batch=2, keep_graph_steps=keep)
    assert torch.equal(flat, kept)
    for a, b in zip(flat_pull_back(grad), kept_pull_back(grad), strict=True):
        assert torch.equal(a, b)


def test_gradient_agrees_with_finite_differences(prior: ClassConditionalLDM) -> None:
    """Along c, where quantisation of the last state is left out and the chain is smooth."""
    z, c, noise, _ = inputs(prior)
    schedule = Schedule.of(prior.noise_schedule, 4, "paper", 2.0)
    smooth = make_prior(size=8)
    smooth.autoencoder.double()
    smooth.denoiser, smooth.null_embedding = prior.denoiser, prior.null_embedding
    smooth.decode = lambda latents: smooth.autoencoder.decode(latents, force_not_quantize=True).sample * 0.1  # type: ignore[method-assign]
    weights = torch.linspace(-1, 1, 128, dtype=torch.float64).view(2, 1, 8, 8)
    direction_z, direction_c = torch.ones_like(z), torch.linspace(-1, 1, c.numel(), dtype=torch.float64).view_as(c)

    def loss(step: float) -> Tensor:
        moved = z + step * direction_z, c + step * direction_c
        return (render(smooth, schedule, *moved, noise)[0] * weights).sum()

    _, pull_back = render(smooth, schedule, z, c, noise)
    grad_z, grad_c = pull_back(weights)
    slope = float((grad_z * direction_z).sum() + (grad_c * direction_c).sum())
    assert float(loss(1e-5) - loss(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_the_first_step_of_the_paper_needs_no_denoiser(prior: ClassConditionalLDM) -> None:
    z, c, noise, grad = inputs(prior)
    calls: list[int] = []
    counted = make_prior(size=8)
    counted.__dict__.update(prior.__dict__)
    counted.denoise = lambda z, t, c: calls.append(t) or prior.denoise(z, t, c)  # type: ignore[method-assign,func-returns-value]
    schedule = Schedule.of(prior.noise_schedule, 4, "paper", 3.0)
    _, pull_back = render(counted, schedule, z, c, noise, keep_graph_steps="all")
    assert calls == [501, 251, 1]
    pull_back(grad)
    assert len(calls) == 3, "kept graphs are not run again"


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 12, 20, 50, 999])
def test_times_are_diffusers_leading_ones_exactly_s_of_them(prior: ClassConditionalLDM, steps: int) -> None:
    prior.scheduler.set_timesteps(steps)
    schedule = Schedule.of(prior.noise_schedule, steps, "none", 1.0)
    assert [step.time for step in schedule.steps] == prior.scheduler.timesteps.tolist()


def test_plain_sampling_is_diffusers_ddim(prior: ClassConditionalLDM) -> None:
    """`none` against DDIMScheduler.step at η = 0; diffusers' tables are float32."""
    z, c, noise, _ = inputs(prior)
    prior.scheduler.set_timesteps(10)
    top = prior.noise_schedule.alphas_cumprod[901]
    state = top.sqrt() * z + (1 - top).sqrt() * noise
    for time in prior.scheduler.timesteps:
        state = prior.scheduler.step(prior.denoise(state, int(time), c), time, state, eta=0.0).prev_sample
    schedule = Schedule.of(prior.noise_schedule, 10, "none", 1.0)
    pixels, _ = render(prior, schedule, z, c, noise)
    assert relative(pixels, ((prior.decode(state) + 1) / 2).clamp(0, 1)) <= 1e-5


def test_weights_fall_linearly() -> None:
    noise = NoiseSchedule(torch.linspace(0.999, 0.01, 1000, dtype=torch.float64))
    weights = {skip: [step.weight for step in Schedule.of(noise, 5, skip, 1.0).steps] for skip in SKIPS}
    assert weights["paper"] == [1, 0.8, 0.6, 0.4, 0.2]
    assert weights["reference"] == [1, 0.75, 0.5, 0.25, 0]
    assert weights["none"] == [0] * 5


@pytest.mark.parametrize("steps", [-1, 1000, 5000])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=r"prior\.steps"):
        Schedule.of(NoiseSchedule(torch.linspace(0.999, 0.01, 1000)), steps, "none", 1.0)


def test_other_resolutions_are_resized_with_their_gradient(prior: ClassConditionalLDM) -> None:
    z, c, noise, _ = inputs(prior)
    schedule = Schedule.of(prior.noise_schedule, 2, "none", 1.0)
    native, pull_native = render(prior, schedule, z, c, noise)
    half, pull_half = render(prior, schedule, z, c, noise, resolution=4)
    assert half.shape == (2, 1, 4, 4)
    leaf = native.clone().requires_grad_()
    expected = torch.nn.functional.interpolate(leaf, size=4, mode="bilinear", antialias=True)
    (grad_native,) = torch.autograd.grad(expected.sum(), leaf)
    assert relative(half, expected) <= 1e-12
    assert relative(pull_half(torch.ones_like(half))[0], pull_native(grad_native)[0]) <= 1e-10
