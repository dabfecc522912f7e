"""Protocols of the field: their constants as the public code has them, schedules, losses, and the loop that follows."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ld3m import networks
from ld3m.cli.arguments import HowMeasured
from ld3m.data.prepared import ImageSet
from ld3m.data.selection import mosaics
from ld3m.errors import UserError
from ld3m.evaluation.blocks import blocks
from ld3m.evaluation.protocols import PROTOCOLS, Task, protocol
from ld3m.evaluation.protocols.details import SCHEDULES, TESTS
from ld3m.evaluation.protocols.rded import LARGEST_WHOLE
from ld3m.evaluation.rows import merged, protocol_text
from ld3m.evaluation.soft_labels import Online
from ld3m.evaluation.tables import accuracy_table, training_text
from ld3m.evaluation.training import optimiser_of, shown_in_epoch, train
from ld3m.images.resample import centre
from ld3m.images.transforms import CutMix, Flip, ResizedCrop
from ld3m.networks.training import divergence, squared_error
from ld3m.randomness import generator
from ld3m.recipe import EvaluateRecipe, NetworkRecipe, Recipe
from ld3m.recipe.files import load

CPU = torch.device("cpu")


def named(name: str, classes: int = 10, per_class: int = 10, arch: str = "convnet", **changes: Any) -> Any:
    """A protocol for so many images at 224 pixels."""
    return protocol(EvaluateRecipe(protocol=name, **changes), Task(arch, classes, classes * per_class, 224))


# --- constants ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "per_class", "epochs"),
    [
        *((10, per_class, epochs) for per_class, epochs in (
            (1, 3000), (2, 2000), (10, 2000), (11, 1500), (50, 1500), (200, 1000), (500, 500), (501, 300))),
        *((100, per_class, int(2 / 3 * epochs) - int(2 / 3 * epochs) % 100) for per_class, epochs in (
            (1, 3000), (10, 2000), (50, 1500), (100, 1000), (500, 500), (1000, 300))),
        (1000, 10, 2000),
    ],
)  # fmt: skip
def test_minimax_has_epochs_by_images_per_class(classes: int, per_class: int, epochs: int) -> None:
    """`ipc_epoch` of argument.py, in its own words for 100 classes."""
    how = named("minimax", classes, per_class)
    assert how.epochs == epochs
    many = classes > 100
    assert (how.lr, how.weight_decay, how.batch) == ((0.1, 1e-4, 128) if many else (0.01, 5e-4, 64))


@pytest.mark.parametrize(("classes", "per_class"), [(10, 1), (10, 50), (100, 10)])
def test_idc_trains_small_images_alike_and_large_ones_as_minimax(classes: int, per_class: int) -> None:
    """argument.py of its code: lines 445, 120 to 123, 245, 268 and 301."""
    small = protocol(EvaluateRecipe(protocol="idc"), Task("convnet", classes, classes * per_class, 32))
    assert (small.epochs, small.batch, small.lr, small.weight_decay, small.momentum) == (1000, 64, 0.01, 5e-4, 0.9)
    assert (small.schedule, small.cutmix, small.cutmix_share, small.tests) == ("step", 1.0, 0.5, "last")
    assert small.row()["augment"] == {"idc": True, "flip": 0.5}
    assert small.row()["cutmix_share"] == 0.5
    large = named("idc", classes, per_class)
    rates = {"lr": 0.1, "weight_decay": 1e-4, "batch": 128} if classes >= 100 else {}
    assert large == replace(named("minimax", classes, per_class), name="idc", **rates)
    assert "cutmix_share" not in large.row(), "rows of all versions have it only if it is not 1"


@pytest.mark.parametrize(
    ("classes", "per_class", "batch"),
    [(10, 1, 10), (10, 10, 50), (10, 50, 100), (2, 1, 2), (100, 1, 20), (100, 10, 100), (100, 50, 200),
     (1000, 10, 100), (1000, 50, 200), (200, 10, 100), (200, 1, 100)],
)  # fmt: skip
def test_rded_has_a_batch_by_images_per_class(classes: int, per_class: int, batch: int) -> None:
    """Lines 234 to 258 of argument.py."""
    assert named("rded", classes, per_class).batch == batch
    assert named("rd3", classes, per_class).batch == min(50, classes * per_class)


@pytest.mark.parametrize(
    ("arch", "rate"),
    [("convnet", 1e-3), ("vgg11", 5e-4), ("alexnet", 1e-4), ("timm/mobilenetv2_100", 2.5e-3),
     ("timm/efficientnet_b0", 2e-3), ("timm/swinv2_tiny_window8_256", 1e-4), ("timm/vit_base_patch16_224", 1e-4)],
)  # fmt: skip
def test_rded_has_rates_by_architecture(arch: str, rate: float) -> None:
    assert named("rded", arch=arch).lr == named("rd3", arch=arch).lr == rate


def test_what_the_protocols_share_and_where_they_differ() -> None:
    rded, rd3, hard, soft = named("rded"), named("rd3"), named("rethinkdc"), named("rethinkdc", labels="soft")
    assert replace(rd3, name="rded", epochs=300, batch=50) == rded
    assert replace(soft, labels="hard", cutmix=0.0, changed=()) == hard
    assert (soft.cutmix, soft.temperature, soft.temperature_squared) == (1.0, 20.0, False)
    assert [how.test_resize for how in (rded, hard)] == [256, 256]
    at_64 = protocol(EvaluateRecipe(protocol="rded"), Task("convnet", 10, 100, 64))
    assert at_64.test_resize == 72
    assert at_64.augment == (("flip", (0.5,)),), "factor 1 of RDED's scripts: ShufflePatches(1), crops of 1/1 to 1"
    assert protocol(EvaluateRecipe(protocol="rd3"), Task("convnet", 10, 100, 64)).augment == rded.augment
    assert all((mosaics.factor_at(size, 1) == 1) == (size <= LARGEST_WHOLE) for size in (32, 64, 65, 128))
    assert named("minimax").test_resize is None


@pytest.mark.parametrize(
    ("name", "decay_all", "average"),
    [("glad", True, 0.995), ("minimax", True, 0), ("idc", True, 0), ("rded", False, 0), ("rd3", False, 0),
     ("rethinkdc", False, 0)],
)  # fmt: skip
def test_momentum_and_what_decays_are_those_of_the_codes(name: str, decay_all: bool, average: float) -> None:
    """SGD's momentum, or Adam's first decay rate, is 0.9 in all of them; tables do not say these details."""
    how = named(name)
    assert (how.momentum, how.decay_all, how.ema) == (0.9, decay_all, average)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_page_says_what_the_code_does(name: str) -> None:
    """The table of recipes/PROTOCOLS.md is for ten classes of ten images."""
    page = (Path(__file__).parent.parent / "recipes" / "PROTOCOLS.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, epochs, batch, optimiser, rate, augment, cutmix, labels, tested = line.strip("| ").split(" | ")
    how = named(name)
    assert (int(epochs), int(batch), float(cutmix)) == (how.epochs, how.batch, how.cutmix)
    assert optimiser == f"{how.optimiser}, decay {how.weight_decay:g}"
    assert rate == f"{how.lr:g}, {how.schedule}"
    numbers = {key: " ".join(f"{each:g}" for each in dict.fromkeys(value)) for key, value in how.augment}
    numbers |= {"flip": ""} if "flip" in numbers else {}
    assert augment == (", ".join(f"{key} {value}".strip() for key, value in numbers.items()) or "none")
    assert labels == ("hard" if how.labels == "hard" else f"soft, T {how.temperature:g}")
    assert tested == ("averaged weights" if how.ema else "8/7, centre" if how.test_resize == 256 else "as it is")


def test_learnt_labels_have_the_losses_of_their_codes() -> None:
    """DATM's SoftCrossEntropy has the gradient of the divergence at temperature 1; FRePo's is half a squared distance,
    summed over classes, its mean over images.
    """
    made = torch.Generator().manual_seed(0)
    logits, labels = (torch.randn(4, 3, generator=made) for _ in range(2))
    logits.requires_grad_()
    (soft,) = torch.autograd.grad(divergence(1.0, False)(logits, labels), logits)
    assert torch.allclose(soft, (logits.softmax(1) - labels.softmax(1)) / 4, atol=1e-6)
    weights = torch.tensor([0.0, 1.0, 1.0, 2.0])
    for weighed in (None, weights):
        each = torch.ones(4) if weighed is None else weighed
        loss = squared_error(logits, labels, weighed)
        expected = (0.5 * each[:, None] * (logits - labels) ** 2).sum() / 4
        assert loss.item() == pytest.approx(expected.item())
        (slope,) = torch.autograd.grad(loss, logits)
        assert torch.allclose(slope, each[:, None] * (logits - labels) / 4, atol=1e-6)


# --- over the epochs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [6, 9, 100, 300])
def test_schedules_are_those_of_torch_and_of_the_formulas(epochs: int) -> None:
    def rates(kind: Any, **options: Any) -> list[float]:
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
        schedule, seen = kind(optimiser, **options), []
        for _ in range(epochs):
            seen.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        return seen

    lr = torch.optim.lr_scheduler
    step = rates(lr.MultiStepLR, milestones=[2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    smooth = rates(lr.LambdaLR, lr_lambda=lambda e: 0.5 * (1 + math.cos(math.pi * e / epochs / 2)))
    whole = rates(lr.CosineAnnealingLR, T_max=epochs)
    for name, expected in (("step", step), ("half-cosine", smooth), ("cosine", whole), ("constant", [1.0] * epochs)):
        assert [SCHEDULES[name](epoch, epochs) for epoch in range(epochs)] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize(
    ("name", "epochs", "points"),
    [
        ("hundredths", 2000, {*range(20, 2001, 20)}),
        ("hundredths", 3, {1, 2, 3}),
        ("last-fifth", 300, {250, 260, 270, 280, 290, 300}),  # epoch > 240 and epoch % 10 == 9, from 0
        ("last-fifth", 7, {7}),
        ("fifties", 300, {1, 51, 101, 151, 201, 251, 300}),
        ("last", 1000, {1000}),
    ],
)
def test_points_at_which_the_public_codes_test(name: str, epochs: int, points: set[int]) -> None:
    assert TESTS[name](epochs) == points


# --- what a recipe changes ---------------------------------------------------------------------------------


def test_rows_of_glad_are_as_ever_and_those_of_others_have_everything() -> None:
    usual = {"epochs": 1000, "batch": 256, "lr": 0.001, "ema": 0.995, "augment": True}
    assert named("glad").row() == usual
    assert named("glad", augment=False, epochs=3).row() == usual | {"augment": False, "epochs": 3}
    assert named("glad", schedule="cosine").row() == usual | {"schedule": "cosine"}
    row = named("minimax", epochs=300, tests="last").row()
    assert (row["name"], row["epochs"], row["changed"]) == ("minimax", 300, {"epochs": 2000})
    assert row["augment"] == {"crop": [0.5, 1.0], "flip": 0.5, "jitter": [0.4, 0.4, 0.4], "lighting": 0.1}
    assert {"temperature", "tests"}.isdisjoint(row), "neither changes the accuracy after the last epoch"
    assert protocol_text(row) == "minimax, but epochs 300, not 2000"
    assert "temperature" in named("rded").row()


def test_another_protocol_starts_from_its_own_values(recipe_file: Path) -> None:
    """The recipe trains three epochs by glad."""
    for words, epochs, batch in (
        (([], None), 3, 256),
        ((["evaluate.batch=7"], "minimax"), 2000, 7),
        ((["evaluate.protocol=minimax", "evaluate.epochs=5"], None), 5, 64),
    ):
        overrides = HowMeasured(protocol=words[1]).overrides(words[0])
        recipe = load(Recipe, str(recipe_file), overrides)
        how = protocol(recipe.evaluate, Task("convnet", 3, 6, 16))
        assert (how.epochs, how.batch) == (epochs, batch)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"crop": [1.0, 0.5]}, "crop: .* give the smallest and the largest share of the area"),
        ({"turn": 3}, "'turn' is not known: give true, false, or any of dsa, idc, shuffle, crop"),
        ({"jitter": 0.4}, "jitter: 0.4 is invalid: give three numbers"),
        ({"shuffle": 1.5}, "a whole number of patches"),
        ({"dsa": 2}, "dsa: 2 is invalid: give true"),
        ({}, "is invalid: give true, false"),
        ("much", "'much' is invalid"),
    ],
)
def test_operations_that_are_none(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvaluateRecipe(augment=given)


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"test_resize: 100 is less than data.resolution=224.*; give as much or more"):
        named("rded", test_resize=100)
    with pytest.raises(UserError, match=r"evaluate.protocol: 'mine' is not known; known are glad, minimax, idc, rded"):
        named("mine")


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [False, True])
def test_soft_labels_are_learnt_by_divergence(squared: bool) -> None:
    """Against torch's own, as validation/main.py of RDED calls it; times T² as Hinton et al. have it."""
    logits, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator(0, "logits"))
    value = divergence(20.0, squared)(logits, teacher)
    theirs = nn.KLDivLoss(reduction="batchmean")(
        functional.log_softmax(logits / 20, dim=1), functional.softmax(teacher / 20, dim=1)
    )
    torch.testing.assert_close(value, theirs * (400 if squared else 1))


