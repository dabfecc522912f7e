"""Noise schedules and their steps: diffusers' DDIMScheduler, whatever it is configured to."""

from typing import Any

import pytest
import torch

from ld3m.errors import UserError
from ld3m.priors.noise_schedule import NoiseSchedule, not_applied

LATENT = {"clip_sample": False}


def scheduler(**config: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**(LATENT | config))


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_is_diffusers(betas: str, zero_snr: bool) -> None:
    """In float64, of which diffusers' float32 is a rounding."""
    theirs = scheduler(beta_schedule=betas, rescale_betas_zero_snr=zero_snr)
    ours = NoiseSchedule.of(theirs).alphas_cumprod
    assert ours.dtype == torch.float64
    assert (ours - theirs.alphas_cumprod).abs().max() <= 2e-6
    assert (ours[-1] == 0) == zero_snr


def test_betas_that_are_listed() -> None:
    betas = [0.1, 0.2, 0.4]
    ours = NoiseSchedule.of(scheduler(trained_betas=betas, num_train_timesteps=3))
    assert ours.alphas_cumprod.tolist() == pytest.approx([0.9, 0.72, 0.432])


@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 300])
def test_every_step_is_diffusers(steps: int, spacing: str, offset: int, prediction: str, to_one: bool) -> None:
    """One DDIM step at η = 0 from each of the time steps, with an arbitrary answer of the denoiser.

    Theirs is given ᾱ in float64: small noise levels magnify the rounding of float32 tables.
    """
    theirs = scheduler(
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        steps_offset=offset,
        prediction_type=prediction,
        set_alpha_to_one=to_one,
    )
    theirs.set_timesteps(steps)
    ours = NoiseSchedule.of(theirs)
    theirs.alphas_cumprod = ours.alphas_cumprod
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64) if to_one else ours.alphas_cumprod[0]
    walk = ours.walk(steps)
    assert [time for time, _, _ in walk] == theirs.timesteps.tolist()
    draws = torch.Generator().manual_seed(0)
    z, answer = (torch.randn(2, 3, 4, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    for time, level, following in walk:
        clean, noise = ours.clean_and_noise(z, answer, level)
        stepped = following.signal * clean + following.noise * noise
        expected = theirs.step(answer, time, z, eta=0.0).prev_sample
        assert (stepped - expected).abs().max() / expected.abs().max() <= 1e-10


def test_noise_alone_is_stepped_from_where_the_velocity_is_predicted() -> None:
    """Zero terminal signal: z is ε there, and x̂ = −v."""
    theirs = scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    theirs.set_timesteps(5)
    ours = NoiseSchedule.of(theirs)
    z, velocity = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    time, level, following = ours.walk(5)[0]
    assert (time, level) == (999, (0.0, 1.0))
    clean, noise = ours.clean_and_noise(z, velocity, level)
    assert torch.equal(clean, -velocity)
    assert torch.equal(noise, z)
    stepped = following.signal * clean + following.noise * noise
    assert torch.allclose(stepped, theirs.step(velocity, time, z, eta=0.0).prev_sample, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": "flow"}, "prediction type 'flow'"),
        ({"beta_schedule": "sigmoid"}, "noise schedule 'sigmoid'"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon", "timestep_spacing": "trailing"}, "noise alone"),
    ],
)
def test_what_cannot_be_sampled_is_told(config: dict[str, Any], message: str) -> None:
    theirs = scheduler()
    theirs.register_to_config(**config)
    with pytest.raises(UserError, match=message):
        NoiseSchedule.of(theirs).walk(5)


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, []),
        ({"_class_name": "DDIMScheduler"}, ["clip_sample"]),
        ({"_class_name": "PNDMScheduler"}, []),
        ({"_class_name": "PNDMScheduler", "clip_sample": True, "thresholding": True}, ["clip_sample", "thresholding"]),
    ],
)
def test_what_a_scheduler_clips_is_not_applied(config: dict[str, Any], keys: list[str]) -> None:
    """diffusers' DDIMScheduler clips unless it is told not to; PNDMScheduler never does."""
    assert not_applied(config) == keys
