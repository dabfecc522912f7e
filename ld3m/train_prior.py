"""Training a small class-conditional latent diffusion model on the user's own images, and judging it."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ld3m import data, networks, parallel
from ld3m.errors import UserError
from ld3m.files import write_image, write_json, write_tensors, write_text
from ld3m.pictures import curves, grid
from ld3m.prior import ClassConditionalLDM
from ld3m.randomness import generator
from ld3m.recipe import NORM_GROUPS, NetworkRecipe, PriorRecipe, digest, to_yaml
from ld3m.sampler import Schedule, render, to_pixels

TRAIN_STEPS = 1000
BETAS = (0.0015, 0.0195)
"""The noise schedule of the original latent diffusion models (Rombach et al., CVPR 2022)."""
SNR_CAP = 5.0
"""γ of min-SNR weighting (Hang et al., ICCV 2023), which makes the denoiser learn several times faster."""


def train_prior(recipe: PriorRecipe, resume: bool = True) -> Path:
    """Trains the autoencoder, then the denoiser, then evaluates; returns the prior's folder.

    Interrupted, it goes on from its newest checkpoint. Under `accelerate launch` each process takes its share of
    every batch.
    """
    accelerator = parallel.start()
    main = accelerator.is_main_process
    folder = recipe.folder
    training = folder / "training"
    _claim(recipe, training, resume, main)
    with accelerator.main_process_first():
        images = data.prepare(recipe.data, progress=main)
    began = time.monotonic()
    real, labels = images.everything("train")
    autoencoder, codes_seconds = _train_autoencoder(recipe, real, training, accelerator)
    latents = _encode_all(autoencoder, real, accelerator)
    scale = 1 / float(latents.std())
    autoencoder.register_to_config(scaling_factor=scale)
    prior, denoiser_seconds = _train_denoiser(
        recipe, autoencoder, latents * scale, labels, images, training, accelerator
    )
    if main:
        prior.save(folder, torch.float16)
        prior = ClassConditionalLDM.load(folder, accelerator.device)
        report: dict[str, Any] = {"seconds": {"autoencoder": codes_seconds, "denoiser": denoiser_seconds}}
        report |= evaluate_prior(recipe, prior, images, training, accelerator.device)
        report["seconds"]["all, this session"] = round(time.monotonic() - began)
        report["processes"] = accelerator.num_processes
        report["threads"] = torch.get_num_threads()
        write_json(folder / "training" / "evaluation.json", report)
        print(json.dumps(report, indent=2))
    accelerator.wait_for_everyone()
    return folder


def _claim(recipe: PriorRecipe, training: Path, resume: bool, main: bool) -> None:
    """Makes the folder ours, or finds that it holds another recipe's prior."""
    note = training / "digest.json"
    if note.is_file() and resume and json.loads(note.read_text())["digest"] != digest(recipe):
        raise UserError(
            f"output: {training.parent} holds a prior of another recipe; give another output, or --no-resume"
        )
    if main:
        if not resume:
            for old in training.glob("*.safetensors"):
                old.unlink()
        write_text(training / "recipe.yaml", to_yaml(recipe))
        write_json(note, {"digest": digest(recipe)})


# --- one training loop for both networks -------------------------------------------------------------------


