"""Layouts of other projects: as their code reads them, and back by our own importer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, Outcome
from PIL import Image

from ld3m.data.known import imagenet
from ld3m.errors import UserError
from ld3m.publishing.export import LAYOUTS, export
from ld3m.runs.folder import note_classes
from ld3m.runs.imported import find_set
from ld3m.runs.result import read_images


@pytest.fixture
def run(random_images: Path) -> Path:
    return random_images


def pixels(folder: Path) -> torch.Tensor:
    return read_images(folder, CLASSES, 1, 16)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_exported_comes_back(layout: str, run: Path, recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    outcome = ld3m("export", run, "--as", layout)
    assert outcome.out == f"{run / 'export' / layout}: 2 images per class\n", outcome.err
    back = find_set([str(run / "export" / layout)], str(recipe_file))
    assert torch.equal(pixels(back), pixels(run))


def test_rded_reads_it(run: Path) -> None:
    """As `ImageFolder` of its validation/utils.py: folders of five digits below the root, any files in them."""
    root = export(run, "rded")
    for label in range(3):
        files = sorted((root / str(label).zfill(5)).iterdir())
        assert [file.name for file in files] == [f"class{label:05d}_id{index:05d}.png" for index in range(2)]
        assert (np.asarray(Image.open(files[1])) == pixels(run)[2 * label + 1, 0].numpy()).all()
    assert (root / "class_order.txt").read_text().split() == CLASSES


def test_rethinkdc_reads_it(run: Path) -> None:
    """As `ImageFolderIPC` of rethinkdc/imagenet_ipc.py: all in the root is listed; the first by name count."""
    root = export(run, "rethinkdc")
    assert sorted(each.name for each in root.iterdir()) == CLASSES
    first = sorted(file.name for file in (root / "cross").iterdir())[:1]
    assert (np.asarray(Image.open(root / "cross" / first[0])) == pixels(run)[2, 0].numpy()).all()


def test_idc_reads_it(run: Path) -> None:
    """As its test.py does: two tensors, whose images count from 0 to 1."""
    data, target = torch.load(export(run, "pt") / "data.pt")
    assert torch.equal(data, pixels(run) / 255)
    assert target.tolist() == [0, 0, 1, 1, 2, 2]


def test_classes_of_imagenet_are_called_by_their_ids(run: Path) -> None:
    """As folders of Minimax and the benchmarks of ImageNet are."""
    chosen = [imagenet.classes()[number] for number in (5, 0, 999)]
    for each, name in zip(chosen, CLASSES, strict=True):
        (run / "images" / name).rename(run / "images" / each.name)
    note_classes(run, {each.name: number for each, number in zip(chosen, (5, 0, 999), strict=True)})
    text = (run / "recipe.yaml").read_text()
    source = next(line for line in text.splitlines() if line.strip().startswith("source:"))
    (run / "recipe.yaml").write_text(text.replace(source, "  source: imagenet", 1))
    assert sorted(each.name for each in export(run, "folder").iterdir()) == sorted(each.wordnet_id for each in chosen)
    order = (export(run, "rded") / "class_order.txt").read_text().split()
    assert order == [each.wordnet_id for each in chosen]


def test_only_earlier_exports_are_replaced(run: Path, tmp_path: Path) -> None:
    target = export(run, "folder", tmp_path / "out")
    (target / "circle" / "00001.png").unlink()
    assert len(list(export(run, "folder", target).rglob("*.png"))) == 6
    (target / "circle" / "photo.jpg").write_bytes(b"dear")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(target)
    refused = {
        target: r"out holds what this export would not write \(circle/photo.jpg\); give another folder",
        run: "is a run; give a folder of your own",
        run / "images": r"holds what this export would not write \(circle/0.png, circle/1.png, …\)",
        tmp_path / "file": "is a file; give a folder",
        tmp_path / "link": "is a link; give a folder",
    }
    for output, line in refused.items():
        with pytest.raises(UserError, match=line):
            export(run, "folder", output)
    assert (target / "circle" / "photo.jpg").read_bytes() == b"dear"
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".tmp")] == []


def test_what_cannot_be_exported_is_one_line(run: Path, tmp_path: Path, ld3m: Callable[..., Outcome]) -> None:
    outcome = ld3m("export", run, "--as", "tar")
    assert outcome.err == "ld3m: --as: 'tar' is not known; give folder, rded, rethinkdc, pt\n"
    (run / "images" / "cross" / "1.png").write_bytes(b"no image")
    for layout in LAYOUTS:
        outcome = ld3m("export", run, "--as", layout, "-o", tmp_path / "out")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "cannot read" in outcome.err
        assert not (tmp_path / "out").exists()
