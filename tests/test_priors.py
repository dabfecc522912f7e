"""Each kind of prior: a small one with random weights, as diffusers saves it, distilled through and differentiated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import CLASSES, Outcome, distilled, latents, make_prior
from PIL import Image
from torch import Tensor

from ld3m import priors
from ld3m.errors import UserError
from ld3m.priors.base import numbers_of
from ld3m.priors.diffusers_layout import choose_weights
from ld3m.recipe import SamplerRecipe
from ld3m.sampling import Schedule, render
from ld3m.sizing.meta_models import MetaPrior

DDIM = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
}


def save_kl(folder: Path, **config: Any) -> None:
    """A KL autoencoder of four latent channels, halving 16 grey pixels to 8."""
    from diffusers import AutoencoderKL

    AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        **config,
    ).save_pretrained(folder / "vae")


def save_scheduler(folder: Path, **config: Any) -> None:
    from diffusers import DDIMScheduler

    DDIMScheduler(**(DDIM | config)).save_pretrained(folder / "scheduler")


def save_index(folder: Path, kind: str, **more: Any) -> Path:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **more}))
    return folder


def save_class_conditional(folder: Path) -> Path:
    make_prior().save(folder)
    return folder


def save_class_conditional_kl(folder: Path) -> Path:
    """The same with a KL autoencoder."""
    from diffusers import UNet2DConditionModel

    make_prior().save(folder)
    torch.manual_seed(1)
    save_kl(folder)
    shutil.rmtree(folder / "vqvae")
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2}
    blocks["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    UNet2DConditionModel(**UNET, **blocks, cross_attention_dim=16).save_pretrained(folder / "unet")
    return folder


def save_unconditional(folder: Path) -> Path:
    from diffusers import UNet2DModel

    make_prior().autoencoder.save_pretrained(folder / "vqvae")
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    UNet2DModel(**UNET, **blocks, in_channels=3, out_channels=3, attention_head_dim=8).save_pretrained(folder / "unet")
    save_scheduler(folder)
    return save_index(folder, "LDMPipeline")


def save_dit(folder: Path) -> Path:
    """Two blocks that share a table of three classes and the null class, and answer with a variance as well."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
    )
    table = torch.randn(4, 32)
    for block in transformer.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table.weight.data.copy_(table)
    transformer.save_pretrained(folder / "transformer")
    save_kl(folder, scaling_factor=0.18215)
    save_scheduler(folder, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    labels = {str(number): f"{name}, of the kind {name}" for number, name in enumerate(CLASSES)}
    return save_index(folder, "DiTPipeline", id2label=labels)


def save_stable_diffusion(folder: Path, prediction: str = "epsilon") -> Path:
    """With a text encoder of two layers and a vocabulary of letters."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
        )
    ).save_pretrained(folder / "text_encoder")
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2}
    blocks["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    UNet2DConditionModel(**UNET, **blocks, cross_attention_dim=16).save_pretrained(folder / "unet")
    save_kl(folder, scaling_factor=0.18215)
    save_scheduler(folder, prediction_type=prediction)
    return save_index(folder, "StableDiffusionPipeline")


def save_v_prediction(folder: Path) -> Path:
    return save_stable_diffusion(folder, "v_prediction")


KINDS: dict[str, Callable[[Path], Path]] = {
    "class-conditional": save_class_conditional,
    "class-conditional, KL": save_class_conditional_kl,
    "unconditional": save_unconditional,
    "DiT": save_dit,
    "Stable Diffusion": save_stable_diffusion,
    "Stable Diffusion, v": save_v_prediction,
}
UNCONDITIONAL = ("prior.guidance=1", "distill.learn=latents")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind's name, and the folder of a small prior of it."""
    folder = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    return request.param, KINDS[request.param](folder)


def settings(name: str) -> tuple[str, ...]:
    return UNCONDITIONAL if name == "unconditional" else ()


def double(prior: Any) -> Any:
    """The prior in float64, and smooth: quantisation makes images piecewise constant, clamping cuts their gradient."""
    prior.autoencoder.double()
    prior.denoiser.double()
    if prior.quantises:
        prior.quantise = lambda z: z
        prior.decode = lambda z: 0.1 * prior.autoencoder.decode(z / prior.scale, force_not_quantize=True).sample
    else:
        prior.decode = lambda z: 0.1 * prior.autoencoder.decode(z / prior.scale).sample
    return prior


@pytest.mark.slow
def test_networks_are_traced_without_a_break(kind: tuple[str, Path]) -> None:
    """Denoiser and decoder, with a gradient, as torch.compile would have them."""
    prior: Any = priors.load(SamplerRecipe(source=str(kind[1])))
    z = torch.randn(2, *prior.latent_shape, requires_grad=True)
    c = torch.randn(2, *prior.conditioning_shape, requires_grad=True)
    expected = prior.denoise(z, 500, c), prior.decode(z)
    for network in (prior.denoiser, prior.autoencoder.decoder):
        network.compile(backend="eager", fullgraph=True, dynamic=False)
    for found, plain in zip((prior.denoise(z, 500, c), prior.decode(z)), expected, strict=True):
        assert found.requires_grad
        torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("skip", ["paper", "reference", pytest.param("none", marks=pytest.mark.slow)])
def test_gradients_agree_with_finite_differences(kind: tuple[str, Path], skip: str) -> None:
    """Central differences in float64 along all of Z and along all of c, each of which has a gradient."""
    name, folder = kind
    prior = double(priors.load(SamplerRecipe(source=str(folder))))
    schedule = Schedule.of(prior.noise_schedule, 4, skip, 1.0 if name == "unconditional" else 2.0)
    draws = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=draws, dtype=torch.float64)

    z, noise, toward_z = (draw(*prior.latent_shape) for _ in range(3))
    c = prior.class_embeddings(CLASSES[:2]).double()
    toward_c, weights = draw(*prior.conditioning_shape), draw(1, 16, 16)
    _, pull_back = render(prior, schedule, z, c, noise)
    grads = pull_back(weights)
    for (grad, toward), (move_z, move_c) in zip(
        zip(grads, (toward_z, toward_c), strict=True), ((1e-5, 0), (0, 1e-5)), strict=True
    ):
        if not toward.numel():
            continue
        ahead, behind = (
            (render(prior, schedule, z + sign * move_z * toward_z, c + sign * move_c * toward_c, noise)[0] * weights)
            for sign in (1, -1)
        )
        assert grad.any()
        assert float((ahead - behind).sum()) / 2e-5 == pytest.approx(float((grad * toward).sum()), rel=1e-5)


