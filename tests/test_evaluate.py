"""Evaluation through the command line, on a run of shapes."""

import json
import shutil
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome

from ld3m.data.prepared import ImageSet, Rows, prepare
from ld3m.data.selection import testing
from ld3m.data.selection.coresets import open_whole
from ld3m.evaluation import measure, training_sets
from ld3m.evaluation.cross_architecture import cross_architecture
from ld3m.evaluation.protocols import Task, protocol
from ld3m.evaluation.tables import accuracy_table
from ld3m.evaluation.training import train
from ld3m.evaluation.training_sets import BASELINES, real_images
from ld3m.files import cache_folder
from ld3m.recipe import Recipe
from ld3m.recipe.files import load


@pytest.fixture(scope="module")
def made(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ld3m.distillation.loop import distill

    folder = tmp_path_factory.mktemp("runs") / "made"
    return distill(load(Recipe, str(recipe_file), [f"output={folder}"]))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A fresh copy of a finished run, where the newest below runs/ is looked for."""
    return Path(shutil.copytree(made, tmp_path / "runs" / "made"))


def test_table_json_and_file_agree(ld3m: Callable[..., Outcome], run: Path) -> None:
    """Without RUN it is the newest below runs/."""
    outcome = ld3m("evaluate", "--arch", "convnet", "--against", "random", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert json.loads((run / "evaluation.json").read_text())["results"] == report["results"]
    assert [row["trained_on"] for row in report["results"]] == ["distilled", "random"]
    for row in report["results"]:
        assert (row["images"], row["tested_on"], len(row["accuracies"])) == (6, 18, 2)
        assert row["mean"] == pytest.approx(statistics.mean(row["accuracies"]), abs=0.01)
        assert row["std"] == pytest.approx(statistics.pstdev(row["accuracies"]), abs=0.01)
        assert row["protocol"]["lr"] == 0.001
    outcome = ld3m("evaluate", run, "--arch", "convnet", "--against", "random")
    row = report["results"][0]
    assert f"{row['mean']:.1f} ± {row['std']:.1f} (2)" in outcome.out
    assert "networks: glad, but epochs 3, not 1000; " in outcome.out, "the protocol is printed with the figure"


def test_evaluations_add_up(ld3m: Callable[..., Outcome], run: Path) -> None:
    ld3m("evaluate", run, "--arch", "convnet")
    ld3m("evaluate", run, "--arch", "resnet18", "evaluate.epochs=1", "--seeds", "1")
    results = json.loads((run / "evaluation.json").read_text())["results"]
    assert [(row["arch"], row["protocol"]["epochs"]) for row in results] == [("convnet", 3), ("resnet18", 1)]


def test_figures_with_and_without_augmentation_stand_beside_each_other(ld3m: Callable[..., Outcome], run: Path) -> None:
    ld3m("evaluate", run, "--against", "random", "evaluate.augment=false", "evaluate.epochs=1")
    ld3m("evaluate", run, "evaluate.epochs=1")
    results = json.loads((run / "evaluation.json").read_text())["results"]
    said = [(row["trained_on"], row["protocol"]["augment"], row["protocol"]["epochs"]) for row in results]
    assert said == [("distilled", True, 1), ("distilled", False, 1), ("random", False, 1)]
    shown = ld3m("evaluate", run, "evaluate.epochs=1").out
    shown += ld3m("evaluate", run, "--against", "random", "evaluate.augment=false", "evaluate.epochs=1").out
    for row, label in zip(results, ("", ", no augmentation", ", no augmentation"), strict=True):
        line = f"{row['trained_on']}, 6 images, test split{label} "
        (found,) = [found for found in shown.splitlines() if found.startswith(line)]
        assert found.endswith(f"{row['mean']:.1f} ± {row['std']:.1f} (2)")
    status = ld3m("status", run).out
    assert "accuracy, distilled convnet (test, epochs 1, lr 0.001)" in status
    assert "accuracy, distilled unaugmented convnet (test, epochs 1, lr 0.001)" in status
    assert ld3m("push-to-hub", run, "--dry-run").code == 0
    card = (run / "hub" / "README.md").read_text()
    cells = [f"{row['mean']:.1f} ± {row['std']:.1f} (2)" for row in results]
    heads = ["these 6, without augmentation", "6 random real images, without augmentation"]
    for head, cell in ((["these 6"], cells[:1]), (heads, cells[1:])):
        assert f"| trained from scratch on | {' | '.join(head)} |" in card
        assert f"| convnet | {' | '.join(cell)} |" in card


def test_nothing_is_chosen_by_the_images_that_it_is_tested_on(
    ld3m: Callable[..., Outcome], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distillation reads training images only; of a network's test images none is read before its last epoch."""
    steps: list[str] = []
    read = ImageSet.images

    def noted(images: ImageSet, split: str, label: int) -> torch.Tensor:
        steps.append(split)
        return read(images, split, label)

    def trained(*arguments: Any) -> torch.nn.Module:
        steps.append("begin")
        network = train(*arguments)
        steps.append("end")
        return network

    monkeypatch.setattr(ImageSet, "images", noted)
    monkeypatch.setattr(measure, "train", trained)
    assert ld3m("distill", recipe_file, "data.validation_share=0.25", "-o", "runs/v").code == 0
    assert set(steps) == {"train"}
    for split in ("test", "validation"):
        steps.clear()
        outcome = ld3m("evaluate", "runs/v", "--split", split, "--against", "random", "evaluate.epochs=2", "--json")
        assert outcome.code == 0, outcome.err
        assert set(steps) == {"train", split, "begin", "end"}
        measured = [step for step in steps if step != "train"]
        assert measured == ["begin", "end", *[split] * 3] * 4  # two sets, two seeds; each of three classes once


def test_a_network_is_trained_by_its_seed_and_tested_as_its_protocol_says(
    ld3m: Callable[..., Outcome], run: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a random set of its own; on the centre of the test images, enlarged from 16 to 32 pixels."""
    trained: list[tuple[torch.Tensor, tuple[int, int]]] = []
    shown: list[torch.Tensor] = []

    class Noting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shown.append(images)
            return images.flatten(1)[:, :3]

    monkeypatch.setattr(measure, "train", lambda *given: trained.append((given[1], given[5])) or Noting())
    outcome = ld3m("evaluate", run, "--against", "random", "evaluate.test_resize=32")
    assert outcome.code == 0, outcome.err
    (one, first), (same, second), (random, third), (other, fourth) = trained
    assert (first, second, third, fourth) == ((0, 0), (0, 1)) * 2
    assert torch.equal(one, same)
    assert not torch.equal(random, other)
    images = prepare(load(Recipe, str(recipe_file)).data, progress=False)
    real = (images.images("test", 0) / 255 - images.mean) / images.std
    large = torch.nn.functional.interpolate(real, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(shown[0], large[:, :, 8:24, 8:24], rtol=1e-4, atol=1e-4)


def test_the_best_is_the_highest_of_all_tests(
    ld3m: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network's accuracies after its first and its last epoch, whichever it is; the mean is after the last."""

    def two_epochs(*given: Any) -> torch.nn.Module:
        network = torch.nn.Identity()
        for done in (1, 2):
            given[8](done, network)
        return network

    accuracies = iter([40.0, 70.0, 80.0, 60.0])
    monkeypatch.setattr(measure, "train", two_epochs)
    monkeypatch.setattr(measure, "tested", lambda *_: testing.Tested(next(accuracies), False))
    outcome = ld3m("evaluate", run, "--protocol", "minimax", "evaluate.epochs=2", "--best", "--json")
    (row,) = json.loads(outcome.out)["results"]
    assert (row["accuracies"], row["mean"], row["best"]["accuracies"]) == ([70, 60], 65, [70, 80])


def row(arch: str, accuracies: list[float], trained_on: str = "distilled", **protocol: object) -> dict[str, Any]:
    """A result as evaluation.json has it, under the protocol where nothing else is said."""
    usual = {"epochs": 1000, "batch": 256, "lr": 1e-4 if arch == "vgg11" else 1e-3, "ema": 0.995, "augment": True}
    return {
        "trained_on": trained_on,
        "arch": arch,
        "split": "test",
        "accuracies": accuracies,
        "images": 10,
        "tested_on": 100,
        "protocol": usual | protocol,
    }


def test_the_cross_architecture_mean_by_hand() -> None:
    """Seed by seed (50 + 40) / 2 = 45 and (60 + 20) / 2 = 40; their mean is 42.5 and their deviation 2.5."""
    rows = [row("convnet", [90, 95]), row("resnet18", [50, 60]), row("vgg11", [40, 20])]
    assert cross_architecture([*rows, row("resnet18", [1, 2], "random")], "convnet") == [
        {
            "trained_on": "distilled",
            "split": "test",
            "without": "convnet",
            "archs": ["resnet18", "vgg11"],
            "mean": 42.5,
            "std": 2.5,
            "accuracies": [45.0, 40.0],
            "images": 10,
            "tested_on": 100,
            "protocol": {"epochs": 1000, "batch": 256, "ema": 0.995, "augment": True},
            "column": "mean without convnet",
        }
    ]
    (of_another,) = cross_architecture(rows, "resnet18")
    assert (of_another["archs"], of_another["mean"]) == (["convnet", "vgg11"], 61.25)


@pytest.mark.parametrize(
    ("rows", "archs"),
    [
        ([row("resnet18", [50, 60])], None),
        ([row("resnet18", [50, 60]), row("vit", [40, 20, 30])], ["resnet18", "vit"]),  # over the seeds of both
        ([row("resnet18", [50, 60]), row("vit", [40, 20], epochs=5)], None),
        ([row("alexnet", [1, 2], epochs=5), row("resnet18", [50, 60]), row("vit", [40, 20])], ["resnet18", "vit"]),
        ([row("resnet18", [50, 60], lr=0.01), row("vgg11", [40, 20], lr=0.01)], ["resnet18", "vgg11"]),
        ([row("resnet18", [50, 60], lr=0.01), row("vgg11", [40, 20])], ["resnet18", "vgg11"]),  # its own rate
        ([row("resnet18", [50, 60], lr=0.01), row("vit", [40, 20])], None),
        ([row("resnet18", [50, 60], lr=0.01), row("vit", [40, 20]) | {"own_rate": True}], ["resnet18", "vit"]),
        ([row("resnet18", [50, 60]), row("vit", [33, 33]) | {"at_chance": [0, 1]}], None),
    ],
)
def test_only_what_was_measured_alike_is_averaged(rows: list[dict[str, Any]], archs: list[str] | None) -> None:
    means = cross_architecture([row("convnet", [90, 95]), *rows], "convnet")
    assert [mean["archs"] for mean in means] == ([archs] if archs else [])


def test_the_cross_architecture_mean_of_evaluations_that_add_up(
    ld3m: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "at_chance", lambda *_: False)  # after three epochs they are
    assert json.loads(ld3m("evaluate", run, "--arch", "convnet,resnet18", "--json").out)["cross_architecture"] == []
    outcome = ld3m("evaluate", run, "--arch", "alexnet", "--json")
    report = json.loads(outcome.out)
    (mean,) = report["cross_architecture"]
    assert mean["archs"] == ["resnet18", "alexnet"]
    one, other = (next(r["accuracies"] for r in report["results"] if r["arch"] == arch) for arch in mean["archs"])
    assert mean["accuracies"] == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)], abs=0.01)
    assert mean["mean"] == pytest.approx(statistics.mean(mean["accuracies"]), abs=0.01)
    assert mean["std"] == pytest.approx(statistics.pstdev(mean["accuracies"]), abs=0.01)
    assert json.loads((run / "evaluation.json").read_text())["cross_architecture"] == [mean]
    printed = accuracy_table(report)
    assert "cross-architecture mean, without convnet, the matching network" in printed
    assert f"{mean['mean']:.1f} ± {mean['std']:.1f} (2)  over resnet18, alexnet" in printed


