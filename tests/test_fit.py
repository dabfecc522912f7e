"""The training loop of a prior's networks, on a network of a few numbers: interrupted, killed, damaged."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.machine.processes import Processes
from ld3m.recipe.prior import PriorRecipe
from ld3m.training.fit import Fit, fit

STEPS = 230


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest."""
    monkeypatch.setattr("ld3m.training.fit.curves", lambda *_: None)


def train(folder: Path, at: Callable[[int], float] = lambda step: 1.0) -> Tensor:
    """The weights after `STEPS` steps; `at` is called at each, and multiplies its loss."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    inputs = torch.randn(50, 4)

    def loss_of(step: int, indices: Tensor, share: slice) -> Tensor:
        return at(step) * (network(inputs[indices[share]]) - 1).square().mean()

    settings = Fit("net", folder, seed=0, steps=STEPS, batch=4, lr=1e-2, ema=0.9, checkpoint_every=70)
    average, _ = fit(settings, network, loss_of, len(inputs), Processes(torch.device("cpu")))
    return torch.cat([value.flatten() for value in average.state_dict().values()])


def test_what_is_interrupted_and_killed_has_the_weights_and_the_log_of_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at step 134 saves there, between two lines of the log; the kill at 215 loses what is after step 210."""
    expected = train(tmp_path / "whole")

    def interrupt(step: int) -> float:
        if step == 133:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "cut", interrupt)
    assert stop.value.code == 130
    assert f"saved after step 134 of {STEPS} of the net" in capsys.readouterr().err
    begun: list[int] = []

    def die(step: int) -> float:
        begun.append(step)
        if step == 215:
            raise RuntimeError("killed")
        return 1.0

    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", die)
    assert begun[0] == 134
    begun.clear()
    assert torch.equal(train(tmp_path / "cut", lambda step: begun.append(step) or 1.0), expected)
    assert begun == list(range(210, STEPS))
    logs = [(tmp_path / name / "net.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [99, 199, STEPS - 1]


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^net\.lr: 0\.01; the loss .* by step 140; give a lower rate"):
        train(tmp_path, lambda step: math.nan if step >= 120 else 1.0)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata()["step"] == "70"


def rewritten(
    change: Callable[[dict[str, Tensor]], object], metadata: dict[str, str] | None = None
) -> Callable[[Path], object]:
    def rewrite(path: Path) -> None:
        with safe_open(path, "pt") as file:
            before = file.metadata()
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path, before | (metadata or {}))

    return rewrite


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"garbage" * 9), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (rewritten(lambda tensors: tensors.pop("network.0.bias")), "0.bias is missing"),
        (rewritten(lambda tensors: tensors.update({"network.9.bias": torch.ones(1)})), "9.bias is too many"),
        (rewritten(lambda tensors: tensors.update({"network.0.bias": torch.ones(4)})), r"0.bias is \[4\]"),
        (rewritten(lambda tensors: tensors.update({"average.n_averaged": torch.ones(())})), "n_averaged is"),
        (rewritten(lambda tensors: tensors.pop("optimiser.0.exp_avg")), "exp_avg is missing"),
        (rewritten(lambda tensors: tensors.update({"other": torch.ones(1)})), "is damaged"),
        (rewritten(lambda tensors: tensors["network.0.bias"].fill_(math.nan)), "values that are not finite"),
        (rewritten(lambda _: None, {"step": '"many"'}), "step"),
        (rewritten(lambda _: None, {"step": "1000"}), f"step 1000 of {STEPS}"),
        (rewritten(lambda _: None, {"losses": "5"}), "losses"),
        (rewritten(lambda _: None, {"step": "200"}), "another digest"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])), "another digest"),
    ],
)
def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path, spoil: Callable[[Path], object], what: str) -> None:
    train(tmp_path)
    spoil(tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=what) as refusal:
        train(tmp_path)
    (line,) = refusal.value.lines
    assert line.endswith("remove it to train the net from its first step")


def test_damaged_lines_of_the_log_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    log = tmp_path / "net.jsonl"
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([first, '{"step": "x", "loss": 1}', "{", *others]))
    train(tmp_path)
    assert f"{log}: 2 damaged lines are left out" in capsys.readouterr().err
    log.unlink()
    train(tmp_path)


def test_guidance_needs_a_null_class() -> None:
    recipe = {"name": "a", "data": {"source": "digits", "resolution": 8}, "denoiser": {"null_share": 0}}
    with pytest.raises(ValidationError, match=r"evaluate\.guidance=\[1\]"):
        PriorRecipe.model_validate(recipe)
    PriorRecipe.model_validate(recipe | {"evaluate": {"guidance": [1]}})
