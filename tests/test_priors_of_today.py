"""Flows, consistency models, few steps, several text encoders, autoencoders alone: small ones that diffusers saves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, Outcome, distilled, latents, make_prior
from test_priors import change, refusal, save_index, save_kl, save_stable_diffusion
from torch import Tensor, nn

from ld3m import priors
from ld3m.priors.base import weights_of
from ld3m.priors.diffusers_layout import read_files
from ld3m.priors.noise_schedule import ConsistencySchedule, FlowSchedule, Level, NoiseSchedule
from ld3m.priors.random_copy import random_copy
from ld3m.recipe import Recipe, SamplerRecipe
from ld3m.recipe.files import load
from ld3m.rehearsal import stand_in
from ld3m.sampling import Schedule, render
from ld3m.sampling.differentiated import passed_on
from ld3m.sizing.meta_models import MetaPrior

TOKENS = 24
WORDS = 190
CLIP = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": TOKENS,
    "bos_token_id": WORDS - 2,
    "eos_token_id": WORDS - 1,
}


def save_flow(folder: Path, scheduler: str = "FlowMatchEulerDiscreteScheduler", **config: Any) -> Path:
    """The class-conditional prior of other tests, as a flow."""
    import diffusers

    make_prior().save(folder)
    getattr(diffusers, scheduler)(**config).save_pretrained(folder / "scheduler")
    return folder


def save_consistency(folder: Path, classes: int | None = 3) -> Path:
    """A consistency model of grey images of 16 pixels."""
    from diffusers import CMStochasticIterativeScheduler, UNet2DModel

    torch.manual_seed(0)
    UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=classes,
        resnet_time_scale_shift="scale_shift",
    ).save_pretrained(folder / "unet")
    CMStochasticIterativeScheduler().save_pretrained(folder / "scheduler")
    labels = {"id2label": {str(number): name for number, name in enumerate(CLASSES)}} if classes else {}
    return save_index(folder, "ConsistencyModelPipeline", **labels)


def save_turbo(folder: Path) -> Path:
    """Stable Diffusion with the scheduler of sd-turbo."""
    from diffusers import EulerDiscreteScheduler

    save_stable_diffusion(folder)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    EulerDiscreteScheduler(**betas, timestep_spacing="trailing", steps_offset=1).save_pretrained(folder / "scheduler")
    change(folder / "scheduler" / "scheduler_config.json", set_alpha_to_one=False)  # as sd-turbo's has it
    return folder


def save_xl(folder: Path) -> Path:
    """A second encoder of 12 pooled numbers beside the first, and four for each of six sizes."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    save_stable_diffusion(folder)
    CLIPTextModelWithProjection(CLIPTextConfig(**CLIP, projection_dim=12)).save_pretrained(folder / "text_encoder_2")
    CLIPTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(folder / "tokenizer_2")
    config = json.loads((folder / "unet" / "config.json").read_text()) | {
        "cross_attention_dim": 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
    }
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return save_index(folder, "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True)


def save_words(folder: Path) -> None:
    """A tokenizer of whole words, for encoders that are none of CLIP."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "a", "photo", "of", *CLASSES])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)


def save_sd3(folder: Path, t5: bool = True) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

    save_stable_diffusion(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for part in ("text_encoder", "text_encoder_2"):
        CLIPTextModelWithProjection(CLIPTextConfig(**CLIP, projection_dim=8)).save_pretrained(folder / part)
        tokenizer.save_pretrained(folder / part.replace("text_encoder", "tokenizer"))
    if t5:
        T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
            folder / "text_encoder_3"
        )
        save_words(folder / "tokenizer_3")
    SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    return save_index(folder, "StableDiffusion3Pipeline")


def save_sana(folder: Path) -> Path:
    """Latents of an AutoencoderDC that quarters 16 pixels, and the flow scheduler of Sana's own folders."""
    from diffusers import DPMSolverMultistepScheduler, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    save_dc(folder / "vae")
    SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=4,
    ).save_pretrained(folder / "transformer")
    config = Gemma2Config(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        pad_token_id=0,
    )
    Gemma2Model(config).save_pretrained(folder / "text_encoder")
    save_words(folder / "tokenizer")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    DPMSolverMultistepScheduler(**flow).save_pretrained(folder / "scheduler")
    return save_index(folder, "SanaPipeline")