def test_biases_and_norms_do_not_decay_where_they_should_not() -> None:
    network = networks.build("resnet18", networks.Shape(3, 32, 10), NetworkRecipe(), torch.Generator())
    (everything,) = optimiser_of(network, named("minimax")).param_groups
    assert len(everything["params"]) == len(list(network.parameters()))
    decaying, others = optimiser_of(network, named("rded")).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert {each.dim() for each in others["params"]} == {1}
    assert len(decaying["params"]) == 17 + 3 + 1  # convolutions, those of shortcuts, classifier


def few() -> tuple[ImageSet, Tensor, Tensor]:
    """Images of 8 pixels, and what normalises them."""
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    images = ImageSet(["a", "b", "c"], mean, std, {}, [0, 1, 2], [], Path(), 8)
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "pixels"))
    return images, pixels, torch.arange(10) % 3


@pytest.mark.parametrize(("labels", "decay"), [("hard", 0.0), ("soft", 0.0), ("hard", 0.6)])
def test_a_training_is_that_of_a_few_plain_lines(labels: str, decay: float) -> None:
    images, pixels, classes = few()
    keys = {"epochs": 6, "batch": 4, "augment": {"crop": [0.5, 1], "flip": 0.5}, "cutmix": 1.0, "schedule": "step"}
    how = named("custom", lr=0.05, labels=labels, temperature=3.0, ema=decay, **keys)
    weights = torch.randn(3 * 8 * 8, 3, generator=generator(0, "weights"))
    asked: list[tuple[int, list[int]]] = []

    class Linear(Online):
        def __call__(self, images: Tensor, indices: Tensor, epoch: int, *_: Any) -> Tensor:
            asked.append((epoch, indices.tolist()))
            return images.flatten(1) @ weights

    soft = Linear(teacher=None) if labels == "soft" else None  # type: ignore[arg-type]
    done: list[int] = []
    ours = train("convnet", pixels, classes, images, how, (5, 2), CPU, soft, lambda epoch, _: done.append(epoch))

    network = networks.build("convnet", images.shape, NetworkRecipe(), generator(5, "evaluation network", 2))
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    tested = [torch.zeros_like(each) for each in network.parameters()]
    for epoch, rate in enumerate([0.05] * 4 + [0.01, 0.002]):
        draws = generator(5, "evaluation epoch", 2, epoch)
        optimiser.param_groups[0]["lr"] = rate
        for batch in torch.randperm(10, generator=draws).split(4):
            seen = ResizedCrop.draw(draws, len(batch), 8, (0.5, 1))(pixels[batch] / 255)
            seen = Flip.draw(draws, len(batch))(seen)
            mix = CutMix.draw(draws, len(batch), 8)
            seen = mix((seen - images.mean.view(-1, 1, 1)) / images.std.view(-1, 1, 1))
            logits, own, other = network(seen), classes[batch], classes[batch][mix.partners]
            if labels == "hard":
                loss = functional.cross_entropy(logits, own) * mix.share
                loss = loss + functional.cross_entropy(logits, other) * (1 - mix.share)
            else:
                shares = functional.softmax(seen.flatten(1) @ weights / 3, 1)
                loss = (shares * (shares.log() - functional.log_softmax(logits / 3, 1))).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        kept = min(epoch / (epoch + 1), decay)  # ema_pytorch's warm-up
        tested = [
            kept * one + (1 - kept) * each.detach() for one, each in zip(tested, network.parameters(), strict=True)
        ]
    for mine, plain in zip(ours.parameters(), tested, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4)
    assert done == [1, 2, 3, 4, 5, 6]
    if soft:
        assert [epoch for epoch, _ in asked] == [epoch for epoch in range(6) for _ in range(3)]
        assert sorted(index for epoch, each in asked for index in each if epoch == 0) == [*range(10)]


