"""Sets as the public codes' own save functions write them, and whose classes are whose."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import CLASSES, Outcome
from PIL import Image

from ld3m.data.class_matching import Order, class_numbers, match
from ld3m.data.decoding.decode import convert
from ld3m.data.examples import Source
from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.selection import testing
from ld3m.data.whitening import whitening
from ld3m.errors import UserError
from ld3m.evaluation.blocks import blocks
from ld3m.evaluation.rows import labels_text
from ld3m.images.ranges import bytes_to_unit
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.runs import labels as stored
from ld3m.runs.folder import load_recipe
from ld3m.runs.imported import find_set
from ld3m.runs.options import Reading
from ld3m.runs.pixel_values import NORMALISATIONS, TensorSet, to_pixels
from ld3m.runs.result import read_images

AS_IT_IS = Reading()


@pytest.fixture
def pixels(shapes: Path) -> torch.Tensor:
    """Two real images of each class, one class after the other, uint8 [6, 1, 16, 16]."""
    paths = [shapes / "train" / name / f"{index}.png" for name in CLASSES for index in (0, 1)]
    return torch.stack([torch.from_numpy(convert(Image.open(path), 16, 1).copy()) for path in paths])


@pytest.fixture
def real(recipe_file: Path) -> ImageSet:
    return prepare(load(Recipe, str(recipe_file)).data, progress=False)


def brought(
    name: str, recipe_file: Path, *overrides: str, reading: Reading = AS_IT_IS, side: int = 16
) -> tuple[torch.Tensor, list[int]]:
    """Images and labels of a set, as networks are trained on them."""
    folder = find_set([name], str(recipe_file), overrides, reading)
    recipe = load_recipe(folder)
    classes = recipe.data.subset if isinstance(recipe.data.subset, list) else CLASSES
    images, labels = read_images(folder, classes, 1, side)
    return images, labels.tolist()


def write_folders(target: Path, pixels: torch.Tensor, names: Sequence[str], ending: str = "png") -> None:
    """`names` are of the classes circle, cross and square; two images of each."""
    for index, image in enumerate(pixels):
        folder = target / names[index // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"class_id{index:05d}.{ending}")


# --- classes -----------------------------------------------------------------------------------------------

ANIMALS = Source(["bird", "grey cat", "dog"], {}, "", aliases={"n02121808": 1})
WHOLE = [0, 1, 2]


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (["dog", "bird", "grey cat"], [2, 0, 1]),
        (["Dog", "BIRD", "grey_cat"], [2, 0, 1]),
        (["2_dog", "0_bird", "001.Grey-Cat"], [2, 0, 1]),
        (["dog, domestic dog, Canis", "bird", "n02121808"], [2, 0, 1]),
        (["n02121808-cat"], [1]),
        (["2", "0"], [2, 0]),
        (["00002", "00000"], [2, 0]),
        (["new002", "new001"], [2, 1]),
        (["class_1"], [1]),
    ],
)
def test_classes_are_matched_by_name_id_or_number(theirs: list[str], expected: list[int]) -> None:
    matched = match(theirs, ANIMALS, WHOLE)
    assert matched.numbers == expected
    assert matched.text.startswith(f"classes: {len(theirs)} by n")


def test_a_digit_that_is_a_name_is_no_position() -> None:
    """MNIST's classes are called by digits; sorted as text, 10 would come before 2."""
    digits = Source(["10", "2", "30"], {}, "")
    assert match(["2", "10"], digits, WHOLE).numbers == [1, 0]
    assert match(["00030", "00002"], digits, WHOLE).numbers == [2, 1]


