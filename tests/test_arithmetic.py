"""What a GPU may do with numbers, and the two operations whose gradients PyTorch does not repeat there."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import distilled, latents, make_prior, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ld3m.errors import UserError
from ld3m.images import augment, resample
from ld3m.machine import determinism
from ld3m.machine.processes import start
from ld3m.networks.plain import MaxPoolTo
from ld3m.sampling import Schedule, render

CPU, GPU = torch.device("cpu"), torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and LD3M_TEST_GPU=1")


@pytest.fixture
def as_torch_is(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What PyTorch is told here is taken back."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("device", "tf32", "expected"),
    [("cuda", True, (True, True, "high")), ("cuda", False, (True, False, "highest")), ("cpu", True, None)],
)
def test_gpus_repeat_themselves_and_use_tf32_where_it_is_allowed(
    as_torch_is: None, device: str, tf32: bool, expected: tuple[bool, bool, str] | None
) -> None:
    def told() -> tuple[bool, bool, str]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
        )

    before = told()
    with determinism.repeatable(torch.device(device), tf32):
        assert told() == (expected or before)
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        with determinism.repeatable(torch.device(device), warn_only=True):
            assert torch.is_deterministic_algorithms_warn_only_enabled() == (device == "cuda")
        assert told() == (expected or before)
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert told() == before


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"--num_processes: 2 on this machine, which has 1 GPU; .*CUDA_VISIBLE_DEVICES="
    ):
        start()


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_bilinear_samples_and_their_gradient_are_those_of_torch(height: int, width: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, height, width, generator=draws, dtype=torch.float64, requires_grad=True)
    places = 1.5 * torch.randn(2, 4, 5, 2, generator=draws, dtype=torch.float64)
    grad = torch.randn(2, 3, 4, 5, generator=draws, dtype=torch.float64)
    found = resample.sample_bilinear(images, places)
    expected = functional.grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(answer, images, grad)[0] for answer in (found, expected)))


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("side", [1, 2, 5, 7, 16])
def test_pooling_to_a_size_is_that_of_torch(side: int) -> None:
    """Also its gradient, and that of a gradient, which matching needs."""
    draws = torch.Generator().manual_seed(0)
    image, grad = (torch.randn(2, 3, size, size, generator=draws, dtype=torch.float64) for size in (side, 7))
    answers = []
    for leaf in (image.clone().requires_grad_(), image.clone().as_subclass(OnGpu).requires_grad_()):
        found = MaxPoolTo(7)(leaf**3)
        (first,) = torch.autograd.grad(found, leaf, grad, create_graph=True)
        answers.append([found, first, *torch.autograd.grad(first.square().sum(), leaf)])
    for found, expected in zip(*answers, strict=True):
        torch.testing.assert_close(found.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


# --- on a GPU ----------------------------------------------------------------------------------------------


def gradients(device: torch.device, dtype: torch.dtype, skip: str) -> list[Tensor]:
    """Images and gradients of Z and c through the small prior, on the CPU."""
    prior: Any = make_prior()
    for module in (prior.autoencoder, prior.denoiser):
        module.to(device, dtype)
    prior.table, prior.null_embedding = (tensor.to(device, dtype) for tensor in (prior.table, prior.null_embedding))
    draws = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(2, *prior.latent_shape, generator=draws, dtype=torch.float64) for _ in range(2))
    c = torch.randn(2, *prior.conditioning_shape, generator=draws, dtype=torch.float64)
    z, noise, c = (tensor.to(device, dtype) for tensor in (z, noise, c))
    pixels, pull_back = render(prior, Schedule.of(prior.noise_schedule, 4, skip, 3.0), z, c, noise)
    grad = torch.randn(pixels.shape, generator=draws, dtype=torch.float64).to(device, dtype)
    return [tensor.detach().double().cpu() for tensor in (pixels, *pull_back(grad))]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("skip", ["none", "paper"])  # quantised latents may round to another code
@pytest.mark.parametrize(
    ("dtype", "tf32", "least", "most"),
    [(torch.float64, False, 0, 1e-6), (torch.float32, False, 0, 2e-4), (torch.float32, True, 2e-4, 0.1)],
)
def test_a_gpu_computes_what_a_cpu_does(
    as_torch_is: None, skip: str, dtype: torch.dtype, tf32: bool, least: float, most: float
) -> None:
    """TF32 differs from float32. In float64 too diffusers embeds time in float32, which bounds the agreement."""
    exact = gradients(CPU, torch.float64, skip)
    with determinism.repeatable(GPU, tf32):
        results = gradients(GPU, dtype, skip)
    errors = [relative(result, expected) for result, expected in zip(results, exact, strict=True)]
    assert least <= max(errors) <= most


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("operation", augment.OPERATIONS)
def test_augmentation_on_a_gpu_has_one_gradient(as_torch_is: None, operation: str) -> None:
    draws = torch.Generator().manual_seed(0)
    drawn = next(d for d in iter(lambda: augment.draw(draws, 32), None) if d.operation == operation)
    images, grad = (torch.randn(64, 3, 32, 32, generator=draws) for _ in range(2))

    def gradient(device: torch.device) -> Tensor:
        leaf = images.to(device, copy=True).requires_grad_()
        return torch.autograd.grad(drawn(leaf), leaf, grad.to(device))[0].cpu()

    with determinism.repeatable(GPU):
        first, second = gradient(GPU), gradient(GPU)
    assert torch.equal(first, second)
    assert relative(first, gradient(CPU)) < 1e-5


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        ["prior.dtype=bfloat16", "network.dtype=bfloat16"],
        ["prior.compile=true"],
        ["data.resolution=8", "prior.resolution=16"],
        ["distill.factor=2", "distill.dm.match=moments"],
        ["network.arch=vit"],
        ["network.arch=resnet18"],
        ["network.arch=alexnet", "data.resolution=32", "prior.resolution=16"],
        ["network.arch=vgg11", "data.resolution=32", "prior.resolution=16"],
    ],
    ids=lambda settings: settings[0],
)
def test_a_run_on_a_gpu_is_repeated_bit_for_bit(recipe_file: Path, tmp_path: Path, settings: list[str]) -> None:
    first, second = (latents(distilled(recipe_file, tmp_path / name, *settings)) for name in ("first", "second"))
    assert first["z"].isfinite().all()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])


ON_THE_CPU = {"data/prepared.py", "sampling/kmeans.py", "images/resample.py", "priors/noise_schedule.py"}
"""Files that compute in float64 with tensors that never leave the CPU."""


class Doubles(TorchDispatchMode):
    """Notes which of our files calls an operation that gives float64."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            files = [Path(frame.filename) for frame in traceback.extract_stack() if "/ld3m/" in frame.filename]
            self.files.add("/".join(files[-1].parts[-2:]))
        return result


def test_what_a_device_computes_has_no_float64(recipe_file: Path, tmp_path: Path) -> None:
    """Apple's GPUs have none."""
    with Doubles() as doubles:
        distilled(recipe_file, tmp_path / "run", "distill.iterations=1", "distill.init=prototype")
    assert "sampling/kmeans.py" in doubles.files  # it does see them
    assert doubles.files <= ON_THE_CPU