def test_a_share_of_the_batches_is_mixed() -> None:
    """Those of one image count, too: their labels are then shares of classes."""
    images, pixels, classes = few()
    how = named("custom", cutmix=1.0, cutmix_share=0.3)
    shown = shown_in_epoch(pixels, classes, images, how, generator(0, "cutmix"), 0, None)
    mixed = [shown(torch.tensor([index % 10]))[1].dim() == 2 for index in range(200)]
    assert sum(mixed) / 200 == pytest.approx(0.3, abs=0.107)  # 3.3 standard errors


def test_soft_labels_need_somebody_who_gives_them() -> None:
    images, pixels, classes = few()
    with pytest.raises(UserError, match=r"evaluate.labels: rded has soft labels"):
        train("convnet", pixels, classes, images, named("rded"), (0, 0), CPU)


def test_what_is_tested_of_an_image_is_its_centre() -> None:
    """A slope stays one; of 28 pixels that become 32, the 28 in the middle span 27 · 28 / 32 steps of it."""
    slope = torch.arange(28.0).expand(1, 1, 28, 28)
    assert centre(slope, 28) is slope
    seen = centre(slope, 32)[0, 0, 14]
    expected = 13.5 + (torch.arange(28) - 13.5) * 28 / 32
    torch.testing.assert_close(seen, expected)