def test_numbers_of_a_subset_mean_its_classes_only_if_they_are_the_sources() -> None:
    """What MTT numbers 0 … 9 of ImageWoof may be another order; SRe2L's new193 can be one class alone."""
    woof = imagenet.subsets()["imagewoof"]
    source = Source([each.name for each in imagenet.classes()], {}, "", imagenet.numbers())
    assert match([f"new{number:03d}" for number in sorted(woof)], source, woof).numbers == sorted(woof)
    numbered = [f"{index:05d}" for index in range(10)]
    with pytest.raises(UserError, match=r"data\.subset has an order of its own; give --by-position if 0, 1, … are"):
        match(numbered, source, woof)
    assert match(numbered, source, woof, Order("--by-position", None)).numbers == woof
    ids = sorted(imagenet.classes()[number].wordnet_id for number in woof)
    from_one = [str(index + 1) for index in range(10)]
    assert match(from_one, source, woof, Order("--class-order FILE", ids)).numbers == sorted(woof)
    told = match(numbered, source, woof, Order("--class-order FILE", ids))
    assert told.numbers == sorted(woof)
    assert f"00000 = {source.classes[sorted(woof)[0]]}" in told.text


@pytest.mark.parametrize(
    ("theirs", "order", "line"),
    [
        (["dog", "wolf"], None, "'wolf' is not a class; the classes are bird, grey cat, dog; --class-order FILE says"),
        (
            ["1", "2", "3"],
            None,
            "counts its classes from 1; give --by-position if 1 is 'bird', the first of data.source",
        ),
        (["0", "1", "3"], None, "has label 3, but the recipe's classes go from 0 to 2"),
        (["dog", "Dog"], None, "has dog and Dog, which both mean the class 'dog'"),
        (["dog", "1"], None, "names classes by numbers in part: dog, 1; give all of them names"),
        (["dog", "bird"], Order("--by-position", None), "names its classes, and --by-position would take 'dog' for"),
        (["0"], Order("--class-order F", ["wolf"]), "--class-order F has 'wolf', which is no class of data.source"),
        (
            ["0", "4"],
            Order("--class-order F", ["dog", "bird"]),
            "has label 4, but --class-order F: its classes go from",
        ),
    ],
)
def test_what_cannot_be_matched_is_said(theirs: list[str], order: Order | None, line: str) -> None:
    with pytest.raises(UserError, match=line):
        match(theirs, ANIMALS, WHOLE, order)


def test_names_are_numbers_only_if_all_are_of_one_form() -> None:
    assert class_numbers(["00000", "00010"]) == [0, 10]
    assert class_numbers(["new3", "old4"]) is None
    assert class_numbers(["3", "three"]) is None


