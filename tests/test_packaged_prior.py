"""The packaged prior, and what loading and saving keep."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_prior

from ld3m import priors
from ld3m.data.prepared import prepare
from ld3m.images.ranges import bytes_to_signed, bytes_to_unit, signed_to_unit
from ld3m.priors import ClassConditionalLDM
from ld3m.priors.source import PACKAGED_PRIORS
from ld3m.recipe import DataRecipe, SamplerRecipe


@pytest.fixture(scope="module")
def packaged() -> ClassConditionalLDM:
    return priors.load(SamplerRecipe(source="fashion-mnist"))


@pytest.mark.parametrize(
    ("name", "megabytes", "real", "guided", "unguided"),
    [("fashion-mnist", 8, 0.9, 0.97, 0.85), ("digits", 1, 0.94, 0.97, 0.8)],
)
def test_it_is_small_and_judged_well(name: str, megabytes: int, real: float, guided: float, unguided: float) -> None:
    """The shares in the intended class that its training command measured, by a classifier that knows real images."""
    folder = PACKAGED_PRIORS[name]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= megabytes * 1_000_000
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["classifier"]["real test images"] >= real
    shares = report["samples"]["share in the intended class"]
    assert shares["guidance 3"] >= guided
    assert shares["guidance 1"] >= unguided


def test_reconstructions_are_close(packaged: ClassConditionalLDM) -> None:
    """On the small test split; the training command measured the same on all 10,000 test images."""
    images = prepare(DataRecipe(source="fashion-mnist-small", channels=1), progress=False)
    test = images.everything("test")[0][::50]
    with torch.no_grad():
        rebuilt = signed_to_unit(packaged.decode(packaged.encode(bytes_to_signed(test))))
    report = json.loads((PACKAGED_PRIORS["fashion-mnist"] / "evaluation.json").read_text())
    assert float((rebuilt - bytes_to_unit(test)).abs().mean()) == pytest.approx(
        report["reconstruction"]["l1"], rel=0.15
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    prior = make_prior()
    prior.save(tmp_path)
    again = priors.load(SamplerRecipe(source=str(tmp_path)))
    z, c = torch.randn(2, *prior.latent_shape), prior.class_embeddings(["cross", "circle"])
    assert torch.equal(again.class_embeddings(["cross", "circle"]), c)
    with torch.no_grad():
        assert torch.equal(again.denoise(z, 501, c), prior.denoise(z, 501, c))
        assert torch.equal(again.decode(z), prior.decode(z))
    assert again.scale == prior.scale == 0.8


def test_quantisation_gives_codes_and_passes_gradients_straight_through() -> None:
    prior = make_prior()
    z = torch.randn(2, *prior.latent_shape, requires_grad=True)
    codes = prior.autoencoder.quantize.embedding.weight * prior.scale
    quantised = prior.quantise(z)
    vectors = quantised.detach().permute(0, 2, 3, 1).reshape(-1, 3)
    nearest = codes[torch.cdist(z.detach().permute(0, 2, 3, 1).reshape(-1, 3), codes).argmin(1)]
    assert (vectors - nearest).abs().max() <= 1e-6
    grad = torch.randn_like(z)
    (through,) = torch.autograd.grad(quantised, z, grad)
    assert (through - grad).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_single(packaged: ClassConditionalLDM, dtype: str) -> None:
    half = priors.load(SamplerRecipe(source="fashion-mnist", dtype=dtype))
    z = torch.randn(2, *half.latent_shape, generator=torch.Generator().manual_seed(0))
    c = half.class_embeddings(half.classes[:2])
    with torch.no_grad():
        exact, rounded = packaged.denoise(z, 501, c), half.denoise(z, 501, c)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() <= {"bfloat16": 0.03, "float16": 0.005}[dtype]


def test_a_random_denoiser_is_the_same_everywhere_and_leaves_the_rest_alone(packaged: ClassConditionalLDM) -> None:
    state = torch.get_rng_state()
    one, two = (priors.load(SamplerRecipe(source="fashion-mnist", denoiser="random")) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in one.denoiser.state_dict().items():
        assert torch.equal(weight, two.denoiser.state_dict()[name])
    first = "conv_in.weight"
    trained = packaged.denoiser.state_dict()[first]
    assert not torch.equal(one.denoiser.state_dict()[first], trained)
    # drawn uniformly within 1/sqrt(fan in), as torch's layers are: variance a third of 1/fan in
    fan_in = trained[0].numel()
    assert one.denoiser.state_dict()[first].var().item() == pytest.approx(1 / (3 * fan_in), rel=0.1)
    assert not any(weight.requires_grad for weight in one.denoiser.parameters())
    for name, weight in one.autoencoder.state_dict().items():
        assert torch.equal(weight, packaged.autoencoder.state_dict()[name])
