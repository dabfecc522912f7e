"""The transforms of evaluation protocols against torchvision's and the public codes' results, and their laws."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ld3m import networks
from ld3m.data.prepared import ImageSet
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.training import train
from ld3m.images.transforms import ColourJitter, CutMix, Flip, Lighting, PatchShuffle, ResizedCrop
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe

PUBLIC = safetensors.torch.load_file(DATA / "transforms.safetensors")
IMAGES = PUBLIC["images"]
GREY = torch.tensor([0.299, 0.587, 0.114])


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=draws(seed))


def every_transform(count: int, side: int, seed: int = 0) -> list[Any]:
    generator = draws(seed)
    return [
        PatchShuffle.draw(generator, count, 2),
        ResizedCrop.draw(generator, count, side, (0.3, 1)),
        Flip.draw(generator, count),
        ColourJitter.draw(generator, count, 0.4, 0.4, 0.4),
        Lighting.draw(generator, count),
    ]


@pytest.mark.parametrize(("size", "tolerance"), [(12, 2e-5), (5, 1e-6)])
def test_a_crop_is_resized_as_torchvision_resizes_it(size: int, tolerance: float) -> None:
    """To 12 pixels, no box shrinks; to 5, all but one line do, which is where antialiasing matters."""
    out = ResizedCrop(PUBLIC["crop/boxes"], size)(IMAGES)
    assert (out - PUBLIC[f"crop/{size}"]).abs().max() < tolerance


@pytest.mark.parametrize(
    ("case", "resolution", "scale", "ratio"),
    [
        (0, 32, (0.08, 1), (3 / 4, 4 / 3)),
        (1, 224, (0.5, 1), (3 / 4, 4 / 3)),
        (2, 15, (0.95, 1), (0.5, 2)),
        (3, 28, (1, 1), (1.5, 2)),
        (4, 28, (1, 1), (0.5, 0.6)),
    ],
    ids=["usual", "large", "several tries", "too wide", "too high"],
)
def test_boxes_are_those_of_torchvision(case: int, resolution: int, scale: Any, ratio: Any) -> None:
    """Its `get_params` was given the uniform numbers of the generator of this seed, in the order of its tries."""
    crop = ResizedCrop.draw(draws(case), 16, resolution, scale, ratio)
    assert torch.equal(crop.boxes, PUBLIC[f"boxes/{case}"])


@given(seed=st.integers(0, 2**32), resolution=st.integers(1, 300), low=st.floats(0.01, 1), size=st.integers(1, 9))
@settings(max_examples=30)
def test_a_box_is_inside_and_of_the_area_asked_for(seed: int, resolution: int, low: float, size: int) -> None:
    crop = ResizedCrop.draw(draws(seed), 20, resolution, (low, 1), size=size)
    top, left, height, width = crop.boxes.unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert max((top + height).max(), (left + width).max()) <= resolution
    rounding = (height + 0.5) * (width + 0.5)
    assert (rounding >= low * resolution**2 - 1e-6).all()
    assert crop.size == size


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_of_the_whole_is_the_image(channels: int) -> None:
    images = some_images(3, channels, 9)
    crop = ResizedCrop.draw(draws(), 3, 9, (1, 1), (1, 1))
    assert crop.boxes.tolist() == [[0, 0, 9, 9]] * 3
    assert torch.allclose(crop(images), images, atol=1e-6)


def test_a_crop_of_one_pixel_is_that_pixel_everywhere() -> None:
    images = some_images(1, 3, 6)
    out = ResizedCrop(torch.tensor([[2, 5, 1, 1]]), 4)(images)
    assert torch.allclose(out, images[:, :, 2:3, 5:6].expand(-1, -1, 4, 4), atol=1e-6)


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=30)
def test_a_flip_mirrors_some(seed: int, share: float) -> None:
    images = some_images(8, 1, 5)
    flip = Flip.draw(draws(seed), 8, share)
    for mirrored, image, out in zip(flip.mirrored, images, flip(images), strict=True):
        assert torch.equal(out, image.flip(-1) if mirrored else image)
        assert mirrored or share < 1
        assert not mirrored or share > 0


def test_half_the_images_are_mirrored() -> None:
    assert abs(float(Flip.draw(draws(), 4000).mirrored.float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_colours_are_those_of_the_public_code() -> None:
    """It applied the three to each of the four images in another order."""
    out = ColourJitter(1 - PUBLIC["jitter/alphas"])(IMAGES)
    assert (out - PUBLIC["jitter/out"]).abs().max() < 1e-6


@given(
    strengths=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
    order=st.sampled_from(list(itertools.permutations(range(3)))),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=50)
def test_the_order_of_colours_makes_no_difference(strengths: list[float], order: list[int], channels: int) -> None:
    images = some_images(1, channels, 4).double()
    shares = (GREY if channels == 3 else torch.ones(1)).double().view(1, -1, 1, 1)
    one_by_one = images
    for which in order:
        grey = (one_by_one * shares).sum(1, keepdim=True)
        other = (torch.zeros(()), grey.mean(), grey)[which]
        one_by_one = strengths[which] * one_by_one + (1 - strengths[which]) * other
    together = ColourJitter(torch.tensor([strengths], dtype=torch.float64))(images)
    assert torch.allclose(together, one_by_one, rtol=0, atol=1e-12 if channels == 1 else 1e-7)


def test_colours_change_by_as_much_as_asked() -> None:
    strengths = ColourJitter.draw(draws(), 4000, 0.4, 0.2, 0).strengths - 1
    assert (strengths.abs() <= torch.tensor([0.4, 0.2, 1e-6])).all()
    assert strengths.var(0).tolist() == pytest.approx([0.8**2 / 12, 0.4**2 / 12, 0], rel=0.05)


def test_lighting_is_that_of_the_public_code() -> None:
    assert (Lighting(PUBLIC["lighting/components"])(IMAGES) - PUBLIC["lighting/out"]).abs().max() < 1e-6


def test_grey_images_are_lit_as_the_grey_of_coloured_ones() -> None:
    lighting = Lighting.draw(draws(), 4, 0.1)
    grey = some_images(4, 1, 3)
    coloured = lighting(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(lighting(grey), (coloured * GREY.view(3, 1, 1)).sum(1, keepdim=True), atol=1e-6)
    assert (coloured - grey).abs().max() > 1e-3


def test_patches_change_places_as_in_the_public_code() -> None:
    shuffle = PatchShuffle(PUBLIC["shuffle/columns"], PUBLIC["shuffle/rows"])
    assert torch.equal(shuffle(IMAGES), PUBLIC["shuffle/out"])


@given(seed=st.integers(0, 2**32), factor=st.integers(1, 5), side=st.integers(5, 12), channels=st.sampled_from([1, 3]))
@settings(max_examples=30)
def test_a_shuffle_moves_every_pixel_once(seed: int, factor: int, side: int, channels: int) -> None:
    images = torch.arange(2.0 * channels * side * side).view(2, channels, side, side)
    out = PatchShuffle.draw(draws(seed), 2, factor)(images)
    assert torch.equal(out.flatten(2).sort(2).values, images.flatten(2))
    columns = out - out[:, :, :1]  # a row moves as a whole
    assert torch.equal(columns % side, torch.zeros_like(columns))


def test_all_orders_of_patches_are_drawn() -> None:
    orders = PatchShuffle.draw(draws(), 3000, 3).rows
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert (counts - 500).abs().max() < 4 * math.sqrt(3000 * 5) / 6


@pytest.mark.parametrize("seed", range(12))
def test_rectangles_are_those_of_the_public_codes(seed: int) -> None:
    """Their `rand_bbox`, which both have, was given the λ and the centre that this seed draws."""
    resolution, beta = (12, 15, 224)[seed // 4], (1.0, 0.5, 3.0)[seed % 3]
    mix = CutMix.draw(draws(seed), 6, resolution, beta)
    assert list(mix.box) == PUBLIC["cutmix/boxes"][seed].tolist()
    assert mix.share == pytest.approx(float(PUBLIC["cutmix/ratios"][seed]), abs=1e-12)


@given(seed=st.integers(0, 2**32), side=st.integers(1, 20), beta=st.floats(0.1, 10))
@settings(max_examples=30)
def test_labels_are_mixed_by_the_area_of_the_pixels(seed: int, side: int, beta: float) -> None:
    """With images that are their index everywhere, pixels say where they come from."""
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(-1, 3, side, side)
    before = images.clone()
    mix = CutMix.draw(draws(seed), 5, side, beta)
    out, labels = mix(images), mix.labels(torch.eye(5))
    assert torch.equal(images, before)
    assert sorted(mix.partners.tolist()) == list(range(5))
    for source in range(5):
        assert torch.allclose((out == source).float().mean((1, 2, 3)), labels[:, source], atol=1e-6)


def test_the_loss_of_mixed_labels_is_the_mixed_loss() -> None:
    logits, targets = torch.randn(6, 4, generator=draws()), torch.tensor([0, 1, 2, 3, 0, 1])
    mix = CutMix.draw(draws(4), 6, 8)
    assert 0 < mix.share < 1
    theirs = mix.share * functional.cross_entropy(logits, targets)
    theirs = theirs + (1 - mix.share) * functional.cross_entropy(logits, targets[mix.partners])
    ours = functional.cross_entropy(logits, mix.labels(functional.one_hot(targets, 4).float()))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_parts_of_a_batch_are_transformed_as_the_whole(channels: int) -> None:
    """As two processes would that share a batch: each has its part of the draws, and its images' partners."""
    images = some_images(6, channels, 8)

    def transformed(indices: Tensor) -> Tensor:
        some = images[indices]
        for transform in every_transform(6, 8):
            some = transform.of(indices)(some)
        return some

    mix = CutMix.draw(draws(9), 6, 8)
    whole = mix(transformed(torch.arange(6)))
    for mine in (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])):
        part = mix.paste(transformed(mine), transformed(mix.partners[mine]))
        assert torch.allclose(part, whole[mine], atol=1e-6)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_draws_are_a_function_of_the_generator(seed: int) -> None:
    images = some_images(4, 3, 8)
    before = torch.random.get_rng_state()
    for one, same in zip(every_transform(4, 8, seed), every_transform(4, 8, seed), strict=True):
        assert torch.equal(one(images), same(images))
        assert one(images).shape == images.shape
    one, same = (CutMix.draw(draws(seed), 4, 8) for _ in range(2))
    assert one.box == same.box
    assert torch.equal(one.partners, same.partners)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and LD3M_TEST_GPU=1")
