"""Training a small class-conditional latent diffusion model on a user's images, then judging it."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m import priors
from ld3m.data.prepared import ImageSet
from ld3m.data.sources import check_source
from ld3m.errors import UserError
from ld3m.files import write_json
from ld3m.images.ranges import bytes_to_signed
from ld3m.machine.processes import Processes, watched_command
from ld3m.prior_training.quality import evaluate_prior
from ld3m.priors import ClassConditionalLDM
from ld3m.priors.source import PACKAGED_PRIORS
from ld3m.randomness import generator
from ld3m.recipe import SamplerRecipe
from ld3m.recipe.files import digest, to_yaml
from ld3m.recipe.prior import NORM_GROUPS, AutoencoderRecipe, DenoiserRecipe, PriorRecipe
from ld3m.training.fit import Fit, fit
from ld3m.training.folder import TRAINING, claimed

TRAIN_STEPS = 1000
BETAS = (0.0015, 0.0195)
"""The noise schedule of the original latent diffusion models (Rombach et al., CVPR 2022)."""
SNR_CAP = 5.0
"""γ of min-SNR weighting (Hang et al., ICCV 2023), which makes the denoiser learn several times faster."""
AUTOENCODER_EMA = 0.99


@watched_command
def train_prior(processes: Processes, recipe: PriorRecipe, resume: bool = True) -> Path:
    """Trains the autoencoder, then the denoiser, then evaluates; returns the prior's folder.

    Interrupt it at any time; it saves its state and resumes from there, and after a kill from its newest checkpoint.
    Under `accelerate launch` each process takes its share of every batch.

    Raises:
        UserError: if the data is not there or has changed, or the folder holds something else or is in use.
        SystemExit: with 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1.
    """
    check_source(recipe.data)  # before the folder is made
    folder, made = recipe.folder, [f"{TRAINING}/{name}.safetensors" for name in ("autoencoder", "denoiser")]
    with claimed(
        processes, folder, recipe.data, digest=digest(recipe), recipe=to_yaml(recipe),
        kind="a prior of ld3m train-prior", made=made, resume=resume, key="output",
    ) as images:  # fmt: skip
        _train(recipe, images, folder, folder / TRAINING, processes)
    return folder


def _train(recipe: PriorRecipe, images: ImageSet, folder: Path, training: Path, processes: Processes) -> None:
    """Trains both networks, saves them as a prior, and judges it."""
    real, labels = images.everything("train")
    autoencoder, autoencoder_seconds = _train_autoencoder(recipe, real, training, processes)
    latents = _encode_all(autoencoder, real, processes)
    deviation = float(latents.std())
    if not 0 < deviation < math.inf:
        raise UserError(
            f"autoencoder: its encodings of the images have standard deviation {deviation:g}; look whether the images "
            "of data.source differ at all, or give a lower autoencoder.lr, with --no-resume"
        )
    scale = 1 / deviation
    autoencoder.register_to_config(scaling_factor=scale)
    latents = latents * scale
    prior, denoiser_seconds = _train_denoiser(recipe, autoencoder, latents, labels, images, training, processes)
    if processes.is_main_process:
        prior.save(folder, torch.float16)
        # By its whole path: a relative one may be the name of a packaged prior.
        saved = priors.load(SamplerRecipe(source=str(folder.absolute()), guidance=1), processes.device)
        report = {
            **evaluate_prior(recipe, saved, images, training, processes.device),
            "training": {
                "autoencoder seconds": autoencoder_seconds,
                "denoiser seconds": denoiser_seconds,
                "processes": processes.num_processes,
                "threads of each": torch.get_num_threads(),
            },
        }
        write_json(training / "evaluation.json", report)
        print(json.dumps(report, indent=2))
        source = f"./{folder}" if str(folder) in PACKAGED_PRIORS else str(folder)
        use = f"use it with prior.source={shlex.quote(source)}"
        print(f"{folder}: {use}; {training} has pictures of its reconstructions and samples", file=sys.stderr)


def _fit_settings(
    name: str, settings: AutoencoderRecipe | DenoiserRecipe, ema: float, recipe: PriorRecipe, training: Path
) -> Fit:
    return Fit(name, training, recipe.seed, settings.steps, settings.batch, settings.lr, ema, recipe.checkpoint_every)


# --- the autoencoder ---------------------------------------------------------------------------------------


def _train_autoencoder(recipe: PriorRecipe, real: Tensor, training: Path, processes: Processes) -> tuple[Any, float]:
    """A VQModel by L1 reconstruction and commitment; its codes start as encodings of real images.

    The first tenth of training leaves quantisation out, so that the codes start among the encodings and none of them
    stays unused.
    """
    from diffusers import VQModel

    settings = recipe.autoencoder
    levels = len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = VQModel(
            in_channels=recipe.data.channels,
            out_channels=recipe.data.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(settings.channels),
            latent_channels=settings.latent_channels,
            num_vq_embeddings=settings.codes,
            norm_num_groups=NORM_GROUPS,
            sample_size=recipe.data.resolution,
        ).to(processes.device)
    unquantised = settings.steps // 10

    def encode(indices: Tensor) -> tuple[Tensor, Tensor]:
        images = bytes_to_signed(real[indices].to(processes.device))
        return images, model.encode(images).latents

    @torch.no_grad()
    def seed_codes() -> None:
        images = torch.randint(len(real), (settings.codes,), generator=generator(recipe.seed, "codes"))
        _, latents = encode(images)
        count = latents[0, 0].numel()
        draws = generator(recipe.seed, "places")
        positions = torch.randint(count, (settings.codes,), generator=draws).to(latents.device)
        rows = torch.arange(settings.codes, device=latents.device)
        model.quantize.embedding.weight.copy_(latents.flatten(2)[rows, :, positions])

    def loss_of(step: int, indices: Tensor, share: slice) -> Tensor:
        if step == unquantised:
            seed_codes()
        images, latents = encode(indices[share])
        if step < unquantised:
            return functional.l1_loss(model.decode(latents, force_not_quantize=True).sample, images)
        codes, commitment, _ = model.quantize(latents)
        decoded = model.decoder(model.post_quant_conv(codes))
        return functional.l1_loss(decoded, images) + commitment

    how = _fit_settings("autoencoder", settings, AUTOENCODER_EMA, recipe, training)
    return fit(how, model, loss_of, len(real), processes)


@torch.no_grad()
def _encode_all(autoencoder: Any, real: Tensor, processes: Processes) -> Tensor:
    """Encodings of all images, float32 [N, C, h, w], on the CPU; far smaller than the images as floats."""
    chunks = enumerate(real.split(100))
    shard = processes.shard(list(chunks))
    encoded = [
        (index, autoencoder.encode(bytes_to_signed(chunk.to(processes.device))).latents.cpu()) for index, chunk in shard
    ]
    ordered = sorted(processes.gather(encoded), key=lambda item: item[0])
    return torch.cat([latents for _, latents in ordered])


# --- the denoiser ------------------------------------------------------------------------------------------


class _Conditional(nn.Module):
    """The UNet and its class table, trained as one."""

    def __init__(self, unet: nn.Module, table: nn.Embedding) -> None:
        super().__init__()
        self.unet = unet
        self.table = table


def _train_denoiser(
    recipe: PriorRecipe,
    autoencoder: Any,
    latents: Tensor,
    labels: Tensor,
    images: ImageSet,
    training: Path,
    processes: Processes,
) -> tuple[ClassConditionalLDM, float]:
    """A UNet that predicts noise, or a flow's velocity, with the class dropped at random for guidance."""
    from diffusers import UNet2DConditionModel

    settings = recipe.denoiser
    device = processes.device
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in settings.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(settings.attention)]
    null = len(images.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        unet = UNet2DConditionModel(
            sample_size=latents.shape[-1],
            in_channels=latents.shape[1],
            out_channels=latents.shape[1],
            layers_per_block=settings.layers,
            block_out_channels=tuple(settings.channels),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            cross_attention_dim=settings.class_width,
            attention_head_dim=settings.heads,
            norm_num_groups=NORM_GROUPS,
        )
        model = _Conditional(unet, nn.Embedding(null + 1, settings.class_width)).to(device)
    scheduler = _scheduler(settings.flow)
    signal, noisiness, weights = (table.to(device) for table in _noising(scheduler))

    def loss_of(step: int, indices: Tensor, share: slice) -> Tensor:
        draws = generator(recipe.seed, "denoiser draws", step)
        times = torch.randint(TRAIN_STEPS, indices.shape, generator=draws)[share].to(device)
        noise = torch.randn(len(indices), *latents.shape[1:], generator=draws)[share].to(device)
        dropped = torch.rand(indices.shape, generator=draws) < settings.null_share
        classes = torch.where(dropped, null, labels[indices])[share].to(device)
        z = latents[indices[share]].to(device)
        noised = signal[times].view(-1, 1, 1, 1) * z + noisiness[times].view(-1, 1, 1, 1) * noise
        predicted = model.unet(noised, times + settings.flow, model.table(classes)[:, None]).sample
        errors = (predicted - (noise - z if settings.flow else noise)).square().mean((1, 2, 3))
        return (weights[times] * errors).mean()

    how = _fit_settings("denoiser", settings, settings.ema, recipe, training)
    averaged, seconds = fit(how, model, loss_of, len(latents), processes)
    table = averaged.table.weight
    if not settings.null_share:  # no image had the null class
        table = table[:null]
    return ClassConditionalLDM(autoencoder, averaged.unet, table, images.classes, scheduler), seconds


def _scheduler(flow: bool) -> Any:
    """The noise schedule that a denoiser learns, as diffusers has it."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if flow:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS)
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _noising(scheduler: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Signal, noise and the loss's weight at each time step: of a diffusion min-SNR's, of a flow 1.

    A flow's time is drawn uniformly from 1/T … 1, as rectified flow's (Liu et al., ICLR 2023).
    """
    if not hasattr(scheduler, "alphas_cumprod"):
        times = torch.arange(1, TRAIN_STEPS + 1) / TRAIN_STEPS
        return 1 - times, times, torch.ones(TRAIN_STEPS)
    alphas = scheduler.alphas_cumprod
    return alphas.sqrt(), (1 - alphas).sqrt(), (SNR_CAP * (1 - alphas) / alphas).clamp(max=1)