def test_two_iterations_are_distilled(kind: tuple[str, Path], recipe_file: Path, tmp_path: Path) -> None:
    """Both of Z and c move where there is a c; the random denoiser gives other images."""
    name, folder = kind
    overrides = [f"prior.source={folder}", "distill.iterations=2", *settings(name)]
    start = latents(distilled(recipe_file, tmp_path / "start", *overrides, "distill.iterations=0"))
    end = latents(distilled(recipe_file, tmp_path / "end", *overrides))
    rows = [json.loads(line) for line in (tmp_path / "end" / "metrics.jsonl").read_text().splitlines()]
    assert not torch.equal(start["z"], end["z"])
    assert rows[0]["grad_z"] > 0
    if name == "unconditional":
        assert end["c"].shape == (6, 0)
    else:
        assert not torch.equal(start["c"], end["c"])
        assert rows[0]["grad_c"] > 0
    other = latents(distilled(recipe_file, tmp_path / "random", *overrides, "prior.denoiser=random"))
    assert not torch.equal(other["z"], end["z"])
    assert len(list((tmp_path / "end" / "images").rglob("*.png"))) == 6


def test_the_autoencoder_alone_gives_images_of_z(kind: tuple[str, Path], recipe_file: Path, tmp_path: Path) -> None:
    """At S = 0 the image is D(Q(Z)), by diffusers' own call, and its gradient is D's."""
    name, folder = kind
    prior = priors.load(SamplerRecipe(source=str(folder)))
    z = torch.randn(2, *prior.latent_shape)
    c = prior.class_embeddings(CLASSES[:2])
    schedule = Schedule.of(prior.noise_schedule, 0, "reference", 1.0)
    pixels, pull_back = render(prior, schedule, z, c, torch.randn_like(z))
    leaf = z.clone().requires_grad_()
    expected = (prior.autoencoder.decode(leaf / prior.autoencoder.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    grad = torch.randn_like(pixels)
    assert torch.allclose(pixels, expected, atol=1e-6)
    assert torch.allclose(pull_back(grad)[0], torch.autograd.grad(expected, leaf, grad)[0], rtol=1e-4, atol=1e-6)
    assert not pull_back_c(pixels, render(prior, schedule, z, c, torch.randn_like(z))[1]).any()
    overrides = [f"prior.source={folder}", "prior.steps=0", "distill.learn=latents", "distill.iterations=2"]
    distilled(recipe_file, tmp_path / "run", *overrides, *settings(name))


def pull_back_c(pixels: Tensor, pull_back: Any) -> Tensor:
    return pull_back(torch.ones_like(pixels))[1]


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.1), pytest.param("float16", 0.02, marks=pytest.mark.slow)])
def test_half_precision_gradients_are_close(kind: tuple[str, Path], dtype: str, most: float) -> None:
    """Relative error of the pull-back against float32, S = 4; the sampler's state stays in float32."""
    name, folder = kind
    grads = []
    for precision in ("float32", dtype):
        prior = double(priors.load(SamplerRecipe(source=str(folder), dtype=precision)))
        prior.autoencoder.float()
        prior.denoiser.to(getattr(torch, precision))
        schedule = Schedule.of(prior.noise_schedule, 4, "reference", 1.0 if name == "unconditional" else 2.0)
        draws = torch.Generator().manual_seed(1)
        z, noise = (torch.randn(2, *prior.latent_shape, generator=draws) for _ in range(2))
        pixels, pull_back = render(prior, schedule, z, prior.class_embeddings(CLASSES[:2]), noise)
        grads.append(pull_back(torch.randn(pixels.shape, generator=draws)))
        assert all(grad.dtype == torch.float32 for grad in grads[-1])
    for exact, rounded in zip(*grads, strict=True):
        assert not exact.numel() or float((exact - rounded).norm() / exact.norm()) <= most


