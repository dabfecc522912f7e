"""Sets of others, measured by one protocol: .pt tensors of older projects, image folders, data sets of the Hub."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import CLASSES, Outcome, distilled
from hub_server import Repository, serving
from PIL import Image

from ld3m.data.decoding.decode import convert
from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs.folder import EXACT_PIXELS, load_recipe
from ld3m.runs.imported import find_set
from ld3m.runs.options import Reading
from ld3m.runs.pixel_values import PIXELS
from ld3m.runs.result import read_images

RECIPE = ["evaluate.epochs=2", "evaluate.seeds=1"]


@pytest.fixture
def images(shapes: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Two real images of each class as somebody's distilled set, uint8 [6, 1, 16, 16], in an order of their own."""
    paths = [shapes / "train" / name / f"{place}.png" for place in (0, 1) for name in CLASSES]
    pixels = [torch.from_numpy(convert(Image.open(path), 16, 1).copy()) for path in paths]
    return torch.stack(pixels), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def real(recipe_file: Path) -> ImageSet:
    return prepare(load(Recipe, str(recipe_file)).data, progress=False)


def brought(name: object, recipe_file: Path, *overrides: str) -> tuple[Path, torch.Tensor, torch.Tensor]:
    folder = find_set([str(name)], str(recipe_file), [*RECIPE, *overrides])
    return folder, *read_images(folder, CLASSES, 1, 16)


# --- tensors -----------------------------------------------------------------------------------------------


