"""Lean layers: their results, their gradients, and what they keep for them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_prior
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ld3m.priors import lean_layers
from ld3m.priors.kinds.ldm import attend_to_one_token
from ld3m.priors.shared_prefix import share_prefix


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests' layers are smaller than those that keep less."""
    monkeypatch.setattr(lean_layers, "LEAST", 0)


def plain(network: Any) -> Any:
    """The same weights in the layers that diffusers makes, in the memory layout of frozen ones."""
    made = type(network).from_config(network.config)
    made.load_state_dict(network.state_dict())
    made.to(memory_format=torch.channels_last)
    return made.eval().requires_grad_(False)


def there_and_back(run: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """An answer and the gradients of a fixed direction of it."""
    leaves = [given.clone().requires_grad_() for given in inputs]
    answer = run(*leaves)
    direction = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1))
    return [answer.detach(), *torch.autograd.grad(answer, leaves, direction.to(answer))]


def kept(run: Callable[..., Tensor], *inputs: Tensor) -> list[tuple[int, ...]]:
    """Shapes of all that autograd keeps."""
    shapes: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(*(given.clone().requires_grad_() * 1 for given in inputs))
    return sorted(shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_denoiser_has_the_same_answer_and_gradients(dtype: torch.dtype) -> None:
    """To the bit, those of diffusers' own layers, and its weights have the same names."""
    prior = make_prior()
    denoiser, original = prior.denoiser.to(dtype), plain(prior.denoiser).to(dtype)
    attend_to_one_token(original)
    assert share_prefix(original)  # which has one row of the time embedding, and that rounds differently from three
    assert denoiser.state_dict().keys() == original.state_dict().keys()
    z, c = torch.randn(3, 3, 8, 8, dtype=dtype), torch.randn(3, 1, 16, dtype=dtype)
    result, expected = (
        there_and_back(lambda z, c, n=network: n(z, torch.full((3,), 500), c).sample, z, c)
        for network in (denoiser, original)
    )
    for a, b in zip(result, expected, strict=True):
        assert torch.equal(a, b)
        assert b.abs().max() > 0


def test_an_autoencoder_has_the_same_answers_and_gradients() -> None:
    """In float64, but for the order of sums: its codes lie as they did, and a convolution of one pixel takes either."""
    prior = make_prior()
    prior.autoencoder.double()
    original = plain(prior.autoencoder).double()
    z, images = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 1, 16, 16, dtype=torch.float64)
    for part, given in (("decode", z), ("encode", images)):
        result, expected = (
            there_and_back(lambda x, n=network, part=part: getattr(n, part)(x)[0], given)
            for network in (prior.autoencoder, original)
        )
        for a, b in zip(result, expected, strict=True):
            assert b.abs().max() > 1e-3
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"dilation": 2, "padding": (2, 1)}, {"groups": 4}])
def test_a_convolution_keeps_its_weight_alone(settings: dict[str, Any]) -> None:
    convolution = lean_layers.freeze(nn.Conv2d(8, 4, 3, **settings))
    original = nn.Conv2d(8, 4, 3, **settings).requires_grad_(False).to(memory_format=torch.channels_last)
    original.load_state_dict(convolution.state_dict())
    images = torch.randn(2, 8, 9, 7)
    for given in (images, images.to(memory_format=torch.channels_last)):
        result, expected = (there_and_back(layer, given) for layer in (convolution, original))
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    assert kept(convolution, images) == [tuple(original.weight.shape)]
    assert (2, 8, 9, 7) in kept(original, images)  # else there would be nothing to save


def test_a_residual_block_keeps_what_its_norms_are_given() -> None:
    """Two tensors of an image's size, where torch's layers keep six."""
    torch.manual_seed(0)
    original = ResnetBlock2D(in_channels=8, temb_channels=5, groups=4).eval().requires_grad_(False)
    original.to(memory_format=torch.channels_last)
    block = lean_layers.freeze(copy.deepcopy(original))
    inputs = torch.randn(2, 8, 6, 6), torch.randn(2, 5)
    result, expected = (there_and_back(layer, *inputs) for layer in (block, original))
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    assert [kept(layer, *inputs).count((2, 8, 6, 6)) for layer in (block, original)] == [2, 6]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("backwards", [torch.contiguous_format, torch.channels_last])
def test_a_norm_takes_images_and_gradients_in_any_order(
    count: int, across: bool, backwards: torch.memory_format
) -> None:
    """torch's kernel reads the gradient as the input lies; attention hands on tokens, channels last."""
    torch.manual_seed(0)
    original = ResnetBlock2D(in_channels=8, temb_channels=None, groups=4).eval().requires_grad_(False)
    norm = lean_layers.freeze(copy.deepcopy(original)).norm1
    images = torch.randn(count, 8, 6, 5)
    if across:
        images = torch.randn(count, 30, 8).transpose(1, 2).reshape(count, 8, 6, 5)
        assert not images.is_contiguous()
    images.requires_grad_()
    direction = torch.randn(count, 8, 6, 5).contiguous(memory_format=backwards)
    answers = norm(images), nn.functional.silu(original.norm1(images))
    result, expected = (torch.autograd.grad(answer, images, direction)[0] for answer in answers)
    assert torch.allclose(*answers, rtol=1e-5, atol=1e-6)
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert expected.abs().max() > 0.1


def test_a_gate_keeps_what_it_is_given() -> None:
    """Both halves as one tensor, where torch keeps them and the activation of one."""
    torch.manual_seed(0)
    original = nn.Sequential(GEGLU(6, 10)).requires_grad_(False)
    gate = lean_layers.freeze(copy.deepcopy(original))
    tokens = torch.randn(2, 7, 6)
    result, expected = (there_and_back(layer, tokens) for layer in (gate, original))
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    sizes = [[shape for shape in kept(layer, tokens) if shape[:2] == (2, 7)] for layer in (gate, original)]
    assert sizes == [[(2, 7, 20)], [(2, 7, 10)] * 3]


def test_a_block_whose_norm_and_activation_lie_apart_stays_as_it_is() -> None:
    """One that scales and shifts by the time embedding in between."""
    original = ResnetBlock2D(in_channels=8, temb_channels=5, groups=4, time_embedding_norm="scale_shift").eval()
    original.to(memory_format=torch.channels_last)
    block = lean_layers.freeze(copy.deepcopy(original))
    inputs = torch.randn(2, 8, 6, 6), torch.randn(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(*(there_and_back(n, *inputs) for n in (block, original)), strict=True))


def test_a_second_derivative_is_refused() -> None:
    """The first is all that a pull-back takes; a wrong second one would be worse than none."""
    convolution = lean_layers.freeze(nn.Conv2d(2, 2, 3))
    images = torch.randn(1, 2, 5, 5, requires_grad=True)
    direction = torch.ones(1, 2, 3, 3, requires_grad=True)
    (first,) = torch.autograd.grad(convolution(images), images, direction, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_small_layers_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their size of one image, whatever the batch, so that memory is in proportion to the images."""
    monkeypatch.setattr(lean_layers, "LEAST", 8 * 5 * 5)
    convolution = lean_layers.freeze(nn.Conv2d(8, 4, 3))
    for count in (1, 6):
        assert kept(convolution, torch.randn(count, 8, 5, 5)) == [(4, 8, 3, 3)]
        assert (count, 8, 5, 4) in kept(convolution, torch.randn(count, 8, 5, 4))
