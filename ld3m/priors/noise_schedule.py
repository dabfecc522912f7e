"""The noise that a prior was trained with, and how a sampler steps through it, as diffusers' schedulers have it.

A step goes along the line of a clean latent and a noise: DDIM for a diffusion, Euler for a flow, which are the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from ld3m.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
Spacing = Literal["leading", "trailing", "linspace"]
MAX_BETA = 0.999
"""The most noise that a step of the cosine schedule adds (Nichol and Dhariwal, ICML 2021)."""


Beta = Annotated[float, Field(ge=0, le=1)]
Config = TypeVar("Config", bound=BaseModel)


class FlowConfig(BaseModel):
    """What is read of a flow-matching scheduler's configuration, and what it must not say: other time steps."""

    num_train_timesteps: int = Field(1000, ge=1, le=100_000)
    shift: float = Field(1.0, gt=0, le=10**6)
    flow_shift: float = Field(1.0, gt=0, le=10**6)
    """What diffusers' solvers for diffusions call it."""
    use_dynamic_shifting: Literal[False] = False
    invert_sigmas: Literal[False] = False
    shift_terminal: None = None
    use_karras_sigmas: Literal[False] | None = False
    use_exponential_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False


class ConsistencyConfig(BaseModel):
    """What is read of a consistency model's scheduler."""

    num_train_timesteps: int = Field(40, ge=2, le=100_000)
    sigma_min: float = Field(0.002, gt=0, le=1)
    sigma_max: float = Field(80.0, gt=1, le=10**6)
    sigma_data: float = Field(0.5, gt=0, le=10**3)
    rho: float = Field(7.0, gt=0, le=10**3)


class SchedulerConfig(BaseModel):
    """What is read of a scheduler's configuration, and what it must not say: the noise would be another."""

    num_train_timesteps: int = Field(ge=1, le=100_000)
    beta_start: Beta | None = None
    beta_end: Beta | None = None
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    trained_betas: list[Beta] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: Spacing = "leading"
    steps_offset: int = Field(0, ge=0)
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    use_flow_sigmas: Literal[False] = False
    timestep_type: Literal["discrete"] = "discrete"
    """A continuous one is the noise level itself, as in EDM."""
    snr_shift_scale: None = None


def check_scheduler(config: dict[str, Any], file: object) -> None:
    """That a scheduler's configuration says what noise its model was trained with; diffusers fills in what is missing.

    Args:
        config: the content of scheduler_config.json.

    Raises:
        UserError: if it has no betas, as those of EDM, and is none of flow matching; or a value of another kind.
    """
    of_betas = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    if is_flow(config) or is_consistency(config):
        _validate(FlowConfig if is_flow(config) else ConsistencyConfig, config, file)
        return
    wanted = of_betas[: 1 if config.get("trained_betas") else None]
    if missing := [key for key in wanted if config.get(key) is None]:
        raise UserError(
            f"prior.source: {file} has no {', '.join(missing)}, as if the model were one of EDM "
            f"({config.get('_class_name', 'no _class_name')}), which cannot be a prior; if it is not, write them in"
        )
    checked = _validate(SchedulerConfig, config, file)
    if checked.trained_betas and len(checked.trained_betas) != checked.num_train_timesteps:
        raise UserError(
            f"prior.source: {file} has {len(checked.trained_betas)} trained_betas, but num_train_timesteps: "
            f"{checked.num_train_timesteps}; correct it"
        )


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is one of flow matching: its own kind, or a solver that was told so."""
    asked = config.get("use_flow_sigmas") is True and config.get("prediction_type") == "flow_prediction"
    return asked or str(config.get("_class_name")).startswith("FlowMatch")


def is_consistency(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is one of consistency models."""
    return str(config.get("_class_name")).startswith("CMStochastic")


def ends_clean(config: Mapping[str, Any]) -> dict[str, bool]:
    """What diffusers' DDIMScheduler is to be told of schedulers that end without noise, as those of few steps do."""
    return {"set_alpha_to_one": True} if str(config.get("_class_name")).startswith(("Euler", "LCM")) else {}


def _validate(kind: type[Config], config: Mapping[str, Any], file: object) -> Config:
    """A scheduler's configuration, checked."""
    try:
        return kind.model_validate(config, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"prior.source: {file}: {key}: {first['input']!r} is not supported ({first['msg']}); give "
            "a prior with another noise schedule, or correct the file"
        ) from None


def not_applied(config: Mapping[str, Any]) -> list[str]:
    """What a scheduler's configuration asks for in each step that is left out, as the paper's code leaves it out.

    diffusers' schedulers of DDIM and DDPM clip clean latents if the key is missing, as that of consistency models does.
    A clipped number has no gradient. Noise that is drawn in each step would not be that of the latent.
    """
    name = str(config.get("_class_name"))
    asked = {
        "clip_sample": config.get("clip_sample", name.startswith(("DDIM", "DDPM"))),
        "thresholding": config.get("thresholding", False),
        "clip_denoised": config.get("clip_denoised", name.startswith("CMStochastic")),
        "stochastic_sampling": config.get("stochastic_sampling", False),
    }
    return [key for key, value in asked.items() if value]