def test_a_dictionary_of_bytes(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    torch.save({"images": images[0], "labels": images[1]}, tmp_path / "set.pt")
    folder, found, labels = brought("set.pt", recipe_file)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(found, images[0][[0, 3, 1, 4, 2, 5]])
    assert not (folder / EXACT_PIXELS).exists()
    assert json.loads((folder / "origin.json").read_text())["source"] == "set"


def test_normalised_floats_lose_nothing(
    images: tuple[torch.Tensor, ...], real: ImageSet, recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    """What older projects optimise has more than 8 bits and leaves [0, 1]; networks see it as those projects' do."""
    learnt = real.normalise(images[0] / 255) + torch.randn(images[0].shape, generator=torch.manual_seed(0))
    torch.save({"images": learnt, "labels": images[1], "mean": real.mean, "std": real.std}, tmp_path / "own.pt")
    torch.save({"data": [[learnt + 1, images[1]], [learnt, images[1]]]}, tmp_path / "dc.pt")  # the last is the newest
    torch.save(learnt, tmp_path / "images_best.pt")
    torch.save(images[1], tmp_path / "labels_best.pt")
    for name in ("own.pt", "dc.pt", "images_best.pt"):
        _, found, labels = brought(name, recipe_file)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert found.min() < 0
        assert torch.allclose(real.normalise(found), learnt[[0, 3, 1, 4, 2, 5]], atol=1e-5)


def test_floats_in_0_to_1_are_pixels(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    torch.save((images[0] / 255 * 0.77, images[1]), tmp_path / "pair.pt")
    _, found, _ = brought("pair.pt", recipe_file)
    assert torch.equal(found, (images[0] / 255 * 0.77)[[0, 3, 1, 4, 2, 5]])


def test_bytes_of_another_type_are_bytes(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    torch.save((images[0].long(), images[1]), tmp_path / "pair.pt")
    _, found, _ = brought("pair.pt", recipe_file)
    assert torch.equal(found, images[0][[0, 3, 1, 4, 2, 5]])


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("run!",))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (Evil(), "cannot be read as tensors alone"),
        ({"images": torch.zeros(3, 1, 16, 16)}, "has no images and labels"),
        ([1, 2], "has no images and labels"),
        ((torch.zeros(3, 3, 16, 16), torch.arange(3)), "has images of shape [3, 3, 16, 16], not [N, 1, 16, 16]"),
        ((torch.zeros(3, 1, 28, 28), torch.arange(3)), "set data.channels and data.resolution to theirs"),
        ((torch.zeros(3, 1, 16, 16), torch.arange(4)), "has labels of shape [4], not one class number per image"),
        ((torch.zeros(3, 1, 16, 16), torch.tensor([0, 1, 3])), "has label 3, but the recipe's classes go from 0 to 2"),
        ((torch.zeros(3, 1, 16, 16), torch.arange(-1, 2)), "has label -1, but the recipe's classes go from 0 to 2"),
        ((torch.zeros(0, 1, 16, 16), torch.arange(0)), "has no images"),
        (
            (torch.full((3, 1, 16, 16), 255.0), torch.arange(3)),
            "has values to 255: neither bytes, nor pixels in [0, 1]",
        ),
        ((torch.zeros(2, 1, 16, 16), torch.arange(2)), "has no images of class 'square'"),
        ((torch.full((3, 1, 16, 16), torch.nan), torch.arange(3)), "has values that are not finite"),
    ],
)
def test_what_is_no_set_is_one_line(
    content: object, line: str, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    torch.save(content, tmp_path / "bad.pt")
    outcome = ld3m("evaluate", "bad.pt", "--recipe", recipe_file)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert line in outcome.err


def test_damaged_labels_beside_images_are_one_line(
    recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    torch.save(torch.zeros(3, 1, 16, 16), tmp_path / "images_best.pt")
    (tmp_path / "labels_best.pt").write_bytes(b"PK nothing")
    outcome = ld3m("evaluate", "images_best.pt", "--recipe", recipe_file)
    assert outcome.code == 2
    assert "labels_best.pt cannot be read as tensors alone" in outcome.err


@pytest.mark.parametrize("content", [None, b"no image"])
def test_folders_without_images_and_broken_ones_are_one_line(
    content: bytes | None, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    for name in CLASSES:
        (tmp_path / "set" / name).mkdir(parents=True)
        if content:
            (tmp_path / "set" / name / "0.png").write_bytes(content)
    outcome = ld3m("evaluate", "set", "--recipe", recipe_file)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert ("0.png cannot be read" if content else "no images") in outcome.err


def test_a_set_without_a_recipe_wants_one(tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    torch.save({}, tmp_path / "set.pt")
    outcome = ld3m("evaluate", "set.pt")
    assert outcome.code == 2
    assert "set.pt has no recipe of its own; give one that says which data" in outcome.err
    outcome = ld3m("evaluate", "none.pt", "--recipe", "quickstart")
    assert outcome.err == "ld3m: RUN: there is no none.pt\n"
    (tmp_path / "runs").mkdir()
    outcome = ld3m("evaluate", "runs/typo")  # not asked of the Hub, which nobody is at here
    assert outcome.err.startswith("ld3m: RUN: there is no runs/typo; give a run's folder, hub:USER/NAME")


# --- measured ----------------------------------------------------------------------------------------------


def test_real_images_as_tensors_folder_or_run_give_the_same_accuracy(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """One protocol: the same images get the same figures, whatever they come as, to the last digit."""
    torch.save({"images": images[0], "labels": images[1]}, tmp_path / "set.pt")
    for place, (image, label) in enumerate(zip(*images, strict=True)):
        (tmp_path / "folder" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "folder" / CLASSES[label] / f"{place}.png")
    rows = []
    for name in ("set.pt", "folder"):
        outcome = ld3m("evaluate", name, "--recipe", recipe_file, *RECIPE, "evaluate.epochs=20", "--json")
        assert outcome.code == 0, outcome.err
        rows.append(json.loads(outcome.out)["results"])
    assert rows[0] == rows[1]
    assert rows[0][0]["images"] == 6
    folder = distilled(recipe_file, tmp_path / "run", "distill.iterations=0")
    for place, image in enumerate(images[0][[0, 3, 1, 4, 2, 5]]):
        path = folder / "images" / CLASSES[place // 2] / f"{place % 2}.png"
        Image.fromarray(image[0].numpy()).save(path)
    outcome = ld3m("evaluate", folder, *RECIPE, "evaluate.epochs=20", "--json")
    assert json.loads(outcome.out)["results"] == rows[0]
    page = ld3m("report", "set.pt", "--recipe", recipe_file, *RECIPE)
    assert page.code == 0, page.err
    text = Path(page.out.strip()).read_text()
    assert "Imported from set" in text
    assert "cross, image 2" in text


def test_an_image_folder_that_does_not_fit(recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    for name, size in (("circle", 16), ("cross", 16), ("square", 20)):
        (tmp_path / "folder" / name).mkdir(parents=True)
        Image.new("L", (size, size)).save(tmp_path / "folder" / name / "a.png")
    outcome = ld3m("evaluate", "folder", "--recipe", recipe_file)
    assert outcome.code == 2
    assert outcome.err.endswith("square/a.png has 20 × 20 pixels, not data.resolution=16\n")
    (tmp_path / "folder" / "square").rename(tmp_path / "folder" / "triangle")
    outcome = ld3m("evaluate", "folder", "--recipe", recipe_file)
    assert outcome.err.startswith("ld3m: RUN: folder: 'triangle' is not a class; the classes are circle, cross, square")


def test_a_data_set_of_the_hub_that_others_made(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """Its classes are named by their numbers."""
    pictures = [Image.fromarray(image[0].numpy()) for image in images[0]]
    features = datasets.Features({"img": datasets.Image(), "y": datasets.ClassLabel(names=["0", "1", "2"])})
    table = datasets.Dataset.from_dict({"img": pictures, "y": images[1].tolist()}, features=features)
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    with serving() as hub:
        files = {"data/train-00000-of-00001.parquet": buffer.getvalue()}
        hub.repositories["dataset", "you/set"] = Repository(branches={"main": [{}, files]})
        _, found, labels = brought("you/set", recipe_file)
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(found, images[0][[0, 3, 1, 4, 2, 5]])
        missing = ld3m("evaluate", "you/none", "--recipe", recipe_file)
    assert missing.code == 2
    assert "you/none: there is no such data set on the Hub" in missing.err


# --- rendered otherwise ------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_render_as_the_run_does_gives_its_images(
    recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    folder = distilled(recipe_file, tmp_path / "run", "distill.iterations=1")
    outcome = ld3m("render", folder, "--output", "same")
    assert outcome.code == 0, outcome.err
    for path in folder.glob("images/*/*.png"):
        assert (tmp_path / "same" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    outcome = ld3m("render", folder, "--steps", "5", "--skip", "none", "--guidance", "1")
    assert outcome.code == 0, outcome.err
    other = folder / "rendered" / "steps5-none-guidance1"
    assert outcome.out.startswith(f"{other}: 6 images")
    assert expected(recipe_file, folder) == [path.read_bytes() for path in sorted(other.glob("images/*/*.png"))]
    assert load(Recipe, str(other / "recipe.yaml")).prior.steps == 5
    assert ld3m("evaluate", other, *RECIPE).code == 0
    assert ld3m("render", folder, "prior.resolution=32").code == 2


def test_rendering_loses_nothing_that_it_did_not_write(
    recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    folder = distilled(recipe_file, tmp_path / "run", "distill.iterations=1")
    mine = tmp_path / "mine" / "images" / "holiday" / "photo.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"dear")
    for output, why in ((tmp_path / "mine", "was not written by ld3m render"), (folder, "holds a run")):
        outcome = ld3m("render", folder, "-o", output)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert why in outcome.err
    assert mine.read_bytes() == b"dear"
    assert (folder / "images").is_dir()


def test_what_was_measured_of_other_images_goes_with_them(
    recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    folder = distilled(recipe_file, tmp_path / "run", "distill.iterations=1")
    again = ("render", folder, "--steps", "1", "-o", "again")
    assert ld3m(*again).code == 0
    assert ld3m("evaluate", "again", *RECIPE).code == 0
    assert (tmp_path / "again" / "evaluation.json").is_file()
    assert ld3m("report", "again").code == 0
    assert CLASSES[0] in (tmp_path / "again" / "report.html").read_text()
    assert ld3m(*again, "prior.noise=fixed").code == 0
    assert not (tmp_path / "again" / "evaluation.json").exists()


def expected(recipe_file: Path, folder: Path) -> list[bytes]:
    """PNGs of the latents by the sampler itself: five steps, no skip, no guidance, the noise of iteration 1."""
    from ld3m import priors
    from ld3m.randomness import generator
    from ld3m.sampling import Schedule, render

    prior = priors.load(load(Recipe, str(recipe_file)).prior)
    tensors = safetensors.torch.load_file(folder / "latents.safetensors")
    keys = [(label, place) for label in range(3) for place in range(2)]
    noise = torch.stack([torch.randn(3, 8, 8, generator=generator(0, "noise", 1, *key)) for key in keys])
    schedule = Schedule.of(prior.noise_schedule, 5, "none", 1.0)
    pixels, _ = render(prior, schedule, tensors["z"], tensors["c"], noise, resolution=16)
    written = []
    for image in (pixels[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy():
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
        written.append(buffer.getvalue())
    return written


# --- what files of others are, and what their values mean --------------------------------------------------


def a_set(real: ImageSet, kind: str, of: torch.Tensor) -> torch.Tensor:
    """Pixels in units of [0, 1] as somebody else keeps them; whitened as kornia's ZCAWhitening(eps=0.1) does."""
    if kind == "unit":
        return of
    if kind == "normalised":
        return real.normalise(of)
    values = (real.everything("train")[0] / 255).flatten(1).double()
    mean = values.mean(0)
    axes, variances, _ = torch.linalg.svd((values - mean).T @ (values - mean) / (len(values) - 1))
    matrix = axes @ torch.diag((variances + 0.1).rsqrt()) @ axes.T
    return ((of.flatten(1).double() - mean) @ matrix).float().view(of.shape)


@pytest.mark.parametrize("kind", ["normalised", "unit", "whitened"])
def test_what_floats_mean_is_judged_by_their_spread_and_said(
    kind: str,
    images: tuple[torch.Tensor, ...],
    real: ImageSet,
    recipe_file: Path,
    tmp_path: Path,
    ld3m: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pixels that an optimiser has moved a little beyond [0, 1] come back whatever they are kept as."""
    noise = torch.randn(images[0].shape, generator=torch.manual_seed(0))
    pixels = images[0] / 255 + 0.05 * noise
    torch.save((a_set(real, kind, pixels).requires_grad_(), images[1]), tmp_path / "theirs.pt")
    _, found, _ = brought("theirs.pt", recipe_file)
    assert torch.allclose(found, pixels[[0, 3, 1, 4, 2, 5]], atol=1e-4)
    said = capsys.readouterr().err
    others = " or ".join(each for each in PIXELS if each != kind)
    assert "taken as" in said
    assert f"if they are not, give --pixels {others}" in said
    find_set(["theirs.pt"], str(recipe_file), RECIPE, Reading(kind))
    assert "taken as" not in capsys.readouterr().err


def test_an_unknown_kind_of_pixels_is_one_line(ld3m: Callable[..., Outcome], recipe_file: Path) -> None:
    outcome = ld3m("evaluate", "set.pt", "--recipe", recipe_file, "--pixels", "white")
    assert outcome.err == (
        "ld3m: --pixels: 'white' is not known; give normalised, unit, signed, whitened, or by whose mean and std they "
        "are normalised: mnist, fashion-mnist, svhn, cifar10, cifar100, imagenet\n"
    )


def test_files_of_other_projects(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    """DC's with NumPy's numbers, MTT's images_zca_N beside labels_N, and a set in five parts."""
    pixels, labels, order = images[0] / 255 * 0.9, images[1], [0, 3, 1, 4, 2, 5]
    accuracies = {"ConvNet": [np.float64(44.9), np.float32(45.1), np.array([1.0, 2.0])]}
    torch.save({"data": [[pixels * 0, labels], [pixels, labels]], "accs_all_exps": accuracies}, tmp_path / "res_DC.pt")
    for step, scale in ((100, 0.0), (500, 1.0)):
        (tmp_path / "mtt").mkdir(exist_ok=True)
        torch.save(pixels * scale, tmp_path / "mtt" / f"images_zca_{step}.pt")
        torch.save(labels, tmp_path / "mtt" / f"labels_{step}.pt")
    for part in range(5):
        rows = slice(part, part + 1) if part < 4 else slice(4, 6)
        torch.save({"images": pixels[rows], "labels": labels[rows]}, tmp_path / f"set_part{part}.pt")
    torch.save([pixels, labels, torch.tensor(0.01), "notes", 5], tmp_path / "five.pt")
    torch.save({"x": pixels.numpy(), "y": labels.tolist()}, tmp_path / "arrays.pt")
    for name in ("res_DC.pt", "mtt/images_zca_500.pt", "mtt", "set_part2.pt", "five.pt", "arrays.pt"):
        _, found, found_labels = brought(name, recipe_file)
        assert torch.equal(found, pixels[order]), name
        assert found_labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "set_part3.pt").unlink()
    with pytest.raises(UserError, match="number 3 is missing"):
        brought("set_part2.pt", recipe_file)


@pytest.mark.parametrize(
    "form", ["images_part{}", "data-{:05d}-of-00005", "set.{}of5", "x_batch_{}", "Shard {}", "piece{}.final-of-x"]
)
@pytest.mark.parametrize("first", [0, 1])
def test_sets_in_five_files(
    form: str, first: int, images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    """However they are called; labels may be in files beside them. A folder of them, or any of them, is all of them."""
    pixels, labels = images[0] / 255 * 0.9, images[1]
    names = [f"{form.format(first + part)}.pt" for part in range(5)]
    (tmp_path / "five").mkdir()
    for part, name in enumerate(names):
        rows = slice(part, part + 1) if part < 4 else slice(4, 6)
        whole = not name.startswith("images")
        torch.save({"x": pixels[rows], "y": labels[rows]} if whole else pixels[rows], tmp_path / "five" / name)
        if not whole:
            torch.save(labels[rows], tmp_path / "five" / name.replace("images", "labels"))
    if "final" in form:  # a number that says something else
        with pytest.raises(UserError, match="has several files"):
            brought("five", recipe_file)
        return
    for given in ("five", f"five/{names[3]}"):
        assert torch.equal(brought(given, recipe_file)[1], pixels[[0, 3, 1, 4, 2, 5]])
    (tmp_path / "five" / names[1]).unlink()
    with pytest.raises(UserError, match=f"number {first + 1} is missing"):
        brought("five", recipe_file)


@pytest.mark.usefixtures("ld3m")
def test_one_of_several_numbered_files_is_said_to_be_taken_alone(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be repetitions, or parts that are not called so."""
    for number in (1, 2):
        torch.save((images[0] / 255, images[1]), tmp_path / f"set_{number}.pt")
    brought("set_2.pt", recipe_file)
    assert "set_2.pt: taken alone, of set_1.pt, set_2.pt; parts of one set are" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["{:05d}", "new{:03d}", "class_{}"])
def test_class_folders_that_are_numbered(
    form: str, images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    for place, (image, label) in enumerate(zip(*images, strict=True)):
        path = tmp_path / "theirs" / form.format(int(label)) / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    _, found, labels = brought("theirs", recipe_file)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(found, images[0][[0, 3, 1, 4, 2, 5]])


def test_the_factor_of_the_recipe_is_kept(
    images: tuple[torch.Tensor, ...], recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    torch.save((images[0], images[1]), tmp_path / "idc.pt")
    folder, _, _ = brought("idc.pt", recipe_file, "distill.factor=2", "distill.init=real")
    assert load_recipe(folder).distill.factor == 2


SHAPE = (3, 1, 16, 16)


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        (torch.zeros(SHAPE, dtype=torch.complex64), "images that are complex"),
        (torch.zeros(SHAPE).to_sparse(), "images that are sparse"),
        (torch.quantize_per_tensor(torch.zeros(SHAPE), 0.1, 0, torch.qint8), "images that are quantised"),
        (torch.zeros(SHAPE, device="meta"), "images that are without values"),
        (torch.tensor(1.0), "images of shape []"),
    ],
)
def test_tensors_that_are_no_images_are_one_line(
    tensor: torch.Tensor, line: str, recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    torch.save((tensor, torch.arange(3)), tmp_path / "bad.pt")
    with pytest.raises(UserError, match=re.escape(line)) as error:
        brought("bad.pt", recipe_file)
    assert len(error.value.lines) == 1


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.bool, torch.float64])
def test_tensors_of_rare_types_are_numbers(dtype: torch.dtype, recipe_file: Path, tmp_path: Path, ld3m: object) -> None:
    torch.save((torch.ones(SHAPE).to(dtype), torch.arange(3)), tmp_path / "rare.pt")
    _, found, _ = brought("rare.pt", recipe_file)
    assert (found == 255).all()  # one is white, whatever it is one of
