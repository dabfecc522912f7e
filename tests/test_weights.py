"""Weights of images: each counts by its own in the loss of networks, and stays with its image wherever a set goes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, Outcome
from test_together import CPU, MIXED, few, how
from torch import Tensor, nn
from torch.nn import functional

from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError
from ld3m.evaluation.blocks import blocks
from ld3m.evaluation.together import Share
from ld3m.evaluation.training import shown_in_epoch, train
from ld3m.images.transforms import CutMix
from ld3m.machine.processes import Processes
from ld3m.networks.training import divergence
from ld3m.publishing.export import LAYOUTS, export
from ld3m.recipe import DataRecipe, Recipe
from ld3m.recipe.files import load, to_yaml
from ld3m.reporting.report import report
from ld3m.runs import training_set, weights
from ld3m.runs.imported import find_set
from ld3m.runs.result import read_images

OF_CLASSES = {"circle": [0.5, 1.5], "cross": [1.0, 1.0], "square": [0.25, 1.75]}
FLAT = torch.tensor([0.5, 1.5, 1.0, 1.0, 0.25, 1.75])


@pytest.fixture(scope="module")
def images(shapes: Path) -> ImageSet:
    return prepare(DataRecipe(source=str(shapes), resolution=16, channels=1), progress=False)


@pytest.fixture
def run(random_images: Path) -> Path:
    return random_images


class Teacher:
    """Soft labels that depend on the image alone: its mean over rows, of three bands."""

    @property
    def about(self) -> dict[str, Any]:
        return {}

    def check(self, how: object) -> None:
        pass

    def view(self, view: tuple[int, int, int]) -> tuple[int, int, int]:
        return view

    def __call__(
        self, images: Tensor, indices: Tensor, epoch: int, mix: CutMix | None, own: Tensor | None = None
    ) -> Tensor:
        return images[:, :, :15].unflatten(2, (3, 5)).mean((1, 3, 4)) * 10


# --- the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("changes", [{}, MIXED], ids=["plain", "mixed"])
def test_an_image_counts_by_its_weight(images: ImageSet, labels: str, changes: dict[str, Any]) -> None:
    """The loss of a batch by hand: each label's part of each image times the weight, over the images of the batch."""
    protocol = replace(how(**changes), labels=labels, temperature=2.0)
    seen, targets = few(images)
    counted = torch.rand(12, generator=torch.Generator().manual_seed(1)) + 0.5
    batch = torch.tensor([3, 11, 0, 7, 5])
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))

    def shown(own: Tensor | None) -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(3)
        soft = Teacher() if labels == "soft" else None
        return shown_in_epoch(seen, targets, images, protocol, draws, 0, soft, None, own)(batch)

    inputs, *plain = shown(None)
    again, *weighted = shown(counted)
    assert torch.equal(inputs, again), "weights change no image"
    mixed = CutMix.draw(torch.Generator().manual_seed(0), 5, 16) if changes else None
    share, partners = _mix(images, protocol, batch, targets) if mixed else (1.0, torch.arange(5))
    own, other = counted[batch], counted[batch[partners]]
    if labels == "hard":
        each, others = functional.log_softmax(logits, 1), targets[batch[partners]]
        by_hand = -share * own * each[range(5), targets[batch]] - (1 - share) * other * each[range(5), others]
        assert functional.cross_entropy(logits, *weighted) == pytest.approx(float(by_hand.mean()), rel=1e-5)
    else:
        wanted = (plain[0] / 2).softmax(1)
        each = (wanted * (wanted.log() - (logits / 2).log_softmax(1))).sum(1)
        by_hand = (share * own + (1 - share) * other) * each
        assert divergence(2.0, False)(logits, *weighted) == pytest.approx(float(by_hand.mean()), rel=1e-5)


def _mix(images: ImageSet, protocol: Any, batch: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """The share and the partners of a batch's CutMix, read from how it mixes one-hot numbers of its images."""
    numbered = replace(images, classes=[str(index) for index in range(12)])
    draws = torch.Generator().manual_seed(3)
    hard = replace(protocol, labels="hard")
    _, shares = shown_in_epoch(few(images)[0], torch.arange(12), numbered, hard, draws, 0, None)(batch)
    own = shares[range(5), batch]
    share = float(own.min())
    left = shares.clone()
    left[range(5), batch] -= share
    return share, torch.stack([(batch == each).nonzero()[0, 0] for each in left.argmax(1)])


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_equal_weights_change_nothing_and_unequal_ones_do(images: ImageSet, labels: str, tmp_path: Path) -> None:
    protocol = replace(how(**MIXED, epochs=2, lr=0.1, ema=0), labels=labels)
    soft: Any = Teacher() if labels == "soft" else None

    def trained(counted: Tensor | None) -> dict[str, Tensor]:
        return train("convnet", *few(images), images, protocol, (0, 1), CPU, soft, weights=counted).state_dict()

    plain, ones, doubled = trained(None), trained(torch.ones(12)), trained(torch.linspace(0, 2, 12))
    assert all(torch.allclose(plain[name], ones[name], atol=1e-5) for name in plain)
    assert any(not torch.allclose(plain[name], doubled[name], atol=1e-4) for name in plain)
    weights.write(tmp_path, {name: [1.0, 1.0] for name in CLASSES})
    assert not (tmp_path / weights.FILE).exists(), "weights that are all the same are none: figures stay to the digit"


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_processes_share_a_weighted_batch(images: ImageSet, labels: str) -> None:
    """The mean over processes of the shares' losses is the loss of the batch."""
    protocol = replace(how(**MIXED), labels=labels)
    counted, batch = torch.linspace(0.1, 1.9, 12), torch.tensor([3, 11, 0, 7, 5])
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(3, 256, generator=torch.Generator().manual_seed(4)) / 16)

    def loss(share: Share | None) -> float:
        soft = Teacher() if labels == "soft" else None
        draws = torch.Generator().manual_seed(3)
        shown = shown_in_epoch(*few(images), images, protocol, draws, 0, soft, share, counted)
        own: Callable[..., Tensor] = divergence(1.0, False) if labels == "soft" else functional.cross_entropy
        inputs, *targets = shown(batch)
        return float((share.weighted(own) if share else own)(network(inputs), *targets).detach())

    shares = [loss(Share(Processes(CPU, rank, 2))) for rank in range(2)]
    assert sum(shares) / 2 == pytest.approx(loss(None), rel=1e-5)


