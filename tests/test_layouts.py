"""Folders and tables as people really have them: what is a split, what is a class, what is said, what is refused."""

import io
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from ld3m.data.class_choice import choose
from ld3m.data.known import imagenet
from ld3m.data.layouts.split_names import is_plain, split_of
from ld3m.data.prepared import prepare
from ld3m.data.sources import check_source, open_source
from ld3m.errors import UserError
from ld3m.priors.base import numbers_of
from ld3m.recipe import DistilledDataRecipe
from ld3m.recipe.class_lists import read_class_list


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, format="PNG")
    return buffer.getvalue()


PNG = png()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, so that messages have short paths; no cache is the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def photos(*folders: str) -> None:
    """Two images in each of the folders below photos/, with names of their own as cameras give them."""
    for number, folder in enumerate(folders):
        (Path("photos") / folder).mkdir(parents=True, exist_ok=True)
        for index in range(2):
            (Path("photos") / folder / f"IMG_{number}{index}.png").write_bytes(PNG)


def found(source: str = "photos", **settings: Any) -> tuple[dict[str, dict[str, int]], str]:
    """How many images of each class each split has; and the note."""
    opened = open_source(DistilledDataRecipe.model_validate({"source": source, **settings}))
    counts = {}
    for split, examples in opened.splits.items():
        numbers = Counter(examples[index].label for index in range(len(examples)))
        counts[split] = {opened.classes[label]: count for label, count in sorted(numbers.items())}
    return counts, opened.note


AB = {"a": 2, "b": 2}
BOTH = {"train": AB, "test": AB}


@pytest.mark.parametrize(
    ("name", "split", "plain"),
    [
        ("train", "train", True),
        ("Training", "train", True),
        ("TRAIN_SET", "train", True),
        ("TrainImages", "train", True),
        ("train2017", "train", True),
        ("trainval", "train", True),
        ("seg_train", "train", False),
        ("MNISTtrain", "train", False),
        ("test", "test", True),
        ("Testing", "test", True),
        ("test_tube", "test", False),
        ("val", "validation", True),
        ("VALID", "validation", True),
        ("Validation data", "validation", True),
        ("dev", "validation", True),
        ("imagenet-val-00000-of-00014", "validation", False),
        ("contest", None, False),
        ("interval", None, False),
        ("trains", None, False),
        ("train_test", None, True),
    ],
)
def test_words_for_splits(name: str, split: str | None, plain: bool) -> None:
    assert (split_of(name), is_plain(name)) == (split, plain)


