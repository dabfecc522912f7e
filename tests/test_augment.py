"""Differentiable augmentation against the reference code's outputs and gradients."""

import pytest
import safetensors
import torch
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ld3m.images.augment import OPERATIONS, Augmentation, draw


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    with safetensors.safe_open(DATA / "augment_tiny.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def draws_of(oracle: dict[str, Tensor], case: str, first: int, count: int) -> tuple[Tensor, ...]:
    """The stored draws; in batch mode the reference uses the first of each for all images."""
    draws = (oracle[f"{case}/draw_{j}"].flatten() for j in range(first, first + count))
    return tuple(values[:1] if case.endswith("batch") else values for values in draws)


NUMBERS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}


@pytest.mark.parametrize("mode", ["perimg", "batch"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_the_reference(oracle: dict[str, Tensor], operation: str, mode: str) -> None:
    case = f"{operation}/{mode}"
    x = oracle["in/x"].requires_grad_()
    out = Augmentation(operation, draws_of(oracle, case, 1, NUMBERS[operation]))(x)
    assert (out - oracle[f"{case}/out"]).abs().max() <= 5e-6
    (grad,) = torch.autograd.grad(out, x, oracle["in/dy"])
    assert (grad - oracle[f"{case}/grad"]).abs().max() <= 1e-5 * oracle[f"{case}/grad"].abs().max()


@pytest.mark.parametrize("mode", ["perimg", "batch"])
def test_all_six_one_after_the_other_are_the_reference(oracle: dict[str, Tensor], mode: str) -> None:
    case, first = f"all_M/{mode}", 0
    x = oracle["in/x"].requires_grad_()
    out = x
    for operation in OPERATIONS:
        out = Augmentation(operation, draws_of(oracle, case, first, NUMBERS[operation]))(out)
        first += NUMBERS[operation]
    assert (out - oracle[f"{case}/out"]).abs().max() <= 5e-6
    (grad,) = torch.autograd.grad(out, x, oracle["in/dy"])
    assert (grad - oracle[f"{case}/grad"]).abs().max() <= 1e-5 * oracle[f"{case}/grad"].abs().max()


@pytest.mark.parametrize("seed", range(6))
def test_operations_are_numbered_as_the_reference_numbers_them(oracle: dict[str, Tensor], seed: int) -> None:
    """Draw 0 of a `pick` case chose among color, crop, cutout, flip, scale, rotate."""
    picked = int(oracle[f"pick/{seed}/draw_0"].flatten()[0])
    operation = list(OPERATIONS)[picked]
    draws = tuple(oracle[f"pick/{seed}/draw_{j}"].flatten()[:1] for j in range(1, 1 + NUMBERS[operation]))
    out = Augmentation(operation, draws)(oracle["in/x"])
    assert (out - oracle[f"pick/{seed}/out"]).abs().max() <= 1e-5


@given(seed=st.integers(0, 2**32), resolution=st.sampled_from([8, 15, 32]), count=st.sampled_from([1, 3]))
def test_draws_are_a_function_of_the_generator_and_in_range(seed: int, resolution: int, count: int) -> None:
    one, two = (draw(torch.Generator().manual_seed(seed), resolution, count) for _ in range(2))
    assert one.operation == two.operation
    assert all(torch.equal(a, b) for a, b in zip(one.draws, two.draws, strict=True))
    assert all(len(values) == count for values in one.draws)
    shift, square = int(resolution / 8 + 0.5), int(resolution / 2 + 0.5)
    low, high = {"crop": (-shift, shift), "cutout": (0, resolution - square % 2)}.get(one.operation, (0, 1))
    assert all(low <= float(values.min()) and float(values.max()) <= high for values in one.draws)
    images = torch.rand(3, 1, resolution, resolution)
    assert one(images).shape == images.shape


def test_siamese_draws_treat_all_images_alike() -> None:
    image = torch.rand(1, 3, 16, 16)
    for seed in range(30):
        together = draw(torch.Generator().manual_seed(seed), 16)(image.expand(4, -1, -1, -1))
        assert torch.equal(together, together[:1].expand_as(together))


def test_every_operation_is_drawn_about_as_often() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(generator, 16).operation for _ in range(1200)]
    counts = [drawn.count(name) for name in OPERATIONS]
    assert min(counts) > 200 - 4 * 13  # 4 standard deviations of a binomial(1200, 1/6), which are 12.9
    assert max(counts) < 200 + 4 * 13
