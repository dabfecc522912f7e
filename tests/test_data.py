"""Real images: modes, sources, splits, cache, statistics."""

import io
import itertools
import json
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ld3m.data.decoding.decode import convert
from ld3m.data.known import fashion_mnist
from ld3m.data.prepared import ImageSet, notes_once, prepare
from ld3m.errors import UserError
from ld3m.images.ranges import bytes_to_unit
from ld3m.recipe import DataRecipe

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 8), np.uint8)
COLOUR = RNG.integers(0, 256, (8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test prepares its data itself; Arrow copies of Parquet go nowhere near the user's cache either."""
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def prepared(source: object, **settings: Any) -> ImageSet:
    """The images of a source at the size and in the channels that most of these tests draw."""
    return prepare(DataRecipe.model_validate({"source": str(source), "resolution": 8, "channels": 1, **settings}))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def flat(value: int) -> np.ndarray:
    """An 8×8 grey image of one value, which identifies it."""
    return np.full((8, 8), value, np.uint8)


def values(images: torch.Tensor) -> list[int]:
    """The values of `flat` images."""
    return images[:, 0, 0, 0].tolist()


def write_folder(root: Path, contents: dict[str, list[int]]) -> Path:
    """An image folder: below each path, `flat` images of these values."""
    for name, numbers in contents.items():
        (root / name).mkdir(parents=True)
        for number in numbers:
            (root / name / f"{number:03d}.png").write_bytes(png(flat(number)))
    return root


# --- image modes -------------------------------------------------------------------------------------------


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601: 0.299 R + 0.587 G + 0.114 B."""
    return rgb @ [0.299, 0.587, 0.114]


def on_white(levels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return levels * (alpha / 255) + 255 * (1 - alpha / 255)


def close(result: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for the rounding of one step of conversion."""
    return result.dtype == np.uint8 and np.abs(result - expected).max() <= 1


def planes(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3)


def test_grey_and_colour() -> None:
    assert np.array_equal(convert(Image.fromarray(GREY), 8, 1), GREY[None])
    assert np.array_equal(convert(Image.fromarray(GREY), 8, 3), planes(GREY))
    assert np.array_equal(convert(Image.fromarray(COLOUR), 8, 3), COLOUR.transpose(2, 0, 1))
    assert close(convert(Image.fromarray(COLOUR), 8, 1)[0], luma(COLOUR))


def test_black_and_white_is_0_and_255() -> None:
    image = Image.fromarray(GREY > 127)
    assert image.mode == "1"
    assert np.array_equal(convert(image, 8, 1)[0], np.where(GREY > 127, 255, 0))


def test_palette_with_and_without_transparency() -> None:
    palette = RNG.integers(0, 256, (4, 3), np.uint8)
    indices = RNG.integers(0, 4, (8, 8), np.uint8)
    image = Image.fromarray(indices, mode="L")
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    assert np.array_equal(convert(image, 8, 3), palette[indices].transpose(2, 0, 1))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=2)
    palette[2] = 255  # transparent becomes white
    assert np.array_equal(convert(Image.open(buffer), 8, 3), palette[indices].transpose(2, 0, 1))


def test_transparency_is_laid_on_white() -> None:
    alpha = RNG.integers(0, 256, (8, 8), np.uint8)
    image = Image.fromarray(np.dstack([COLOUR, alpha]))
    assert image.mode == "RGBA"
    assert close(convert(image, 8, 3), on_white(COLOUR, alpha[..., None]).transpose(2, 0, 1))
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    assert close(convert(image, 8, 1)[0], on_white(GREY, alpha))
    assert close(convert(image, 8, 3), planes(on_white(GREY, alpha)))


def test_a_transparent_grey_level_of_a_png() -> None:
    buffer = io.BytesIO()
    Image.fromarray(flat(7)).save(buffer, format="PNG", transparency=7)
    assert convert(Image.open(buffer), 8, 1).min() == 255


def test_cmyk() -> None:
    """R = (255 − C)(255 − K) / 255, and so on."""
    inks = RNG.integers(0, 256, (8, 8, 4), np.uint8)
    image = Image.frombytes("CMYK", (8, 8), inks.tobytes())
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert close(convert(image, 8, 3), expected.transpose(2, 0, 1))
    assert np.abs(convert(image, 8, 1)[0] - luma(expected)).max() <= 2  # two conversions


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, GREY),
        (2, GREY[:, ::-1]),
        (3, GREY[::-1, ::-1]),
        (4, GREY[::-1]),
        (5, GREY.T),
        (6, np.rot90(GREY, -1)),
        (7, GREY[::-1, ::-1].T),
        (8, np.rot90(GREY)),
    ],
)
def test_exif_orientation(orientation: int, upright: np.ndarray) -> None:
    """Exif 2.3, tag 274: where the 0th row and column are; with 6, the 0th row is on the right."""
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, format="PNG", exif=exif)
    assert np.array_equal(convert(Image.open(buffer), 8, 1)[0], upright)


