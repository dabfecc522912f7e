"""Original checkpoints: equal to the authors' values and to the original's networks, and every tensor accounted for."""

import gzip
import io
import json
import math
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import yaml
from compvis import FirstStage, UNet
from conftest import DATA, Outcome
from torch import Tensor, nn

from ld3m import priors
from ld3m.errors import UserError
from ld3m.priors import ClassConditionalLDM, UnconditionalLDM
from ld3m.priors.checkpoints import read_checkpoint
from ld3m.priors.originals.config import KINDS
from ld3m.priors.originals.convert import convert
from ld3m.priors.originals.latent_diffusion import untrained
from ld3m.recipe import SamplerRecipe
from ld3m.sampling import Schedule, render

CASES = [
    ("s5_c3", "reference", 5, 3.0),
    ("s10_c1", "reference", 10, 1.0),
    ("paper_s5_c3", "paper", 5, 3.0),
    ("plain_s5_c3", "none", 5, 3.0),
]


class Sinusoid(nn.Module):
    """diffusers' time embedding, which it computes in float32, in float64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, times: Tensor) -> Tensor:
        half = torch.arange(self.width // 2, dtype=torch.float64) / (self.width // 2)
        angles = times[:, None].double() * torch.exp(-math.log(10000) * half)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def loaded(folder: Path) -> Any:
    """A converted prior in float64."""
    prior: Any = priors.load(SamplerRecipe(source=str(folder)))
    prior.autoencoder.double()
    prior.denoiser.double().time_proj = Sinusoid(prior.denoiser.config.block_out_channels[0])
    prior.null_embedding = prior.null_embedding.double()
    return prior


# --- the authors' values -----------------------------------------------------------------------------------
# tests/data/README.md says how the file was made and what its keys are.


@pytest.fixture(scope="module")
def oracle() -> tuple[dict[str, Tensor], dict[str, str]]:
    with safetensors.safe_open(DATA / "sampler_tiny.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def authors(oracle: tuple[dict[str, Tensor], dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The authors' random-weight checkpoint, converted as a user does it."""
    tensors, metadata = oracle
    folder = tmp_path_factory.mktemp("authors")
    weights = {name.removeprefix("sd/"): value.float() for name, value in tensors.items() if name.startswith("sd/")}
    torch.save({"state_dict": weights, "global_step": 1}, folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(metadata["compvis_config"])))
    report = convert(folder / "model.ckpt", folder / "prior", config=folder / "config.yaml", classes="10")
    assert report["tensors used"] == 412  # 286 of the UNet, 125 of the first stage, the class table
    assert set(report["tensors left out"].values()) == {"computed from the configuration"}
    assert len(report["tensors left out"]) == 12
    return loaded(folder / "prior")


def test_the_schedule_is_the_authors(authors: ClassConditionalLDM, oracle: tuple[dict[str, Tensor], Any]) -> None:
    expected = oracle[0]["sched/alphas_cumprod_f64"]
    assert torch.allclose(authors.noise_schedule.alphas_cumprod, expected, rtol=1e-12, atol=0)


def test_denoiser_and_autoencoder_are_the_authors(
    authors: ClassConditionalLDM, oracle: tuple[dict[str, Tensor], Any]
) -> None:
    tensors = oracle[0]
    x, c = tensors["unet/x"].double(), tensors["unet/c"].double()
    answers = [
        authors.denoise(x[i : i + 1], int(t), c[i : i + 1]).detach() for i, t in enumerate(tensors["unet/t"].tolist())
    ]
    assert relative(torch.cat(answers), tensors["dbl/unet/eps"]) <= 1e-9
    z = authors.encode(tensors["ae/x"].double())
    assert relative(z, tensors["ae/enc"]) <= 1e-9
    assert relative(authors.quantise(z), tensors["ae/zq"]) <= 1e-9
    assert relative(authors.decode(z), tensors["ae/rec"]) <= 1e-9


