"""Several processes: the result of one, bit for bit, and what happens where one of them dies."""

from pathlib import Path

import pytest
import torch
from conftest import draw_shape, latents, make_prior
from processes import command_line, finish, spawn

TEN = [f"class {number}" for number in range(10)]


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of ten classes, two images each, and a prior that knows them."""
    import numpy as np

    folder = tmp_path_factory.mktemp("ten")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for number, name in enumerate(TEN):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                image = draw_shape(["circle", "cross", "square"][number % 3], rng)
                image.rotate(number * 9).save(folder / "data" / split / name / f"{index}.png")
    make_prior(TEN).save(folder / "prior")
    recipe = folder / "ten.yaml"
    recipe.write_text(
        f"""
name: ten
data: {{source: {folder / "data"}, resolution: 16, channels: 1}}
prior: {{source: {folder / "prior"}, steps: 2, guidance: 1, micro_batch: 2}}
distill:
  {{images_per_class: 2, iterations: 30, real_batch: 8, checkpoint_every: 30, lr_latents: 0.1, lr_conditioning: 0.1}}
network: {{width: 8, depth: 2}}
experts: {{count: 3, epochs: 3, batch: 16, folder: {folder / "experts"}}}
"""
    )
    return recipe


OBJECTIVES = {
    "dm": [],
    "dc": ["distill.objective=dc", "distill.dc.outer=3", "distill.dc.inner=2"],
    "mtt": [
        "distill.objective=mtt",
        "distill.mtt.syn_steps=3",
        "distill.mtt.max_start_epoch=1",
        "distill.lr_latents=100",
        "distill.lr_conditioning=100",
    ],
}


def run(count: int, *arguments: object) -> None:
    assert finish(spawn(count, command_line, *arguments)) == [0] * count


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_number_of_processes_gives_the_result_of_one(objective: str, ten_classes: Path, tmp_path: Path) -> None:
    """Shards of 10, 5 + 5, 4 + 3 + 3 and 3 + 3 + 2 + 2 classes; no micro-batch has images of two classes."""
    if objective == "mtt":
        run(1, "experts", ten_classes)
    for count in (1, 2, 3, 4):
        run(count, "distill", ten_classes, *OBJECTIVES[objective], "-o", tmp_path / str(count))
    alone = latents(tmp_path / "1")
    for count in (2, 3, 4):
        shared = latents(tmp_path / str(count))
        print(count, [float((shared[n] - alone[n]).abs().max() / alone[n].abs().max()) for n in "zc"])
    for count in (2, 3, 4):
        shared = latents(tmp_path / str(count))
        assert torch.equal(shared["z"], alone["z"])
        assert torch.equal(shared["c"], alone["c"])
