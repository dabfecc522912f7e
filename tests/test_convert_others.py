"""Checkpoints of the original DiT and of Stable Diffusion: what they become answers as the originals' networks do."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_convert import build, relative
from test_priors import save_kl, save_stable_diffusion
from torch import Tensor, nn
from torch.nn import functional

from ld3m import priors
from ld3m.errors import UserError
from ld3m.priors.originals.convert import convert
from ld3m.recipe import SamplerRecipe

# --- DiT ---------------------------------------------------------------------------------------------------


def sinusoid(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = positions.double().flatten()[:, None] * frequencies
    return angles.sin(), angles.cos()


class Block(nn.Module):
    """Of the original's models.py, by its names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.adaLN_modulation(c)[:, None].chunk(6, 2)
        q, k, v = self.attn["qkv"](norm(x) * (1 + scale) + shift).unflatten(2, (3, self.heads, -1)).unbind(2)
        attention = (torch.einsum("nahd,nbhd->nhab", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + gate * self.attn["proj"](torch.einsum("nhab,nbhd->nahd", attention, v).flatten(2))
        hidden = functional.gelu(self.mlp["fc1"](norm(x) * (1 + scale_2) + shift_2), approximate="tanh")
        return x + gate_2 * self.mlp["fc2"](hidden)


def norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


class OriginalDiT(nn.Module):
    """The S model with few blocks and large patches, and five classes."""

    def __init__(self, blocks: int = 2, width: int = 384, heads: int = 6, patch: int = 4, side: int = 2) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(4, width, patch, patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(6, width)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(width, 8 * patch**2), "adaLN_modulation": modulation})
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        halves = [*sinusoid(columns, width // 2), *sinusoid(rows, width // 2)]  # columns come first
        self.pos_embed = nn.Parameter(torch.cat(halves, 1)[None].float())

    def forward(self, z: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        x = self.x_embedder["proj"](z).flatten(2).transpose(1, 2) + self.pos_embed
        sines, cosines = sinusoid(times, 256)
        c = self.t_embedder["mlp"](torch.cat([cosines, sines], 1)) + self.y_embedder["embedding_table"](labels)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c)[:, None].chunk(2, 2)
        x = self.final_layer["linear"](norm(x) * (1 + scale) + shift)
        x = x.unflatten(2, (self.patch, self.patch, 8)).unflatten(1, (self.side, self.side))
        return torch.einsum("nhwpqc->nchpwq", x).flatten(4).flatten(2, 3)


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> tuple[OriginalDiT, Path]:
    """The original, and a folder with its checkpoint and an autoencoder."""
    folder = tmp_path_factory.mktemp("dit")
    torch.manual_seed(0)
    network = OriginalDiT()
    torch.save({"ema": network.state_dict(), "opt": {}}, folder / "model.pt")
    save_kl(folder, scaling_factor=0.18215)
    return network.double(), folder


@torch.no_grad()
def test_a_converted_dit_is_the_original(dit: tuple[OriginalDiT, Path], tmp_path: Path) -> None:
    """Also in its time steps, which diffusers embeds otherwise than the original (it divides by 127, not by 128)."""
    network, folder = dit
    report = convert(folder / "model.pt", tmp_path / "prior", vae=str(folder))
    assert (report["classes"], report["tensors used"], report["tensors left out"]) == (5, len(network.state_dict()), {})
    assert "SiT" in report["note"]
    prior: Any = priors.load(SamplerRecipe(source=str(tmp_path / "prior")))
    c = torch.cat([prior.class_embeddings(["4", "1"]), prior.null_embedding])
    table = network.y_embedder["embedding_table"].weight
    assert torch.equal(c, table[[4, 1, 5]].float())
    z = torch.randn(3, 4, 8, 8)
    expected = network(z.double(), torch.full((3,), 501), torch.tensor([4, 1, 5]))[:, :4]
    assert relative(prior.denoise(z, 501, c).double(), expected) <= 1e-5
    assert prior.noise_schedule.alphas_cumprod[0] == 1 - 1e-4
    assert json.loads((tmp_path / "prior" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]


def test_what_a_dit_needs(dit: tuple[OriginalDiT, Path], tmp_path: Path) -> None:
    network, folder = dit
    with pytest.raises(UserError, match=r"^--vae: a DiT's checkpoint has no autoencoder; .* hub:stabilityai/sd-vae"):
        convert(folder / "model.pt", tmp_path / "prior")
    with pytest.raises(UserError, match=r"^--vae: '/nowhere' is not a folder; give one in diffusers' layout, or hub:"):
        convert(folder / "model.pt", tmp_path / "prior", vae="/nowhere")
    with pytest.raises(UserError, match=r"^--classes: 6 classes, but .* 6 rows, of which the last is .*; give 5$"):
        convert(folder / "model.pt", tmp_path / "prior", vae=str(folder), classes="6")
    with pytest.raises(UserError, match=r"^--config: has no part in the conversion of a model of this kind"):
        convert(folder / "model.pt", tmp_path / "prior", vae=str(folder), config="x.yaml")
    weights = {name: value.float() for name, value in network.state_dict().items()}
    for change, said in (
        ({"pos_embed": torch.zeros(1, 4, 384)}, "pos_embed: the checkpoint's positions are others"),
        ({"projectors.0.weight": torch.zeros(1)}, "projectors.0.weight: the checkpoint has this tensor, which"),
        (
            {"x_embedder.proj.weight": torch.zeros(100, 4, 4, 4)},
            "a width of 100, but only DiTs of 1152, 1024, 768",
        ),
    ):
        torch.save(weights | change, tmp_path / "other.pt")
        with pytest.raises(UserError, match=said):
            convert(tmp_path / "other.pt", tmp_path / "prior", vae=str(folder))
    assert not (tmp_path / "prior").exists()


# --- Stable Diffusion --------------------------------------------------------------------------------------


def as_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a text encoder of transformers by the names of OpenCLIP, with a last layer that nobody uses."""
    outer = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    weights = {name.removeprefix("text_model."): value for name, value in weights.items()}
    result = {"positional_embedding": weights["embeddings.position_embedding.weight"]}
    for name, value in weights.items():
        layer, kind = name.rsplit(".", 1)
        if layer in outer:
            result[f"{outer[layer]}.{kind}"] = value
        elif layer.startswith("encoder.layers."):
            _, _, number, rest = layer.split(".", 3)
            block = f"transformer.resblocks.{number}"
            if rest in inner:
                result[f"{block}.{inner[rest]}.{kind}"] = value
            elif rest == "self_attn.out_proj":
                result[f"{block}.attn.out_proj.{kind}"] = value
            elif rest == "self_attn.q_proj":
                parts = [weights[f"encoder.layers.{number}.self_attn.{each}_proj.{kind}"] for each in "qkv"]
                result[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    last = {name: value for name, value in result.items() if "blocks.1." in name}
    result |= {name.replace("blocks.1.", "blocks.2."): torch.ones_like(value) for name, value in last.items()}
    return {f"cond_stage_model.model.{name}": value for name, value in result.items()} | {
        "cond_stage_model.model.text_projection": torch.ones(16, 16)
    }


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Tensor], Path, Any]:
    """The original's UNet, its and the autoencoder's weights, a folder of configurations, and the text encoder."""
    from transformers import CLIPTextModel

    folder = tmp_path_factory.mktemp("stable-diffusion")
    unet, _, weights, config = build("two heads", "KL", context_dim=16)
    torch.save(weights, folder / "ldm.ckpt")
    (folder / "config.yaml").write_text(json.dumps(config))
    convert(folder / "ldm.ckpt", folder / "ldm", config=folder / "config.yaml", classes="5")  # makes configurations
    (folder / "lent").mkdir()
    lent = save_stable_diffusion(folder / "lent")
    for part in ("unet", "vae"):
        (lent / part / "config.json").write_bytes((folder / "ldm" / part / "config.json").read_bytes())
        for file in (lent / part).glob("*.safetensors"):
            file.unlink()
    del weights["cond_stage_model.embedding.weight"]
    return unet, weights, lent, CLIPTextModel.from_pretrained(lent / "text_encoder").eval()


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_a_single_file_of_stable_diffusion(
    version: int, single_file: tuple[Any, dict[str, Tensor], Path, Any], tmp_path: Path
) -> None:
    unet, weights, lent, encoder = single_file
    text = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}
    if version == 1:
        text = {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
        text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(24)[None]
    else:
        text = as_open_clip(text)
    torch.save({"state_dict": weights | text}, tmp_path / "model.ckpt")
    report = convert(tmp_path / "model.ckpt", tmp_path / "prior", config=str(lent))
    assert report["kind"] == f"Stable Diffusion {version}"
    assert set(report["tensors left out"].values()) == {"its text encoder does not use it"}
    assert len(report["tensors left out"]) == (1 if version == 1 else 13)  # a layer of 12 tensors, and the projection
    prior: Any = priors.load(SamplerRecipe(source=str(tmp_path / "prior"), prompt="a {}"))
    tokens = prior.parts.read("tokenizer", lambda path: _tokens(path, "a cat"))
    c = prior.class_embeddings(["cat"])
    assert torch.allclose(c, encoder(tokens)[0], atol=1e-6)
    z = torch.randn(1, *prior.latent_shape)
    c = torch.randn(1, 24, 16)
    expected = unet(z.double(), torch.tensor([501]), c.double())
    assert relative(prior.denoise(z, 501, c).double(), expected) <= 1e-4


def _tokens(path: Path, prompt: str) -> Tensor:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(path)
    return tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids


def test_what_a_single_file_needs(single_file: tuple[Any, dict[str, Tensor], Path, Any], tmp_path: Path) -> None:
    _, weights, lent, encoder = single_file
    second = weights | as_open_clip(dict(encoder.state_dict()))
    torch.save(second, tmp_path / "second.ckpt")
    with pytest.raises(UserError, match=r"^--config: .* do not tell whether they predict velocity \(2\.1\) or noise"):
        convert(tmp_path / "second.ckpt", tmp_path / "prior")
    first = weights | {f"cond_stage_model.transformer.{name}": value for name, value in encoder.state_dict().items()}
    first = {name.replace("former.emb", "former.text_model.emb"): value for name, value in first.items()}
    torch.save(first, tmp_path / "first.ckpt")
    with pytest.raises(UserError, match=r"^--config: cannot fetch hub:stable-diffusion-v1-5/.*; or give the folder"):
        convert(tmp_path / "first.ckpt", tmp_path / "prior")
    with pytest.raises(UserError, match=r"^--vae: has no part in the conversion of a model of this kind"):
        convert(tmp_path / "first.ckpt", tmp_path / "prior", config=str(lent), vae="x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^--config: .*empty lacks model_index\.json, unet/config\.json, "):
        convert(tmp_path / "first.ckpt", tmp_path / "prior", config=str(tmp_path / "empty"))
    assert not (tmp_path / "prior").exists()