class Level(NamedTuple):
    """A noisy latent is z = signal · x + noise · ε, with signal² + noise² = 1; of a flow with signal + noise = 1."""

    signal: float
    noise: float


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving diffusion over T training time steps."""

    alphas_cumprod: Tensor
    """ᾱ, [T] float64."""
    spacing: Spacing = "leading"
    """How S of the training time steps are chosen."""
    offset: int = 1
    """What "leading" adds to each."""
    final_alpha: float | None = None
    """ᾱ after the last step; None: that of the first training time step."""
    prediction: Prediction = "epsilon"
    """What the denoiser's answer is: the noise ε, the velocity v = signal · ε − noise · x (Salimans and Ho, ICLR 2022),
    the clean latent x, or the velocity ε − x of a flow."""

    @classmethod
    def of(cls, scheduler: Any) -> "NoiseSchedule":
        """The schedule that a scheduler of diffusers was configured to; computed again, since its tables are float32.

        Raises:
            UserError: if the schedule is of no known kind.
        """
        config = scheduler.config
        about = {**config, "_class_name": type(scheduler).__name__}
        if is_flow(about):
            return FlowSchedule.of(scheduler)
        if is_consistency(about):
            return ConsistencySchedule.of(scheduler)
        prediction, known = config.prediction_type, get_args(Prediction)[:3]
        if prediction not in known:
            raise UserError(
                f"prior.source: the prediction type {prediction!r} is not supported, only {', '.join(known)}"
            )
        alphas_cumprod = (1 - _betas(config)).cumprod(0)
        if config.rescale_betas_zero_snr:
            alphas_cumprod = _without_terminal_signal(alphas_cumprod)
        return cls(
            alphas_cumprod,
            config.timestep_spacing,
            config.steps_offset,
            1.0 if config.set_alpha_to_one else None,
            config.prediction_type,
        )

    def level(self, time: float) -> Level:
        """The level at a training time step; below the first, that after the last step."""
        final = self.alphas_cumprod[0] if self.final_alpha is None else self.final_alpha
        alpha = float(self.alphas_cumprod[int(time)] if time >= 0 else final)
        return Level(alpha**0.5, (1 - alpha) ** 0.5)

    def walk(self, steps: int, key: str = "prior.steps") -> Sequence[tuple[float, Level, Level]]:
        """For each of S steps, the noisiest first: its time step, the level there, and the level it leads to.

        As diffusers' DDIMScheduler: the next level is ⌊T/S⌋ time steps below, which is the next step's level if
        the steps are that far apart.

        Raises:
            UserError: if there are not so many time steps, or the first is noise alone and noise is predicted.
        """
        count = len(self.alphas_cumprod)
        most = count - self.offset if self.spacing == "leading" else count
        if not 0 <= steps <= most:
            raise UserError(f"{key}: {steps} is not between 0 and {most}")
        if not steps:
            return []
        stride = count // steps
        match self.spacing:
            case "leading":
                times = [self.offset + i * stride for i in range(steps)]
            case "trailing":
                times = [round(count - i * count / steps) - 1 for i in reversed(range(steps))]
            case "linspace":
                times = [round(i * (count - 1) / max(1, steps - 1)) for i in range(steps)]
        if self.prediction == "epsilon" and self.level(times[-1]).signal == 0:
            raise UserError(
                f"prior.source: the first step, at time {times[-1]}, is from noise alone, of which a denoiser that "
                "predicts noise can make nothing; the scheduler's prediction_type or rescale_betas_zero_snr is wrong"
            )
        return [(time, self.level(time), self.level(time - stride)) for time in reversed(times)]

    def clean_and_noise(self, z: Tensor, output: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """x̂ and ε̂ that a denoiser's output at a noisy latent stands for."""
        match self.prediction:
            case "epsilon":
                return (z - level.noise * output) / level.signal, output
            case "v_prediction":
                return level.signal * z - level.noise * output, level.signal * output + level.noise * z
            case "sample":
                return output, (z - level.signal * output) / level.noise
            case "flow":
                return z - level.noise * output, z + level.signal * output

    def velocity_fixed(self, level: Level) -> Level:
        """The derivatives by z of x̂ and ε̂ if the velocity is held fixed: of x̂ = s z − n v and ε̂ = s v + n z."""
        return Level(level.signal, level.noise)


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """A flow: z = (1 − t) x + t ε with t from 1 to 0, whose velocity v = ε − x the denoiser predicts.

    Liu et al. (ICLR 2023, arXiv 2209.03003), Lipman et al. (ICLR 2023, arXiv 2210.02747). x̂ = z − t v,
    ε̂ = z + (1 − t) v, and a step of Euler's method to t' is (1 − t') x̂ + t' ε̂. `alphas_cumprod` has the ᾱ of the
    same signal-to-noise ratio; the time that the denoiser is given is T t, which is no whole number.
    """

    shift: float = 1.0
    """s of t = s u / (1 + (s − 1) u): more of the steps are at high noise (Esser et al., ICML 2024, Eq. 23)."""
    solver: bool = False
    """Whether the u of S steps are those of diffusers' solvers for diffusions, or else of its FlowMatchEuler."""

    @classmethod
    def of(cls, scheduler: Any) -> "FlowSchedule":
        """The schedule that a scheduler of diffusers was configured to, as `check_scheduler` has it."""
        config = FlowConfig.model_validate(dict(scheduler.config))
        times = torch.arange(1, config.num_train_timesteps + 1, dtype=torch.float64) / config.num_train_timesteps
        alphas_cumprod = (1 - times).square() / ((1 - times).square() + times.square())
        solver = "flow_shift" in scheduler.config
        shift = config.flow_shift if solver else config.shift
        return cls(alphas_cumprod, prediction="flow", shift=shift, solver=solver)

    def level(self, time: float) -> Level:
        """The level at a time of 0 … T."""
        t = min(1.0, max(0.0, time / len(self.alphas_cumprod)))
        return Level(1 - t, t)

    def walk(self, steps: int, key: str = "prior.steps") -> Sequence[tuple[float, Level, Level]]:
        """For each of S steps, the noisiest first, which is noise alone: its time, the level there, and the next.

        Raises:
            UserError: if there are not so many time steps.
        """
        count = len(self.alphas_cumprod)
        if not 0 <= steps <= count:
            raise UserError(f"{key}: {steps} is not between 0 and {count}")
        if not steps:
            return []
        if self.solver:
            grid = [(1 - 1 / count) * (steps - i) / steps for i in range(steps)]
        else:
            least = self._shifted(1 / count)
            grid = [1 - i * (1 - least) / max(1, steps - 1) for i in range(steps)]
        times = [*(count * self._shifted(u) for u in grid), 0.0]
        return [(time, self.level(time), self.level(after)) for time, after in pairwise(times)]

    def velocity_fixed(self, level: Level) -> Level:
        """Both derivatives are 1."""
        return Level(1.0, 1.0)

    def _shifted(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)


