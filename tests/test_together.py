"""One network trained by several processes, resumed in the middle, and in bfloat16."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, distilled, launch
from torch import Tensor, nn
from torch.nn import functional

from ld3m.data.prepared import ImageSet, prepare
from ld3m.errors import UserError
from ld3m.evaluation import checkpoint
from ld3m.evaluation.checkpoint import Checkpoint
from ld3m.evaluation.protocols import Protocol, Task, protocol
from ld3m.evaluation.together import Share
from ld3m.evaluation.training import train
from ld3m.machine.processes import Processes
from ld3m.recipe import DataRecipe, EvaluateRecipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(shapes: Path) -> ImageSet:
    return prepare(DataRecipe(source=str(shapes), resolution=16, channels=1), progress=False)


def how(**changes: Any) -> Protocol:
    settings = EvaluateRecipe.model_validate({"protocol": "glad", "epochs": 3, "batch": 5, "lr": 0.01, **changes})
    return protocol(settings, Task("convnet", 3, 12, 16))


MIXED = {"augment": {"shuffle": 2, "crop": [0.5, 1], "flip": 0.5, "jitter": [0.4, 0.4, 0.4], "lighting": 0.1}}
MIXED |= {"cutmix": 1.0}


def few(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Four images of each class."""
    labels = torch.arange(3).repeat_interleave(4)
    return torch.cat([images.images("train", label)[:4] for label in range(3)]), labels


# --- resuming ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"optimiser": "adamw", "ema": 0, **MIXED}], ids=["averaged momentum", "mixed adamw"]
)
def test_an_interrupted_network_is_resumed_bit_for_bit(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    whole = train("convnet", *few(images), images, how(**changes), (0, 1), CPU)
    epochs = []

    def stop(done: int, network: nn.Module) -> None:
        epochs.append(done)
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    file = Checkpoint(tmp_path / "network.safetensors")
    file.accuracies.append(12.5)
    arguments = ("convnet", *few(images), images, how(**changes), (0, 1), CPU, None, stop, None)
    with pytest.raises(KeyboardInterrupt):
        train(*arguments, file)
    again = Checkpoint(file.path)
    resumed = train(*arguments, again)
    assert epochs == [1, 2, 2, 3], "the epoch that was not saved is done again"
    assert again.accuracies == [12.5]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_file_of_another_network_or_a_damaged_one_is_said_and_left_out(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    path = tmp_path / "network.safetensors"
    train("convnet", *few(images), images, how(epochs=1), (0, 0), CPU, checkpoint=Checkpoint(path))
    linear = nn.Linear(2, 2)
    optimiser = torch.optim.SGD(linear.parameters(), lr=1)
    assert Checkpoint(path).resume({"network": linear}, optimiser, 5) == 0
    path.write_bytes(path.read_bytes()[:-100])
    assert Checkpoint(path).resume({"network": linear}, optimiser, 5) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith(f"{path} is damaged (") for line in said)
    assert all(line.endswith("; the network is trained from its first epoch") for line in said)


# --- sharing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_gradients_of_shares_average_to_that_of_the_batch(count: int) -> None:
    draws = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(count, 4, generator=draws), torch.arange(count) % 3
    network = nn.Linear(4, 3)

    def gradient(loss: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
        network.zero_grad()
        loss(network(inputs[rows]), targets[rows]).backward()
        assert network.weight.grad is not None
        return network.weight.grad.clone()

    shares = [Share(Processes(CPU, index, 2)) for index in range(2)]
    parts = []
    for share in shares:
        rows = share.of(count)
        parts.append(gradient(share.weighted(functional.cross_entropy), rows))
    whole = gradient(functional.cross_entropy, torch.arange(count))
    assert torch.allclose(torch.stack(parts).mean(0), whole, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, MIXED], ids=["siamese", "mixed"])
def test_processes_see_their_share_of_what_one_would_see(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Every operation is drawn for the whole batch; the partners of CutMix may be in another share."""
    seen: list[Tensor] = []
    monkeypatch.setattr(Share, "joined", lambda _self, network, _arch: network)

    def first_batch(share: Share | None) -> Tensor:
        seen.clear()
        with nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0]) if type(module).__name__ == "ConvNet" else None
        ):
            train("convnet", *few(images), images, how(epochs=1, **changes), (0, 0), CPU, share=share)
        return seen[0]

    whole = first_batch(None)
    for index in range(2):
        own = first_batch(Share(Processes(CPU, index, 2)))
        assert torch.allclose(own, whole[index::2], atol=1e-6)


def test_dropout_is_each_shares_own_and_the_first_ones_as_ever(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it drawn alike by all, images of different shares would lose the same features."""
    monkeypatch.setattr(Share, "joined", lambda _self, network, _arch: network)
    pixels, labels = few(images)

    def kept(share: Share | None) -> Tensor:
        """Where the first dropout of a ViT leaves its tokens, [2, tokens, features]."""
        masks: list[Tensor] = []
        with nn.modules.module.register_module_forward_hook(
            lambda module, _inputs, output: masks.append(output[:2] != 0) if type(module) is nn.Dropout else None
        ):
            train("vit", pixels[:4], labels[:4], images, how(epochs=1, batch=4, ema=0), (0, 0), CPU, share=share)
        return masks[0]

    alone, first, second = (kept(share) for share in (None, *(Share(Processes(CPU, rank, 2)) for rank in range(2))))
    assert torch.equal(alone[0], first[0])
    agree = (first == second).float().mean()
    assert 0.9**2 + 0.1**2 - 0.03 < agree < 0.9**2 + 0.1**2 + 0.03, "independent draws of 0.1 agree so often"


def test_batch_norm_is_not_shared_on_cpus() -> None:
    with pytest.raises(UserError, match=r"evaluate\.together: mine has batch norm, .*; leave it out, or give another"):
        Share(Processes(CPU, 0, 2)).joined(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "mine")


@pytest.mark.slow
def test_two_processes_train_the_network_of_one(
    ld3m: Callable[..., Outcome], recipe_file: Path, tmp_path: Path
) -> None:
    """To rounding, which may change what a network says of an image or two of 18."""
    run = distilled(recipe_file, tmp_path / "run", "distill.iterations=0")
    options = ("evaluate.epochs=30", "evaluate.lr=0.01", "evaluate.together=true", "evaluate.cutmix=1", "--best")
    assert ld3m("evaluate", run, *options, "-o", "one").code == 0
    launch("evaluate", run, *options, "-o", tmp_path / "two")
    rows = [json.loads((tmp_path / name / "evaluation.json").read_text())["results"][0] for name in ("one", "two")]
    for ours, theirs in zip(*(row["accuracies"] for row in rows), strict=True):
        assert ours == pytest.approx(theirs, abs=2 * 100 / 18 + 0.01)
    assert rows[0]["protocol"] == rows[1]["protocol"]
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["evaluation.json"]


# --- bfloat16 ----------------------------------------------------------------------------------------------


def test_bfloat16_rounds_and_is_in_the_row(images: ImageSet) -> None:
    plain, half = how(), replace(how(), dtype="bfloat16")
    networks = [train("convnet", *few(images), images, each, (0, 0), CPU) for each in (plain, half)]
    shown = images.normalise(images.images("test", 0) / 255)
    one, other = (network(shown) for network in networks)
    assert other.dtype == torch.float32
    assert 0 < (one - other).abs().max() < 0.1 * one.abs().max()
    assert {value.dtype for value in networks[1].state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert "dtype" not in plain.row()
    assert how(dtype="bfloat16").row()["dtype"] == "bfloat16"