def test_the_centre_of_a_wide_image_is_kept() -> None:
    wide = np.repeat(np.array([0, 100, 200], np.uint8), 32)[None].repeat(32, 0)  # 32×96 in three bands
    assert np.array_equal(convert(Image.fromarray(wide), 32, 1)[0], np.full((32, 32), 100))
    assert np.array_equal(convert(Image.fromarray(wide.T), 32, 1)[0], np.full((32, 32), 100))


def test_the_short_side_is_resized() -> None:
    """192×64 with the value of the column: halved, the crop starts at column 64, and pixel j is the mean of two."""
    wide = np.arange(192, dtype=np.uint8)[None].repeat(64, 0)
    result = convert(Image.fromarray(wide), 32, 1)[0]
    expected = 64 + 2 * np.arange(32) + 0.5
    assert np.abs(result - expected)[:, 2:-2].max() <= 0.5
    assert np.abs(result - expected).max() <= 1  # the filter ends at the crop's edge


# --- image folders -----------------------------------------------------------------------------------------


def test_image_folder_with_train_and_test(shapes: Path) -> None:
    images = prepared(shapes, resolution=20)
    assert images.classes == ["circle", "cross", "square"]
    assert images.counts == {"train": [12, 12, 12], "test": [6, 6, 6]}
    for split in ("train", "test"):
        for label, name in enumerate(images.classes):
            files = sorted((shapes / split / name).iterdir())
            expected = np.stack([np.asarray(Image.open(file)) for file in files])
            assert np.array_equal(images.images(split, label)[:, 0], expected)
    everything, labels = images.everything("test")
    assert everything.shape == (18, 1, 20, 20)
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert torch.equal(everything[6:12], images.images("test", 1))


def test_image_folder_prefers_test_to_val(tmp_path: Path) -> None:
    contents = {"train/a": [1, 2], "val/a": [3], "test/a": [4]}
    root = write_folder(tmp_path / "set", contents)
    assert values(prepared(root).images("test", 0)) == [4]
    shutil.rmtree(root / "test")
    assert values(prepared(root).images("test", 0)) == [3]


def test_image_folder_takes_nested_files_and_passes_over_hidden_ones(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"a": [3], "a/deep/er": [1, 2], "a/.small": [9], "__MACOSX": [9]})
    (root / "a" / "._1.png").write_text("what macOS leaves on foreign disks")
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / "paper.pdf").write_text("which Pillow writes but does not read")
    shutil.move(root / "a" / "003.png", root / "a" / "003.PNG")
    images = prepared(root)
    assert images.classes == ["a"]
    assert all_values(images, 0) == [1, 2, 3]


# --- Parquet -----------------------------------------------------------------------------------------------


