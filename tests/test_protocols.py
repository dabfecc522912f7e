"""evaluation.json by protocol: what is read, what is added, what may stand side by side, and what has not learnt."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ld3m.data.selection.testing import at_chance
from ld3m.errors import UserError
from ld3m.evaluation.blocks import blocks
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.rows import merged, read, results
from ld3m.evaluation.tables import accuracy_table
from ld3m.networks.training import siamese, train_epoch
from ld3m.recipe import EvaluateRecipe


def row(
    trained_on: str, arch: str, accuracies: list[float], content: str = "a", **protocol: float | bool
) -> dict[str, Any]:
    """A result as `ld3m evaluate` writes it."""
    usual = {"epochs": 40, "batch": 256, "lr": 0.01, "ema": 0.9, "augment": True}
    return {
        "trained_on": trained_on,
        "arch": arch,
        "split": "test",
        "mean": round(sum(accuracies) / len(accuracies), 2),
        "std": None if len(accuracies) == 1 else 1.0,
        "accuracies": accuracies,
        "images": 10,
        "tested_on": 2000,
        "protocol": usual | protocol,
        "seed": 0,
        "content": content,
    }


# --- adding ------------------------------------------------------------------------------------------------


def test_a_short_try_erases_no_long_result() -> None:
    long, short = row("distilled", "convnet", [60.0, 62.0]), row("distilled", "convnet", [30.0], epochs=5)
    rows, lost = merged([long], [short])
    assert (rows, lost) == ([long | {"std": 1.0}, short], [])
    assert merged([short], [long])[0] == rows, "the order does not depend on which came first"


def test_other_seeds_add_up_and_the_same_ones_are_replaced() -> None:
    earlier = row("distilled", "convnet", [60.0, 62.0, 64.0])
    (more,), lost = merged([earlier], [row("distilled", "convnet", [60.0, 62.0, 64.0, 66.0])])
    assert (more["accuracies"], lost) == ([60.0, 62.0, 64.0, 66.0], [])
    (fewer,), lost = merged([earlier], [row("distilled", "convnet", [60.0])])
    assert (fewer["accuracies"], fewer["std"], lost) == ([60.0, 62.0, 64.0], 1.63, [])
    (other,), lost = merged([earlier], [row("distilled", "convnet", [10.0])])
    assert (other["accuracies"], lost) == ([10.0, 62.0, 64.0], [earlier])
    (of_others,), lost = merged([earlier], [row("distilled", "convnet", [10.0], content="b")])
    assert (of_others["accuracies"], lost) == ([10.0], [earlier]), "no seeds of other images"


# --- reading -----------------------------------------------------------------------------------------------

GOOD = row("distilled", "convnet", [60.0])


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("", "is empty"),
        ('{"results": [', "is damaged"),
        ("[1, 2]", "is damaged"),
        ('"results"', "is damaged"),
        ("{}", "(results: "),
        ({"results": {}}, "(results: "),
        ({"results": [3]}, "(results.0: "),
        *(({"results": [{key: GOOD[key] for key in GOOD if key != left_out}]}, f"(results.0.{left_out}: ")
          for left_out in ("trained_on", "arch", "split", "mean", "accuracies", "images", "tested_on", "protocol")),
        ({"results": [GOOD | {"accuracies": []}]}, "(results.0.accuracies: "),
        ({"results": [GOOD | {"accuracies": ["60"]}]}, "(results.0.accuracies.0: "),
        ({"results": [GOOD | {"accuracies": [160]}]}, "(results.0.accuracies.0: "),
        ({"results": [GOOD | {"mean": None}]}, "(results.0.mean: "),
        ({"results": [GOOD | {"arch": 5}]}, "(results.0.arch: "),
        ({"results": [GOOD | {"mean": 1.5}]}, "(results.0: mean is not that of its accuracies"),
        ({"results": [GOOD | {"protocol": {"epochs": 4}}]}, "(results.0.protocol.batch: "),
        ({"results": [GOOD | {"protocol": GOOD["protocol"] | {"lr": "fast"}}]}, "(results.0.protocol.lr: "),
        ({"results": [GOOD | {"at_chance": "all"}]}, "(results.0.at_chance: "),
        ({"results": [GOOD], "normalisation": {"mean": "white"}}, "(normalisation.mean: "),
    ],
)  # fmt: skip
def test_a_damaged_evaluation_is_one_line(content: Any, where: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        results(tmp_path)
    (line,) = error.value.lines
    assert line.startswith(str(path))
    assert where in line
    assert line.endswith("; move it away to continue without it")


def test_what_an_older_version_wrote_is_read_and_its_mixed_means_are_not(tmp_path: Path) -> None:
    """It averaged over whatever networks each side had."""
    older = [row("distilled", "convnet", [60.0, 61.0]), row("random", "convnet", [40.0, 41.0], epochs=20)]
    for each in older:
        del each["seed"], each["content"]
    mixed = {"trained_on": "distilled", "split": "test", "without": "convnet", "archs": ["vit"], "mean": 99.0}
    (tmp_path / "evaluation.json").write_text(json.dumps({"results": older, "cross_architecture": [mixed]}))
    table = accuracy_table(read(tmp_path))
    assert "99.0" not in table
    assert "differences" not in table
    assert table.count("accuracy in % of 2,000 images") == 2
    assert read(tmp_path / "none") == {}


# --- side by side ------------------------------------------------------------------------------------------


def test_unlike_protocols_share_no_column_no_mean_and_no_difference() -> None:
    rows = [
        row("distilled", "convnet", [60.0, 62.0, 63.0]),
        row("random", "convnet", [40.0, 42.0, 43.0], epochs=20),
        row("distilled", "resnet18", [50.0]),
        row("random", "resnet18", [30.0], epochs=20),
        row("distilled", "alexnet", [46.0]),
        row("random", "vgg11", [36.0], epochs=20, lr=1e-4),
    ]
    long, short = blocks({"results": rows, "matching": "convnet"})
    assert (long.protocol["epochs"], short.protocol["epochs"]) == (40, 20)
    assert [line.trained_on for line in long.lines] == ["distilled"]
    assert long.differences == short.differences == []
    assert short.protocol["lr"] == {"convnet": 0.01, "resnet18": 0.01, "vgg11": 1e-4}
    assert [(each["archs"], each["mean"]) for each in long.crossed] == [(["resnet18", "alexnet"], 48.0)]
    assert [(each["archs"], each["mean"]) for each in short.crossed] == [(["resnet18", "vgg11"], 33.0)]
    for key, value in (("batch", 64), ("ema", 0.5), ("augment", False)):
        assert len(blocks({"results": [rows[0], row("random", "convnet", [40.0], **{key: value})]})) == 2
    for key, value in (("tested_on", 100), ("split", "validation"), ("seed", 1)):
        assert len(blocks({"results": [rows[0], row("random", "convnet", [40.0]) | {key: value}]})) == 2


def test_sets_are_compared_over_the_same_architectures() -> None:
    rows = [row("distilled", arch, [value]) for arch, value in (("resnet18", 60.0), ("alexnet", 50.0), ("vit", 10.0))]
    rows += [row("random", arch, [value]) for arch, value in (("resnet18", 40.0), ("alexnet", 20.0))]
    (block,) = blocks({"results": rows, "matching": "convnet"})
    assert block.means == ["mean of resnet18, alexnet, vit", "mean of resnet18, alexnet"]
    by_set = {line.trained_on: [line.cells[name]["mean"] for name in block.means if name in line.cells]
              for line in block.lines}  # fmt: skip
    assert by_set == {"distilled": [40.0, 55.0], "random": [30.0]}
    assert block.differences[-1]["mean"] == 25.0


def test_rates_of_one_network_are_columns_of_their_own() -> None:
    rows = [row("distilled", "convnet", [60.0]), row("distilled", "convnet", [50.0], lr=0.1)]
    (block,) = blocks({"results": rows})
    assert block.archs == ["convnet at 0.01", "convnet at 0.1"]
    assert [block.lines[0].cells[name]["mean"] for name in block.archs] == [60.0, 50.0]


def test_all_real_images_stand_with_those_that_full_epochs_relates_them_to() -> None:
    """0.9^(40 / 8) = 0.59049."""
    rows = [row("distilled", "convnet", [60.0]), row("distilled", "convnet", [30.0], epochs=5)]
    rows.append(row("full", "convnet", [90.0], epochs=8, ema=0.59049))
    long, short = blocks({"results": rows})
    assert [line.label for line in long.lines] == ["distilled", "full (8 epochs)"]
    assert [line.label for line in short.lines] == ["distilled"]


def test_one_network_has_no_deviation_and_few_test_images_are_said() -> None:
    alone = row("distilled", "convnet", [61.0]) | {"tested_on": 6}
    table = accuracy_table({"results": [alone]})
    assert "61.0 (1)" in table
    assert "±" not in table.split("\n")[1]
    assert "measured on 6 images: each is 16.7 points of accuracy" in table


# --- learning ----------------------------------------------------------------------------------------------


def test_networks_at_chance_are_named_and_left_out_of_means() -> None:
    rows = [row("distilled", arch, [60.0, 62.0]) for arch in ("resnet18", "alexnet")]
    rows.append(row("distilled", "vgg11", [10.0, 10.0], lr=1e-4) | {"at_chance": [0, 1]})
    report = {"results": rows, "matching": "convnet"}
    (block,) = blocks(report)
    assert [mean["archs"] for mean in block.crossed] == [["resnet18", "alexnet"]]
    assert (
        "vgg11 on distilled has not learnt: 2 of 2 networks are at chance, left out of means and scores; give more "
        "epochs, or a rate of its own: evaluate.lr={vgg11: …}"
    ) in accuracy_table(report)


@pytest.mark.parametrize(
    ("correct", "counts", "chance"),
    [
        ([200, *[0] * 9], [200] * 10, True),  # always the first of ten classes
        ([22] * 10, [200] * 10, True),  # 11 %: chance is 10 % ± 0.67
        ([23] * 10, [200] * 10, False),  # 11.5 %
        ([900, 0], [900, 100], True),  # 90 %, all of them the larger class
        ([700, 60], [900, 100], False),  # 76 %, and it tells the classes apart
        ([2, 1, 0], [2, 2, 2], True),
        ([2, 2, 1], [2, 2, 2], False),  # six images tell little, but this is more than half as much again
        ([5], [5], False),  # one class: there is nothing to guess
    ],
)
def test_chance_is_what_a_classifier_gets_that_does_not_look(
    correct: list[int], counts: list[int], chance: bool
) -> None:
    assert at_chance(correct, counts) == chance


@pytest.mark.parametrize(
    ("lr", "convnet", "vgg11"),
    [
        (None, 0.001, 0.0001),
        (0.01, 0.01, 0.0001),
        ({"vgg11": 0.002}, 0.001, 0.002),
        ({"vgg11": 0.002, "others": 0.01}, 0.01, 0.002),
        ({"convnet": 0.05}, 0.05, 0.0001),
    ],
)
def test_vgg11_has_its_own_rate_unless_one_is_named_for_it(lr: Any, convnet: float, vgg11: float) -> None:
    settings = EvaluateRecipe(lr=lr)
    rates = [protocol(settings, Task(arch, 10, 10, 32)).lr for arch in ("convnet", "vgg11")]
    assert rates == [convnet, vgg11]


@pytest.mark.parametrize("lr", [{}, {"vgg11": 0}, {"vgg11": "fast"}, {"vgg11": None}, [0.1], "inf"])
def test_rates_that_are_none(lr: Any) -> None:
    with pytest.raises(ValueError, match="is invalid: give a number greater than 0, or learnt, or a number by network"):
        EvaluateRecipe(lr=lr)


@pytest.mark.parametrize(("norm", "sizes"), [(nn.BatchNorm1d, [4, 5]), (nn.LayerNorm, [4, 4, 1])])
def test_a_last_batch_of_one_joins_the_one_before_if_there_is_batch_norm(
    norm: type[nn.Module], sizes: list[int]
) -> None:
    network = nn.Sequential(nn.Flatten(), norm(4), nn.Linear(4, 2))
    seen: list[int] = []
    network[0].register_forward_hook(lambda module, given, result: seen.append(len(result)))
    inputs, targets = torch.randn(9, 1, 2, 2), torch.zeros(9, dtype=torch.long)
    shown = siamese(inputs, targets, False, torch.Generator())
    train_epoch(network, torch.optim.SGD(network.parameters(), 0.1), shown, 9, 4, torch.Generator())
    assert seen == sizes
