"""Several images in one: how they are laid out, what networks see of them, and runs that make them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, Outcome, distilled, latents
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ld3m import priors
from ld3m.data.prepared import prepare
from ld3m.distillation.setup import noise_of
from ld3m.images import multi_formation as formation
from ld3m.images.ranges import signed_to_unit
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs.folder import load_recipe
from ld3m.runs.result import read_images
from ld3m.sampling import Schedule, render


@given(count=st.integers(1, 3), factor=st.integers(1, 4), side=st.integers(1, 5), channels=st.sampled_from([1, 3]))
def test_packed_images_are_got_back(count: int, factor: int, side: int, channels: int) -> None:
    images = torch.rand(count * factor**2, channels, side, side)
    packed = formation.pack(images, factor)
    assert packed.shape == (count, channels, factor * side, factor * side)
    assert torch.equal(formation.unpack(packed, factor), images)


def test_images_lie_row_by_row() -> None:
    packed = formation.pack(torch.arange(8.0).view(8, 1, 1, 1), 2)
    assert packed[:, 0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_enlarging_is_bilinear() -> None:
    """By hand: centres of a factor of 2 lie at quarters, and beyond the outermost pixels their value holds."""
    images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert formation.enlarge(images, 2)[0, 0].tolist() == [[0, 0.25, 0.75, 1]] * 4


@pytest.fixture(scope="module")
def four_in_one(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the shapes with four images in each."""
    folder = tmp_path_factory.mktemp("runs") / "four"
    return distilled(recipe_file, folder, "distill.images_per_class=1", "distill.factor=2")


def test_each_image_holds_what_its_latents_render_to(four_in_one: Path) -> None:
    recipe, tensors = load_recipe(four_in_one, []), latents(four_in_one)
    assert tensors["z"].shape == (12, 3, 8, 8)
    assert tensors["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    prior = priors.load(recipe.prior)
    drawn = noise_of(recipe, prior).draw(range(3), recipe.distill.iterations, torch.device("cpu"))
    noise = drawn.flatten(0, 1)
    schedule = Schedule.of(prior.noise_schedule, 3, "reference", 3.0)
    pixels = render(prior, schedule, tensors["z"], tensors["c"], noise, resolution=8)[0][:, 0].numpy()
    for label, name in enumerate(CLASSES):
        image = np.asarray(Image.open(four_in_one / "images" / name / "0.png")) / 255
        for place, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
            tile = image[top : top + 8, left : left + 8]
            assert np.abs(tile - pixels[4 * label + place]).max() <= 0.5 / 255 + 1e-5


def test_the_gradient_goes_through_the_enlargement(recipe_file: Path, tmp_path: Path) -> None:
    """In pixel space one step of gradient descent can be taken by autograd, through the whole loss at once."""
    from ld3m import objectives
    from ld3m.machine.processes import Processes
    from ld3m.objectives.dm import match_features, mean, real_features

    in_pixels = ["prior.source=pixels", "prior.steps=0", "prior.guidance=1", "distill.learn=latents"]
    options = [*in_pixels, "distill.factor=2", "distill.images_per_class=1", "distill.dm.augment=false"]
    start = latents(distilled(recipe_file, tmp_path / "start", *options, "distill.iterations=0"))["z"]
    moved = latents(distilled(recipe_file, tmp_path / "moved", *options, "distill.iterations=1"))["z"]
    assert start.shape == (12, 1, 8, 8)
    recipe = load(Recipe, str(recipe_file), options)
    images, cpu = prepare(recipe.data, progress=False), torch.device("cpu")
    draws = objectives.draws_of(recipe, images, Processes(cpu))
    network = draws.network(0)
    z = start.clone().requires_grad_()
    loss = torch.zeros(())
    for label in range(3):
        real = draws.real(images.images("train", label), 0, label)
        large = torch.nn.functional.interpolate((z[4 * label : 4 * label + 4] + 1) / 2, size=16, mode="bilinear")
        loss = loss + match_features(network, mean, mean(real_features(network, real)), images.normalise(large))
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(moved, start - recipe.distill.lr_latents * gradient, rtol=1e-4, atol=1e-6)


def test_pixels_start_as_real_images_and_are_kept_exactly(recipe_file: Path, tmp_path: Path) -> None:
    in_pixels = ["prior.source=pixels", "prior.steps=0", "prior.guidance=1", "distill.learn=latents"]
    folder = distilled(recipe_file, tmp_path / "run", *in_pixels, "distill.iterations=0")
    recipe = load_recipe(folder, [])
    real = prepare(recipe.data, progress=False)
    pixels, labels = read_images(folder, real.classes, 1, 16)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        assert (real.images("train", label) == image).flatten(1).all(1).any()


def test_a_pixel_beyond_the_range_comes_back(recipe_file: Path) -> None:
    recipe = load(Recipe, str(recipe_file), ["prior.source=pixels", "prior.steps=0"])
    prior = priors.for_images(recipe.prior, 1, 16)
    z = torch.tensor([-3.0, -1.0, 0.5, 2.0]).view(4, 1, 1, 1).expand(4, 1, 16, 16)
    schedule = Schedule.of(prior.noise_schedule, 0, "reference", 1.0)
    pixels, pull_back = render(prior, schedule, z, torch.zeros(4, 0), torch.zeros_like(z))
    assert pixels[:, 0, 0, 0].tolist() == [0, 0, 0.75, 1]
    assert torch.equal(pull_back(torch.ones_like(pixels))[0], torch.full_like(z, 0.5))  # pixels = (z + 1) / 2


def test_the_gradient_at_the_ends_of_the_range_is_that_within_it() -> None:
    images = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5], requires_grad=True)
    signed_to_unit(images).sum().backward()
    assert images.grad is not None
    assert images.grad.tolist() == [0, 0.5, 0.5, 0.5, 0]