def test_permuted_names_are_measured_right(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    """By folder, as names in a file, and by a list beside numbers; what was matched is printed."""
    permuted = ["square", "circle", "cross"]
    rows = [4, 5, 0, 1, 2, 3]
    write_folders(tmp_path / "numbered", pixels[rows], ["0", "1", "2"])
    (tmp_path / "order.txt").write_text("\n".join(permuted))
    torch.save({"images": pixels[rows], "labels": torch.arange(6) // 2, "classes": permuted}, tmp_path / "named.pt")
    torch.save([pixels[rows], torch.arange(6) // 2], tmp_path / "data.pt")
    order = Reading(class_order=str(tmp_path / "order.txt"))
    for name, reading in (("numbered", order), ("named.pt", Reading()), ("data.pt", order)):
        found, labels = brought(name, recipe_file, reading=reading)
        assert torch.equal(found, pixels), name
        assert labels == [0, 0, 1, 1, 2, 2]
    (tmp_path / "numbered" / "class_order.txt").write_text("\n".join(permuted))
    assert torch.equal(brought("numbered", recipe_file)[0], pixels)


@pytest.mark.usefixtures("ld3m")
def test_the_order_that_labels_are_taken_in_is_said(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save([pixels, torch.arange(6) // 2], tmp_path / "data.pt")
    brought("data.pt", recipe_file)
    said = capsys.readouterr().err
    assert "data.pt: classes: 3 by number, in the order of data.source (0 = circle, 1 = cross, 2 = square)" in said
    subset = "data.subset=[square,circle,cross]"
    with pytest.raises(UserError, match=r"data.pt: numbers its classes \(0, 1, 2\), and data.subset has an order of"):
        brought("data.pt", recipe_file, subset)
    found, _ = brought("data.pt", recipe_file, subset, reading=Reading(by_position=True))
    assert torch.equal(found, pixels)


# --- layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["exp/syn/new{:03d}", "{:05d}", "{}", "{:05d}/images"], ids=["sre2l", "rded", "d4m", "nested"]
)
def test_folders_of_numbers(form: str, pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: object) -> None:
    """SRe2L's save_images, RDED's, D4M's gen_syn_images, and one folder more."""
    write_folders(tmp_path / "theirs", pixels, [form.format(number) for number in range(3)])
    found, labels = brought("theirs", recipe_file)
    assert torch.equal(found, pixels)
    assert labels == [0, 0, 1, 1, 2, 2]


def test_larger_images_are_resized_as_real_ones_are(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minimax's are of 256 pixels and measured at 224."""
    large = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    write_folders(tmp_path / "theirs", large, CLASSES)
    found, _ = brought("theirs", recipe_file)
    assert "images of 32 × 32 pixels are resized to data.resolution=16" in capsys.readouterr().err
    expected = np.asarray(Image.fromarray(large[0, 0].numpy()).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.abs(found[0, 0].numpy().astype(int) - expected.astype(int)).mean() < 8
    with pytest.raises(UserError, match=r"has 32 × 32 pixels, not data\.resolution=16"):  # halves would be mixed
        brought("theirs", recipe_file, "distill.factor=2", "distill.init=real")


def test_rows_with_class_id(pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: object) -> None:
    """As the data sets of rethinkdc's benchmark have them (HFDatasetAdapter of rethinkdc/imagenet_ipc.py)."""
    pictures = [Image.fromarray(image[0].numpy()) for image in pixels]
    table = {"image": pictures, "class_id": [0, 0, 1, 1, 2, 2]}
    features = datasets.Features({"image": datasets.Image(), "class_id": datasets.Value("int64")})
    (tmp_path / "theirs" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(table, features=features).to_parquet(
        tmp_path / "theirs/data/train-00000-of-00001.parquet"
    )
    found, labels = brought("theirs", recipe_file)
    assert torch.equal(found, pixels)
    assert labels == [0, 0, 1, 1, 2, 2]


def syn_labels(ipc: int) -> torch.Tensor:
    """`label_syn` of DC, MTT and TESLA: a list of NumPy arrays, flattened."""
    return torch.tensor(np.array([np.ones(ipc) * label for label in range(3)]), dtype=torch.long).view(-1)


def test_mtt_with_zca(pixels: torch.Tensor, real: ImageSet, recipe_file: Path, tmp_path: Path, ld3m: object) -> None:
    """distill.py: images_N and images_best are whitened, images_zca_N are not; labels have no zca in their name."""
    learnt = pixels / 255 + 0.05 * torch.randn(pixels.shape, generator=torch.manual_seed(0))
    white = whitening(real).apply(learnt).requires_grad_(True)
    for name in ("0", "500", "best"):
        torch.save(white.cpu(), tmp_path / f"images_{name}.pt")
        torch.save(syn_labels(2), tmp_path / f"labels_{name}.pt")
    torch.save(learnt, tmp_path / "images_zca_500.pt")
    for name in ("images_500.pt", "images_best.pt", "images_zca_500.pt"):
        found, _ = brought(name, recipe_file)
        assert torch.allclose(found, learnt, atol=1e-4), name


def test_datm_has_logits_for_labels(
    pixels: torch.Tensor,
    real: ImageSet,
    recipe_file: Path,
    tmp_path: Path,
    ld3m: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """distill/DATM.py: learnt logits, saved as leaves, beside the learnt rate of each iteration."""
    normalised = real.normalise(pixels / 255)
    logits = torch.nn.functional.one_hot(syn_labels(2), 3) * 5.0 + torch.rand(6, 3, generator=torch.manual_seed(0))
    for name in ("1000", "best"):
        torch.save(normalised.requires_grad_(True), tmp_path / f"images_{name}.pt")
        torch.save(logits.requires_grad_(True), tmp_path / f"labels_{name}.pt")
        torch.save(torch.tensor(0.01), tmp_path / f"lr_{name}.pt")
    for given in (".", "images_1000.pt"):
        found, labels = brought(str(tmp_path / given), recipe_file)
        assert labels == [0, 0, 1, 1, 2, 2]
        assert torch.allclose(real.normalise(bytes_to_unit(found)), normalised, atol=1e-4)
        assert "its soft label is kept: evaluate.labels=soft evaluate.temperature=1" in capsys.readouterr().err
    folder = find_set([str(tmp_path / "images_best.pt")], str(recipe_file), (), AS_IT_IS)
    note = stored.read_note(folder)
    assert (note.teacher, note.accuracy, note.classes) == (stored.LEARNT, None, CLASSES)
    assert torch.equal(stored.read_view(folder, note, 0), logits.detach())


def test_learnt_labels_are_trained_with(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """DATM's by cross-entropy at temperature 1, FRePo's by squared error, in whatever order their classes are."""
    logits = torch.eye(3)[[2, 2, 1, 1, 0, 0]] * 5.0 + torch.rand(6, 3, generator=torch.manual_seed(0))
    torch.save({"images": pixels, "labels": logits, "classes": ["square", "cross", "circle"]}, tmp_path / "theirs.pt")
    folder = find_set(["theirs.pt"], str(recipe_file), (), AS_IT_IS)
    kept = stored.read_view(folder, stored.read_note(folder), 0)
    assert torch.equal(kept, logits[:, [2, 1, 0]])
    few = ("evaluate.epochs=1", "evaluate.seeds=1", "evaluate.labels=soft", "--json", "--recipe", recipe_file)
    for more, said in (
        (["evaluate.temperature=1"], "soft labels learnt with the images, stored per image at temperature 1"),
        (["evaluate.soft_loss=squared", "--whitening", "zca"],
         "soft labels learnt with the images, stored per image by squared error"),
    ):  # fmt: skip
        outcome = ld3m("evaluate", "theirs.pt", *few, *more)
        assert outcome.code == 0, outcome.err
        (row,) = [row for row in json.loads(outcome.out)["results"] if labels_text(row["protocol"]) == said]
        assert row["bytes"]["images"] == 6 * 16 * 16
        assert row["protocol"]["teacher"]["bytes"] == 6 * 3 * 4
    hard = ld3m("evaluate", "theirs.pt", "evaluate.epochs=1", "evaluate.seeds=1", "--recipe", recipe_file)
    assert "soft labels learnt with the images; stored: one for each image, float32, 72 bytes" in hard.out, hard.out


def test_dc_keeps_experiments_and_numpy_scores(
    pixels: torch.Tensor, real: ImageSet, recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    """main.py: data is a list of [images, labels], one per experiment; accs_all_exps has NumPy's floats."""
    normalised = real.normalise(pixels / 255)
    data = [[torch.zeros_like(normalised), syn_labels(2)], [normalised, syn_labels(2)]]
    scores = {"ConvNet": [np.float64(0.5), np.float32(0.25)]}
    torch.save({"data": data, "accs_all_exps": scores}, tmp_path / "res_DSA_CIFAR10_ConvNet_2ipc.pt")
    found, _ = brought("res_DSA_CIFAR10_ConvNet_2ipc.pt", recipe_file)
    assert torch.allclose(real.normalise(bytes_to_unit(found)), normalised, atol=1e-5)


def test_idc_keeps_unclamped_pixels_several_in_one(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    """condense.py: [data, targets] in data.pt, data near [0, 1]; decode_zoom cuts them in rows and columns."""
    data = pixels / 255 * 1.1 - 0.05
    torch.save([data[:, :, :14, :14], syn_labels(2)], tmp_path / "three.pt")
    found, _ = brought("three.pt", recipe_file, "distill.factor=5", "data.resolution=15", "distill.init=real", side=15)
    assert torch.equal(found[:, :, :14, :14], data[:, :, :14, :14])  # its ImageNet has three in a row of 224 pixels
    assert (found[:, :, 14] == 0.5).all()
    torch.save([data.requires_grad_(True).detach().cpu(), syn_labels(2)], tmp_path / "data.pt")
    found, _ = brought("data.pt", recipe_file, "distill.factor=2", "distill.init=real")
    assert torch.equal(found, data)


def test_frepo_keeps_channels_last_and_centred_labels(
    pixels: torch.Tensor,
    real: ImageSet,
    recipe_file: Path,
    tmp_path: Path,
    ld3m: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """save_proto_np: np/step000500.npz with image [N, H, W, C] and label, one-hot minus 1 / classes, then learnt.

    Pictures of the set lie beside np/.
    """
    theirs = tmp_path / "theirs"
    for name in ("np", "png"):
        (theirs / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(theirs / "png" / "step000500.png")
    normalised = real.normalise(pixels / 255)
    labels = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2]] - 1 / 3
    for step, scale in ((500, 0), (1000, 1)):
        own = scale * normalised.permute(0, 2, 3, 1).numpy()
        np.savez(theirs / "np" / f"step{step:06d}.npz", image=own, label=labels)
    for given in (".", "np", "np/step001000.npz"):
        found, numbers = brought(str(theirs / given), recipe_file)
        assert numbers == [0, 0, 1, 1, 2, 2]
        assert torch.allclose(real.normalise(bytes_to_unit(found)), normalised, atol=1e-4)
        said = capsys.readouterr().err
        assert "its soft label is kept: evaluate.labels=soft evaluate.soft_loss=squared" in said
        assert "parts of one set" not in said
    shutil.copytree(theirs / "np", theirs / "other" / "np")
    with pytest.raises(UserError, match=r"files of tensors in several folders \(np, other/np\); give the one that is"):
        find_set([str(theirs)], str(recipe_file), (), AS_IT_IS)


# --- values ------------------------------------------------------------------------------------------------


def test_what_a_decoder_gives_is_known_by_its_range(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """A VAE's images, clamped to [-1, 1]; those that do not reach its ends are judged by their spread."""
    torch.save((pixels / 127.5 - 1, syn_labels(2)), tmp_path / "decoded.pt")
    found, _ = brought("decoded.pt", recipe_file)
    assert "taken as pixels from -1 to 1, as decoders of latents give them" in capsys.readouterr().err
    assert torch.allclose(bytes_to_unit(found), pixels / 255, atol=1e-6)
    torch.save((pixels / 255 - 0.5, syn_labels(2)), tmp_path / "narrow.pt")
    brought("narrow.pt", recipe_file)
    assert "from -1 to 1" not in capsys.readouterr().err
    found, _ = brought("narrow.pt", recipe_file, reading=Reading(pixels="signed"))
    assert torch.allclose(bytes_to_unit(found), pixels / 510 + 0.25, atol=1e-6)


def test_whitening_is_that_of_kornia_and_of_frepo(real: ImageSet) -> None:
    """Against both formulas, computed by SVD on all training images."""
    values = (real.everything("train")[0] / 255).flatten(1).double()
    some = (real.everything("test")[0][:4] / 255).float()
    size, mean = values.shape[1], values.mean(0)
    covariance = (values - mean).T @ (values - mean) / (len(values) - 1)
    axes, variances, _ = torch.linalg.svd(covariance)
    kornia = axes @ torch.diag((variances + 0.1).rsqrt()) @ axes.T
    expected = ((some.flatten(1).double() - mean) @ kornia).float().view(some.shape)
    assert torch.allclose(whitening(real).apply(some), expected, atol=1e-4)
    assert torch.allclose(whitening(real).undo(expected), some, atol=1e-4)
    normalised = (values - real.mean.double()) / real.std.double()
    covariance = (normalised - normalised.mean(0)).T @ (normalised - normalised.mean(0)) / len(normalised)
    axes, variances, _ = torch.linalg.svd(covariance + 0.1 * covariance.trace() / size * torch.eye(size))
    variances[len(values) - 1 :] = 1  # centred, they span one axis less
    frepo = axes @ torch.diag(variances.rsqrt()) @ axes.T
    expected = ((real.normalise(some).flatten(1).double() - normalised.mean(0)) @ frepo).float().view(some.shape)
    assert torch.allclose(whitening(real, "frepo").apply(some), expected, atol=1e-4)
    assert torch.allclose(whitening(real, "frepo").undo(expected), some, atol=1e-4)


@pytest.mark.parametrize(
    ("mean", "code", "constants"),
    [
        ("cifar10", "dc", "cifar10"),
        ("cifar10", "mtt", "cifar10"),
        ("cifar100", "dc", "cifar100"),
        ("cifar100", "mtt", "cifar10"),
        ("svhn", "dc", "svhn"),
        ("cifar10", None, None),
    ],
)
def test_public_codes_normalise_by_constants_of_their_own(
    mean: str, code: str | None, constants: str | None, real: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    """`utils.get_dataset` of DatasetCondensation and of mtt-distillation; CIFAR-10's pixels have a std of 0.247."""
    colours = replace(real, mean=torch.tensor(NORMALISATIONS[mean][0]), std=torch.tensor([0.247, 0.243, 0.262]))
    images = torch.randn(6, 3, 4, 4, generator=torch.manual_seed(0))
    found = to_pixels(Path("theirs.pt"), TensorSet(images, torch.arange(6), None, code), lambda: colours, None)
    expected_mean, std = NORMALISATIONS[constants] if constants else (colours.mean, colours.std)
    expected = images * torch.as_tensor(std).view(1, 3, 1, 1) + torch.as_tensor(expected_mean).view(1, 3, 1, 1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (f"{constants}'s mean and std in public code" in capsys.readouterr().err) == bool(constants)


def test_soft_labels_that_do_not_fit_are_one_line(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: object
) -> None:
    torch.save((pixels, torch.rand(6, 5).argsort(1).float()), tmp_path / "soft.pt")
    with pytest.raises(UserError, match=r"has (label|no images of class)") as error:
        brought("soft.pt", recipe_file)
    assert Counter(str(error.value))["\n"] == 0
    torch.save((pixels, torch.rand(5, 3)), tmp_path / "few.pt")
    with pytest.raises(UserError, match=r"labels of shape \[5, 3\], not one class number per image, nor a row of soft"):
        brought("few.pt", recipe_file)


def test_a_set_that_is_read_again_says_how_it_is_read_now(pixels: torch.Tensor, recipe_file: Path) -> None:
    """The same images of the same classes are one set, whatever says which class is whose."""
    torch.save([pixels / 255, torch.arange(3).repeat_interleave(2)], "data.pt")
    by_number = find_set(["data.pt"], str(recipe_file), (), AS_IT_IS)
    assert "by number" in json.loads((by_number / "origin.json").read_text())["classes"]
    by_position = find_set(["data.pt"], str(recipe_file), (), Reading(by_position=True))
    assert by_position == by_number
    assert "as --by-position says" in json.loads((by_number / "origin.json").read_text())["classes"]


# --- what is measured of them ------------------------------------------------------------------------------


def test_a_set_in_another_order_is_said_to_be(
    pixels: torch.Tensor, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """Real images under each other's labels: networks learn them, and call every class by another one's name."""
    shown = prepare(load(Recipe, str(recipe_file)).data, progress=False).everything("train")
    torch.save((shown[0], (shown[1] + 1) % 3), tmp_path / "permuted.pt")
    told = ["evaluate.seeds=1", "evaluate.epochs=12", "evaluate.ema=0", "evaluate.augment=false", "evaluate.lr=0.02"]
    outcome = ld3m("evaluate", "permuted.pt", "--recipe", recipe_file, *told)
    assert outcome.code == 0, outcome.err
    said = re.search(
        r"takes classes for each other: renamed one for one, ([\d.]+) % would be right, not ([\d.]+); the set's",
        outcome.out,
    )
    assert said
    assert float(said[1]) > 60 > 33 > float(said[2])
    assert "convnet on distilled: the network is at chance, left out of means and scores\n" in outcome.out
    again = ld3m("evaluate", "permuted.pt", "--recipe", recipe_file, *told)
    assert again.out == outcome.out


def test_a_set_at_chance_says_what_to_look_at() -> None:
    how = {"epochs": 1, "batch": 1, "lr": 0.001, "ema": 0.0, "augment": True}
    figures = {"mean": 10.0, "std": None, "accuracies": [10.0], "images": 10, "tested_on": 1000, "at_chance": [0]}
    rows = [
        {"trained_on": name, "arch": "convnet", "split": "test", **figures, "protocol": how}
        for name in ("distilled", "random")
    ]
    theirs, own = (
        blocks({"results": rows, **of})[0].notes for of in ({"imported": "classes: 10 by number (0 = cat); …"}, {})
    )
    assert theirs[0].endswith(
        "evaluate.lr={convnet: …}; or the set is not read as it was made: look at classes: 10 by number (0 = cat) "
        "(--class-order), what its values mean (--pixels, --whitening), its labels, and its images in the report"
    )
    assert [theirs[1], *own] == [note.partition("; or the set")[0] for note in (theirs[1], *own)]


def test_renaming_is_the_best_there_is() -> None:
    """Against all permutations."""
    said = torch.randint(0, 50, (5, 5), generator=torch.manual_seed(0))
    best = max(sum(int(said[row, column]) for row, column in enumerate(order)) for order in permutations(range(5)))
    assert testing.reassigned(said) == pytest.approx(100 * best / int(said.sum()))


@pytest.mark.parametrize(
    ("accuracy", "renamed", "classes", "images", "expected"),
    [
        (10.3, 24.1, 10, 10000, False),  # a ConvNet after one epoch on ten garments in their own order
        (2.2, 25.7, 10, 10000, False),  # the most that six untrained ones reached
        (11.0, 34.0, 10, 300, False),  # one that learnt noise, tested on few
        (3.5, 62.0, 10, 10000, True),
        (3.5, 62.0, 10, 30, True),
        (22.0, 31.0, 10, 10000, False),  # alike classes
        (1.0, 14.0, 100, 10000, True),
        (20.0, 45.0, 3, 3000, False),
        (20.0, 70.0, 3, 3000, True),
    ],
)
def test_networks_that_learnt_nothing_are_not_taken_for_permuted_labels(
    accuracy: float, renamed: float, classes: int, images: int, expected: bool
) -> None:
    assert testing.is_permuted(accuracy, renamed, classes, images) == expected


def test_networks_may_see_whitened_images(
    pixels: torch.Tensor, real: ImageSet, recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """What MTT keeps whitened is what networks see, and the row says so; real images are whitened alike."""
    white = whitening(real).apply(pixels / 255)
    torch.save(white, tmp_path / "images_best.pt")
    torch.save(syn_labels(2), tmp_path / "labels_best.pt")
    seen = []

    def look(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs)
        return torch.eye(3)[torch.zeros(len(inputs), dtype=torch.long)]

    told = ["--recipe", recipe_file, "--whitening", "zca", "evaluate.seeds=1", "evaluate.epochs=1", "--json"]
    outcome = ld3m("evaluate", "images_best.pt", *told)
    assert outcome.code == 0, outcome.err
    assert "with --whitening zca networks see such images" in outcome.err
    row = json.loads(outcome.out)["results"][0]
    assert row["protocol"]["whitening"] == "zca"
    found, _ = brought("images_best.pt", recipe_file)
    whitened = replace(real, shown=whitening(real).apply)
    assert torch.allclose(whitened.normalise(found), white, atol=1e-3)
    testing.tested(look, whitened, "test", torch.device("cpu"))
    values = torch.cat(seen).flatten(1)
    assert abs(float(values.mean())) < 0.05  # of real images, about 0
    soft = ld3m("evaluate", "images_best.pt", *told, "--protocol", "rded")
    assert soft.code == 2
    assert "evaluate.whitening: rded has soft labels, whose teacher has not learnt whitened images" in soft.err