# --- folders that are understood -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "counts", "note"),
    [
        (["train/a", "train/b", "test/a", "test/b"], BOTH, ""),
        (["a", "b"], {"train": AB}, ""),
        (
            ["train/a", "train/b", "valid/a", "valid/b", "extra/a", "extra/b"],
            BOTH,
            "classes: 2 (a, b), from photos/train; test: photos/valid; not used: photos/extra",
        ),
        (
            ["w/p/Training/a", "w/p/Training/b", "w/p/Testing/a", "w/p/Testing/b", "__MACOSX/w"],
            BOTH,
            "classes: 2 (a, b), from photos/w/p/Training; test: photos/w/p/Testing",
        ),
        (
            [
                "seg_train/seg_train/a",
                "seg_train/seg_train/b",
                "seg_test/seg_test/a",
                "seg_test/seg_test/b",
                "seg_pred",
            ],
            BOTH,
            "classes: 2 (a, b), from photos/seg_train; test: photos/seg_test; not used: photos/seg_pred",
        ),
        (  # Tiny ImageNet: the test images have no labels
            ["train/a/images", "train/b/images", "val/a/images", "val/b/images", "test/images"],
            BOTH,
            "classes: 2 (a, b), from photos/train; test: photos/val; "
            "not used: photos/test (not sorted by these classes)",
        ),
        (
            ["a", "b", "val"],
            {"train": AB},
            "classes: 2 (a, b), from photos; test: a share of them (data.test_share); "
            "not used: photos/val (not sorted by class)",
        ),
        (["a", "b", "val/a", "val/b"], BOTH, "classes: 2 (a, b), from photos; test: photos/val"),
        (
            ["a/train", "a/test", "b/train", "b/test"],
            BOTH,
            "classes: 2 (a, b), from the folders train of each class; test: the folders test of each class",
        ),
        (
            ["train.X1/a", "train.X2/b", "val.X/a", "val.X/b"],
            BOTH,
            "classes: 2 (a, b), from photos/train.X1, photos/train.X2; test: photos/val.X",
        ),
        (
            ["train/a", "train/b", "train_small/a", "train_small/b", "test/a", "test/b"],
            BOTH,
            "classes: 2 (a, b), from photos/train; test: photos/test; not used: photos/train_small",
        ),
        (["train/A b", "train/C", "test/a_b", "test/c"], {"train": {"A b": 2, "C": 2}, "test": {"A b": 2, "C": 2}}, ""),
        (  # a railway is no split
            ["bus", "train", "tram/old", "tram"],
            {"train": {"bus": 2, "train": 2, "tram": 4}},
            "",
        ),
        (["test_tube", "train_station"], None, "no class folders in its splits"),
        (["airport", "test_tube", "train_station"], {"train": {"airport": 2, "test_tube": 2, "train_station": 2}}, ""),
        (
            ["animals/cat", "animals/dog", "cars/vw"],
            {"train": {"animals": 4, "cars": 2}},
            "classes: 2 (animals, cars), from photos (photos/animals with all folders below); "
            "test: a share of them (data.test_share)",
        ),
    ],
)
def test_image_folders(folders: list[str], counts: dict[str, dict[str, int]] | None, note: str) -> None:
    photos(*folders)
    if counts is None:
        with pytest.raises(UserError, match=note):
            found()
    else:
        assert found() == (counts, note)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["only"], r"photos has one class only \(only\); give a folder of train/<class>/"),
        (["train/a", "test/a"], r"photos has one class only \(a\)"),
        (["train", "test"], r"photos has no class folders in its splits \(photos/test, photos/train\); give"),
        (["trainA", "trainB", "testA", "testB"], r"photos has no class folders in its splits"),
        (["valid/a", "valid/b", "test/a", "test/b"], r"photos has only test folders \(photos/test, photos/valid\)"),
        (
            ["learn/a", "learn/b", "check/a", "check/b"],
            r"photos \(check, learn\) all hold a, b; if they are splits, name",
        ),
        (["bus/2019", "bus/2020", "train/2019", "train/2020"], r"photos \(train, bus\) all hold 2019, 2020; if they"),
        (["x/train/a", "x/train/b", "y/train/a", "y/train/b"], r"several data sets; give one of photos/x, photos/y"),
        (
            ["a/train", "a/test", "b/train", "b/test", "c"],
            r"photos/a holds splits \(photos/a/test, photos/a/train\), but",
        ),
        (["train/a", "train/b", "test/a", "test/c"], r"photos/test/c is a class that photos/train does not have"),
    ],
)
def test_image_folders_that_are_not_clear(folders: list[str], message: str) -> None:
    photos(*folders)
    with pytest.raises(UserError, match=rf"^data\.source: .*{message}"):
        found()


def test_two_folders_of_one_split_with_the_same_images() -> None:
    photos("train_small/a", "train_small/b", "test/a", "test/b")
    shutil.copytree("photos/train_small", "photos/train_large")
    with pytest.raises(UserError, match="photos/train_large and photos/train_small hold images of the same names"):
        found()


def test_what_was_guessed_and_left_out_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    photos("train/a", "train/b", "valid/a", "valid/b", "extra")
    (Path("photos") / "train" / "a" / "notes.txt").write_text("no image")
    recipe = DistilledDataRecipe(source="photos", resolution=8)
    prepare(recipe, progress=False)
    assert capsys.readouterr().err == ""
    prepare(recipe)
    assert capsys.readouterr().err.startswith(
        "data.source: classes: 2 (a, b), from photos/train; test: photos/valid; not used: photos/extra; "
        "files that are no images: 1 (photos/train/a/notes.txt)\n"
    )


# --- what a file system may hold -----------------------------------------------------------------------------


def test_links_are_followed_once_and_never_back() -> None:
    photos("a", "b")
    root = Path("photos")
    Path("store").mkdir()
    (root / "b" / "IMG_10.png").rename("store/1.png")
    (root / "b" / "linked").symlink_to(Path("store").resolve())
    (root / "b" / "again").symlink_to(Path("store").resolve())
    (root / "a" / "loop").symlink_to(root.resolve())
    (root / "a" / "self").symlink_to((root / "a").resolve())
    (root / "a" / "circle").symlink_to("circle")
    assert found()[0] == {"train": AB}