def table(numbers: list[int], labels: list[Any], kind: Any = None) -> datasets.Dataset:
    """A table with the features that `datasets` writes into Parquet."""
    features = datasets.Features({"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=["x", "y"])})
    images = [Image.fromarray(flat(number)) for number in numbers]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_parquet_with_the_features_of_datasets(tmp_path: Path) -> None:
    table([10, 20, 30, 40], [1, 0, 1, 0]).to_parquet(tmp_path / "train.parquet")
    images = prepared(tmp_path / "train.parquet", test_share=0.5)
    assert images.classes == ["x", "y"]
    assert images.counts == {"train": [1, 1], "test": [1, 1]}
    assert all_values(images, 0) == [20, 40]


@pytest.mark.parametrize("layout", ["struct", "binary", "large_binary"])
def test_plain_parquet_with_labels_in_words(tmp_path: Path, layout: str) -> None:
    """As other tools write it: no features in the metadata, so columns are found by their names."""
    content = [png(flat(number)) for number in (1, 2, 3)]
    if layout == "struct":
        column = pa.array([{"bytes": image, "path": None} for image in content])
    else:
        column = pa.array(content, pa.large_binary() if layout == "large_binary" else pa.binary())
    for split in ("train", "test"):
        rows = pa.table({"id": [0, 1, 2], "img": column, "class": ["zebra", "alpaca/llama", "zebra"]})
        pq.write_table(rows, tmp_path / f"{split}.parquet")
    images = prepared(tmp_path)
    assert images.classes == ["alpaca-llama", "zebra"]
    assert values(images.images("train", 0)) == [2]
    assert values(images.images("train", 1)) == [1, 3]
    images = prepared(tmp_path, image_column="img", label_column="id")  # numbers are in the order of numbers
    assert images.classes == ["0", "1", "2"]
    assert values(images.images("test", 2)) == [3]


def test_parquet_folder_pattern_and_held_out_files(tmp_path: Path) -> None:
    table([1, 2], [0, 1]).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    table([3, 4], [0, 1]).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    table([5, 6], [0, 1]).to_parquet(tmp_path / "validation.parquet")
    images = prepared(tmp_path)
    assert values(images.images("train", 0)) == [1, 3]
    assert values(images.images("test", 0)) == [5]
    table([7, 8], [0, 1]).to_parquet(tmp_path / "test.parquet")
    assert values(prepared(tmp_path).images("test", 0)) == [7]  # test counts before validation, as in image folders
    images = prepared(tmp_path / "train-*.parquet", test_share=0.5)
    assert all_values(images, 1) == [2, 4]


def test_parquet_file_with_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "set[1]" / "train.parquet"
    path.parent.mkdir()
    table([1, 2, 3, 4], [0, 1, 0, 1]).to_parquet(path)
    assert prepared(path).counts["train"] == [1, 1]


def test_splits_that_number_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    table([1, 2], [0, 1]).to_parquet(tmp_path / "train.parquet")
    table([1, 2], [0, 1], datasets.ClassLabel(names=["y", "x"])).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"data\.label_column: the test split .* numbers its classes in another order"):
        prepared(tmp_path)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"label": ["a", None]}, {}, r"data\.label_column: row 1 of train has label None"),
        ({"label": [["a"], ["b"]]}, {}, r"data\.label_column: 'label' holds lists"),
        ({"label": ["a b", "a/b"]}, {}, r"data\.label_column: 'a-b' names two classes"),
        ({"label": ["..", "b"]}, {}, r"data\.label_column: '\.\.' .* cannot name a folder"),
        ({"kind": ["a", "b"]}, {}, r"data\.label_column: no column has the type or a usual name; .* has image, kind"),
        ({"label": ["a", "b"]}, {"label_column": "labl"}, r"there is no column 'labl'; .* has image, label"),
        ({"label": [0, 1]}, {"image_column": "label"}, r"data\.image_column: 'label' holds no images"),
    ],
)
def test_columns_that_do_not_do(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table({"image": [png(flat(1)), png(flat(2))], **columns}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, **settings)


# --- Fashion-MNIST -----------------------------------------------------------------------------------------


def test_the_packaged_subset_of_fashion_mnist() -> None:
    """800 and 200 of ten classes; at 28 pixels, nothing is resized and every pixel is the PNG's."""
    images = prepared("fashion-mnist-small", resolution=28)
    assert images.classes == list(fashion_mnist.CLASSES)
    assert images.counts == {"train": [800] * 10, "test": [200] * 10}
    assert not images.mean.sub(0.286).abs().max() > 0.01  # 0.2860 and 0.3530 are those of the 60,000
    assert not images.std.sub(0.353).abs().max() > 0.01
    rows = pq.read_table(fashion_mnist.SMALL / "test.parquet").to_pylist()
    for label in (0, 9):
        pngs = [row["image"]["bytes"] for row in rows if row["label"] == label]
        expected = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in pngs])
        assert np.array_equal(images.images("test", label)[:, 0], expected)


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_full_fashion_mnist_of_debian() -> None:
    """6,000 and 1,000 of each class; the first of the training images is an ankle boot."""
    import gzip

    images = prepared("fashion-mnist", resolution=28, subset=["Ankle-boot"])
    assert images.counts == {"train": [6000], "test": [1000]}
    with gzip.open(fashion_mnist.DEBIAN / "train-images-idx3-ubyte.gz") as file:
        first = np.frombuffer(file.read(16 + 784)[16:], np.uint8).reshape(28, 28)
    assert np.array_equal(images.images("train", 0)[0, 0], first)


