"""ImageNet: its classes by number, subsets by name, the usual layout, the Hub's."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ld3m.data.known import ilsvrc, imagenet
from ld3m.data.prepared import ImageSet, prepare
from ld3m.recipe import DataRecipe, Recipe
from ld3m.recipe.files import load

SUBSETS = {
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "a": [255, 376, 984, 364, 500, 986, 333, 576, 148, 135],
    "b": [129, 916, 90, 275, 995, 874, 102, 259, 685, 139],
    "c": [565, 94, 554, 535, 92, 392, 291, 136, 324, 11],
    "d": [9, 258, 13, 262, 19, 339, 321, 24, 93, 322],
    "e": [816, 96, 100, 145, 739, 713, 783, 76, 688, 326],
    "birds": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "cats": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "fruits": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "yellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
    "food": [933, 934, 932, 963, 930, 928, 924, 959, 931, 927],
    "geo": [980, 970, 975, 974, 973, 977, 976, 978, 972, 979],
    "mammals": [386, 387, 354, 340, 338, 104, 103, 279, 334, 366],
    "marine": [148, 2, 397, 327, 33, 150, 107, 108, 119, 392],
}
"""Of the public code of GLaD (Cazenavette et al., CVPR 2023)."""


def test_a_thousand_classes_in_the_order_of_their_ids() -> None:
    """Numbers as every pre-trained model has them, such as torchvision's; Imagenette's list names ten of them."""
    classes = imagenet.classes()
    ids = [wordnet_id for wordnet_id, _ in classes]
    assert len(classes) == 1000
    assert ids == sorted(set(ids))
    assert classes[0] == ("n01440764", "tench")
    assert classes[217] == ("n02102040", "English-springer")
    assert classes[701] == ("n03888257", "parachute")
    assert classes[999] == ("n15075141", "toilet-tissue")


def test_names_can_be_folders_even_where_capitals_do_not_count() -> None:
    names = [name for _, name in imagenet.classes()]
    assert len({name.lower() for name in names}) == 1000
    assert all(name.replace("-", "").isalpha() and name.isascii() for name in names)
    assert (names[134], names[517]) == ("crane-bird", "crane-machine")
    assert (names[638], names[639]) == ("maillot", "tank-suit")


def test_subsets_are_those_of_the_literature_in_its_order() -> None:
    assert imagenet.subsets() == SUBSETS
    names = [imagenet.classes()[number].name for number in imagenet.subsets()["cats"]]
    assert names[:5] == ["tabby", "tiger-cat", "Persian-cat", "Siamese-cat", "Egyptian-cat"]
    assert names[5:] == ["lion", "tiger", "jaguar", "snow-leopard", "lynx"]


# --- the usual layout --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LD3M_IMAGENET", raising=False)
    monkeypatch.setattr(ilsvrc, "USUAL", ())


def draw(number: int, size: tuple[int, int] = (20, 12)) -> Image.Image:
    """An image that tells its class."""
    return Image.new("RGB", size, (number % 256, number // 256, 7))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The classes of Imagenette and of e, two images to train and one to validate each; unlabelled test images."""
    for number in SUBSETS["imagenette"] + SUBSETS["e"]:
        wordnet_id = imagenet.classes()[number].wordnet_id
        for split, count in (("train", 2), ("val", 1)):
            (tmp_path / "root" / split / wordnet_id).mkdir(parents=True)
            for index in range(count):
                path = tmp_path / "root" / split / wordnet_id / f"{wordnet_id}_{index}.JPEG"
                draw(number).save(path, format="PNG")  # as one of ImageNet's is; exact to tell classes by
    (tmp_path / "root" / "test").mkdir()
    draw(0).save(tmp_path / "root" / "test" / "ILSVRC2012_test_00000001.JPEG")
    return tmp_path / "root"


def prepared(**settings: object) -> ImageSet:
    return prepare(DataRecipe.model_validate({"source": "imagenet", "resolution": 8, **settings}))


def numbers(images: ImageSet, split: str) -> list[int]:
    """The classes that the images of each class tell."""
    means = [images.images(split, label).float().mean((0, 2, 3)).round() for label in range(len(images.classes))]
    return [int(red + 256 * green) for red, green, _ in torch.stack(means).tolist()]