def test_a_pipe_and_a_circle_among_images_are_named_not_waited_for() -> None:
    photos("a", "b")
    os.mkfifo("photos/a/IMG_02.png")
    with pytest.raises(UserError, match=r"cannot read photos/a/IMG_02\.png \(OSError: no regular file\)"):
        prepare(DistilledDataRecipe(source="photos", resolution=8), progress=False)
    Path("photos/a/IMG_02.png").unlink()
    Path("photos/a/IMG_02.png").symlink_to("IMG_02.png")
    with pytest.raises(UserError, match=r"cannot read photos/a/IMG_02\.png \(OSError"):
        prepare(DistilledDataRecipe(source="photos", resolution=8), progress=False)


def test_names_that_are_not_utf_8() -> None:
    """As archives of Windows leave them: 0xe9 is é there. A test folder may write the same name in two characters."""
    photos("train/b", "test/b")
    windows = Path(os.fsdecode(b"photos/train/caf\xe9"))
    for folder in (windows, Path("photos/test/cafe\u0301")):
        folder.mkdir()
        for number in (b"1.png", b"2\xff.png"):
            (folder / os.fsdecode(number)).write_bytes(PNG)
    counts, _ = found()
    assert counts["train"] == counts["test"] == {"b": 2, "café": 2}
    images = prepare(DistilledDataRecipe(source="photos", resolution=8), progress=False)
    assert images.classes == ["b", "café"]
    assert images.counts == {"train": [2, 2], "test": [2, 2]}
    (windows / os.fsdecode(b"2\xff.png")).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cannot read photos/train/café/2ÿ\.png"):
        prepare(DistilledDataRecipe(source="photos", resolution=8), progress=False)


def test_a_folder_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    photos("a", "b")
    scandir = os.scandir

    def refusing(folder: Any) -> Any:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(
        UserError, match=r"cannot read the folder photos/b \(Permission denied\); change its permissions"
    ):
        found()


@pytest.mark.parametrize("name", ["a**b", "x" * 300, "\udcff", "**/nothing", "[", "x*[", "photos/**/x*"])
def test_names_that_are_no_files(name: str) -> None:
    with pytest.raises(UserError, match=r"^data\.source: (.* is not there|no file matches)"):
        found(name)


# --- tables --------------------------------------------------------------------------------------------------


def table(labels: list[Any], kind: Any = None) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": PNG, "path": None}] * len(labels), "label": labels}, features
    )


TRAIN, TEST, SECRET = [0, 1, 0, 1], [1, 0, 1, 0], [-1, -1]
FOUR = {"train": AB, "test": AB}


def parquet(*files: str) -> None:
    """A file of four rows, or of two without labels if its name has "secret", at each path below photos/."""
    for name in files:
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table(SECRET if "secret" in name else TRAIN).to_parquet(path)


@pytest.mark.parametrize(
    ("file", "source", "split"),
    [
        ("test_x/pictures.parquet", "photos/test_x/pictures.parquet", "pictures"),
        ("test_x/pictures.parquet", "photos/test_x", "pictures"),
        ("my-test/my_train-0.parquet", "photos/my-test/*.parquet", "my_train"),
        ("val/train/0000.parquet", "photos/val", "train"),
        ("test/train/0000.parquet", "photos/test/train/0000.parquet", "train"),
    ],
)
def test_folders_above_a_table_that_is_named_do_not_make_it_a_test_split(file: str, source: str, split: str) -> None:
    parquet(file)
    counts, note = found(source)
    assert counts == {"train": AB}
    assert f"from {split}, column label" in note or (split == "train" and not note)


@pytest.mark.parametrize(
    ("files", "note"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], ""),
        (["default/train/0000.parquet", "default/test/0000.parquet"], ""),
        (
            ["cifar_TRAIN.parquet", "cifar-Valid.parquet", "cifar-test-secret.parquet"],
            "classes: 2 (a, b), from cifar_TRAIN, column label; test: cifar-Valid; "
            "not used: cifar-test-secret (no labels)",
        ),
        (
            ["train.parquet", "test.parquet", "extra.parquet"],
            "classes: 2 (a, b), from train, column label; test: test; not used: extra",
        ),
        (["pictures.parquet", "test.parquet"], "classes: 2 (a, b), from pictures, column label; test: test"),
    ],
)
def test_names_of_parquet_files(files: list[str], note: str) -> None:
    parquet(*files)
    assert found() == (FOUR, note)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["x/train.parquet", "y/train.parquet"], r"several data sets; give one of photos/x, photos/y, or a pattern"),
        (["train_a.parquet", "train_b.parquet"], r"has several training splits \(train_a, train_b\); give one of them"),
    ],
)
def test_parquet_files_that_are_not_clear(files: list[str], message: str) -> None:
    parquet(*files)
    with pytest.raises(UserError, match=message):
        found()