# --- the Hub -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, datasets.DatasetDict]:
    """Data sets by the id that stands for the Hub's."""
    known: dict[str, datasets.DatasetDict] = {}
    monkeypatch.setattr(datasets, "load_dataset", known.__getitem__)
    return known


def test_a_data_set_of_the_hub(hub: dict[str, datasets.DatasetDict]) -> None:
    hub["me/mine"] = datasets.DatasetDict(train=table([1, 2, 3], [0, 1, 1]), test=table([4, 5], [0, 1]))
    images = prepared("hub:me/mine")
    assert images.classes == ["x", "y"]
    assert values(images.images("train", 1)) == [2, 3]
    assert values(images.images("test", 0)) == [4]


def test_the_validation_split_where_test_labels_are_secret(hub: dict[str, datasets.DatasetDict]) -> None:
    """As in ImageNet-1k, whose test labels are all −1."""
    train, secret = table([1, 2], [0, 1]), table([3, 4], [-1, -1])
    hub["me/mine"] = datasets.DatasetDict(train=train, test=secret, validation=table([5, 6], [0, 1]))
    assert values(prepared("hub:me/mine").images("test", 1)) == [6]
    hub["me/mine"] = datasets.DatasetDict(train=train, test=secret.remove_columns("label"), val=table([7, 8], [0, 1]))
    assert values(prepared("hub:me/mine").images("test", 1)) == [8]