@pytest.mark.gpu
def test_a_gpu_gives_what_a_cpu_gives_and_is_never_waited_for() -> None:
    images = some_images(6, 3, 16)
    there = images.cuda()
    mix = CutMix.draw(draws(9), 6, 16)
    for transform in [*every_transform(6, 16), mix]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            on_gpu = transform(there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (on_gpu.cpu() - transform(images)).abs().max() < 1e-4
    torch.cuda.set_sync_debug_mode("error")
    try:
        labels = mix.labels(torch.ones(6, 2, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (labels == 1).all()


# --- in a training -----------------------------------------------------------------------------------------


def strips(image: Tensor, order: Tensor) -> Tensor:
    """An image [channels, H, W] with its two columns of patches in another order."""
    half = image.shape[2] // 2
    return torch.cat([image[:, :, half * part : half * (part + 1)] for part in order.tolist()], 2)


def one_by_one(pixels: Tensor, generator: torch.Generator, how: Any, images: ImageSet) -> Tensor:
    """A batch as the public codes' loaders make it, an image after the other, in the order of their transforms."""
    side, count = pixels.shape[-1], len(pixels)
    seen = list(pixels)
    if how.name == "rd3":
        shuffle = PatchShuffle.draw(generator, count, 2)
        for k in range(count):
            across = strips(seen[k], shuffle.columns[k])
            seen[k] = strips(across.transpose(1, 2), shuffle.rows[k]).transpose(1, 2)
    if how.name != "rded":  # whose scripts for small images have one crop in each
        crop = ResizedCrop.draw(generator, count, side, (0.08 if how.name == "rethinkdc" else 0.5, 1))
        for k, (top, left, height, width) in enumerate(crop.boxes.tolist()):
            box = seen[k][None, :, top : top + height, left : left + width]
            seen[k] = functional.interpolate(box, side, mode="bilinear", antialias=True)[0]
    flip = Flip.draw(generator, count)
    seen = [image.flip(2) if mirrored else image for image, mirrored in zip(seen, flip.mirrored, strict=True)]
    if how.name == "minimax":
        jitter, lighting = ColourJitter.draw(generator, count, 0.4, 0.4, 0.4), Lighting.draw(generator, count, 0.1)
        seen = [ColourJitter(jitter.strengths[k : k + 1])(image[None])[0] for k, image in enumerate(seen)]
        seen = [Lighting(lighting.components[k : k + 1])(image[None])[0] for k, image in enumerate(seen)]
    batch = (torch.stack(seen) - images.mean.view(3, 1, 1)) / images.std.view(3, 1, 1)
    mix = CutMix.draw(generator, count, side)
    top, bottom, left, right = mix.box
    batch[:, :, top:bottom, left:right] = batch[mix.partners, :, top:bottom, left:right]
    return batch


class Spy(nn.Module):
    """A network that keeps what it is shown."""

    def __init__(self, shape: networks.Shape, recipe: Any) -> None:
        super().__init__()
        self.classifier = nn.Linear(shape.channels, shape.classes)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.classifier(images.mean((2, 3)))


@pytest.mark.parametrize("name", ["minimax", "rded", "rd3", "rethinkdc"])
def test_a_protocol_shows_its_networks_what_the_public_code_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transforms of four images in batches of two, for two epochs, in the order of the public codes."""
    monkeypatch.setitem(networks.NETWORKS, "spy", Spy)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    images = ImageSet(["a", "b"], mean, std, {"train": [2, 2]}, [0, 1], [], Path(), 12)
    task = Task("spy", 2, 4, 12)
    how = protocol(EvaluateRecipe(protocol=name, labels="hard", epochs=2, batch=2, cutmix=1), task)
    labels = torch.tensor([0, 0, 1, 1])
    network: Any = train("spy", IMAGES, labels, images, how, (5, 1), torch.device("cpu"))
    expected = []
    for epoch in range(2):
        generated = generator(5, "evaluation epoch", 1, epoch)
        orders = torch.randperm(4, generator=generated).split(2)
        expected += [one_by_one(IMAGES[indices], generated, how, images) for indices in orders]
    for ours, theirs in zip(network.seen, expected, strict=True):
        assert (ours - theirs).abs().max() < 2e-4


def idcs(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, str]:
    """DiffAug of IDC's misc/augment.py on normalised images, and its operation: brightness, saturation, contrast, and
    one that moves pixels, which samples as torch does by default (align_corners=False).
    """
    count, side = len(batch), batch.shape[-1]
    torch.randint(1, (), generator=generator)
    u, v, w = (torch.rand(count, generator=generator).view(-1, 1, 1, 1) for _ in range(3))
    batch = batch + (u - 0.5)
    batch = (batch - batch.mean(1, keepdim=True)) * (2 * v) + batch.mean(1, keepdim=True)
    level = batch.mean((1, 2, 3), keepdim=True)
    batch = (batch - level) * (w + 0.5) + level
    name = ["crop", "scale", "rotate"][int(torch.randint(3, (), generator=generator))]
    if name == "crop":
        reach = int(side * 0.125 + 0.5)
        rows, columns = (torch.randint(-reach, reach + 1, (count,), generator=generator).tolist() for _ in range(2))
        moved = torch.zeros_like(batch)
        for k in range(count):
            for y in range(side):
                for x in range(side):
                    if 0 <= y + rows[k] < side and 0 <= x + columns[k] < side:
                        moved[k, :, y, x] = batch[k, :, y + rows[k], x + columns[k]]
        return moved, name
    theta = torch.zeros(count, 2, 3)
    if name == "scale":
        for axis in (0, 1):
            theta[:, axis, axis] = torch.rand(count, generator=generator) * (1.2 - 1 / 1.2) + 1 / 1.2
    else:
        angle = (torch.rand(count, generator=generator) - 0.5) * 2 * 15 / 180 * math.pi
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
        theta[:, 0, 1], theta[:, 1, 0] = -angle.sin(), angle.sin()
    grid = functional.affine_grid(theta, list(batch.shape), align_corners=False)
    return functional.grid_sample(batch, grid, align_corners=False), name


def test_idc_shows_its_networks_what_its_code_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images in batches of two: flips, its augmentation, and CutMix of about half of the batches."""
    monkeypatch.setitem(networks.NETWORKS, "spy", Spy)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    images = ImageSet(["a", "b"], mean, std, {"train": [2, 2]}, [0, 1], [], Path(), 12)
    how = protocol(EvaluateRecipe(protocol="idc", epochs=8, batch=2), Task("spy", 2, 4, 12))
    network: Any = train("spy", IMAGES, torch.tensor([0, 0, 1, 1]), images, how, (5, 1), torch.device("cpu"))
    expected, operations, mixed = [], set(), []
    for epoch in range(8):
        generated = generator(5, "evaluation epoch", 1, epoch)
        for indices in torch.randperm(4, generator=generated).split(2):
            flip = Flip.draw(generated, 2)
            batch = torch.stack(
                [IMAGES[i].flip(2) if m else IMAGES[i] for i, m in zip(indices, flip.mirrored, strict=True)]
            )
            batch, name = idcs((batch - mean.view(3, 1, 1)) / std.view(3, 1, 1), generated)
            mixed.append(float(torch.rand((), generator=generated)) < 0.5)
            if mixed[-1]:
                mix = CutMix.draw(generated, 2, 12)
                top, bottom, left, right = mix.box
                batch[:, :, top:bottom, left:right] = batch[mix.partners, :, top:bottom, left:right]
            operations.add(name)
            expected.append(batch)
    assert operations == {"crop", "scale", "rotate"}
    assert 0 < sum(mixed) < len(mixed)
    for ours, theirs in zip(network.seen, expected, strict=True):
        assert (ours - theirs).abs().max() < 2e-4