def test_what_datasets_saved() -> None:
    saved = datasets.DatasetDict(train=table(TRAIN), test=table(SECRET), valid=table(TEST))
    saved.save_to_disk("photos")
    note = "classes: 2 (a, b), from train, column label; test: valid; not used: test (no labels)"
    assert found() == (FOUR, note)
    Path("above").mkdir()
    Path("photos").rename("above/photos")
    assert found("above") == (FOUR, note)
    table(TRAIN).save_to_disk("single")
    assert found("single") == ({"train": AB}, "")
    Path("single/state.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.source: cannot load single \(JSONDecodeError"):
        found("single")


def test_a_clone_of_a_data_set_of_the_hub() -> None:
    """Beside the tables there are a picture for the README, Git's files, and what Git LFS left."""
    parquet("data/train-0.parquet", "data/test-0.parquet")
    Path("photos/assets").mkdir()
    Path("photos/assets/banner.png").write_bytes(PNG)
    assert found() == (FOUR, "")
    Path("photos/data/test-0.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(
        UserError, match=r"photos/data/test-0\.parquet is not .* a Git LFS pointer, not the file itself; git lfs pull"
    ):
        found()


def test_the_cache_of_the_hub() -> None:
    parquet("blobs/0")
    for revision in ("new", "old"):
        path = Path("photos/snapshots") / revision / "data" / "train-0.parquet"
        path.parent.mkdir(parents=True)
        path.symlink_to(Path("photos/blobs/0").resolve())
    Path("photos/refs").mkdir()
    Path("photos/refs/main").write_text("new")
    assert found() == ({"train": AB}, "")


CONFIGURATIONS = """---
configs:
- config_name: one
  data_files: [{split: train, path: x/*}]
- config_name: two
  data_files: [{split: train, path: y/*}]
---
"""


def test_configurations_of_a_data_set() -> None:
    parquet("x/0.parquet", "y/0.parquet")
    Path("photos/README.md").write_text(CONFIGURATIONS)
    with pytest.raises(UserError, match=r"available configs: \['one', 'two'\].*; give one as hub:\./photos:CONFIG"):
        found()
    assert found("hub:./photos:two")[0] == {"train": AB}


def test_a_configuration_and_a_revision_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*names: str, **settings: str) -> datasets.DatasetDict:
        asked.append((names, settings))
        return datasets.DatasetDict(train=table(TRAIN), testing=table(TEST))

    monkeypatch.setattr(datasets, "load_dataset", load)
    note = "classes: 2 (a, b), from train, column label; test: testing"
    for name in ("me/set", "me/set:small", "me/set@refs/pr/1", "me/set:small@v1.0"):
        assert found(f"hub:{name}") == (FOUR, note)
    with pytest.raises(UserError, match="hub:a:b:c names no data set; give hub:NAME, or hub:NAME:CONFIG@REVISION"):
        found("hub:a:b:c")
    assert asked == [
        (("me/set",), {}),
        (("me/set", "small"), {}),
        (("me/set",), {"revision": "refs/pr/1"}),
        (("me/set", "small"), {"revision": "v1.0"}),
    ]


def test_labels_of_minus_one_that_are_plain_numbers() -> None:
    number = datasets.Value("int64")
    Path("photos").mkdir()
    for name, labels in {"train": TRAIN, "test": SECRET, "dev": TEST}.items():
        table(labels, number).to_parquet(f"photos/{name}.parquet")
    counts = {"0": 2, "1": 2}
    note = "classes: 2 (0, 1), from train, column label; test: dev; not used: test (no labels)"
    assert found() == ({"train": counts, "test": counts}, note)
    table([*TRAIN, -1], number).to_parquet("some.parquet")
    assert "-1 is taken for a class" in found("some.parquet")[1]