def test_fashion_mnist_of_the_hub_where_debian_is_not(
    hub: dict[str, datasets.DatasetDict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    names = [str(name) for name in range(10)]
    every = table(list(range(10)), list(range(10)), datasets.ClassLabel(names=names))
    hub["zalando-datasets/fashion_mnist"] = datasets.DatasetDict(train=every, test=every)
    images = prepared("fashion-mnist", subset=["Bag"])
    assert values(images.images("train", 0)) == [8]  # the ninth in the authors' order


def test_what_the_hub_does_not_have(hub: dict[str, datasets.DatasetDict]) -> None:
    with pytest.raises(UserError, match=r"data\.source: cannot load me/none from the Hub: KeyError"):
        prepared("hub:me/none")
    hub["me/mine"] = datasets.DatasetDict(test=table([1, 2], [0, 1]))
    with pytest.raises(UserError, match=r"data\.source: me/mine has no train split, only test"):
        prepared("hub:me/mine")


def test_parquet_that_names_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By paths that count from its folder, wherever the command runs; a named file that changes is seen."""
    folder = write_folder(tmp_path / "set", {"pictures": [1, 2, 3, 4]})
    rows = [{"bytes": None, "path": f"pictures/{number:03d}.png"} for number in (1, 2, 3, 4)]
    pq.write_table(pa.table({"image": rows, "label": ["a", "a", "b", "b"]}), folder / "train.parquet")
    assert sorted(all_values(prepared(folder / "train.parquet"), 1)) == [3, 4]
    (folder / "pictures" / "004.png").write_bytes(png(flat(9)))
    assert sorted(all_values(prepared(folder), 1)) == [3, 9]


def test_parquet_replaced_at_the_same_time_of_change_is_read_again(tmp_path: Path) -> None:
    """Also by datasets, whose copy knows path and time alone."""
    for numbers in ([1, 2], [3, 4]):
        pq.write_table(
            pa.table({"image": [png(flat(n)) for n in numbers], "label": ["a", "a"]}), tmp_path / "train.parquet"
        )
        os.utime(tmp_path / "train.parquet", (1, 1))
        assert all_values(prepared(tmp_path / "train.parquet"), 0) == numbers


# --- unreadable images -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Five images of a class and four of another, of which an empty file, a text and a cut-off PNG."""
    root = write_folder(tmp_path / "set", {f"{split}/{name}": [1, 2] for split in ("train", "test") for name in "ab"})
    (root / "train" / "a" / "empty.png").touch()
    (root / "train" / "a" / "text.jpg").write_text("no image at all")
    (root / "train" / "a" / "cut.png").write_bytes(png(COLOUR)[:-60])
    return root


def test_an_unreadable_image_is_an_error_that_names_it(damaged: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*/train/a/cut\.png \(.*\); .*data\.on_corrupt=skip"):
        prepared(damaged)
    assert list((damaged.parent / "cache").rglob("index.json")) == []


def test_images_prepared_without_the_unreadable_are_refused_where_they_are_errors(damaged: Path) -> None:
    skipped = prepared(damaged, on_corrupt="skip")
    with pytest.raises(UserError, match=r"cannot read .*/train/a/cut\.png \(.*\); .*data\.on_corrupt=skip"):
        prepared(damaged)
    assert prepared(damaged, on_corrupt="skip").folder == skipped.folder


def test_notes_are_said_once_where_that_is_wanted(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for once, times in ((nullcontext(), 2), (notes_once(), 1), (notes_once(), 1)):
        with once:
            for _ in range(2):
                prepared(damaged, on_corrupt="skip")
        assert capsys.readouterr().err.count("unreadable images: ") == times


def test_unreadable_images_are_skipped_and_named(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a second time, from the cache
        images = prepared(damaged, on_corrupt="skip")
        assert images.counts == {"train": [2, 2], "test": [2, 2]}
        assert values(images.images("train", 0)) == [1, 2]
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("skipped 3 unreadable images: ")
        assert all(name in captured.err for name in ("empty.png", "text.jpg", "cut.png"))


def test_an_unreadable_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [png(flat(1)), b"", png(flat(3))], "label": ["a", "a", "a"]}), path)
    with pytest.raises(UserError, match=rf"cannot read {path} train row 1 \("):
        prepared(path)
    images = prepared(path, on_corrupt="skip")
    assert images.counts == {"train": [1], "test": [1]}


def test_a_class_that_is_all_unreadable_is_an_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"train/a": [1], "test/a": [2]})
    (root / "train" / "a" / "001.png").write_text("no image")
    with pytest.raises(UserError, match=r"class 'a' has too few images in .*set \(0 train, 1 test\)"):
        prepared(root, on_corrupt="skip")


# --- held-out shares ---------------------------------------------------------------------------------------


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """One folder of 20, 20 and 3 images, each with a value of its own."""
    contents = {"a": list(range(20)), "b": list(range(20, 40)), "c": list(range(40, 43))}
    return write_folder(tmp_path / "numbered", contents)


def members(images: ImageSet, label: int) -> dict[str, list[int]]:
    return {split: values(images.images(split, label)) for split in images.counts}


def all_values(images: ImageSet, label: int) -> list[int]:
    """Of all splits."""
    return sorted(itertools.chain.from_iterable(members(images, label).values()))