def save_dc(folder: Path) -> None:
    from diffusers import AutoencoderDC

    AutoencoderDC(
        in_channels=1,
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
        scaling_factor=0.5,
    ).save_pretrained(folder)


KINDS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "flow": (save_flow, ("prior.start=0.5", "prior.skip=none")),
    "consistency": (save_consistency, ("prior.guidance=1", "prior.steps=1")),
    "turbo": (save_turbo, ("prior.guidance=1", "prior.steps=1")),
    "XL": (save_xl, ()),
    "SD 3": (save_sd3, ()),
    "Sana": (save_sana, ("prior.start=0.5", "prior.skip=paper")),
}


SELDOM = ("turbo", "SD 3", "Sana")
"""Kinds whose runs are left to the slow tests; what is particular to each is tested below."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name for name in KINDS],
)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind's name, and the folder of a small prior of it."""
    torch.manual_seed(0)
    return request.param, KINDS[request.param][0](tmp_path_factory.mktemp("prior"))


def settings(name: str, folder: Path) -> tuple[str, ...]:
    return (f"prior.source={folder}", *KINDS[name][1])


def in_double(prior: Any) -> Any:
    """The prior in float64 and far from where pixels are clamped."""
    for model in (prior.denoiser, getattr(prior, "autoencoder", None)):
        if model is not None:
            nn.Module.to(model, torch.float64)
    decode = prior.decode
    if getattr(prior, "quantises", False):  # pixels are piecewise constant where latents are quantised
        prior.quantise = lambda z: z
        decode = lambda z: prior.autoencoder.decode(z / prior.scale, force_not_quantize=True).sample  # noqa: E731
    prior.decode = lambda z: 0.01 * decode(z)
    return prior


def test_it_is_sampled_and_distilled(kind: tuple[str, Path], recipe_file: Path, tmp_path: Path) -> None:
    """Two iterations from samples of two steps; what a plan outlines has the shapes of what is loaded."""
    name, folder = kind
    overrides = settings(name, folder)
    sampled = ("distill.init=sample", "sample.steps=2")
    run = distilled(recipe_file, tmp_path / "run", *overrides, *sampled, "distill.iterations=2")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["grad_z"] > 0
    assert rows[0]["grad_c"] > 0
    assert len(list((run / "images").rglob("*.png"))) == 6
    recipe = load(Recipe, str(recipe_file), list(overrides)).prior
    prior, outline = priors.load(recipe), MetaPrior.of(recipe)
    z, c = latents(run)["z"], latents(run)["c"]
    shapes = prior.latent_shape, prior.conditioning_shape
    assert shapes == (tuple(z.shape[1:]), tuple(c.shape[1:])) == (outline.latent_shape, outline.conditioning_shape)
    noise = torch.empty(2, *shapes[0], device="meta")
    answer = outline.denoise(noise, 3.0, torch.empty(2, *shapes[1], device="meta"))
    assert (answer.shape, outline.decode(noise).shape) == (noise.shape, (2, 1, 16, 16))
    assert sum(map(torch.numel, weights_of(prior))) == sum(map(torch.numel, weights_of(outline))) > 0


@pytest.mark.parametrize("save", [save_sd3, save_sana])
def test_a_random_copy_has_the_shapes_of_its_prior(save: Callable[[Path], Path], tmp_path: Path) -> None:
    """As a rehearsal makes it of configurations; a tokenizer of CLIP is made too, which has 514 words."""
    (tmp_path / "own").mkdir()
    folder = save(tmp_path / "own")
    prior = priors.load(SamplerRecipe(source=str(folder)))
    wanted = prior.latent_shape, prior.class_embeddings(CLASSES).shape
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    if save is save_sd3:
        shutil.rmtree(folder / "tokenizer")
        change(folder / "text_encoder" / "config.json", vocab_size=514, bos_token_id=512, eos_token_id=513)
    random_copy(str(folder), tmp_path / "copy")
    copy = priors.load(SamplerRecipe(source=str(tmp_path / "copy")))
    assert (copy.latent_shape, copy.class_embeddings(CLASSES).shape) == wanted