def test_images_beside_a_list_of_their_labels() -> None:
    """The Hub's image folders, which have no folder per class."""
    for split in ("train", "test"):
        (Path("photos") / split).mkdir(parents=True)
        for index in range(4):
            (Path("photos") / split / f"{index}.png").write_bytes(PNG)
        lines = ["file_name,label", *(f"{index}.png,{'ab'[index % 2]}" for index in range(4))]
        (Path("photos") / split / "metadata.csv").write_text("\n".join(lines))
    assert found() == (FOUR, "")


# --- ImageNet ------------------------------------------------------------------------------------------------


def test_a_snapshot_of_imagenet_as_its_root() -> None:
    label = datasets.ClassLabel(names=[f"lemma, synonym {number}" for number in range(1000)])
    Path("photos/data").mkdir(parents=True)
    for split, labels in {"train": [701, 0, 217, 701], "validation": [0, 217, 701], "test": [-1]}.items():
        table(labels, label).to_parquet(f"photos/data/{split}-00000-of-00001.parquet")
    counts, _ = found("imagenet", root="photos")
    assert counts["train"] == {"tench": 1, "English-springer": 1, "parachute": 2}
    assert counts["test"] == {"tench": 1, "English-springer": 1, "parachute": 1}


def test_imagenet_below_its_usual_folders() -> None:
    """As Kaggle's archive unpacks."""
    photos(
        *(f"ILSVRC/Data/CLS-LOC/{split}/{name}" for split in ("train", "val") for name in ("n01440764", "n01443537"))
    )
    counts, _ = found("imagenet", root="photos", subset=["tench"])
    assert counts == {"train": {"tench": 2}, "test": {"tench": 2}}


def test_folders_named_by_wordnet_ids() -> None:
    """Stanford Dogs' folders have id and name; a subset or a prior of ImageNet may go by the id alone."""
    photos("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
    source = open_source(DistilledDataRecipe(source="photos"))
    assert choose(["n02085782"], source.classes, source.aliases) == [1]
    names = [[each.name] for each in imagenet.classes()]
    assert numbers_of(source.classes, names, "model_index.json") == [151, 152]


# --- lists of classes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "classes"),
    [
        ("a.txt", "\ufeffcat\r\n\r\ngolden retriever \r\n", ["cat", "golden retriever"]),
        ("a.TXT", "# two\ncat\ndog\n", ["cat", "dog"]),
        ("a.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish", ["n01440764", "n01443537"]),
        ("a.txt", "n02119789 1 kit_fox\nn02100735 2 English_setter", ["n02119789", "n02100735"]),
        ("a.txt", "1 001.Albatross\n2 002.Auk", ["001.Albatross", "002.Auk"]),
        ("a.txt", "7\n5", ["7", "5"]),
        ("a.json", '["cat", 5]', ["cat", 5]),
        ("a.json", '\ufeff{"n01440764": "tench", "n01443537": "goldfish"}', ["n01440764", "n01443537"]),
        ("a.json", '{"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]}', ["n01440764", "n01443537"]),
        ("a.json", '{"dog": 1, "cat": 0}', ["cat", "dog"]),
        ("a.json", '{"0": "cat", "1": "dog"}', ["cat", "dog"]),
        ("a.json", '{"classes": ["cat", "dog"]}', ["cat", "dog"]),
    ],
)
def test_lists_of_classes(name: str, text: str, classes: list[Any]) -> None:
    Path(name).write_bytes(text.encode())
    assert read_class_list(Path(name)) == classes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", r"'a\.json' cannot be read as a list of classes \(JSONDecodeError"),
        ("a.json", b"[" * 100_000, r"'a\.json' cannot be read as a list of classes \(RecursionError"),
        ("a.json", b"null", r"it holds null, no list of classes\); give a list of classes, a \.txt file"),
        ("a.txt", b"\xff\xfec\0", r"'a\.txt' is damaged \(not UTF-8 at byte 0\); give a list"),
        ("a.txt", b"", r"'a\.txt' is empty; give a list"),
    ],
)
def test_lists_of_classes_that_are_none(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_class_list(Path(name))


def test_a_name_that_is_not_there_is_reported_with_what_may_be_given() -> None:
    with pytest.raises(UserError, match=r"'nowhere' is not there; give a folder, Parquet files, hub:<id>, or one of"):
        check_source(DistilledDataRecipe(source="nowhere"))