def test_shares_are_exact_disjoint_and_the_same_again(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 20 is 5, a fifth of the remaining 15 is 3; of 3 images, one each."""
    images = prepared(numbered, test_share=0.25, validation_share=0.2)
    assert images.counts == {"train": [12, 12, 1], "test": [5, 5, 1], "validation": [3, 3, 1]}
    for label, every in enumerate((range(20), range(20, 40), range(40, 43))):
        parts = members(images, label)
        assert all_values(images, label) == list(every)
        assert {split: len(part) for split, part in parts.items()} == {k: n[label] for k, n in images.counts.items()}
    assert members(images, 0)["test"] != [value - 20 for value in members(images, 1)["test"]]
    monkeypatch.setenv("LD3M_CACHE", str(numbered.parent / "another cache"))
    again = prepared(numbered, test_share=0.25, validation_share=0.2)
    assert again.folder != images.folder
    assert [members(again, label) for label in range(3)] == [members(images, label) for label in range(3)]


def test_a_subset_is_tested_on_the_same_images(numbered: Path) -> None:
    """Else a prior trained on all classes would have seen what a run on some of them is tested on."""
    every, some = prepared(numbered, validation_share=0.2), prepared(numbered, validation_share=0.2, subset=["b", "a"])
    assert members(some, 0) == members(every, 1)
    assert members(some, 1) == members(every, 0)


def test_only_validation_is_held_out_where_the_source_has_a_test_split(shapes: Path) -> None:
    images = prepared(shapes, validation_share=0.25)
    assert images.counts == {"train": [9] * 3, "test": [6] * 3, "validation": [3] * 3}
    test = prepared(shapes)
    assert all(torch.equal(images.images("test", label), test.images("test", label)) for label in range(3))


def test_a_class_too_small_to_be_split_is_an_error_before_any_image_is_read(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ld3m.data.preparation.convert", None)
    with pytest.raises(UserError, match=r"class 'c' has too few images in .* \(3 train\); .* each of train, test$"):
        prepared(numbered, test_share=0.9)


# --- what is prepared --------------------------------------------------------------------------------------


@pytest.fixture
def colourful(tmp_path: Path) -> Path:
    """Two classes of random colour images."""
    root = tmp_path / "colourful"
    for split, count in (("train", 5), ("test", 2)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = RNG.normal((100, 50, 200), (30, 20, 10), (8, 8, 3)).clip(0, 255).astype(np.uint8)
                (root / split / name / f"{index}.png").write_bytes(png(pixels))
    return root


def test_mean_and_std_are_those_of_the_training_pixels(colourful: Path) -> None:
    images = prepared(colourful, channels=3)
    raw = np.stack([np.asarray(Image.open(path)) for path in colourful.glob("train/*/*.png")]) / 255
    assert images.mean.tolist() == pytest.approx(raw.mean((0, 1, 2)), rel=1e-6)
    assert images.std.tolist() == pytest.approx(raw.std((0, 1, 2)), rel=1e-6)


def test_normalised_training_pixels_have_mean_0_and_std_1(colourful: Path) -> None:
    images = prepared(colourful, channels=3)
    pixels, _ = images.everything("train")
    normal = images.normalise(bytes_to_unit(pixels))
    assert normal.dtype == torch.float32
    assert normal.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert normal.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_a_subset_has_its_own_order_and_statistics(colourful: Path) -> None:
    every, swapped = prepared(colourful, channels=3), prepared(colourful, channels=3, subset=["b", "a"])
    assert swapped.classes == ["b", "a"]
    assert torch.equal(swapped.images("train", 0), every.images("train", 1))
    assert torch.equal(swapped.images("test", 1), every.images("test", 0))
    assert torch.equal(swapped.mean, every.mean)
    one = prepared(colourful, channels=3, subset=["b"])
    assert one.mean.tolist() == pytest.approx(bytes_to_unit(one.images("train", 0)).mean((0, 2, 3)).tolist())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_images_are_mapped_not_read(colourful: Path) -> None:
    images = prepared(colourful)
    path = str(images.folder / "train" / "0.safetensors")
    first = images.images("train", 0)
    assert path in Path("/proc/self/maps").read_text()
    assert first.shape == (5, 1, 8, 8)
    del first
    assert path not in Path("/proc/self/maps").read_text()


# --- the cache ---------------------------------------------------------------------------------------------


def test_the_second_time_no_image_is_read(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepared(numbered)
    monkeypatch.setattr("ld3m.data.preparation.convert", None)
    after = prepared(numbered)
    assert after.folder == before.folder
    assert members(after, 0) == members(before, 0)
    assert torch.equal(after.mean, before.mean)
    assert (after.classes, after.counts) == (before.classes, before.counts)


def test_a_changed_file_or_setting_is_prepared_anew(numbered: Path) -> None:
    before = prepared(numbered)
    assert prepared(numbered, resolution=9).folder != before.folder
    assert prepared(numbered, test_share=0.5).folder != before.folder
    (numbered / "c" / "040.png").write_bytes(png(flat(99)))
    after = prepared(numbered)
    assert after.folder != before.folder
    assert all_values(after, 2) == [41, 42, 99]
    assert all_values(before, 2) == [40, 41, 42]


def test_a_recipe_and_the_resolved_one_that_a_run_keeps_are_prepared_once(numbered: Path) -> None:
    """As `distill` and then `evaluate` read it: a default is the whole number 0, and 0.0 once it was written out."""
    given = DataRecipe.model_validate({"source": str(numbered), "resolution": 8, "channels": 1})
    kept = DataRecipe.model_validate(json.loads(given.model_dump_json()))
    assert prepare(given).folder == prepare(kept).folder
    assert len(list((numbered.parent / "cache" / "data").iterdir())) == 1


def test_an_image_replaced_at_equal_size_and_time_is_prepared_anew(numbered: Path) -> None:
    """And two that change names; neither size nor time of any path changes then."""
    first, second = numbered / "c" / "040.png", numbered / "c" / "041.png"
    for path in (first, second):
        os.utime(path, (1, 1))
    before = prepared(numbered)
    content = png(flat(99))
    assert len(content) == first.stat().st_size
    first.write_bytes(content)
    os.utime(first, (1, 1))
    after = prepared(numbered)
    assert all_values(after, 2) == [41, 42, 99]
    first.rename(numbered / "a.png")
    second.rename(first)
    (numbered / "a.png").rename(second)
    swapped = prepared(numbered)
    assert len({images.folder for images in (before, after, swapped)}) == 3
    os.utime(first, (2, 2))
    assert prepared(numbered).folder == swapped.folder  # what is only touched is the same


def test_a_link_moved_to_another_class_is_prepared_anew(tmp_path: Path) -> None:
    """The linked files stay as they are; only the tree of links, which labels them, changes."""
    store = write_folder(tmp_path, {"store": [1, 2, 3, 4, 5]}) / "store"
    root = tmp_path / "set"
    for name, numbers in {"a": [1, 2, 3], "b": [4, 5]}.items():
        (root / name).mkdir(parents=True)
        for number in numbers:
            (root / name / f"{number:03d}.png").symlink_to(store / f"{number:03d}.png")
    assert all_values(prepared(root), 0) == [1, 2, 3]
    (root / "a" / "003.png").rename(root / "b" / "003.png")
    assert all_values(prepared(root), 0) == [1, 2]
    (root / "a").rename(root / "A")
    assert prepared(root).classes == ["A", "b"]


def test_the_index_says_what_the_folder_holds(numbered: Path) -> None:
    images = prepared(numbered)
    index = json.loads((images.folder / "index.json").read_text())
    assert index["classes"] == ["a", "b", "c"]
    assert index["corrupt"] == []
    assert sorted(path.relative_to(images.folder).as_posix() for path in images.folder.rglob("*.safetensors")) == [
        f"{split}/{label}.safetensors" for split in ("test", "train") for label in range(3)
    ]