def test_gradients_agree_with_finite_differences(
    kind: tuple[str, Path], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Central differences in float64 along all of Z and along all of c, with the skip and the start of a run."""
    name, folder = kind
    monkeypatch.setattr(
        torch.Tensor, "float", torch.Tensor.double
    )  # Sana's attention is in float32 whatever it is given
    recipe = load(Recipe, str(recipe_file), list(settings(name, folder))).prior
    prior = in_double(priors.load(recipe))
    schedule = Schedule.of(prior.noise_schedule, recipe.steps, recipe.skip, recipe.guidance, recipe.steps_made)
    draws = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=draws, dtype=torch.float64)

    z, noise, toward_z = (draw(*prior.latent_shape) for _ in range(3))
    c = prior.class_embeddings(CLASSES[:2]).double()
    toward_c, weights = draw(*prior.conditioning_shape), draw(1, 16, 16)
    if name == "Sana":
        toward_c[:, -300:] = 0  # which tokens are of the prompt
    _, pull_back = render(prior, schedule, z, c, noise)
    move = 1e-4 if name == "Sana" else 1e-5  # its norms round to float32
    for grad, toward, at in zip(pull_back(weights), (toward_z, toward_c), ((1, 0), (0, 1)), strict=True):
        ahead, behind = (
            render(prior, schedule, z + sign * move * at[0] * toward_z, c + sign * move * at[1] * toward_c, noise)[0]
            for sign in (1, -1)
        )
        slope = float(((ahead - behind) * weights).sum()) / (2 * move)
        assert slope == pytest.approx(float((grad * toward).sum()), rel=1e-2 if name == "Sana" else 1e-5)


# --- schedules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        (
            "DPMSolverMultistepScheduler",
            {"flow_shift": 3.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 1},
        ),
    ],
)
def test_a_step_of_a_flow_is_diffusers(name: str, config: dict[str, Any], steps: int) -> None:
    """Times and steps, with an arbitrary velocity; diffusers' tables are float32."""
    import diffusers

    theirs = getattr(diffusers, name)(**config)
    theirs.set_timesteps(steps)
    ours = NoiseSchedule.of(theirs)
    walk = ours.walk(steps)
    assert [time for time, _, _ in walk] == pytest.approx(theirs.timesteps.tolist(), abs=1)  # some round them
    assert [level.noise for _, level, _ in walk] == pytest.approx(theirs.sigmas[:-1].tolist(), rel=1e-6)
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 4, 4, generator=draws)
    for (_, level, after), time in zip(walk, theirs.timesteps, strict=True):
        velocity = torch.randn(z.shape, generator=draws)
        clean, noise = ours.clean_and_noise(z, velocity, level)
        assert level.signal + level.noise == pytest.approx(1)
        torch.testing.assert_close((clean, noise), (z - level.noise * velocity, z + level.signal * velocity))
        torch.testing.assert_close(level.signal * clean + level.noise * noise, z)
        stepped = after.signal * clean + after.noise * noise
        torch.testing.assert_close(stepped, theirs.step(velocity, time, z).prev_sample, rtol=1e-4, atol=1e-4)
        z = stepped
    assert walk[-1][2] == Level(1, 0)


def test_a_step_of_a_flow_passes_a_gradient_on_as_it_is() -> None:
    """With v fixed, z' = z + (t' − t) v."""
    schedule = Schedule.of(FlowSchedule.of(flow_scheduler()), 5, "none", 1.0)
    for step in schedule.steps:
        assert passed_on(schedule, step) == pytest.approx((1, 0))