def _fit(
    name: str,
    network: nn.Module,
    loss_of: Callable[[int, Tensor, slice], Tensor],
    *,
    steps: int,
    batch: int,
    lr: float,
    ema: float,
    count: int,
    recipe: PriorRecipe,
    training: Path,
    accelerator: Accelerator,
    at_step: Callable[[int], None] = lambda step: None,
) -> tuple[Any, float]:
    """Minimises `loss_of(step, indices, share)` with AdamW, warm-up, cosine decay and weight averaging; resumes.

    Every batch is a function of (seed, name, step); `share` is this process's part of it. Returns the averaged
    network and the seconds it took in all.
    """
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    average = networks.averaged(network, ema)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    warm_up = min(500, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1, (step + 1) / (warm_up + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    checkpoint = training / f"{name}.safetensors"
    log = training / f"{name}.jsonl"
    first, seconds, rows = 0, 0.0, []
    if checkpoint.is_file():
        first, seconds = _restore(checkpoint, network, average, optimiser)
        schedule.last_epoch = first
        schedule.step(first)
        rows = [row for row in map(json.loads, log.read_text().splitlines()) if row["step"] < first]
    began = time.monotonic()
    running = torch.zeros((), device=accelerator.device)
    bar = tqdm(range(first, steps), name, initial=first, total=steps, disable=not accelerator.is_main_process)
    for step in bar:
        at_step(step)
        indices = torch.randint(count, (batch,), generator=generator(recipe.seed, name, step))
        loss = loss_of(step, indices, share)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(parameters, accelerator)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        running += loss.detach()
        if (step + 1) % 100 == 0:
            rows.append({"step": step, "loss": round(running.item() / 100, 6)})
            running.zero_()
            bar.set_postfix(loss=rows[-1]["loss"])
        if accelerator.is_main_process and ((step + 1) % recipe.checkpoint_every == 0 or step + 1 == steps):
            write_text(log, "".join(json.dumps(row) + "\n" for row in rows))
            _save(checkpoint, network, average, optimiser, step + 1, seconds + time.monotonic() - began)
            curves(training / f"{name}.png", {name: [(row["step"], row["loss"]) for row in rows]}, "step", "loss")
    return average.module, round(seconds + time.monotonic() - began)


def _average_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """The mean gradient over processes, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _save(
    path: Path, network: nn.Module, average: Any, optimiser: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"average.{key}": value.clone() for key, value in average.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{slot}": value for slot, value in slots.items()}
    write_tensors(path, tensors, {"step": str(step), "seconds": str(seconds)})


def _restore(path: Path, network: nn.Module, average: Any, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    tensors = safetensors.torch.load_file(path)
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    network.load_state_dict(parts["network"])
    average.load_state_dict(parts["average"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimiser"].items():
        index, slot = name.split(".")
        state.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]), float(metadata["seconds"])


# --- the autoencoder ---------------------------------------------------------------------------------------


def _train_autoencoder(
    recipe: PriorRecipe, real: Tensor, training: Path, accelerator: Accelerator
) -> tuple[Any, float]:
    """A VQModel by L1 reconstruction and commitment; its codes start as encodings of real images.

    The first tenth of training leaves quantisation out, so that the codes are born where the encodings are and none
    of them dies unused.
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
        ).to(accelerator.device)
    unquantised = settings.steps // 10

    def loss_of(step: int, indices: Tensor, share: slice) -> Tensor:
        images = _signed(real[indices[share]].to(accelerator.device))
        latents = model.encode(images).latents
        if step < unquantised:
            return functional.l1_loss(model.decode(latents, force_not_quantize=True).sample, images)
        codes, commitment, _ = model.quantize(latents)
        decoded = model.decoder(model.post_quant_conv(codes))
        return functional.l1_loss(decoded, images) + commitment

    def at_step(step: int) -> None:
        if step == unquantised:
            order = torch.randint(len(real), (settings.codes,), generator=generator(recipe.seed, "codes"))
            with torch.no_grad():
                latents = model.encode(_signed(real[order].to(accelerator.device))).latents
                vectors = latents.permute(0, 2, 3, 1).flatten(1, 2)
                places = torch.randint(vectors.shape[1], (settings.codes,), generator=generator(recipe.seed, "places"))
                model.quantize.embedding.weight.copy_(vectors[torch.arange(settings.codes), places.to(vectors.device)])

    return _fit(
        "autoencoder",
        model,
        loss_of,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        ema=0.99,
        count=len(real),
        recipe=recipe,
        training=training,
        accelerator=accelerator,
        at_step=at_step,
    )


def _signed(images: Tensor) -> Tensor:
    """uint8 to [-1, 1], the range of every autoencoder."""
    return data.to_pixels(images) * 2 - 1


@torch.no_grad()
def _encode_all(autoencoder: Any, real: Tensor, accelerator: Accelerator) -> Tensor:
    """Encodings of all images, float32 [N, C, h, w], on the CPU; far smaller than the images as floats."""
    chunks = enumerate(real.split(100))
    own = parallel.shard(list(chunks), accelerator)
    encoded = [(index, autoencoder.encode(_signed(chunk.to(accelerator.device))).latents.cpu()) for index, chunk in own]
    ordered = sorted(parallel.gather(encoded, accelerator), key=lambda item: item[0])
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
    images: data.ImageSet,
    training: Path,
    accelerator: Accelerator,
) -> tuple[ClassConditionalLDM, float]:
    """A UNet that predicts the noise, under min-SNR weighting, with the class dropped now and then."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    settings = recipe.denoiser
    device = accelerator.device
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
    scheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    alphas = scheduler.alphas_cumprod.to(device)
    weights = (SNR_CAP * (1 - alphas) / alphas).clamp(max=1)

    def loss_of(step: int, indices: Tensor, share: slice) -> Tensor:
        draws = generator(recipe.seed, "denoiser draws", step)
        times = torch.randint(TRAIN_STEPS, indices.shape, generator=draws)[share].to(device)
        noise = torch.randn(len(indices), *latents.shape[1:], generator=draws)[share].to(device)
        dropped = torch.rand(indices.shape, generator=draws) < settings.null_share
        classes = torch.where(dropped, null, labels[indices])[share].to(device)
        z = latents[indices[share]].to(device)
        a = alphas[times].view(-1, 1, 1, 1)
        predicted = model.unet(a.sqrt() * z + (1 - a).sqrt() * noise, times, model.table(classes)[:, None]).sample
        errors = (predicted - noise).square().mean((1, 2, 3))
        return (weights[times] * errors).mean()

    averaged, seconds = _fit(
        "denoiser",
        model,
        loss_of,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        ema=settings.ema,
        count=len(latents),
        recipe=recipe,
        training=training,
        accelerator=accelerator,
    )
    return ClassConditionalLDM(autoencoder, averaged.unet, averaged.table.weight, images.classes, scheduler), seconds


# --- the prior's own evaluation ----------------------------------------------------------------------------


def evaluate_prior(
    recipe: PriorRecipe,
    prior: ClassConditionalLDM,
    images: data.ImageSet,
    training: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Reconstruction of test images, and how many samples a classifier of real images puts in the intended class.

    Writes `samples.png` and `reconstructions.png`. Shares are in [0, 1], errors in units of pixels in [0, 1].
    """
    settings = recipe.evaluate
    test, test_labels = images.everything("test")
    classifier = _train_classifier(recipe, images, device)
    with torch.no_grad():
        rebuilt = torch.cat(
            [to_pixels(prior.decode(prior.encode(_signed(x.to(device))))).cpu() for x in test.split(100)]
        )
    pixels = data.to_pixels(test)
    result: dict[str, Any] = {
        "reconstruction": {
            "l1": round(float((rebuilt - pixels).abs().mean()), 5),
            "mse": round(float((rebuilt - pixels).square().mean()), 6),
        },
        "classifier": {
            "real test images": _share_right(classifier, images, pixels, test_labels, device),
            "reconstructed test images": _share_right(classifier, images, rebuilt, test_labels, device),
        },
        "samples": {"count": settings.samples, "steps": settings.steps, "share in the intended class": {}},
    }
    write_image(training / "reconstructions.png", grid(torch.cat([pixels[::97][:20], rebuilt[::97][:20]]), columns=20))
    for scale in settings.guidance:
        sampled, labels = sample(prior, images.classes, settings.samples, settings.steps, scale, recipe.seed)
        share = _share_right(classifier, images, sampled, labels, device)
        result["samples"]["share in the intended class"][f"guidance {scale:g}"] = share
        order = labels.sort(stable=True).indices.view(len(images.classes), -1)[:, :10].flatten()
        write_image(training / f"samples-guidance-{scale:g}.png", grid(sampled[order], columns=10))
    return result


