"""RDED's mosaics: against a few plain lines, for every factor, from the cache, and as a baseline."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome, distilled
from torch.nn import functional

from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection.mosaics import CROPS, IMAGES, Judge, by_scorer, factor_at, mosaics, of_class, side_by_side
from ld3m.images.transforms import ResizedCrop
from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.recipe.files import load

CPU = torch.device("cpu")


@pytest.fixture
def real(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    return prepare(load(Recipe, str(recipe_file)).data, progress=False)


def bright_or_dark(inputs: torch.Tensor) -> torch.Tensor:
    """Logits [n, 3] of padded inputs, by their sums and corners."""
    return torch.stack([inputs.sum((1, 2, 3)), -inputs.square().sum((1, 2, 3)), inputs[:, 0, 0, 0]], 1) / 50


JUDGE = Judge(bright_or_dark, lambda pixels: pixels * 2 - 1, "by sums", CPU)


def plain(pixels: torch.Tensor, label: int, count: int, factor: int, draws: torch.Generator) -> torch.Tensor:
    """RDED's selector and mix_images, an image at a time; draws are made for all images at once."""
    resolution = pixels.shape[-1]
    size = resolution // factor
    pixels = pixels[torch.randperm(len(pixels), generator=draws)[:IMAGES]]
    boxes = [ResizedCrop.draw(draws, len(pixels), resolution, (0.08, 1), (1, 1), size).boxes for _ in range(CROPS)]
    best: list[tuple[float, torch.Tensor]] = []
    for index, image in enumerate(pixels):
        tried = []
        for top, left, height, width in (each[index].tolist() for each in boxes):
            part = image[None, :, top : top + height, left : left + width] / 255
            crop = functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
            canvas = torch.zeros(1, 1, resolution, resolution)
            before = (resolution - size) // 2
            canvas[:, :, before : before + size, before : before + size] = crop * 2 - 1
            tried.append((float(-bright_or_dark(canvas).log_softmax(1)[0, label]), crop[0]))
        best.append(min(tried, key=lambda each: each[0]))
    easiest = [crop for _, crop in sorted(best, key=lambda each: each[0])[: count * factor**2]]
    result = torch.zeros(count, 1, resolution, resolution)
    for number, crop in enumerate(easiest):
        row, column = divmod(number // count, factor)
        result[number % count, :, row * size : (row + 1) * size, column * size : (column + 1) * size] = crop
    return (result * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("factor", "count"), [(1, 1), (1, 5), (2, 1), (2, 3)])
@pytest.mark.parametrize("label", [0, 2])
def test_they_are_rdeds(factor: int, count: int, label: int, real: ImageSet) -> None:
    pixels = real.images("train", label)
    made = of_class(pixels, label, count, factor, JUDGE, generator(0, "mosaics", label))
    expected = plain(pixels, label, count, factor, generator(0, "mosaics", label))
    assert (made.int() - expected.int()).abs().max() <= 1


def test_a_factor_that_does_not_divide_gives_larger_places_first() -> None:
    """mix_images: 7 pixels in three places are 3, 2 and 2; nearest neighbours fill them."""
    crops = torch.arange(9).float().view(9, 1, 1, 1).expand(9, 1, 2, 2)
    rows = side_by_side(crops, 3, 7)[0, 0]
    expected = torch.arange(9).view(3, 3).repeat_interleave(torch.tensor([3, 2, 2]), 0)
    assert torch.equal(rows, expected.repeat_interleave(torch.tensor([3, 2, 2]), 1).float())


def test_few_images_give_further_crops(real: ImageSet) -> None:
    """Of two images with five crops each, twelve places: all ten crops, and two of them again."""
    made = of_class(real.images("train", 0)[:2], 0, 3, 2, JUDGE, generator(0, "mosaics", 0))
    parts = made.unfold(2, 8, 8).unfold(3, 8, 8).reshape(12, 64)
    assert len(parts.unique(dim=0)) == 10


def test_the_factor_is_the_sets_else_as_in_the_scripts() -> None:
    assert [factor_at(size, 1) for size in (32, 64, 128, 224)] == [1, 1, 2, 2]
    assert factor_at(32, 3) == 3


def test_they_are_made_once_for_each_judge_and_damaged_ones_again(
    real: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    made = [each.clone() for each in mosaics(real, [1, 0, 2], 2, JUDGE, 0)]  # they are mapped
    assert [len(each) for each in made] == [1, 0, 2]
    blind = Judge(pytest.fail, JUDGE.normalise, JUDGE.identity, CPU)
    again = mosaics(real, [1, 0, 2], 2, blind, 0)
    assert all(map(torch.equal, made, again))
    (folder,) = [path for path in (tmp_path / "cache" / "mosaics").iterdir() if path.is_dir()]
    (folder / "2.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert all(map(torch.equal, made, mosaics(real, [1, 0, 2], 2, JUDGE, 0)))
    assert "2.safetensors is empty; the mosaics are made again" in capsys.readouterr().err
    assert not torch.equal(mosaics(real, [1, 0, 2], 2, JUDGE, 1)[2], made[2])


def test_they_are_a_baseline(recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    """As many as the set has, seen as its own images are."""
    changes = ["distill.iterations=0", "distill.factor=2", "data.scorer.epochs=2", "data.scorer.width=8"]
    folder = distilled(recipe_file, tmp_path / "run", *changes)
    outcome = ld3m("evaluate", folder, "--against", "rded", "--json", "evaluate.epochs=1", "evaluate.seeds=1")
    assert outcome.code == 0, outcome.err
    row = next(row for row in json.loads(outcome.out)["results"] if row["trained_on"] == "rded")
    assert row["images"] == 6
    assert row["mosaics"] == {"images": 300, "crops": 5, "factor": 2}
    assert row["scorer"]["epochs"] == 2
    recipe = load(Recipe, str(folder / "recipe.yaml"))
    images = prepare(recipe.data, progress=False)
    judge = by_scorer(images, recipe.data.scorer, CPU)
    assert len(mosaics(images, [2, 2, 2], 2, judge, 0)) == 3