@pytest.mark.parametrize(("case", "skip", "steps", "guidance"), CASES)
def test_render_and_gradients_are_the_authors(
    authors: ClassConditionalLDM,
    oracle: tuple[dict[str, Tensor], dict[str, str]],
    case: str,
    skip: str,
    steps: int,
    guidance: float,
) -> None:
    tensors, metadata = oracle
    mean, std = (
        torch.tensor(json.loads(metadata[key]), dtype=torch.float64).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    z, c, noise = (tensors[f"in/{name}"].double() for name in ("Z", "c", "noise"))
    assert torch.equal(authors.null_embedding.expand_as(c), tensors["in/uc"].double())
    schedule = Schedule.of(authors.noise_schedule, steps, skip, guidance)
    pixels, pull_back = render(authors, schedule, z, c, noise, micro_batch=3, keep_graph_steps=2)
    grad_z, grad_c = pull_back(tensors["in/dLdx"].double() / std)
    assert relative((pixels - mean) / std, tensors[f"dbl/{case}/image"]) <= 1e-9
    assert relative(grad_z, tensors[f"dbl/{case}/grad_Z"]) <= 1e-9
    assert relative(grad_c, tensors[f"dbl/{case}/grad_c"]) <= 1e-9


# --- the original's networks, of other configurations --------------------------------------------------------

ENCODER = {"z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "num_res_blocks": 1}
FIRST_STAGES = {
    "VQ": {"embed_dim": 3, "n_embed": 16, "ddconfig": ENCODER | {"double_z": False, "ch_mult": [1, 2]}},
    "VQ, four codes wide": {
        "embed_dim": 4,
        "n_embed": 16,
        "ddconfig": ENCODER | {"double_z": False, "ch_mult": [1, 1], "num_res_blocks": 2, "z_channels": 8},
    },
    "VQ with attention": {
        "embed_dim": 3,
        "n_embed": 16,
        "ddconfig": ENCODER | {"double_z": False, "ch_mult": [1, 2], "attn_resolutions": [8]},
    },
    "KL": {"embed_dim": 3, "ddconfig": ENCODER | {"double_z": True, "ch_mult": [1, 2, 2]}},
}
BODY = {"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32}
CONTEXT = {"use_spatial_transformer": True, "context_dim": 24}
CLASSES = "5"
"""Rows of the class table but for the null class, by number."""
UNETS: dict[str, dict[str, Any]] = {
    "two heads": CONTEXT
    | {
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "num_heads": 2,
        "transformer_depth": 1,
    },
    "heads of 16, two transformers deep": CONTEXT
    | {
        "channel_mult": [1, 2, 3],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2],
        "num_head_channels": 16,
        "num_heads": -1,
        "transformer_depth": 2,
    },
    "attention everywhere": CONTEXT
    | {
        "channel_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [1, 2, 4],
        "num_heads": 4,
        "transformer_depth": 1,
    },
    "unconditional, heads of 16": {
        "channel_mult": [1, 2],
        "num_res_blocks": 2,
        "attention_resolutions": [2],
        "num_head_channels": 16,
    },
    "unconditional, one head": {
        "channel_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [4, 2],
        "num_heads": 1,
    },
}


def build(
    unet: str, first_stage: str, seed: int = 0, **changes: Any
) -> tuple[UNet, FirstStage, dict[str, Tensor], dict[str, Any]]:
    """Networks with random weights, their checkpoint's tensors, and its configuration."""
    torch.manual_seed(seed)
    settings, stage = BODY | UNETS[unet] | changes, json.loads(json.dumps(FIRST_STAGES[first_stage]))
    stage["ddconfig"].setdefault("attn_resolutions", [])
    settings["in_channels"] = settings["out_channels"] = stage["embed_dim"]
    denoiser, autoencoder = UNet(settings), FirstStage(stage)
    for network in (denoiser, autoencoder):
        for parameter in network.parameters():  # what is 1 or 0 before training would hide a mistake
            parameter.data += 0.1 * torch.randn_like(parameter)
    weights = {f"model.diffusion_model.{name}": value for name, value in denoiser.state_dict().items()}
    weights |= {f"first_stage_model.{name}": value for name, value in autoencoder.state_dict().items()}
    if "context_dim" in settings:
        weights["cond_stage_model.embedding.weight"] = torch.randn(6, settings["context_dim"])
    params = {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "timesteps": 1000,
        "unet_config": {"params": settings},
        "first_stage_config": {"params": stage},
    }
    return denoiser.double(), autoencoder.double(), weights, {"model": {"params": params}}


def write(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[Path, Path]:
    """A checkpoint and its configuration file."""
    torch.save({"state_dict": weights}, folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "model.ckpt", folder / "config.yaml"


@pytest.mark.parametrize(
    ("unet", "first_stage"),
    [
        pytest.param(unet, stage, marks=[] if i == 0 or j == 0 else pytest.mark.slow)
        for i, unet in enumerate(UNETS)
        for j, stage in enumerate(FIRST_STAGES)
    ],
)
@torch.no_grad()
def test_a_converted_prior_is_the_original(tmp_path: Path, unet: str, first_stage: str) -> None:
    denoiser, autoencoder, weights, config = build(unet, first_stage)
    checkpoint, configuration = write(tmp_path, weights, config)
    report = convert(
        checkpoint, tmp_path / "prior", config=configuration, classes=CLASSES if "context_dim" in UNETS[unet] else None
    )
    assert report["tensors used"] == len(weights)
    assert report["tensors left out"] == {}
    prior = loaded(tmp_path / "prior")
    z = torch.randn(2, *prior.latent_shape, dtype=torch.float64)
    if "context_dim" in UNETS[unet]:
        c = prior.class_embeddings(["4", "0"]).double()
        assert torch.equal(c[:, 0], weights["cond_stage_model.embedding.weight"][[4, 0]].double())
        expected = denoiser(z, torch.tensor([701, 701]), c)
    else:
        c = prior.class_embeddings(["whatever", "class"])
        expected = denoiser(z, torch.tensor([701, 701]))
    assert relative(prior.denoise(z, 701, c), expected) <= 1e-9
    images = torch.randn(2, 3, prior.image_size, prior.image_size, dtype=torch.float64)
    assert relative(prior.encode(images), autoencoder.encode(images)) <= 1e-9
    assert relative(prior.decode(z), autoencoder.decode(z)) <= 1e-9


def test_the_average_is_taken_where_there_is_one_and_the_scale_comes_along(tmp_path: Path) -> None:
    """The original samples with the average of the weights; its names have lost their dots."""
    _, _, weights, config = build("two heads", "KL")
    _, _, other, _ = build("two heads", "KL", seed=1)
    unet = [name for name in weights if name.startswith("model.diffusion_model.")]
    averages = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": other[name] for name in unet}
    weights |= averages | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    weights |= {"scale_factor": torch.tensor(0.25), "logvar": torch.zeros(1000), "betas": torch.zeros(1000)}
    weights["first_stage_model.loss.discriminator.weight"] = torch.zeros(3)
    checkpoint, configuration = write(tmp_path, weights, config)
    report = convert(checkpoint, tmp_path / "prior", config=configuration, classes=CLASSES)
    assert report["denoiser weights"] == "averaged (EMA)"
    assert set(unet) <= set(report["tensors left out"])
    prior: Any = priors.load(SamplerRecipe(source=str(tmp_path / "prior")))
    assert torch.equal(prior.denoiser.conv_in.weight, other["model.diffusion_model.input_blocks.0.0.weight"])
    assert prior.scale == 0.25


# --- checkpoints as they are found ---------------------------------------------------------------------------


class Callback:
    """Such as Lightning leaves in its checkpoints."""

    made = False

    def __init__(self) -> None:
        Callback.made = True

    def __reduce__(self) -> tuple[Any, ...]:
        return Callback, (), {"best": 1.0}


def test_what_else_is_pickled_is_named_and_never_made(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": {Callback: Callback()}}, tmp_path / "old.ckpt")
    Callback.made = False
    weights, others = read_checkpoint(tmp_path / "old.ckpt")
    assert torch.equal(weights["a"], torch.ones(2))
    assert others == ["test_convert.Callback"]
    assert not Callback.made


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").system, ("touch harmed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(2), "b": Harmful()}}, "harmful.ckpt")
    with pytest.raises(UserError, match=r"harmful\.ckpt: cannot be read without running code"):
        read_checkpoint(Path("harmful.ckpt"))
    assert not Path("harmed").exists()


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    _, _, weights, config = build("two heads", "VQ")
    _, configuration = write(tmp_path, weights, config)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    report = convert(tmp_path / "model.safetensors", tmp_path / "prior", config=configuration, classes=CLASSES)
    assert report["tensors used"] == len(weights)


def in_old_format(weights: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": weights}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_the_format_is_known_by_the_content(tmp_path: Path) -> None:
    """safetensors under a name of PyTorch's, and PyTorch's format from before 1.6."""
    weights = {"a": torch.arange(3.0)}
    for content in (safetensors.torch.save(weights), in_old_format(weights)):
        (tmp_path / "model.ckpt").write_bytes(content)
        assert torch.equal(read_checkpoint(tmp_path / "model.ckpt").weights["a"], torch.arange(3.0))


def in_new_format(weights: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": weights}, buffer)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


WEIGHT = {"a": torch.ones(100)}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty; get it again"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (in_new_format(WEIGHT)[:-30], "is the beginning of a checkpoint of PyTorch"),
        (in_old_format(WEIGHT)[:-30], "is damaged or cut off"),
        (safetensors.torch.save(WEIGHT)[:40], "is the beginning of a safetensors file"),
        (safetensors.torch.save(WEIGHT)[:-4], "is a damaged safetensors file"),
        (zipped("model.ckpt"), "is a zip archive of model.ckpt; unpack it first"),
        (zipped("m/constants.pkl"), "is a TorchScript program"),
        (gzip.compress(b"x", mtime=0), "is compressed by gzip; unpack it first"),
        (b'{"weight_map": {}}', "is a JSON text"),
        (pickle.dumps([1]), "is a pickle that PyTorch did not write"),
        (bytes(1000), "is of no known kind"),
        (in_new_format({"a": torch.ones(2).to_sparse()}), "a is sparse"),
        (in_new_format({"a": torch.ones(2, dtype=torch.complex64)}), "a is of torch.complex64"),
        (in_new_format({"a": torch.ones(2, device="meta")}), "a is on the meta device"),
        (in_new_format({}), "holds no tensors by name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the bytes of archives have the time in them
)
def test_what_a_file_is_that_is_no_checkpoint(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.ckpt: {what}") as refusal:
        read_checkpoint(tmp_path / "model.ckpt")
    assert len(refusal.value.lines) == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("conditioner.embedders.0.x", "Stable Diffusion XL"),
        ("cond_stage_model.transformer.token_emb.weight", "conditioned on text or images"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers' names already"),
        ("decoder.x", "is none of cin256-v2"),
    ],
)
def test_models_of_others_are_named(tmp_path: Path, name: str, what: str) -> None:
    torch.save({"ema": {name: torch.ones(2)}}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=what):
        convert(tmp_path / "model.ckpt", tmp_path / "prior")
    assert not (tmp_path / "prior").exists()


def test_a_class_table_with_and_without_a_null_class(
    ld3m: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Six rows are six classes, the default of the original code, or five and the null class: nothing tells which."""
    _, _, weights, config = build("two heads", "VQ")
    folder = tmp_path_factory.mktemp("given")
    checkpoint, configuration = write(folder, weights, config)
    command = ("convert-prior", checkpoint, "out", "--config", configuration)
    asked = ld3m(*command)
    assert asked.code == 2
    assert all(part in asked.err for part in ("6 rows", "--classes 5", "--classes 6")), asked.err
    assert "give 6, or 5" in ld3m(*command, "--classes", "7").err
    (folder / "names.txt").write_text("\ufeffant\nbee\ncat\n\ndog \neel\nfox\n")
    told = ld3m(*command, "--classes", folder / "names.txt")
    assert told.code == 0, told.err
    assert "6 classes and no null class, so prior.guidance=1" in told.out
    prior = priors.load(SamplerRecipe(source="out", guidance=1))
    table = weights["cond_stage_model.embedding.weight"]
    assert torch.equal(prior.class_embeddings(["fox", "Dog"])[:, 0], table[[5, 3]])
    assert prior.null_embedding is None
    with pytest.raises(UserError, match=r"^prior\.guidance: 3, but out has no null class .*; set prior\.guidance=1$"):
        priors.load(SamplerRecipe(source="out", guidance=3))
    config["model"]["params"]["cond_stage_config"] = {"params": {"ucg_rate": 0.1}}  # trained with a null class
    write(folder, weights, config)
    report = convert(checkpoint, Path("guessed"), config=configuration)
    assert (report["classes"], report["null class"]) == (5, True)


@pytest.mark.parametrize(
    ("section", "key", "value", "parts"),
    [
        ("unet_config", "in_channels", 6, ["in_channels: 6", "out_channels is 3", "cannot be a prior"]),
        ("unet_config", "num_res_blocks", "two", ["unet_config.params.num_res_blocks", "'two'"]),
        ("unet_config", "use_new_attention_order", True, ["use_new_attention_order", "True"]),
        ("unet_config", "model_channels", None, ["unet_config.params.model_channels"]),
        ("first_stage_config", "embed_dim", 4, ["embed_dim: 4", "in_channels is 3"]),
    ],
)
def test_a_configuration_that_cannot_be_converted(
    tmp_path: Path, section: str, key: str, value: Any, parts: list[str]
) -> None:
    _, _, weights, config = build("two heads", "VQ")
    config["model"]["params"][section]["params"][key] = value
    checkpoint, configuration = write(tmp_path, weights, config)
    with pytest.raises(UserError) as refusal:
        convert(checkpoint, tmp_path / "prior", config=configuration, classes=CLASSES)
    assert all(part in str(refusal.value) for part in parts), refusal.value


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"model.diffusion_model.out.2.bias": None}, ["the UNet", "nothing for conv_out.bias"]),
        ({"model.diffusion_model.out.2.bias": torch.zeros(9)}, ["the UNet", "(9,)", "(3,)"]),
        ({"first_stage_model.quantize.embedding.weight": None}, ["the autoencoder", "quantize.embedding.weight"]),
        ({"first_stage_model.encoder.extra.weight": torch.zeros(1)}, ["first_stage_model.encoder.extra.weight"]),
        ({"model.diffusion_model.extra.weight": torch.zeros(1)}, ["model.diffusion_model.extra.weight"]),
        ({"surprise": torch.zeros(1)}, ["surprise", "which the prior does not need"]),
        ({"model.diffusion_model.out.2.bias": torch.ones(3, dtype=torch.int64)}, ["out.2.bias is of torch.int64"]),
        (
            {"model.diffusion_model.out.2.bias": torch.full((3,), math.nan)},
            ["out.2.bias has values that are not finite"],
        ),
        ({"cond_stage_model.embedding.weight": torch.ones(6)}, ["cond_stage_model.embedding.weight: [6]"]),
        ({"scale_factor": torch.tensor(0.0)}, ["scale_factor: 0.0"]),
    ],
)
def test_a_tensor_too_many_or_too_few_is_an_error(
    ld3m: Callable[..., Outcome],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    change: dict[str, Tensor | None],
    parts: list[str],
) -> None:
    _, _, weights, config = build("two heads", "VQ")
    changed = {name: value for name, value in (weights | change).items() if value is not None}
    checkpoint, configuration = write(tmp_path_factory.mktemp("given"), changed, config)
    outcome = ld3m("convert-prior", checkpoint, "out", "--config", configuration, "--classes", CLASSES)
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert all(part in outcome.err for part in parts), outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere.ckpt", "out"], ["nowhere.ckpt: there is no such file"]),
        (["GIVEN", "out"], ["is none of cin256-v2", "--config"]),
        (["GIVEN", "out", "--kind", "cin512"], ["--kind: 'cin512'", "cin256-v2, ffhq256"]),
        (["GIVEN", "out", "--kind", "ffhq256"], ["of another kind"]),
        (["GIVEN", "out", "--config", "GIVEN"], ["--config: ", "the YAML file that the model was trained with"]),
    ],
)
def test_mistakes_of_the_command_line(
    ld3m: Callable[..., Outcome],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    arguments: list[str],
    parts: list[str],
) -> None:
    _, _, weights, config = build("two heads", "VQ")
    checkpoint, _ = write(tmp_path_factory.mktemp("given"), weights, config)
    outcome = ld3m("convert-prior", *(checkpoint if word == "GIVEN" else word for word in arguments))
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert all(part in outcome.err for part in parts), outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_converts_and_does_not_overwrite(
    ld3m: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, _, weights, config = build("unconditional, one head", "VQ")
    checkpoint, configuration = write(tmp_path_factory.mktemp("given"), weights, config)
    outcome = ld3m("convert-prior", checkpoint, "out", "--config", configuration)
    assert outcome.code == 0, outcome.err
    assert f"{len(weights)} tensors" in outcome.out
    report = json.loads(Path("out/provenance.json").read_text())
    assert len(report["sha256"]) == 64
    assert isinstance(priors.load(SamplerRecipe(source="out")), UnconditionalLDM)
    assert ld3m("convert-prior", checkpoint, "out", "--config", configuration).code == 2
    refused = ld3m("convert-prior", checkpoint, "more", "--config", configuration, "--classes", "3")
    assert "--classes: the model is unconditional" in refused.err


def test_configurations_alone_are_those_that_a_conversion_writes(
    ld3m: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model in the place of cin256-v2; a plan does with them, and a run names what lacks."""
    params = KINDS["cin256-v2"]
    unet = params["unet_config"]["params"] | {"model_channels": 32, "context_dim": 16, "attention_resolutions": [2]}
    monkeypatch.setitem(KINDS, "cin256-v2", params | {"unet_config": {"params": unet}})
    untrained("cin256-v2").save(tmp_path / "whole")
    assert ld3m("convert-prior", "cin256-v2", "outline").code == 0
    files = {path.relative_to("outline"): path.read_bytes() for path in Path("outline").rglob("*") if path.is_file()}
    whole = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert {path for path in whole - files.keys() if path.suffix == ".safetensors"} == whole - files.keys()
    assert all((tmp_path / "whole" / path).read_bytes() == content for path, content in files.items())
    assert ld3m("convert-prior", "cin256-v2", "outline").code == 2
    settings = ("imagenet128", "prior.source=outline")
    assert "nothing was run" in ld3m("plan", *settings, "--device", "a100-40gb").out
    outcome = ld3m("distill", *settings, f"data.root={tmp_path}")
    assert outcome.code == 2
    assert "outline is not a whole prior" in outcome.err


LOADING = """
import sys, threading, diffusers
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from ld3m import priors
from ld3m.recipe import SamplerRecipe

def resident():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))

before, most, done = resident(), 0, threading.Event()

def watch():
    global most
    while not done.wait(0.002):
        most = max(most, resident())

watcher = threading.Thread(target=watch)
watcher.start()
priors.load(SamplerRecipe.model_validate_json(sys.argv[1]))
done.set()
watcher.join()
print(max(most, resident()) - before)
"""
"""Prints the bytes of memory, without what is mapped from files, that loading a prior takes at most."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts them there")
@pytest.mark.parametrize(("kind", "millions"), [("cin256-v2", 400.9), ("celebahq256", 274.1)])
@torch.no_grad()
def test_the_real_size_is_recognised_and_equal(tmp_path: Path, kind: str, millions: float) -> None:
    """The published UNets' parameters: 400.9 M of cin256-v2, 274.1 M of CelebA-HQ; one call, in float32.

    And loading: at no moment are there two copies of the weights.
    """
    params = KINDS[kind]
    torch.manual_seed(0)
    denoiser = UNet(params["unet_config"]["params"])
    autoencoder = FirstStage(params["first_stage_config"]["params"])
    assert sum(value.numel() for value in denoiser.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    weights = {f"model.diffusion_model.{name}": value for name, value in denoiser.state_dict().items()}
    weights |= {f"first_stage_model.{name}": value for name, value in autoencoder.state_dict().items()}
    if kind == "cin256-v2":
        weights["cond_stage_model.embedding.weight"] = torch.randn(1001, 512)
    torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
    report = convert(tmp_path / "model.ckpt", tmp_path / "prior")
    assert report["kind"] in (kind, "ffhq256")
    prior = priors.load(SamplerRecipe(source=str(tmp_path / "prior")))
    z = torch.randn(1, 3, 64, 64)
    c = prior.class_embeddings(["tench"])
    expected = denoiser(z, torch.tensor([701]), c if kind == "cin256-v2" else None)
    assert relative(prior.denoise(z, 701, c), expected) <= 1e-4
    for dtype, most in (("float32", 1.0), ("bfloat16", 1.4)):  # float32 stays in the file, but for convolutions
        recipe = SamplerRecipe(source=str(tmp_path / "prior"), dtype=dtype)
        watched = subprocess.run(
            [sys.executable, "-c", LOADING, recipe.model_dump_json()], capture_output=True, text=True, check=True
        )
        assert int(watched.stdout.split()[-1]) <= most * priors.weight_bytes(recipe)[1]