@torch.no_grad()
def sample(
    prior: ClassConditionalLDM, classes: list[str], count: int, steps: int, guidance: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Plain DDIM samples from noise, in turn of every class: pixels [count, …] in [0, 1] and labels [count]."""
    labels = torch.arange(count - count % len(classes)) % len(classes)
    schedule = Schedule.of(prior.alphas_cumprod, steps, "none", guidance)
    table = prior.class_embeddings(classes)
    sampled = []
    for start, chunk in enumerate(labels.split(100)):
        noise = torch.randn(len(chunk), *prior.latent_shape, generator=generator(seed, "sample", start)).to(
            table.device
        )
        # Starting from z = noise at unit variance: √ᾱ·Z + √(1 − ᾱ)·ε with both equal in law to white noise.
        other = torch.randn(noise.shape, generator=generator(seed, "sample latent", start)).to(table.device)
        pixels, _ = render(prior, schedule, other, table[chunk], noise, micro_batch=100, keep_graph_steps=0)
        sampled.append(pixels.cpu())
    return torch.cat(sampled), labels


def _train_classifier(recipe: PriorRecipe, images: data.ImageSet, device: torch.device) -> nn.Module:
    """A ConvNet trained on all real training images by Adam with one cosine decay."""
    settings = recipe.evaluate
    real, labels = images.everything("train")
    shape = networks.Shape(recipe.data.channels, recipe.data.resolution, len(images.classes))
    network_recipe = NetworkRecipe(width=settings.classifier_width)
    classifier = networks.build("convnet", shape, network_recipe, generator(recipe.seed, "classifier")).to(device)
    steps = settings.classifier_epochs * math.ceil(len(real) / 128)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    batches = (
        batch
        for epoch in range(settings.classifier_epochs)
        for batch in torch.randperm(len(real), generator=generator(recipe.seed, "classifier order", epoch)).split(128)
    )
    for batch in tqdm(batches, "classifier", total=steps):
        logits = classifier(images.normalise(data.to_pixels(real[batch].to(device))))
        loss = functional.cross_entropy(logits, labels[batch].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def _share_right(
    classifier: nn.Module, images: data.ImageSet, pixels: Tensor, labels: Tensor, device: torch.device
) -> float:
    predictions = [classifier(images.normalise(chunk.to(device))).argmax(1).cpu() for chunk in pixels.split(500)]
    return round(float((torch.cat(predictions) == labels).float().mean()), 4)