# --- figures -----------------------------------------------------------------------------------------------


def row(accuracies: list[float], best: list[float | None] | None = None, **more: Any) -> dict[str, Any]:
    """A result by minimax."""
    figure = {"mean": sum(accuracies) / len(accuracies), "std": 1.0, "accuracies": accuracies}
    about = {"trained_on": "distilled", "arch": "convnet", "split": "test", "images": 100, "tested_on": 2000, "seed": 0}
    bests = {"best": {"tests": "hundredths", "accuracies": best}} if best else {}
    return about | figure | bests | {"protocol": named("minimax").row(), "content": "a"} | more


def test_the_best_is_shown_beside_the_last_and_said_to_be_chosen() -> None:
    text = accuracy_table({"results": [row([60.0, 62.0], [64.0, 65.0])]})
    assert "61.0 ± 1.0 (2), best 64.5 ± 0.5" in text
    assert (
        "best: each network's highest accuracy of those after each hundredth of the epochs, chosen by the test" in text
    )
    assert "networks: minimax; 2000 epochs, batch 64, sgd, rate 0.01, step; all details are in evaluation.json" in text
    assert "best" not in accuracy_table({"results": [row([60.0, 62.0])]})
    once = accuracy_table({"results": [row([60.0, 62.0]) | {"best": {"tests": "last", "accuracies": [60.0, 62.0]}}]})
    assert "(2), best" not in once
    assert "best: this protocol tests after the last epoch alone, whose accuracy this is" in once


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "glad; 1000 epochs, batch 256, sgd, rate 0.001, warmup-cosine"),
        ({"lr": 1e-4}, "glad; 1000 epochs, batch 256, sgd, rate 0.0001, warmup-cosine"),  # VGG11's
        (
            {"lr": {"convnet": 1e-3, "vgg11": 1e-4}, "augment": False},
            "glad, but augment false, not true; 1000 epochs, batch 256, sgd, "
            'rate {"convnet": 0.001, "vgg11": 0.0001}, warmup-cosine',
        ),
        (
            {"epochs": 40, "schedule": "cosine"},
            "glad, but epochs 40, not 1000; schedule cosine, not warmup-cosine; batch 256, sgd, rate 0.001",
        ),
        (
            {"labels": "soft", "teacher": {"teacher": "x"}, "temperature": 20.0},
            "glad, but labels soft, not hard; 1000 epochs, batch 256, sgd, rate 0.001, warmup-cosine",
        ),
    ],
)
def test_glad_is_named_and_its_changes_are_said(more: dict[str, object], line: str) -> None:
    """Its rows have no name, and what GLaD's code has is 1,000 epochs in batches of 256 and so on."""
    how = {"epochs": 1000, "batch": 256, "lr": 1e-3, "ema": 0.995, "augment": True}
    assert training_text({**how, **more}) == line


