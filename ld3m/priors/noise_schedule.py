"""The noise that a prior was trained with, and how DDIM steps through it, as diffusers' schedulers have it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from ld3m.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]
MAX_BETA = 0.999
"""The most noise that a step of the cosine schedule adds (Nichol and Dhariwal, ICML 2021)."""


Beta = Annotated[float, Field(ge=0, le=1)]


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
        file: its path, for the error.

    Raises:
        UserError: if it has no betas, as those of flow matching and of EDM, or a value of another kind or range.
    """
    of_betas = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    wanted = of_betas[: 1 if config.get("trained_betas") else None]
    if missing := [key for key in wanted if config.get(key) is None]:
        raise UserError(
            f"prior.source: {file} has no {', '.join(missing)}, as if the model were one of flow matching or EDM "
            f"({config.get('_class_name', 'no _class_name')}), which cannot be a prior; if it is not, write them in"
        )
    try:
        checked = SchedulerConfig.model_validate(config, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"prior.source: {file}: {key}: {first['input']!r} is not supported ({first['msg']}); give "
            "a prior with another noise schedule, or correct the file"
        ) from None
    if checked.trained_betas and len(checked.trained_betas) != checked.num_train_timesteps:
        raise UserError(
            f"prior.source: {file} has {len(checked.trained_betas)} trained_betas, but num_train_timesteps: "
            f"{checked.num_train_timesteps}; correct it"
        )


def not_applied(config: Mapping[str, Any]) -> list[str]:
    """What a scheduler's configuration asks for in each step that is left out, as the paper's code leaves it out.

    diffusers' schedulers of DDIM and DDPM clip clean latents if the key is missing. A clipped number has no gradient.
    """
    clips = str(config.get("_class_name")).startswith(("DDIM", "DDPM"))
    asked = {"clip_sample": config.get("clip_sample", clips), "thresholding": config.get("thresholding", False)}
    return [key for key, value in asked.items() if value]


class Level(NamedTuple):
    """A noisy latent is z = signal · x + noise · ε, with signal² + noise² = 1."""

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
    or the clean latent x."""

    @classmethod
    def of(cls, scheduler: Any) -> "NoiseSchedule":
        """The schedule that a scheduler of diffusers was configured to; computed again, since its tables are float32.

        Raises:
            UserError: if the schedule is of no known kind.
        """
        config = scheduler.config
        prediction, known = config.prediction_type, get_args(Prediction)
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

    def level(self, time: int) -> Level:
        """The level at a training time step; below the first, that after the last step."""
        final = self.alphas_cumprod[0] if self.final_alpha is None else self.final_alpha
        alpha = float(self.alphas_cumprod[time] if time >= 0 else final)
        return Level(alpha**0.5, (1 - alpha) ** 0.5)

    def walk(self, steps: int, key: str = "prior.steps") -> list[tuple[int, Level, Level]]:
        """For each of S steps, the noisiest first: its time step, the level there, and the level it leads to.

        As diffusers' DDIMScheduler: the next level is ⌊T/S⌋ time steps below, which is the next step's level if
        the steps are that far apart.

        Args:
            steps: S.
            key: of the recipe that gave it, for the error.

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