@torch.no_grad()
@pytest.mark.parametrize("save", [save_class_conditional, save_unconditional, save_stable_diffusion])
def test_a_convolutional_prior_renders_at_another_resolution(
    save: Callable[[Path], Path], recipe_file: Path, tmp_path: Path
) -> None:
    """Latents of 12 × 12 for 24 pixels, by an autoencoder that halves."""
    (tmp_path / "prior").mkdir()
    folder = save(tmp_path / "prior")
    settings = () if save is not save_unconditional else ("prior.guidance=1", "distill.learn=latents")
    run = distilled(recipe_file, tmp_path / "run", f"prior.source={folder}", "prior.resolution=24", *settings)
    assert latents(run)["z"].shape[2:] == (12, 12)
    with Image.open(run / "images" / "cross" / "0.png") as image:
        assert image.size == (16, 16)


@pytest.mark.parametrize(
    ("save", "message"), [(save_dit, "renders at 16 alone"), (save_class_conditional, "multiple of")]
)
def test_a_resolution_that_a_prior_has_not(
    save: Callable[[Path], Path], message: str, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    (tmp_path / "prior").mkdir()
    folder = save(tmp_path / "prior")
    outcome = ld3m("distill", recipe_file, f"prior.source={folder}", "prior.resolution=18", "prior.guidance=1")
    assert outcome.code == 2
    assert "prior.resolution: 18" in outcome.err
    assert message in outcome.err


def test_latents_are_shifted_and_scaled_as_the_configuration_says(tmp_path: Path) -> None:
    """As diffusers' pipelines do it: (mean − shift) · scale, and back."""
    folder = save_class_conditional_kl(tmp_path)
    torch.manual_seed(1)
    save_kl(folder, scaling_factor=0.5, shift_factor=0.25)
    prior: Any = priors.load(SamplerRecipe(source=str(folder)))
    images = torch.randn(2, 1, 16, 16)
    mean = prior.autoencoder.encode(images).latent_dist.mean
    assert torch.allclose(prior.encode(images), (mean - 0.25) * 0.5)
    assert torch.allclose(prior.decode((mean - 0.25) * 0.5), prior.autoencoder.decode(mean).sample, atol=1e-5)


# --- what is particular to a kind --------------------------------------------------------------------------


def test_dit_answers_as_diffusers_does_for_a_class(tmp_path: Path) -> None:
    """Against a transformer that looks classes up itself; the half that is a variance is dropped."""
    from diffusers import DiTTransformer2DModel

    prior = priors.load(SamplerRecipe(source=str(save_dit(tmp_path))))
    transformer = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    z = torch.randn(4, 4, 8, 8)
    c = torch.cat([prior.class_embeddings(["square", "of the kind circle", "cross"]), prior.null_embedding])
    with torch.no_grad():
        expected = transformer(z, torch.full((4,), 501), torch.tensor([2, 0, 1, 3])).sample
        assert torch.allclose(prior.denoise(z, 501, c), expected[:, :4], atol=1e-6)


def test_dit_whose_blocks_differ_is_refused(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from diffusers import DiTTransformer2DModel

    folder = save_dit(tmp_path_factory.mktemp("dit"))
    transformer = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    transformer.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight.data += 1
    transformer.save_pretrained(folder / "transformer")
    outcome = ld3m("distill", recipe_file, f"prior.source={folder}")
    assert outcome.code == 2
    assert "different class embeddings" in outcome.err


def test_stable_diffusion_starts_from_the_prompt_of_a_class(tmp_path: Path) -> None:
    """Against transformers' own encoding; another template gives another c, and no text encoder is kept."""
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = str(save_stable_diffusion(tmp_path))
    prior: Any = priors.load(SamplerRecipe(source=folder, prompt="a {}!"))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()

    def encode(prompt: str) -> Tensor:
        tokens = tokenizer(prompt, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return encoder(tokens.input_ids).last_hidden_state[0]

    assert torch.allclose(prior.class_embeddings(["circle", "golden_retriever"])[1], encode("a golden retriever!"))
    assert torch.allclose(prior.null_embedding[0], encode(""))
    assert prior.conditioning_shape == (24, 16)
    assert not [value for value in vars(prior).values() if isinstance(value, CLIPTextModel)]


@pytest.mark.parametrize(
    ("save", "overrides", "parts"),
    [
        (save_unconditional, ["distill.learn=latents"], ["prior.guidance: 3", "prior.guidance=1"]),
        (save_unconditional, ["prior.guidance=1"], ["distill.learn: 'both'", "unconditional", "learn=latents"]),
        (
            save_class_conditional,
            ["prior.steps=0", "distill.learn=both"],
            ["distill.learn: 'both'", "prior.steps=0", "distill.learn=latents"],
        ),
        (save_class_conditional, ["prior.prompt=a photo"], ["override prior.prompt=a photo: 'a photo'", "{}"]),
        (save_dit, ["data.subset=[circle, cross]", "prior.steps=1001"], ["prior.steps=1001: 1001 is invalid"]),
    ],
)
def test_what_a_kind_cannot_do_is_told(
    ld3m: Callable[..., Outcome],
    recipe_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    save: Callable[[Path], Path],
    overrides: list[str],
    parts: list[str],
) -> None:
    folder = save(tmp_path_factory.mktemp("prior"))
    outcome = ld3m("distill", recipe_file, f"prior.source={folder}", *overrides)
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert all(part in outcome.err for part in parts), outcome.err


def test_a_scaling_factor_that_nobody_chose_is_told(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A VQModel whose configuration has none gets Stable Diffusion's from diffusers."""
    folder = save_class_conditional(tmp_path_factory.mktemp("prior"))
    config = json.loads((folder / "vqvae" / "config.json").read_text())
    del config["scaling_factor"]
    (folder / "vqvae" / "config.json").write_text(json.dumps(config))
    outcome = ld3m("distill", recipe_file, f"prior.source={folder}")
    assert outcome.code == 2
    assert all(part in outcome.err for part in ("prior.scaling_factor", "0.18215", "prior.scaling_factor=1"))
    prior: Any = priors.load(SamplerRecipe(source=str(folder), scaling_factor=1))
    assert prior.scale == 1


@pytest.mark.parametrize("name", ["FluxPipeline", "Lumina2Pipeline"])
def test_flow_matching_is_refused(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = save_index(tmp_path_factory.mktemp("prior"), name)
    outcome = ld3m("distill", recipe_file, f"prior.source={folder}")
    assert outcome.code == 2
    assert name in outcome.err
    assert "flow-matching" in outcome.err


# --- folders as people have them ---------------------------------------------------------------------------


@pytest.fixture
def folder(prior_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small class-conditional prior, to be changed."""
    return Path(shutil.copytree(prior_folder, tmp_path / "prior"))


def change(path: Path, **keys: Any) -> None:
    """Sets keys of a JSON file; `...` removes one."""
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refusal(call: Callable[[], object]) -> str:
    """The one line of a UserError."""
    with pytest.raises(UserError) as error:
        call()
    (line,) = error.value.lines
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"num_class_embeds": 10}, ["num_class_embeds: 10", "class labels"]),
        ({"class_embed_type": "timestep"}, ["class_embed_type: 'timestep'"]),
        ({"time_cond_proj_dim": 8}, ["time_cond_proj_dim: 8"]),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}, ["encoder_hid_dim_type", "images"]),
        ({"time_embedding_type": "fourier"}, ["time_embedding_type: 'fourier'", "noise levels"]),
        ({"in_channels": 6}, ["takes 6 channels and gives 3", "cannot be a prior"]),
        ({"in_channels": 4, "out_channels": 4}, ["latents have 3 channels", "takes 4"]),
        ({"cross_attention_dim": [16, 16]}, ["cross_attention_dim: [16, 16]"]),
        ({"sample_size": None}, ["sample_size is None"]),
        ({"sample_size": [8, 16]}, ["sample_size is [8, 16]"]),
        ({"_class_name": "UNet2DModel"}, ["unet is a UNet2DModel", "takes a UNet2DConditionModel"]),
        ({"block_out_channels": "wide"}, ["not a whole prior; unet"]),
    ],
)
def test_a_denoiser_that_no_prior_has_is_refused_by_its_configuration(
    folder: Path, keys: dict[str, Any], parts: list[str]
) -> None:
    """Of ld3m plan, which reads no weights; what is loaded passes the same check."""
    change(folder / "unet" / "config.json", **keys)
    line = refusal(lambda: MetaPrior.of(SamplerRecipe(source=str(folder))))
    assert all(part in line for part in ["prior.source", *parts]), line


def test_a_denoiser_that_takes_class_labels_is_refused_with_its_weights(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet" / "config.json").read_text()) | {"num_class_embeds": 3}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    assert "takes class labels" in refusal(lambda: priors.load(SamplerRecipe(source=str(folder))))


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"beta_start": ...}, ["has no beta_start", "one of EDM"]),
        ({"beta_end": None, "beta_schedule": None}, ["has no beta_end, beta_schedule"]),
        ({"num_train_timesteps": ...}, ["has no num_train_timesteps"]),
        ({"num_train_timesteps": 10**30}, ["num_train_timesteps: 1000"]),
        ({"beta_start": "small"}, ["beta_start: 'small'"]),
        ({"trained_betas": [0.1, 0.2]}, ["2 trained_betas, but num_train_timesteps: 1000"]),
        ({"use_flow_sigmas": True}, ["use_flow_sigmas: True"]),
        ({"timestep_type": "continuous"}, ["timestep_type: 'continuous'"]),
        ({"prediction_type": "flow_prediction"}, ["'flow_prediction'", "epsilon"]),
    ],
)
def test_a_scheduler_that_does_not_tell_the_noise_is_refused(
    folder: Path, keys: dict[str, Any], parts: list[str]
) -> None:
    """diffusers' defaults would take the place of what is missing."""
    change(folder / "scheduler" / "scheduler_config.json", **keys)
    line = refusal(lambda: MetaPrior.of(SamplerRecipe(source=str(folder))))
    assert all(part in line for part in parts), line


def test_a_scheduler_that_clips_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "scheduler" / "scheduler_config.json", clip_sample=True)
    priors.load(SamplerRecipe(source=str(folder)))
    assert "scheduler_config.json: clip_sample is not applied, as in the paper's code" in capsys.readouterr().err


def test_trained_betas_are_the_schedule(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", trained_betas=[0.1, 0.5], num_train_timesteps=2)
    prior = MetaPrior.of(SamplerRecipe(source=str(folder)))
    assert prior.noise_schedule.alphas_cumprod.tolist() == pytest.approx([0.9, 0.45])


@torch.no_grad()
def test_either_autoencoder_is_read_from_either_folder(folder: Path, tmp_path: Path) -> None:
    """Its configuration says what it is; and a pipeline with code of its own has a list for a name."""
    z = torch.randn(1, 3, 8, 8)
    expected = priors.load(SamplerRecipe(source=str(folder))).decode(z)
    (folder / "vqvae").rename(folder / "vae")
    change(folder / "model_index.json", _class_name=["pipeline", "ClassConditionalLDM"])
    moved: Any = priors.load(SamplerRecipe(source=str(folder)))
    assert torch.equal(moved.decode(z), expected)
    assert priors.provenance(str(folder))["kind"] == "ClassConditionalLDM"
    save_kl(tmp_path)
    shutil.copytree(tmp_path / "vae", folder / "vqvae")
    change(folder / "model_index.json", vae=["diffusers", "VQModel"], vqvae=...)
    assert torch.equal(priors.load(SamplerRecipe(source=str(folder))).decode(z), expected)
    change(folder / "vae" / "config.json", _class_name="AutoencoderKLWan")
    assert "of the kind AutoencoderKLWan" in refusal(lambda: priors.load(SamplerRecipe(source=str(folder))))


def test_weights_in_half_precision_alone_are_read(folder: Path) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {name: value.half() for name, value in safetensors.torch.load_file(unet).items()}
    safetensors.torch.save_file(halves, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    unet.unlink()
    prior: Any = priors.load(SamplerRecipe(source=str(folder)))
    assert torch.equal(prior.denoiser.conv_in.weight, halves["conv_in.weight"].float())
    assert choose_weights(["unet/a.bf16.bin", "unet/a.fp16.bin", "unet/a.non_ema.safetensors"]) == (
        ["unet/a.fp16.bin"],
        "fp16",
        False,
    )


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"conv_out.bias": None}, "the weights lack conv_out.bias"),
        ({"more.weight": torch.ones(2)}, "the weights have more.weight"),
        ({"conv_out.bias": torch.full((3,), torch.inf)}, "conv_out.bias has values that are not finite"),
        ({"conv_out.bias": torch.ones(3, dtype=torch.int32)}, "conv_out.bias of I32, not of floats"),
        ({"conv_out.bias": torch.ones(4)}, "conv_out.bias expected shape"),
    ],
)
def test_weights_that_are_not_those_of_the_configuration(
    folder: Path, tensors: dict[str, Tensor | None], part: str
) -> None:
    """diffusers only warns of a layer without weights, and of weights without a layer."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = safetensors.torch.load_file(path) | tensors
    safetensors.torch.save_file({name: value for name, value in content.items() if value is not None}, path)
    line = refusal(lambda: priors.load(SamplerRecipe(source=str(folder))))
    assert part in line
    assert "not a whole prior; unet: " in line


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("unet", None, "there is no"),
        ("model_index.json", b"[]", "model_index.json is damaged"),
        ("model_index.json", b'{"_class_name": 3}', "_class_name"),
        ("class_embedder/config.json", b'{"classes": 3}', "classes: Input should be a valid array"),
        (
            "class_embedder/config.json",
            b'{"classes": ["circle"]}',
            "weight [2, 16] of floats for 1 classes and",
        ),
        ("vqvae/config.json", b'"x"', "vqvae/config.json is damaged"),
        ("unet/diffusion_pytorch_model.safetensors", b"<html>", "is a web page"),
        ("unet/diffusion_pytorch_model.safetensors", b"version https://git-lfs", "is a Git LFS pointer"),
    ],
)
def test_a_damaged_file_of_a_prior(folder: Path, name: str, content: bytes | None, part: str) -> None:
    if content is None:
        shutil.rmtree(folder / name)
    else:
        (folder / name).write_bytes(content)
    assert part in refusal(lambda: priors.load(SamplerRecipe(source=str(folder))))


def test_a_prior_without_a_null_class_has_no_guidance(folder: Path) -> None:
    """The same in a plan; the table has as many rows as there are names."""
    change(folder / "class_embedder" / "config.json", classes=["circle", "cross", "square", "star"], null_class=False)
    for load in (priors.load, MetaPrior.of):
        assert "prior.guidance: 3" in refusal(lambda load=load: load(SamplerRecipe(source=str(folder))))
        assert load(SamplerRecipe(source=str(folder), guidance=1)).conditioning_shape == (1, 16)
        assert load(SamplerRecipe(source=str(folder), steps=0)).conditioning_shape == (1, 16)


def test_a_card_that_cannot_be_read_leaves_the_licence_unknown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "README.md").write_text("---\nlicense: {\n---\n")
    assert priors.provenance(str(folder))["licence"] is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "README.md has damaged front matter" in line


def test_what_train_prior_keeps_is_no_part_of_the_prior(folder: Path) -> None:
    """Neither of its digest, which would change with a further training, nor of its size."""
    before = priors.provenance(str(folder)), priors.weight_bytes(SamplerRecipe(source=str(folder)))
    (folder / "training").mkdir()
    safetensors.torch.save_file({"network.a": torch.ones(9)}, folder / "training" / "denoiser.safetensors")
    (folder / "training" / "evaluation.json").write_text("{}")
    assert (priors.provenance(str(folder)), priors.weight_bytes(SamplerRecipe(source=str(folder)))) == before


# --- names of classes --------------------------------------------------------------------------------------


def test_classes_are_known_by_several_names() -> None:
    """WordNet ids and the names of `data.source: imagenet` for a prior of all of ImageNet; spelling matters little."""
    imagenet: list[list[str]] = [[] for _ in range(1000)]
    imagenet[134] = ["crane"]
    imagenet[517] = ["crane"]
    named = ["n01440764", "great-white-shark", "Great White_Shark", "crane-machine", "7"]
    assert numbers_of(named, imagenet, "id2label") == [0, 2, 2, 517, 7]
    assert "several classes 'crane', 134 (crane) and 517 (crane)" in refusal(
        lambda: numbers_of(["crane"], imagenet, "id2label")
    )
    assert "write their names into id2label" in refusal(lambda: numbers_of(["circle"], [[], []], "id2label"))
    assert "only square; train one" in refusal(lambda: numbers_of(["circle"], [["square"]], "id2label"))
    assert numbers_of(["a_b", "a b"], [["a_b"], ["a b"]], "id2label") == [0, 1]


def test_labels_that_are_not_those_of_a_transformer(tmp_path: Path) -> None:
    change(save_dit(tmp_path) / "model_index.json", id2label={"0": "circle", "7": "cross"})
    assert "2 names, but the transformer has 3 classes" in refusal(
        lambda: priors.load(SamplerRecipe(source=str(tmp_path)))
    )


# --- where a prior is from, and what it takes --------------------------------------------------------------


def test_a_run_keeps_where_its_prior_is_from_and_goes_on_with_no_other(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_class_conditional(tmp_path_factory.mktemp("prior"))
    (folder / "README.md").write_text("---\nlicense: openrail\n---\n\n# A prior\n")
    options = ("distill", recipe_file, f"prior.source={folder}", "-o", "run")
    assert ld3m(*options, "distill.iterations=1").code == 0
    noted = json.loads(Path("run/prior.json").read_text())
    assert (noted["source"], noted["kind"], noted["licence"]) == (str(folder), "ClassConditionalLDM", "openrail")
    assert len(noted["sha256"]) == 64
    make_prior(size=16).save(folder, torch.float16)
    outcome = ld3m(*options, "distill.iterations=2")
    assert outcome.code == 2
    assert "prior.source" in outcome.err
    assert "other weights" in outcome.err
    assert ld3m(*options, "distill.iterations=2", "--no-resume").code == 0
    assert json.loads(Path("run/prior.json").read_text())["sha256"] != noted["sha256"]


def test_a_dry_run_tells_the_memory_of_the_weights(
    ld3m: Callable[..., Outcome], kind: tuple[str, Path], recipe_file: Path
) -> None:
    """Counted in the loaded models: the denoiser in two bytes, the autoencoder and a table of classes in four."""
    name, folder = kind
    prior: Any = priors.load(SamplerRecipe(source=str(folder), dtype="bfloat16"))
    halves, wholes = (
        sum(value.numel() for value in part.state_dict().values()) for part in (prior.denoiser, prior.autoencoder)
    )
    if name == "DiT":
        halves += 2 * prior.table.numel()  # one in each of its two blocks
    elif hasattr(prior, "table"):
        wholes += prior.table.numel()
    outcome = ld3m("distill", recipe_file, f"prior.source={folder}", "prior.dtype=bfloat16", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert f"The prior: {(halves + wholes) / 1e6:,.2f} M parameters" in outcome.out
    assert f"{(2 * halves + 4 * wholes) / 1e6:,.2f} MB" in outcome.out
