"""ImageNet as people have it: every layout gives the same images in the same classes, every near miss a line."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from ld3m.data.known import imagenet
from ld3m.data.prepared import ImageSet, prepare
from ld3m.data.sources import open_source
from ld3m.errors import UserError
from ld3m.evaluation.blocks import blocks
from ld3m.recipe import DataRecipe

FOX, SETTER, HUSKY, SNAKE, DUMBBELL = "n02119789", "n02100735", "n02110185", "n01751748", "n03255030"
ILSVRC_IDS = {1: FOX, 2: SETTER, 3: HUSKY, 490: SNAKE, 1000: DUMBBELL}
"""As the devkit's meta.mat and ILSVRC's map_clsloc.txt number classes, which is not the order of WordNet ids."""
NUMBERS = {SNAKE: 65, SETTER: 212, HUSKY: 250, FOX: 278, DUMBBELL: 543}
"""As Caffe's synsets.txt and every pre-trained model do. The first validation image is 490 there and 65 here."""
CHOSEN = [FOX, SNAKE, SETTER]
"""The others are there, too, and must not be taken for these."""


def jpeg(colour: tuple[int, int, int], mode: str = "RGB", kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), colour).convert(mode).save(
        buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    return buffer.getvalue()


COLOURS = {wnid: 40 * (position + 1) for position, wnid in enumerate(NUMBERS)}
TRAIN = {wnid: {f"{wnid}_{index}.JPEG": jpeg((COLOURS[wnid], 30 * index, 0)) for index in range(2)} for wnid in NUMBERS}
VAL = {
    f"ILSVRC2012_val_{number + 1:08d}": (wnid, jpeg((COLOURS[wnid], 10 * number, 200)))
    for number, wnid in enumerate([SNAKE, FOX, DUMBBELL, SETTER, HUSKY, FOX, SNAKE, HUSKY, SETTER, DUMBBELL])
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LD3M_IMAGENET", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def write(path: str | Path, content: bytes | str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tar(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def meta_mat() -> bytes:
    """The columns of the devkit's that say what its numbers mean, with one of the synsets above the thousand."""
    rows = [*((number, wnid, 0) for number, wnid in ILSVRC_IDS.items()), (1001, "n02084071", 118)]
    synsets = np.zeros((len(rows), 1), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for position, row in enumerate(rows):
        synsets[position, 0] = row
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def ground_truth() -> str:
    numbers = {wnid: number for number, wnid in ILSVRC_IDS.items()}
    return "".join(f"{numbers[wnid]}\n" for wnid, _ in VAL.values())


def solution() -> str:
    """As Kaggle has it: in no order, with a box for each object."""
    lines = [f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for name, (wnid, _) in VAL.items()]
    return "\n".join(["ImageId,PredictionString", *reversed(lines), ""])


# --- layouts -------------------------------------------------------------------------------------------------


def train_folders(root: str = "set") -> None:
    for wnid, images in TRAIN.items():
        for name, content in images.items():
            write(f"{root}/train/{wnid}/{name}", content)


def flat_val(root: str = "set") -> None:
    for name, (_, content) in VAL.items():
        write(f"{root}/val/{name}.JPEG", content)


def folders() -> None:
    train_folders()
    for name, (wnid, content) in VAL.items():
        write(f"set/val/{wnid}/{name}.JPEG", content)


def from_a_mac() -> None:
    """With what macOS leaves in every folder, and its resource forks beside every file."""
    folders()
    for folder in [*Path("set").rglob("n*/"), Path("set")]:
        write(folder / ".DS_Store", b"\0\0\0\1Bud1")
        write(folder / "._n01751748_0.JPEG", b"\0\5\x16\7")


def csv_in_the_root() -> None:
    train_folders()
    flat_val()
    write("set/LOC_val_solution.csv", solution())


def csv_beside_the_images_with_windows_lines() -> None:
    train_folders()
    flat_val()
    write("set/val/LOC_val_solution.csv", "\ufeff" + solution().replace("\n", "\r\n"))


def devkit() -> None:
    train_folders()
    flat_val()
    write("set/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", ground_truth())
    write("set/ILSVRC2012_devkit_t12/data/meta.mat", meta_mat())


def devkit_as_a_tar() -> None:
    train_folders()
    flat_val()
    parts = {"ILSVRC2012_validation_ground_truth.txt": ground_truth().encode(), "meta.mat": meta_mat()}
    content = tar({f"ILSVRC2012_devkit_t12/data/{name}": part for name, part in parts.items()}, "w:gz")
    write("set/ILSVRC2012_devkit_t12.tar.gz", content)


def torchvision() -> None:
    train_folders()
    flat_val()
    names = {wnid: (imagenet.classes()[number].name,) for wnid, number in NUMBERS.items()}
    torch.save((names, [wnid for wnid, _ in VAL.values()]), "set/meta.bin")


def tensorflow() -> None:
    train_folders()
    flat_val()
    write("set/imagenet_2012_validation_synset_labels.txt", "".join(f"{wnid}\n" for wnid, _ in VAL.values()))


def caffe() -> None:
    train_folders()
    flat_val()
    write("set/val.txt", "".join(f"{name}.JPEG {NUMBERS[wnid]}\n" for name, (wnid, _) in VAL.items()))


def ids_in_names() -> None:
    """As in the archives that the Hub's repository once had."""
    for images in TRAIN.values():
        for name, content in images.items():
            write(f"set/train/{name.replace('.', f'_{name[:9]}.')}", content)
    for name, (wnid, content) in VAL.items():
        write(f"set/val/{name}_{wnid}.JPEG", content)


def kaggle() -> None:
    train_folders("set/ILSVRC/Data/CLS-LOC")
    flat_val("set/ILSVRC/Data/CLS-LOC")
    write("set/ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG", jpeg((0, 0, 0)))
    write(f"set/ILSVRC/Annotations/CLS-LOC/train/{FOX}/{FOX}_0.xml", "<annotation/>")
    write("set/ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml", "<annotation/>")
    lines = [f"{name} {number}\n" for number, name in enumerate(VAL, 1)]  # numbers of images, not of classes
    write("set/ILSVRC/ImageSets/CLS-LOC/val.txt", "".join(lines))
    write("set/LOC_val_solution.csv", solution())
    write("set/LOC_synset_mapping.txt", "n02119789 kit fox, Vulpes macrotis\n")


def official_tars() -> None:
    write("set/ILSVRC2012_img_train.tar", tar({f"{wnid}.tar": tar(images) for wnid, images in TRAIN.items()}))
    write("set/ILSVRC2012_img_val.tar", tar({f"{name}.JPEG": content for name, (_, content) in VAL.items()}))
    write("set/ILSVRC2012_img_test_v10102019.tar", tar({"test/ILSVRC2012_test_00000001.JPEG": jpeg((0, 0, 0))}))
    write("set/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", ground_truth())
    write("set/ILSVRC2012_devkit_t12/data/meta.mat", meta_mat())


def class_tars() -> None:
    """Half unpacked: a class is a tar, one a folder, one both, of which the folder is not whole."""
    for wnid, images in TRAIN.items():
        if wnid == FOX:
            for name, content in images.items():
                write(f"set/train/{wnid}/{name}", content)
        else:
            write(f"set/train/{wnid}.tar", tar({"._x.JPEG": b"\0\5", **{f"./{key}": images[key] for key in images}}))
    write(f"set/train/{SETTER}/{SETTER}_0.JPEG", TRAIN[SETTER][f"{SETTER}_0.JPEG"][:99])
    write("set/val.tar", tar({f"val/{wnid}/{name}.JPEG": content for name, (wnid, content) in VAL.items()}))


def shards() -> None:
    """As webdataset has them, each with images of all classes and other files beside."""
    for index in range(2):
        images = {name: content for several in TRAIN.values() for name, content in list(several.items())[index::2]}
        others = {name.replace("JPEG", "cls"): b"278" for name in images}
        write(f"set/imagenet1k-train-{index:04d}.tar", tar(images | others))
    write("set/imagenet1k-val.tar", tar({f"{wnid}_{name}.jpg": content for name, (wnid, content) in VAL.items()}))


def compvis() -> None:
    """As the code that the LDM of ImageNet was trained by lays it out."""
    folders()
    write("set/ILSVRC2012_train/.ready", "")
    Path("set/train").rename("set/ILSVRC2012_train/data")
    flat_val("set/ILSVRC2012_validation")
    Path("set/ILSVRC2012_validation/val").rename("set/ILSVRC2012_validation/data")
    for path in sorted(Path("set/val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path("set/val").rmdir()
    lines = [f"{name}.JPEG {wnid}\n" for name, (wnid, _) in VAL.items()]
    write("set/ILSVRC2012_validation/validation_synset.txt", "".join(lines))


LAYOUTS: list[Callable[[], None]] = [
    folders, from_a_mac, csv_in_the_root, csv_beside_the_images_with_windows_lines, devkit, devkit_as_a_tar,
    torchvision, tensorflow, caffe, ids_in_names, kaggle, official_tars, class_tars, shards,
    compvis,
]  # fmt: skip


def prepared(root: str = "set", subset: object = CHOSEN) -> ImageSet:
    return prepare(DataRecipe.model_validate({"source": "imagenet", "root": root, "subset": subset, "resolution": 8}))


def pixels(images: ImageSet) -> torch.Tensor:
    """All images [4 × classes, 3, 8, 8]: of each class two to train on, then two to test on."""
    splits = [images.images(split, label) for label in range(len(images.classes)) for split in ("train", "test")]
    return torch.cat(splits)


def expected() -> torch.Tensor:
    """The colours of the images, in the order of `pixels`."""
    rows = []
    for wnid in CHOSEN:
        rows += [(COLOURS[wnid], 30 * index, 0) for index in range(2)]
        rows += [(COLOURS[wnid], 10 * n, 200) for n, (label, _) in enumerate(VAL.values()) if label == wnid]
    return torch.tensor(rows).float()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_images(layout: Callable[[], None], tmp_path: Path) -> None:
    layout()
    images = prepared()
    assert images.ids == [NUMBERS[wnid] for wnid in CHOSEN]
    assert images.classes == ["kit-fox", "sea-snake", "English-setter"]
    colours = pixels(images).float().mean((2, 3))
    assert (colours - expected()).abs().max() <= 3  # JPEG's rounding; classes are 40 apart, images 10 and more
    reference = {name: Image.open(io.BytesIO(content)) for name, content in TRAIN[FOX].items()}
    first = np.asarray(next(iter(reference.values())).convert("RGB"))[0, 0]
    assert pixels(images)[0, :, 0, 0].tolist() == first.tolist()  # and none is encoded again


def test_prepared_pixels_are_equal_bit_for_bit() -> None:
    kaggle()
    one = pixels(prepared())
    Path("set").rename("other")
    official_tars()
    assert torch.equal(one, pixels(prepared()))


# --- near misses -------------------------------------------------------------------------------------------


def without_ground_truth() -> None:
    official_tars()
    Path("set/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").unlink()


def without_meta() -> None:
    devkit()
    Path("set/ILSVRC2012_devkit_t12/data/meta.mat").unlink()


def fewer_lines() -> None:
    devkit()
    write("set/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "490\n1\n1000\n")


def an_unknown_number() -> None:
    devkit()
    write("set/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "490\n" * 9 + "7\n")


def no_devkit_at_all() -> None:
    train_folders()
    flat_val()
    write("set/ILSVRC2012_devkit_t12.tar.gz", tar({"ILSVRC2012_devkit_t12/readme.txt": b""}, "w:gz"))


def a_cut_devkit() -> None:
    devkit_as_a_tar()
    path = Path("set/ILSVRC2012_devkit_t12.tar.gz")
    path.write_bytes(path.read_bytes()[:-100])


def images_that_are_not_there() -> None:
    csv_in_the_root()
    Path("set/val/ILSVRC2012_val_00000002.JPEG").unlink()


def images_that_are_not_listed() -> None:
    csv_in_the_root()
    write("set/LOC_val_solution.csv", "ImageId,PredictionString\n" + "\n".join(solution().splitlines()[3:]))


def two_classes_for_one() -> None:
    csv_in_the_root()
    write("set/LOC_val_solution.csv", solution() + f"ILSVRC2012_val_00000001,{FOX} 1 2 3 4\n")


def a_pointer_to_a_list() -> None:
    csv_in_the_root()
    write("set/LOC_val_solution.csv", "version https://git-lfs.github.com/spec/v1\n")


def a_link_that_leads_nowhere() -> None:
    official_tars()
    Path("set/ILSVRC2012_img_train.tar").unlink()
    Path("set/ILSVRC2012_img_train.tar").symlink_to("/nowhere/ILSVRC2012_img_train.tar")


def a_pickle_with_more() -> None:
    torchvision()
    torch.save((Path("x"), [wnid for wnid, _ in VAL.values()]), "set/meta.bin")


def a_cut_tar() -> None:
    official_tars()
    path = Path("set/ILSVRC2012_img_train.tar")
    path.write_bytes(path.read_bytes()[:-12_000])


def a_tar_cut_between_files() -> None:
    official_tars()
    content = tar({f"{wnid}.tar": tar(images) for wnid, images in TRAIN.items()}).rstrip(b"\0")
    write("set/ILSVRC2012_img_train.tar", content + bytes(-len(content) % 512))


def a_tar_within_that_is_cut() -> None:
    official_tars()
    parts = {f"{wnid}.tar": tar(images)[: 1024 if wnid == SNAKE else None] for wnid, images in TRAIN.items()}
    write("set/ILSVRC2012_img_train.tar", tar(parts))


def a_tar_made_ready_but_not_filled() -> None:
    """As torrents and some download programs leave it: of full size, with zeros in it."""
    official_tars()
    content = Path("set/ILSVRC2012_img_train.tar").read_bytes()
    write("set/ILSVRC2012_img_train.tar", content + bytes(2**20))


def a_compressed_tar() -> None:
    official_tars()
    write("set/ILSVRC2012_img_train.tar", tar({f"{FOX}.tar": b""}, "w:gz"))


def a_tar_of_something_else() -> None:
    official_tars()
    Path("set/ILSVRC2012_img_train.tar").unlink()
    write("set/train.tar", tar({"readme.txt": b"", "photo.JPEG": jpeg((1, 2, 3))}))


def a_class_tar_that_is_missing() -> None:
    class_tars()
    Path(f"set/train/{SNAKE}.tar").unlink()


def another_year() -> None:
    official_tars()
    Path("set/ILSVRC2012_img_train.tar").rename("set/ILSVRC2010_images_train.tar")


def compressed_archives() -> None:
    write("set/ILSVRC2017_CLS-LOC.tar.gz", b"\x1f\x8b")


def a_split_itself() -> None:
    folders()
    Path("set/train").rename("train")
    Path("train").rename("set2")
    Path("set").rename("other")
    Path("set2").rename("set")


def sorted_in_part() -> None:
    csv_in_the_root()
    for name in list(VAL)[:3]:
        write(f"set/val/{VAL[name][0]}/{name}.JPEG", b"").unlink()
        Path(f"set/val/{name}.JPEG").rename(f"set/val/{VAL[name][0]}/{name}.JPEG")


def several_sets() -> None:
    folders()
    Path("set").rename("other")
    for name in ("imagenette2-160", "imagenette2-320"):
        write(f"set/{name}/train/{FOX}/{FOX}_0.JPEG", jpeg((0, 0, 0)))


def no_validation() -> None:
    train_folders()
    write("set/ILSVRC2012_img_test.tar", tar({"ILSVRC2012_test_00000001.JPEG": jpeg((0, 0, 0))}))


NEAR_MISSES: dict[Callable[[], None], str] = {
    without_ground_truth: "data.root: set/ILSVRC2012_img_val.tar is not sorted by class; add a list of its classes "
    "(LOC_val_solution.csv or ILSVRC2012_devkit_t12.tar.gz), or move",
    without_meta: "set/val has images without classes: set/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_"
    "truth.txt numbers them by ILSVRC's own ids; add the devkit's meta.mat",
    fewer_lines: "has 3 lines, but set/val has 10 images, and ImageNet 50,000; download it again",
    an_unknown_number: "has '7' as its label 10, which is no class",
    no_devkit_at_all: "set/ILSVRC2012_devkit_t12.tar.gz does not hold ILSVRC2012_validation_ground_truth.txt and",
    a_cut_devkit: "set/ILSVRC2012_devkit_t12.tar.gz cannot be read as a devkit",
    images_that_are_not_there: "set/LOC_val_solution.csv names ILSVRC2012_val_00000002 of the classes that are used, "
    "but set/val does not have it; copy",
    images_that_are_not_listed: "set/val has ILSVRC2012_val_00000009.JPEG and 1 others, which set/LOC_val_"
    "solution.csv does not name among its 8",
    two_classes_for_one: f"has the WordNet ids {SNAKE} and {FOX} for ILSVRC2012_val_00000001 in line 12, not one",
    a_pointer_to_a_list: "set/LOC_val_solution.csv is a Git LFS pointer",
    a_link_that_leads_nowhere: "labelled images of ILSVRC 2012), ILSVRC2012_img_train.tar (no regular file)",
    a_pickle_with_more: "set/meta.bin does not hold torchvision's names and ids, or more than that",
    a_cut_tar: "set/ILSVRC2012_img_train.tar is not whole: it has 49,440 bytes, ImageNet's own 147,897,477,120",
    a_tar_cut_between_files: "set/ILSVRC2012_img_train.tar is not whole",
    a_tar_within_that_is_cut: f"set/ILSVRC2012_img_train.tar/{SNAKE}.tar is not whole",
    a_tar_made_ready_but_not_filled: "set/ILSVRC2012_img_train.tar is not whole",
    a_compressed_tar: "set/ILSVRC2012_img_train.tar is compressed by gzip; unpack it first",
    a_tar_of_something_else: "data.root: set/train.tar is not sorted by class; it needs folders or tars of classes",
    a_class_tar_that_is_missing: f"set/train does not have {SNAKE}, the class 'sea-snake', but 4 others (n02100735,",
    another_year: "data.root: set has no training split: train/n01440764/…, ILSVRC2012_img_train.tar, or train/"
    "n01440764.tar …; found ILSVRC2010_images_train.tar (ILSVRC2010: not the labelled",
    compressed_archives: "found ILSVRC2017_CLS-LOC.tar.gz (compressed; unpack it)",
    a_split_itself: "; it looks like a split itself: give the folder above it",
    sorted_in_part: "set/val is sorted in part: ILSVRC2012_val_000000",
    several_sets: "data.root: set holds several sets; give one of set/imagenette2-160, set/imagenette2-320",
    no_validation: "data.root: set has no validation split: val/n01440764/…, or val/*.JPEG or ILSVRC2012_img_val",
}  # fmt: skip


@pytest.mark.parametrize("layout", NEAR_MISSES, ids=lambda layout: layout.__name__)
def test_a_near_miss_says_what_was_found_and_what_is_wanted(layout: Callable[[], None]) -> None:
    layout()
    with pytest.raises(UserError) as error:
        open_source(DataRecipe(source="imagenet", root="set", subset=CHOSEN))
    assert NEAR_MISSES[layout] in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 330


# --- what is said --------------------------------------------------------------------------------------------


def note(**settings: object) -> str:
    return open_source(DataRecipe.model_validate({"source": "imagenet", "subset": CHOSEN, **settings})).note


def test_a_guess_is_said_and_the_plain_layout_is_not() -> None:
    folders()
    assert note(root="set") == ""
    Path("set").rename("other")
    official_tars()
    gt = "set/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    tars = ("set/ILSVRC2012_img_train.tar", "set/ILSVRC2012_img_val.tar")
    assert note(root="set") == f"ImageNet in set, train: {tars[0]}, test: {tars[1]} by {gt}; 3 classes"


def test_a_usual_place_is_taken_after_data_root_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    folders()
    Path("home/data").mkdir(parents=True)
    Path("imagenet").mkdir()  # a project of that name, with nothing of ImageNet in it
    write("imagenet/main.py", "")
    Path("set").rename("home/data/imagenet")
    assert note().startswith(
        f"ImageNet in {Path('home').absolute()}/data/imagenet (a usual place; data.root would name "
    )
    csv_in_the_root()
    monkeypatch.setenv("LD3M_IMAGENET", "set")
    assert note().startswith(
        "ImageNet in set (LD3M_IMAGENET), train: set/train, test: set/val by set/LOC_val_solution.csv"
    )
    assert note(root="home/data/imagenet") == ""


def test_the_folder_of_any_level_of_kaggles_is_enough() -> None:
    kaggle()
    whole = pixels(prepared())
    for root in ("set/ILSVRC", "set/ILSVRC/Data", "set/ILSVRC/Data/CLS-LOC"):
        assert torch.equal(pixels(prepared(root)), whole)


def test_a_sorted_folder_is_preferred_to_a_list_and_both_to_tars() -> None:
    csv_in_the_root()
    for name, (wnid, content) in VAL.items():
        write(f"set/val_sorted/{wnid}/{name}.JPEG", content)
    write("set/ILSVRC2012_img_val.tar", b"not looked at")
    write("set/ILSVRC2012_img_train.tar", b"nor is this")
    assert "train: set/train, test: set/val_sorted;" in note(root="set")


def test_what_is_unpacked_in_part_yields_to_the_tar() -> None:
    official_tars()
    write(f"set/train/{FOX}/{FOX}_0.JPEG", TRAIN[FOX][f"{FOX}_0.JPEG"])
    assert "train: set/ILSVRC2012_img_train.tar" in note(root="set")
    assert "train: set/train" in note(root="set", subset=[FOX])


def test_indices_of_tars_are_kept_until_the_tar_changes(tmp_path: Path) -> None:
    official_tars()
    first = prepared()
    kept = sorted((tmp_path / "cache" / "tars").glob("*.json"))
    assert len(kept) == 2 + len(CHOSEN)  # both tars, and those of the chosen classes
    Path("set/ILSVRC2012_img_train.tar").touch()
    assert prepared().folder == first.folder  # small ones are compared by content
    kept[0].write_bytes(kept[0].read_bytes().replace(b"0", b"1"))
    assert prepared().folder == first.folder  # damage to an index is noticed
    train = {f"{wnid}.tar": tar({name: jpeg((9, 9, 9)) for name in images}) for wnid, images in TRAIN.items()}
    write("set/ILSVRC2012_img_train.tar", tar(train))
    assert pixels(prepared())[0].float().mean() == pytest.approx(9, abs=1)


# --- images as they are --------------------------------------------------------------------------------------


def test_images_of_all_kinds_are_read_in_tars_as_in_folders() -> None:
    """One of ImageNet's JPEGs is a PNG, some are CMYK or grey; a broken one is named with its tar."""
    kinds = {"a": jpeg((200, 100, 50), kind="PNG"), "b": jpeg((200, 100, 50), "CMYK"), "c": jpeg((90, 90, 90), "L")}
    official_tars()
    train = {f"{wnid}.tar": tar({f"{name}.JPEG": kinds[name] for name in kinds}) for wnid in NUMBERS}
    write("set/ILSVRC2012_img_train.tar", tar(train))
    colours = prepared().images("train", 0).float().mean((2, 3))
    assert (colours - torch.tensor([[200.0, 100, 50], [200, 100, 50], [90, 90, 90]])).abs().max() <= 3
    write("set/ILSVRC2012_img_train.tar", tar(train | {f"{SNAKE}.tar": tar({"d.JPEG": jpeg((1, 2, 3))[:80]})}))
    with pytest.raises(UserError, match=rf"cannot read set/ILSVRC2012_img_train.tar/{SNAKE}.tar/d.JPEG \("):
        prepared()


# --- sets of fewer classes -----------------------------------------------------------------------------------


def small_set(root: str, wnids: list[str], train: str = "train", val: str = "val") -> None:
    for number, wnid in enumerate(wnids):
        write(f"{root}/{train.format(number % 4 + 1)}/{wnid}/{wnid}_{number}.JPEG", jpeg((number, 0, 0)))
        write(f"{root}/{val}/{wnid}/ILSVRC2012_val_{number:08d}.JPEG", jpeg((number, 0, 200)))


@pytest.mark.parametrize("name", ["imagenette", "imagewoof"])
def test_fastais_sets_are_whole_without_a_subset_and_their_splits_are_flagged(name: str) -> None:
    numbers = imagenet.subsets()[name]
    small_set(f"{name}2-160", [imagenet.classes()[number].wordnet_id for number in numbers])
    write(f"{name}2-160/noisy_{name}.csv", "path,noisy_labels_0\n")
    images = prepared(f"{name}2-160", None)
    assert images.ids == numbers
    assert "; 10 classes, its own; " in note(root=f"{name}2-160", subset=None)
    assert images.caveat == (
        f"{name}2-160 has splits of its own: accuracies are not comparable with those on ImageNet's splits"
    )
    assert note(root=f"{name}2-160", subset=name) == images.caveat
    row = {"trained_on": "full", "arch": "convnet", "split": "test", "mean": 50.0, "std": None, "accuracies": [50.0],
           "images": 10, "tested_on": 100, "protocol": {"epochs": 1}}  # fmt: skip
    assert blocks({"results": [row], "caveat": images.caveat})[0].notes == [images.caveat]
    with pytest.raises(UserError, match=rf"{name}2-160/train does not have n\d{{8}}, .* others \(all of {name}\); set"):
        note(root=f"{name}2-160", subset="a")


def test_mixed_splits_are_flagged_by_the_names_of_images() -> None:
    folders()
    assert open_source(DataRecipe(source="imagenet", root="set", subset=CHOSEN)).caveat == ""
    write(f"set/val/{FOX}/{FOX}_9.JPEG", jpeg((0, 0, 0)))
    assert "mixed here" in open_source(DataRecipe(source="imagenet", root="set", subset=CHOSEN)).caveat


def tiny() -> None:
    """Of Tiny ImageNet: boxes beside the images of each class, a flat val/ with its list, test/ without classes."""
    for wnid, images in TRAIN.items():
        for name, content in images.items():
            write(f"tiny-imagenet-200/train/{wnid}/images/{name}", content)
        write(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    lines = []
    for number, (wnid, content) in enumerate(VAL.values()):
        write(f"tiny-imagenet-200/val/images/val_{number}.JPEG", content)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    write("tiny-imagenet-200/val/val_annotations.txt", "".join(lines))
    write("tiny-imagenet-200/test/images/test_0.JPEG", jpeg((0, 0, 0)))
    write("tiny-imagenet-200/wnids.txt", "\n".join([HUSKY, *CHOSEN, DUMBBELL]))


def test_tiny_imagenet_as_imagenet_and_as_a_folder() -> None:
    tiny()
    images = prepared("tiny-imagenet-200")
    assert (pixels(images).float().mean((2, 3)) - expected()).abs().max() <= 3
    assert images.caveat.startswith("Tiny ImageNet has splits")
    assert prepared("tiny-imagenet-200", None).ids == [NUMBERS[wnid] for wnid in [HUSKY, *CHOSEN, DUMBBELL]]
    folder = DataRecipe(source="tiny-imagenet-200", subset=list(CHOSEN), resolution=8)
    assert torch.equal(pixels(prepare(folder)), pixels(images))
    assert "test: tiny-imagenet-200/val by tiny-imagenet-200/val/val_annotations.txt" in open_source(folder).note


def test_imagenet_100_in_parts() -> None:
    wnids = [imagenet.classes()[number].wordnet_id for number in range(100, 110)]
    small_set("set", wnids, "train.X{}", "val.X")
    write("set/Labels.json", json.dumps(dict.fromkeys(reversed(wnids), "a name, another")))
    images = prepared("set", None)
    assert images.ids == list(range(109, 99, -1))
    assert images.images("train", 0)[0, 0].float().mean() == pytest.approx(9, abs=1)
    write(f"set/train.X3/{wnids[0]}/x.JPEG", jpeg((0, 0, 0)))
    with pytest.raises(UserError, match=rf"set/train.X1 and set/train.X3 both have the class {wnids[0]}"):
        prepared("set", None)


def test_tables_of_the_hub_on_disk() -> None:
    label = datasets.ClassLabel(names=[f"lemma {number}" for number in range(1000)])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    val = [(wnid, content) for wnid, content in VAL.values()]
    train = [(wnid, content) for wnid, images in TRAIN.items() for content in images.values()]
    Path("imagenet/data").mkdir(parents=True)
    for split, rows in {"train": train, "validation": val, "test": [("", jpeg((0, 0, 0)))]}.items():
        columns = {
            "image": [{"bytes": content, "path": None} for _, content in rows],
            "label": [NUMBERS.get(wnid, -1) for wnid, _ in rows],
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(f"imagenet/data/{split}-00000-of-00001.parquet")
    images = prepared("imagenet")
    assert (pixels(images).float().mean((2, 3)) - expected()).abs().max() <= 3
    assert note().startswith("ImageNet in imagenet (a usual place; data.root would name another); classes: 1000")


def test_a_prompt_has_english_for_an_id() -> None:
    assert imagenet.in_english(SETTER) == "English setter"
    assert [imagenet.in_english(name) for name in ("n00000001", "my_cat", "great-white-shark")] == [
        "n00000001", "my_cat", "great-white-shark",
    ]  # fmt: skip