# --- the file ----------------------------------------------------------------------------------------------


def test_ratios_count(tmp_path: Path) -> None:
    """Shares of a class's images, as DDOQ has them, are divided by their mean, so that the learning rate stays."""
    (tmp_path / weights.FILE).write_text('{"a": [0.2, 0.8], "b": [1, 0]}')
    assert weights.read(tmp_path, {"a": 2, "b": 2}) == {"a": [0.4, 1.6], "b": [2, 0]}
    assert weights.text({"a": [0.4, 1.6]}) == "images count by weights from 0.4 to 1.6, 1 on average"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": [1, 2]}', "0 weights for the 1 images of class 'b'"),
        ('{"a": [1], "b": [1]}', "1 weights for the 2 images of class 'a'"),
        ('{"a": [1, 2], "b": [1], "c": []}', "weights of the class 'c', which the set has not"),
        ('{"a": [1, -2], "b": [1]}', "the weight -2.0 in class 'a', not a number from 0"),
        ('{"a": [1, NaN], "b": [1]}', "nan"),
        ('{"a": [0, 0], "b": [0]}', "no weight above 0"),
        ('{"a": 1}', "is damaged"),
    ],
)
def test_weights_that_are_not_the_images(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / weights.FILE).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        weights.read(tmp_path, {"a": 2, "b": 1})
    assert str(tmp_path / weights.FILE) in str(error.value)
    assert "move it away" in str(error.value) or "correct it" in str(error.value)


# --- with a set --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each != "rethinkdc"])
def test_weights_are_exported_and_come_back(layout: str, run: Path, recipe_file: Path) -> None:
    weights.write(run, OF_CLASSES)
    back = find_set([str(export(run, layout))], str(recipe_file))
    assert weights.of_run(back, CLASSES) == OF_CLASSES
    assert torch.equal(read_images(back, CLASSES, 1, 16)[0], read_images(run, CLASSES, 1, 16)[0])
    (run / weights.FILE).unlink()
    assert find_set([str(export(run, layout, run / "plain"))], str(recipe_file)) != back, "another set"


def test_a_layout_without_a_place_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights.write(run, OF_CLASSES)
    export(run, "rethinkdc")
    assert "weights from 0.25 to 1.75" in capsys.readouterr().err


def test_a_run_is_measured_with_its_weights(
    run: Path,
    recipe_file: Path,
    ld3m: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Networks get each image's weight; the row, its note and the report say so; others' figures stay apart."""
    given: list[Tensor | None] = []

    def noted(*arguments: Any, **named: Any) -> nn.Module:
        given.append(arguments[11])
        return train(*arguments, **named)

    monkeypatch.setattr("ld3m.evaluation.measure.train", noted)
    plain = training_set.stored_digest(run)
    measured = ("evaluate", run, "--seeds", "1", "--against", "random", "--json")
    before = json.loads(ld3m(*measured).out)  # that of random images may be in the cache
    assert given
    assert all(each is None for each in given)
    weights.write(run, OF_CLASSES)
    given.clear()
    after = json.loads(ld3m(*measured).out)
    (own,) = given
    assert own is not None
    assert torch.equal(own, FLAT)
    rows = {row["trained_on"]: row for row in after["results"]}
    assert rows["distilled"]["weights"] == [0.25, 1.75]
    assert "weights" not in rows["random"]
    assert rows["distilled"]["content"] == training_set.stored_digest(run) != plain
    assert before["results"][0]["content"] == plain
    (block,) = blocks(after)
    assert "images of distilled count by weights from 0.25 to 1.75, 1 on average" in block.notes
    assert "images count by weights from 0.25 to 1.75" in report(run).read_text()


def test_each_of_several_in_one_counts_as_its_image(run: Path) -> None:
    weights.write(run, OF_CLASSES)
    assert training_set.stored_weights(run, CLASSES).tolist() == FLAT.tolist()  # type: ignore[union-attr]
    (run / "recipe.yaml").write_text(to_yaml(load(Recipe, str(run / "recipe.yaml"), ["distill.factor=2"])))
    parts = training_set.stored_weights(run, CLASSES)
    assert parts is not None
    assert parts.tolist() == FLAT.repeat_interleave(4).tolist()
    assert len(parts) == len(training_set.stored_set(run)[0])