@pytest.mark.parametrize(
    ("earlier", "new", "best"),
    [
        (row([60.0, 62.0], [64.0, 65.0]), row([60.0]), [64.0, 65.0]),
        (row([60.0, 62.0], [64.0, 65.0]), row([61.0]), [None, 65.0]),
        (row([60.0, 62.0]), row([60.0], [64.0]), [64.0, None]),
        (row([60.0], [64.0]), row([60.0, 62.0], [None, 63.0]), [64.0, 63.0]),
        (row([60.0], [64.0]), row([60.0], content="b"), None),
    ],
)
def test_no_best_is_lost_that_still_holds(earlier: Any, new: Any, best: Any) -> None:
    (both,), _ = merged([earlier], [new])
    assert both.get("best", {}).get("accuracies") == best


def test_all_real_images_stand_with_those_that_have_the_same_protocol() -> None:
    """They have epochs and a batch for as many images."""
    many = named("rded", per_class=50).row() | {"epochs": 300}
    rows = [row([60.0], protocol=named("rded").row()), row([90.0], trained_on="full", images=500, protocol=many)]
    assert [line.trained_on for line in blocks({"results": rows})[0].lines] == ["distilled", "full"]
    assert len(blocks({"results": [rows[0], row([1.0]), row([2.0], protocol=named("minimax", epochs=9).row())]})) == 3


def test_every_protocol_is_its_own_row() -> None:
    rows = [named(name).row() for name in PROTOCOLS]
    assert all(one != other for index, one in enumerate(rows) for other in rows[:index])