@dataclass(frozen=True)
class ConsistencySchedule(NoiseSchedule):
    """The levels of a consistency model (Song et al., ICML 2023, arXiv 2303.01469): x + σ ε, scaled to unit variance.

    Times are numbers of levels, the largest the noisiest.
    """

    sigmas: tuple[float, ...] = ()
    """σ of each level, those of Karras et al. (NeurIPS 2022), the smallest first."""
    sigma_data: float = 0.5
    """Deviation of the images that the model was trained with."""

    @classmethod
    def of(cls, scheduler: Any) -> "ConsistencySchedule":
        """The levels that diffusers' CMStochasticIterativeScheduler was configured to."""
        config = ConsistencyConfig.model_validate(dict(scheduler.config))
        ramp = torch.linspace(0, 1, config.num_train_timesteps, dtype=torch.float64)
        least, most = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
        sigmas = (least + ramp * (most - least)) ** config.rho
        return cls(
            1 / (1 + sigmas.square()),
            final_alpha=1.0,
            prediction="sample",
            sigmas=tuple(sigmas.tolist()),
            sigma_data=config.sigma_data,
        )

    def walk(self, steps: int, key: str = "prior.steps") -> Sequence[tuple[float, Level, Level]]:
        """For each of S steps, the noisiest first: its level's number, the level, and that it leads to.

        Raises:
            UserError: if there are not so many levels.
        """
        count = len(self.sigmas)
        if not 0 <= steps <= count:
            raise UserError(f"{key}: {steps} is not between 0 and {count}, the levels of this consistency model")
        times = [*(count - 1 - i * (count // max(1, steps)) for i in range(steps)), -1]
        return [(time, self.level(time), self.level(after)) for time, after in pairwise(times)]


def _betas(config: Any) -> Tensor:
    """[T] float64, the noise that each training time step adds."""
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=torch.float64)
    match config.beta_schedule:
        case "linear":
            return torch.linspace(config.beta_start, config.beta_end, count, dtype=torch.float64)
        case "scaled_linear":
            ends = config.beta_start**0.5, config.beta_end**0.5
            return torch.linspace(*ends, count, dtype=torch.float64).square()
        case "squaredcos_cap_v2":
            moments = torch.arange(count + 1, dtype=torch.float64) / count
            alphas_cumprod = ((moments + 0.008) / 1.008 * math.pi / 2).cos().square()
            return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)
    raise UserError(
        f"prior.source: the noise schedule {config.beta_schedule!r} is not supported, "
        "only linear, scaled_linear and squaredcos_cap_v2"
    )


def _without_terminal_signal(alphas_cumprod: Tensor) -> Tensor:
    """Shifts and scales √ᾱ so that the last is zero and the first stays (Lin et al., WACV 2024)."""
    signal = alphas_cumprod.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