def test_networks_are_trained_on_what_the_images_hold(
    four_in_one: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ld3m.evaluation import measure

    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    train = measure.train

    def watch(arch: str, pixels: torch.Tensor, labels: torch.Tensor, *rest: object) -> torch.nn.Module:
        seen["distilled" if pixels.is_floating_point() else "random"] = pixels, labels
        return train(arch, pixels, labels, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "train", watch)
    outcome = ld3m("evaluate", four_in_one, "--seeds", 1, "--against", "random", "--json")
    rows = {row["trained_on"]: row for row in json.loads(outcome.out)["results"]}
    assert {row["images"] for row in rows.values()} == {3}  # as many are stored
    pixels, labels = seen["distilled"]
    assert pixels.shape == (12, 1, 16, 16)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    stored = np.asarray(Image.open(four_in_one / "images" / CLASSES[1] / "0.png"), dtype=np.float32) / 255
    corner = torch.from_numpy(stored[8:, :8].copy())[None, None]  # the third of the second class
    large = torch.nn.functional.interpolate(corner, size=16, mode="bilinear")
    torch.testing.assert_close(pixels[6:7], large)
    assert seen["random"][0].shape == (3, 1, 16, 16)


def test_another_recipe_that_measures_it_takes_it_apart_too(
    four_in_one: Path, recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ld3m.evaluation import measure

    seen: list[torch.Size] = []
    train = measure.train
    monkeypatch.setattr(measure, "train", lambda *given: seen.append(given[1].shape) or train(*given))
    assert ld3m("evaluate", four_in_one, "--recipe", recipe_file, "--seeds", 1, "--again").code == 0
    assert seen == [(12, 1, 16, 16)]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["distill.factor=3"], "override distill.factor=3: 3 does not divide 16"),
        (
            ["prior.source=pixels", "prior.steps=3"],
            "override prior.source=pixels: pixels has neither denoiser nor size; set",
        ),
        (["distill.images_per_class=4", "distill.factor=2"], "Z starts from 16 images, but class 'circle' has only 12"),
        (["prior.source=pixels", "prior.steps=0", "distill.learn=both"], "set distill.learn=latents"),
    ],
)
def test_mistakes_are_told(ld3m: Callable[..., Outcome], recipe_file: Path, overrides: list[str], said: str) -> None:
    outcome = ld3m("distill", recipe_file, *overrides)
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