@pytest.mark.parametrize("name", ["imagenette", "e"])
def test_a_subset_by_name(root: Path, name: str) -> None:
    images = prepared(root=str(root), subset=name)
    assert images.ids == SUBSETS[name]
    assert images.classes == [imagenet.classes()[number].name for number in SUBSETS[name]]
    assert numbers(images, "train") == SUBSETS[name]
    assert numbers(images, "test") == SUBSETS[name]
    assert images.counts == {"train": [2] * 10, "test": [1] * 10}


def test_classes_by_name_number_and_wordnet_id(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD3M_IMAGENET", str(root))
    images = prepared(subset=["parachute", 0, "n02102040"])
    assert images.classes == ["parachute", "tench", "English-springer"]
    assert images.ids == numbers(images, "train") == [701, 0, 217]
    assert prepared(subset=[701, "tench", 217]).folder == images.folder


def test_classes_from_a_file(root: Path, tmp_path: Path) -> None:
    """As the lists of ImageNet-100 come."""
    (tmp_path / "two.txt").write_text("n03888257\nn01440764\n")
    recipe = load(Recipe, "imagenet128", [f"data.root={root}", f"data.subset={tmp_path / 'two.txt'}"])
    assert prepared(root=recipe.data.root, subset=recipe.data.subset).ids == [701, 0]


def test_only_the_chosen_classes_are_looked_at(root: Path) -> None:
    before = prepared(root=str(root), subset="imagenette")
    draw(5).save(root / "train" / imagenet.classes()[816].wordnet_id / "another.JPEG")
    assert prepared(root=str(root), subset="imagenette").folder == before.folder


def test_a_validation_folder_sorted_beside_a_flat_one(root: Path) -> None:
    (root / "val").rename(root / "val_folders")
    (root / "val").mkdir()
    draw(0).save(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    assert numbers(prepared(root=str(root), subset=["tench"]), "test") == [0]


def test_the_short_side_is_resized_and_the_centre_cropped(root: Path) -> None:
    """At both resolutions of the paper."""
    rows, columns = np.mgrid[:375, :500]
    wide = np.stack([rows * 255 / 374, columns * 255 / 499, rows * 0], 2).astype(np.uint8)
    folder = root / "train" / "n01440764"
    for path in folder.iterdir():
        path.unlink()
    Image.fromarray(wide).save(folder / "0.png")
    for resolution in (128, 256):
        pixels = prepared(root=str(root), subset=["tench"], resolution=resolution).images("train", 0)
        assert pixels.shape == (1, 3, resolution, resolution)
        red, green = pixels[0, 0].float(), pixels[0, 1].float()
        assert red[0].max() <= 2  # top and bottom are the image's
        assert red[-1].min() >= 253
        # 375 of 500 columns are kept: from column 62.5 to 437.5
        assert green[:, 0].mean() == pytest.approx(62.5 / 499 * 255, abs=2)
        assert green[:, -1].mean() == pytest.approx(437.5 / 499 * 255, abs=2)


def test_a_plain_image_folder_is_numbered_in_the_order_of_names(root: Path) -> None:
    """And is tested on val, since its test folder has no classes."""
    images = prepare(DataRecipe(source=str(root), resolution=8, subset=["n03888257", "1"]))
    names = sorted(path.name for path in (root / "train").iterdir())
    assert images.classes == ["n03888257", names[1]]
    assert images.ids == [names.index("n03888257"), 1]
    assert numbers(images, "test")[0] == 701


# --- the Hub -----------------------------------------------------------------------------------------------


def test_the_hub_where_no_folder_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its test labels are all −1; its class names are whole lists of lemmas, ours are short."""
    label = datasets.ClassLabel(names=[f"lemma, synonym {number}" for number in range(1000)])
    features = datasets.Features({"image": datasets.Image(), "label": label})

    def table(labels: list[int]) -> datasets.Dataset:
        images = [draw(max(number, 0)) for number in labels]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    splits = {"train": table([701, 0, 217, 701]), "validation": table([0, 217, 701]), "test": table([-1])}
    monkeypatch.setattr(datasets, "load_dataset", {"ILSVRC/imagenet-1k": datasets.DatasetDict(splits)}.__getitem__)
    images = prepared(subset=["n03888257", "tench"])
    assert images.classes == ["parachute", "tench"]
    assert images.ids == numbers(images, "train") == numbers(images, "test") == [701, 0]
    assert images.counts == {"train": [2, 1], "test": [1, 1]}