def test_dropout_of_an_evaluation_is_a_function_of_the_seed(recipe_file: Path) -> None:
    recipe = load(Recipe, str(recipe_file), ["evaluate.epochs=2", "evaluate.batch=4"])
    images = prepare(recipe.data, progress=False)
    whole = open_whole(images, recipe.data, [], torch.device("cpu"))
    few = real_images("random", whole, torch.tensor([0, 0, 1, 1, 2, 2]), recipe, 0)
    how = protocol(recipe.evaluate, Task("vit", 3, 6, 16))
    torch.manual_seed(1)
    one = train("vit", *few, images, how, (0, 0), torch.device("cpu"))
    torch.manual_seed(2)
    same = train("vit", *few, images, how, (0, 0), torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


def test_an_interrupted_evaluation_goes_on_with_the_network_it_was_at(
    ld3m: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("evaluate", run, "--arch", "convnet", "--against", "random", "--json")
    whole = json.loads(ld3m(*options).out)
    (run / "evaluation.json").unlink()
    assert not (run / "evaluating").exists(), "nothing is left of a whole evaluation"
    shutil.rmtree(cache_folder() / "baselines")

    trained: list[str] = []

    def interrupted(*arguments: object) -> torch.nn.Module:
        if len(trained) == 3:
            signal.raise_signal(signal.SIGTERM)
        trained.append(str(arguments[0]))
        return train(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "train", interrupted)
    stopped = ld3m(*options)
    assert stopped.code == 128 + signal.SIGTERM
    assert "interrupted: 3 of 4 networks are measured and kept; the same command resumes" in stopped.err
    assert not (run / "evaluation.json").exists()
    next((run / "evaluating").glob("*.json")).write_text('{"accuracy": "high"}')
    trained[:] = trained[:1]  # room for the damaged one and the fourth, and for no other
    again = ld3m(*options)
    assert json.loads(again.out) == whole
    assert len(trained) == 3
    assert "1 network to train; convnet on random; 3 epochs" in again.err
    assert "(3 are measured already)" in again.err
    assert "is damaged (accuracy: " in again.err
    assert "it is measured again" in again.err
    third = ld3m(*options)
    assert json.loads(third.out) == whole
    assert len(trained) == 3
    assert "all 4 networks are measured already; --again repeats" in third.err


def test_the_bar_moves_within_a_network_and_ends_at_its_whole(
    ld3m: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[float] = []
    totals: list[float] = []

    class Bar(measure.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, **options: Any) -> None:
            totals.append(options["total"])
            super().__init__(**options)

        def update(self, n: float = 1) -> None:
            moved.append(n)
            super().update(n)

    monkeypatch.setattr(measure, "tqdm", Bar)
    assert ld3m("evaluate", run, "--seeds", 1, "evaluate.epochs=4").code == 0
    assert len(moved) == 4 + 3 + 1, "epochs, classes that are tested, and what is left at the end"
    assert sum(moved) == pytest.approx(totals[0])
    assert all(each >= 0 for each in moved[:-1])


def test_two_evaluations_of_a_run_leave_each_other_alone(
    ld3m: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is interrupted after its first network; another begins and ends; the first goes on with its second."""
    trained: list[str] = []

    def until_the_second(*arguments: object) -> torch.nn.Module:
        trained.append(str(arguments[0]))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "train", until_the_second)
    assert ld3m("evaluate", run, "--arch", "convnet").code != 0
    assert ld3m("evaluate", run, "--arch", "alexnet").code == 0
    assert ld3m("evaluate", run, "--arch", "convnet").code == 0
    assert trained == ["convnet", "convnet", "alexnet", "alexnet", "convnet"]
    assert not (run / "evaluating").exists()


def test_a_run_whose_folder_has_commas_can_be_compared_with(
    ld3m: Callable[..., Outcome], run: Path, tmp_path: Path
) -> None:
    """As those of ablations have."""
    shutil.copytree(run, tmp_path / "runs" / "prior.skip=none,seed=1")
    against = "random,runs/prior.skip=none,seed=1,herding"
    outcome = ld3m("evaluate", "runs/made", "--seeds", "1", "--against", against, "--json", "data.scorer.epochs=1")
    assert outcome.code == 0, outcome.err
    sets = [row["trained_on"] for row in json.loads(outcome.out)["results"]]
    assert sets == ["distilled", "random", "herding", "run prior.skip=none,seed=1"]


def test_folders_that_cannot_be_written_to_are_told_before_any_training(
    ld3m: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "train", None)
    (run / "evaluating").write_text("in the way")
    outcome = ld3m("evaluate", run)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert f"cannot make the folder {run / 'evaluating'}" in outcome.err
    (run / "evaluating").unlink()
    monkeypatch.setenv("LD3M_CACHE", str(run / "recipe.yaml"))
    outcome = ld3m("evaluate", run)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert "set LD3M_CACHE to a folder that can be written to" in outcome.err


def test_a_run_is_evaluated_elsewhere(ld3m: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
    """Nothing is written to the run; what it has is reused, and what it has of other images is not mixed with it."""
    few = ["evaluate.epochs=1", "--seeds", 1]
    assert ld3m("evaluate", run, *few).code == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    outcome = ld3m("evaluate", run, *few, "-o", "mine", "--against", "random")
    assert outcome.code == 0, outcome.err
    assert "1 network to train; convnet on random" in outcome.err
    assert f"written to mine/evaluation.json; ld3m report {run} -o mine shows it" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    kept = json.loads((tmp_path / "mine" / "evaluation.json").read_text())
    assert [row["trained_on"] for row in kept["results"]] == ["distilled", "random"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["evaluation.json"]
    outcome = ld3m("evaluate", run, *few, "-o", run.parent / "made")  # the run itself
    assert (outcome.code, outcome.err.splitlines()[-1]) == (0, "all 1 networks are measured already; --again repeats")
    (run / "images" / "cross" / "0.png").write_bytes((run / "images" / "circle" / "0.png").read_bytes())
    outcome = ld3m("evaluate", run, *few, "-o", "mine")
    assert outcome.code == 2
    assert f"mine/evaluation.json has accuracies of other images than {run} has now; give another" in outcome.err
    shutil.copytree(run, tmp_path / "runs" / "other")
    outcome = ld3m("evaluate", run, *few, "-o", "runs/other")
    assert outcome.code == 2
    assert outcome.err.startswith("ld3m: --output: runs/other is a run; give a folder of your own")


def test_networks_learn_separable_classes(recipe_file: Path) -> None:
    """Trained on all real shapes, a ConvNet tells almost all of the test shapes apart: chance is 33 %."""
    recipe = load(Recipe, str(recipe_file), ["evaluate.epochs=60", "evaluate.lr=0.01", "evaluate.ema=0.9"])
    images = prepare(recipe.data, progress=False)
    how = protocol(recipe.evaluate, Task("convnet", 3, 36, 16))
    network = train("convnet", *images.everything("train"), images, how, (0, 0), torch.device("cpu"))
    tested = testing.tested(network, images, "test", torch.device("cpu"))
    assert tested.accuracy >= 70
    assert not tested.at_chance


def test_baselines_are_real_images_and_only_random_ones_differ_by_draw(recipe_file: Path) -> None:
    recipe = load(Recipe, str(recipe_file), ["data.scorer.epochs=1", "data.scorer.width=8", "data.keep=0.5"])
    prepared = prepare(recipe.data, progress=False)
    images = open_whole(prepared, recipe.data, BASELINES, torch.device("cpu"))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    drawn = {}
    for name in set(BASELINES) - {"full", "rded"}:  # mosaics are no real images
        drawn[name], drawn_labels = real_images(name, images, labels, recipe, 0)
        assert torch.equal(drawn_labels, labels)
        for image, label in zip(drawn[name], labels, strict=True):
            assert (prepared.images("train", int(label)) == image).flatten(1).all(1).any()
        again, other = (real_images(name, images, labels, recipe, draw)[0] for draw in (0, 1))
        assert torch.equal(again, drawn[name])
        assert torch.equal(other, drawn[name]) == (name != "random")
    assert not torch.equal(drawn["easy"], drawn["hard"])
    everything = real_images("full", images, labels, recipe, 0)
    assert all(torch.equal(*pair) for pair in zip(everything, prepared.everything("train"), strict=True))


def test_many_real_images_stay_on_disk_and_give_the_same_figure(
    ld3m: Callable[..., Outcome], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--against", "full", "--seeds", 1, "evaluate.augment={shuffle: 2, crop: [0.5, 1]}", "evaluate.cutmix=1")
    held = json.loads(ld3m("evaluate", run, *options, "--json").out)
    monkeypatch.setattr(training_sets, "HELD", 0)
    read: list[int] = []
    of_rows = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", lambda rows, indices: read.append(1) or of_rows(rows, indices))
    on_disk = json.loads(ld3m("evaluate", run, *options, "--again", "--json").out)
    assert held["results"] == on_disk["results"], "accuracies, and the digest of the images"
    assert len(read) > 3


def test_against_a_core_set_says_that_a_scorer_is_trained_and_by_which(ld3m: Callable[..., Outcome], run: Path) -> None:
    options = ("--against", "herding,hard", "--json", "--seeds", "1", "data.scorer.epochs=1", "data.scorer.width=4")
    outcome = ld3m("evaluate", run, *options)
    assert outcome.code == 0, outcome.err
    assert "training the scorer" in outcome.err
    rows = json.loads(outcome.out)["results"]
    assert [(row["trained_on"], row.get("scorer", {}).get("width")) for row in rows] == [
        ("distilled", None),
        ("hard", 4),
        ("herding", 4),
    ]
    again = ld3m("evaluate", run, *options, "--again")
    assert json.loads(again.out)["results"] == rows
    assert "training the scorer" not in again.err, "scores are kept"


def test_validation_images_are_never_seen_in_training(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path
) -> None:
    outcome = ld3m("distill", recipe_file, "data.validation_share=0.25", "distill.iterations=1", "-o", tmp_path / "v")
    assert outcome.code == 0, outcome.err
    outcome = ld3m("evaluate", tmp_path / "v", "--split", "validation", "--json")
    assert json.loads(outcome.out)["results"][0]["tested_on"] == 9  # a quarter of 3 × 12


def test_another_protocol_and_its_best_stand_beside_glad(ld3m: Callable[..., Outcome], run: Path) -> None:
    """In tables, status and report; and a best that was not asked for before is measured."""
    few = ("--arch", "convnet", "--seeds", "1")
    assert ld3m("evaluate", run, *few).code == 0
    options = ("evaluate", run, *few, "--protocol", "minimax", "evaluate.epochs=2")
    last = json.loads(ld3m(*options, "--json").out)["results"][1]
    assert "best" not in last
    outcome = ld3m(*options, "--best")
    assert "networks: minimax, but epochs 2, not 2000; batch 64, sgd, rate 0.01, step; all details" in outcome.out
    assert "networks: glad" not in outcome.out, "only what was asked for is shown"
    assert outcome.out.endswith(f"1 more table of networks trained or tested otherwise: ld3m report {run} shows all\n")
    glad, minimax = json.loads((run / "evaluation.json").read_text())["results"]
    assert list(glad["protocol"]) == ["epochs", "batch", "lr", "ema", "augment"]
    assert minimax["accuracies"] == last["accuracies"]
    assert minimax["best"]["accuracies"][0] >= minimax["accuracies"][0]
    assert "minimax, epochs 2" in ld3m("status", run).out
    assert ld3m("report", run).code == 0
    assert "networks trained by minimax, but epochs 2, not 2000 for 2 epochs" in (run / "report.html").read_text()
    refused = ld3m("evaluate", run, "--protocol", "mine")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "evaluate.protocol: 'mine' is not known; known are glad, minimax" in refused.err