def flow_scheduler(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_consistency_levels_are_diffusers(steps: int, tmp_path: Path) -> None:
    """σ of each step, and one step's image: diffusers' step on the model's own answer, unclipped."""
    from diffusers import CMStochasticIterativeScheduler, UNet2DModel

    theirs = CMStochasticIterativeScheduler(clip_denoised=False)
    theirs.set_timesteps(steps)
    walk = ConsistencySchedule.of(theirs).walk(steps)
    sigmas = [level.noise / level.signal for _, level, _ in walk]
    assert sigmas == pytest.approx(theirs.sigmas[:-1].tolist(), rel=1e-5)
    assert walk[-1][2] == Level(1, 0)
    if steps > 1:
        return
    prior = priors.load(SamplerRecipe(source=str(save_consistency(tmp_path)), guidance=1))
    unet = UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    noise = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        x, time = 80 * noise, theirs.timesteps[0]
        answer = unet(theirs.scale_model_input(x, time), time, class_labels=torch.tensor([0, 2])).sample
        expected = theirs.step(answer, time, x).prev_sample
        c = prior.class_embeddings(["circle", "square"])
        found = prior.denoise(x / (1 + 80**2) ** 0.5, walk[0][0], c)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_few_steps_end_clean(tmp_path: Path) -> None:
    """EulerDiscreteScheduler at one trailing step is x̂ at time 999, whatever is left of a DDIM configuration."""
    ours = priors.load(SamplerRecipe(source=str(save_turbo(tmp_path)))).noise_schedule
    ((time, level, after),) = ours.walk(1)
    assert (time, after) == (999, Level(1, 0))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    assert level.signal**2 == pytest.approx(float((1 - betas).prod()))


# --- what the denoisers are given --------------------------------------------------------------------------


@torch.no_grad()
def test_xl_is_asked_as_diffusers_asks_it(tmp_path: Path) -> None:
    """States of both encoders side by side, those before the last layer; pooled ones of the second; six sizes."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    prior: Any = priors.load(SamplerRecipe(source=str(save_xl(tmp_path))))
    ids = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")(
        ["a photo of a circle"], padding="max_length", max_length=TOKENS, return_tensors="pt"
    ).input_ids
    first = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()(ids, output_hidden_states=True)
    second = CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder_2").eval()(
        ids, output_hidden_states=True
    )
    states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    c = prior.class_embeddings(["circle"])
    torch.testing.assert_close(c, torch.cat([states.flatten(1), second.text_embeds], 1))
    assert not prior.null_embedding.any()  # force_zeros_for_empty_prompt
    z = torch.randn(1, 4, 8, 8)
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]])
    added = {"text_embeds": second.text_embeds, "time_ids": sizes}
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    expected = unet(z, torch.tensor([501]), states, added_cond_kwargs=added).sample
    torch.testing.assert_close(prior.denoise(z, 501, c), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("t5", [True, False])
def test_sd3_without_its_third_encoder_has_zeros(t5: bool, tmp_path: Path) -> None:
    """24 tokens of CLIP and 256 of T5, 32 wide, which are zeros without it; two pooled states of 8."""
    prior: Any = priors.load(SamplerRecipe(source=str(save_sd3(tmp_path, t5))))
    c = prior.class_embeddings(["circle", "cross"])
    assert c.shape == (2, (TOKENS + 256) * 32 + 16)
    third = c[:, TOKENS * 32 : -16]
    assert bool(third.any()) == t5
    prior.render_at(32)  # positions of the larger table
    assert prior.denoise(torch.randn(2, 4, 16, 16), 700.5, c).shape == (2, 4, 16, 16)
    assert "renders at 32 at most" in refusal(lambda: prior.render_at(48))


def test_masked_tokens_of_sana_have_no_part(tmp_path: Path) -> None:
    """Four words of 300 tokens; the mask at the end of c has no gradient."""
    prior: Any = priors.load(SamplerRecipe(source=str(save_sana(tmp_path))))
    c = prior.class_embeddings(["circle"]).requires_grad_()
    assert c[0, -300:].tolist() == [1] * 5 + [0] * 295
    prior.denoise(torch.randn(1, 4, 4, 4), 700.5, c).square().sum().backward()
    moved = c.grad[0, :-300].view(300, 8).any(1)
    assert moved.tolist() == [True] * 5 + [False] * 295
    assert not c.grad[0, -300:].any()


# --- autoencoders alone ------------------------------------------------------------------------------------


def save_autoencoder(name: str, folder: Path) -> Path:
    """A small one of a kind, in a folder of its own."""
    from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny

    torch.manual_seed(0)
    if name == "AutoencoderKL":
        save_kl(folder, scaling_factor=0.5, shift_factor=0.25)
        return folder / "vae"
    if name == "VQModel":
        make_prior().autoencoder.save_pretrained(folder)
    elif name == "AutoencoderDC":
        save_dc(folder)
    elif name == "AutoencoderTiny":
        channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        AutoencoderTiny(in_channels=1, out_channels=1, **channels, **blocks).save_pretrained(folder)
    else:
        down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
        AsymmetricAutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=down,
            up_block_types=up,
            down_block_out_channels=(8, 16),
            up_block_out_channels=(8, 16),
            norm_num_groups=4,
        ).save_pretrained(folder)
    return folder


AUTOENCODERS = {
    "AutoencoderKL": (4, 8, 8),
    "VQModel": (3, 8, 8),
    "AutoencoderDC": (4, 4, 4),
    "AutoencoderTiny": (4, 8, 8),
    "AsymmetricAutoencoderKL": (4, 8, 8),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name.startswith("Asym") else name for name in AUTOENCODERS],
)
def test_an_autoencoder_alone_is_a_prior(name: str, tmp_path: Path) -> None:
    """Images are D(Z) by diffusers' own call, shifted and scaled, and so is the gradient; E's are its likeliest."""
    recipe = SamplerRecipe(source=str(save_autoencoder(name, tmp_path)), steps=0)
    prior: Any = priors.for_images(recipe, 1, 16)
    assert prior.latent_shape == AUTOENCODERS[name]
    scale, shift = {"AutoencoderKL": (0.5, 0.25), "VQModel": (0.8, 0.0), "AutoencoderDC": (0.5, 0.0)}.get(
        name, (getattr(prior.autoencoder.config, "scaling_factor", 1.0), 0.0)
    )
    images, z = torch.rand(2, 1, 16, 16) * 2 - 1, torch.randn(2, *prior.latent_shape)
    encoded = prior.autoencoder.encode(images)
    likeliest = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded[0]
    torch.testing.assert_close(prior.encode(images), (likeliest - shift) * scale)
    schedule = Schedule.of(prior.noise_schedule, 0, "reference", 3.0)
    pixels, pull_back = render(prior, schedule, z, prior.class_embeddings(CLASSES[:2]), torch.zeros_like(z))
    leaf = z.clone().requires_grad_()
    expected = (prior.autoencoder.decode(leaf / scale + shift).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pixels, expected)
    wanted = torch.autograd.grad(expected, leaf, torch.ones_like(pixels))[0]
    torch.testing.assert_close(pull_back(torch.ones_like(pixels))[0], wanted, rtol=1e-4, atol=1e-5)
    outline = MetaPrior.of(recipe, 16)
    assert sum(map(torch.numel, weights_of(outline))) == sum(map(torch.numel, weights_of(prior)))
    assert priors.weight_bytes(recipe)[0] == sum(each.numel() for each in prior.autoencoder.state_dict().values())
    assert priors.provenance(recipe.source)["kind"] == name


def test_an_autoencoder_alone_is_distilled_through(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path
) -> None:
    """By its own folder; a run with steps is refused in one line, before images are read."""
    source = f"prior.source={save_autoencoder('AutoencoderKL', tmp_path)}"
    run = distilled(recipe_file, tmp_path / "run", source, "prior.steps=0", "distill.iterations=2")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["grad_z"] > 0
    assert latents(run)["z"].shape == (6, 4, 8, 8)
    outcome = ld3m("distill", recipe_file, source)
    assert outcome.code == 2
    assert "prior.steps: 3, but" in outcome.err
    assert "an autoencoder alone, a AutoencoderKL, and has no denoiser; set prior.steps=0" in outcome.err


def test_what_is_no_autoencoder_of_images_is_told(prior_folder: Path, tmp_path: Path) -> None:
    folder = save_autoencoder("AutoencoderKL", tmp_path)

    def load(source: Path, size: int = 16, **keys: Any) -> Callable[[], object]:
        return lambda: priors.for_images(SamplerRecipe(source=str(source), steps=0, **keys), 1, size)

    assert "prior.resolution=18" in refusal(load(folder, 17))
    assert priors.for_images(SamplerRecipe(source=str(folder), steps=0, resolution=24), 1, 17).image_size == 24
    assert "holds a UNet2DConditionModel, not an autoencoder" in refusal(load(prior_folder / "unet"))
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    assert "AutoencoderKLWan does not encode and decode images" in refusal(load(tmp_path / "video"))
    assert "prior.denoiser: random, but" in refusal(load(folder, denoiser="random"))


def test_an_autoencoder_alone_can_be_rehearsed(tmp_path: Path) -> None:
    """With its own weights if they are here, or with random ones."""
    folder = save_autoencoder("AutoencoderTiny", tmp_path / "own")
    assert stand_in.own(str(folder)) == folder
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert stand_in.own(str(folder)) is None
    assert "configurations alone" in stand_in.draw(str(folder), tmp_path / "copy")
    recipe = SamplerRecipe(source=str(tmp_path / "copy"), steps=0)
    assert priors.for_images(recipe, 1, 16).latent_shape == (4, 8, 8)


def test_of_an_autoencoder_alone_the_top_folder_is_read() -> None:
    weights = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    assert read_files(["config.json", *weights, "demo/config.json", "README.md"]) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    whole = ["model_index.json", "config.json", *weights, "vae/config.json", f"vae/{weights[1]}"]
    assert read_files(whole) == ["config.json", "model_index.json", "vae/config.json", f"vae/{weights[1]}"]


# --- what cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["prior.skip=none"], ["prior.skip: 'none'", "noise alone", "prior.start below 1"]),
        (["prior.skip=paper", "prior.steps=1", "prior.start=1"], ["prior.skip: 'paper'"]),
    ],
)
def test_a_flow_needs_a_part_of_z(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    outcome = ld3m("distill", recipe_file, f"prior.source={save_flow(tmp_path / 'prior')}", *overrides)
    assert outcome.code == 2
    assert all(part in outcome.err for part in parts), outcome.err


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting: True"),
        ({"shift": 0.0}, "shift: 0.0"),
    ],
)
def test_a_flow_scheduler_of_other_times_is_refused(keys: dict[str, Any], part: str, tmp_path: Path) -> None:
    change(save_flow(tmp_path) / "scheduler" / "scheduler_config.json", **keys)
    assert part in refusal(lambda: MetaPrior.of(SamplerRecipe(source=str(tmp_path))))


@pytest.mark.parametrize(
    ("save", "file", "keys", "part"),
    [
        (save_xl, "unet", {"projection_class_embeddings_input_dim": 40}, "takes 16 numbers beside six sizes"),
        (save_sana, "transformer", {"guidance_embeds": True}, "guidance_embeds: True"),
        (save_consistency, "unet", {"class_embed_type": "timestep"}, "class_embed_type: 'timestep'"),
        (save_sana, "vae", {"latents_mean": [0.0]}, "latents_mean"),
    ],
)
def test_a_configuration_that_its_kind_has_not(
    save: Callable[[Path], Path], file: str, keys: dict[str, Any], part: str, tmp_path: Path
) -> None:
    change(save(tmp_path) / file / "config.json", **keys)
    assert part in refusal(lambda: MetaPrior.of(SamplerRecipe(source=str(tmp_path), guidance=1)))


def test_a_consistency_model_has_no_null_class_and_knows_its_own(tmp_path: Path) -> None:
    source = str(save_consistency(tmp_path))
    assert "no null class" in refusal(lambda: priors.load(SamplerRecipe(source=source, steps=1)))
    assert "does not know the class 'star'" in refusal(lambda: priors.check_classes(source, ["star"]))
    scaled = SamplerRecipe(source=source, guidance=1, scaling_factor=2)
    assert "prior.scaling_factor: 2, but" in refusal(lambda: priors.load(scaled))
    assert "has one size" in refusal(lambda: priors.load(SamplerRecipe(source=source, guidance=1, resolution=32)))
    assert priors.load(SamplerRecipe(source=source, guidance=1, steps=0)).conditioning_shape == (64,)
    plain = priors.load(SamplerRecipe(source=str(save_consistency(tmp_path, None)), guidance=1))
    c = plain.class_embeddings(CLASSES[:2])
    assert plain.denoise(torch.zeros(2, 1, 16, 16), 3, c).shape == (2, 1, 16, 16)


def test_a_trained_flow_is_a_prior_of_flow(shapes: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    """train-prior with denoiser.flow: the loss is that of the velocity, and the folder says so."""
    recipe = tmp_path / "flow.yaml"
    recipe.write_text(
        f"""
name: flow
data: {{source: {shapes}, resolution: 16, channels: 1}}
autoencoder: {{channels: [16, 16], codes: 16, steps: 2, batch: 4}}
denoiser: {{flow: true, channels: [16, 16], class_width: 8, steps: 2, batch: 4}}
evaluate: {{samples: 3, steps: 2, guidance: [1], classifier_epochs: 1}}
"""
    )
    assert ld3m("train-prior", recipe, "-o", "flow").code == 0
    prior = priors.load(SamplerRecipe(source="flow"))
    assert isinstance(prior.noise_schedule, FlowSchedule)
    assert prior.noise_schedule.walk(2)[0][:2] == (1000, Level(0, 1))
