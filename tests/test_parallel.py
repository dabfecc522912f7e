"""Shards, and the guard against launches whose processes do not know of each other."""

import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m.errors import UserError
from ld3m.machine import processes as module
from ld3m.machine.processes import Processes

CPU = torch.device("cpu")


def launched(count: int) -> list[Processes]:
    """What each process of a launch sees, but for collectives."""
    return [Processes(CPU, rank, count) for rank in range(count)]


@given(items=st.integers(0, 50), count=st.integers(1, 12))
def test_shards_share_everything_out_evenly(items: int, count: int) -> None:
    shards = [process.shard(range(items)) for process in launched(count)]
    assert sorted(item for shard in shards for item in shard) == list(range(items))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(classes=st.integers(1, 30), count=st.integers(1, 12))
def test_gathered_rows_are_in_the_order_of_classes(classes: int, count: int) -> None:
    """Whatever the shards: here each process's part of the collective is what all would have sent."""
    shards = [torch.tensor(p.shard(range(classes)), dtype=torch.float32)[:, None] for p in launched(count)]
    most = max(map(len, shards))
    padded = [torch.cat([shard, torch.zeros(most - len(shard), 1)]) for shard in shards]
    for rank, shard in enumerate(shards):

        def gather(sent: torch.Tensor, rank: int = rank) -> torch.Tensor:
            assert torch.equal(sent, padded[rank])
            return torch.cat(padded)

        process = Processes(CPU, rank, count, SimpleNamespace(gather=gather))  # type: ignore[arg-type]
        assert process.gather_classes(shard, classes).flatten().tolist() == list(range(classes))


def test_one_process_alone_needs_no_launch(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Processes(CPU)
    assert alone.is_main_process
    assert alone.label == ""
    assert alone.shard("abc") == ["a", "b", "c"]
    assert alone.gather([1, 2]) == [1, 2]
    rows = torch.ones(3, 2, requires_grad=True)
    assert torch.equal(alone.gather_classes(rows, 3), rows)
    assert not alone.gather_classes(rows, 3).requires_grad
    assert torch.equal(alone.mean(rows), rows)
    alone.wait_for_everyone()
    with alone.main_process_first():
        alone.print("a line")
    assert capsys.readouterr().out == "a line\n"


def test_processes_that_believe_to_be_alone_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(module, "Accelerator", lambda **settings: SimpleNamespace(num_processes=1, device=CPU))
    with pytest.raises(UserError, match=r"started 2 processes but Accelerate sees 1; .*use_cpu: true"):
        module.start()


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: RANK must be one of 0 to WORLD_SIZE - 1; start with accelerate launch"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' is not a number of processes"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: RANK must"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2, WORLD_SIZE=2: RANK must be one of 0 to"),
        ({"RANK": "1"}, "RANK=1, but no WORLD_SIZE"),
        ({"RANK": "-1", "WORLD_SIZE": "1"}, "RANK: '-1' is not a number"),
        ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4, but no WORLD_SIZE"),
        ({"LOCAL_RANK": "²"}, "LOCAL_RANK: '²' is not a number"),
        ({"ACCELERATE_USE_DEEPSPEED": "maybe"}, "ACCELERATE_USE_DEEPSPEED: 'maybe' is neither true nor false"),
        ({"ACCELERATE_DYNAMO_BACKEND": "fast"}, "the launch cannot be set up (ValueError: 'FAST' is not a valid"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "the launch cannot be set up (ImportError: Megatron is not installed"),
    ],
)
def test_variables_that_only_launchers_set(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        module.start()
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)


def test_empty_variables_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert module.start().num_processes == 1


def test_settings_of_a_launch_that_the_recipe_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")  # which Accelerate refuses without Transformer Engine
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    assert module.start().num_processes == 1
    assert capsys.readouterr().err.splitlines() == [
        "ld3m: the launch's mixed_precision=fp8 is ignored: precision is the recipe's, such as prior.dtype=bfloat16 "
        "network.dtype=bfloat16",
        "ld3m: the launch's dynamo_backend=inductor is ignored: prior.compile=on compiles the denoiser",
    ]


def test_a_process_that_waits_for_others_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod of two that is started alone; who never comes is here an Accelerator that takes a moment."""

    def slow(**settings: object) -> SimpleNamespace:
        time.sleep(0.2)
        return SimpleNamespace(num_processes=2, process_index=0, device=CPU)

    monkeypatch.setattr(module, "Accelerator", slow)
    monkeypatch.setattr(module, "NOTICE", 0.05)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}.items():
        monkeypatch.setenv(name, value)
    module.start()
    assert capsys.readouterr().err == (
        "ld3m: process 0 of 2 (WORLD_SIZE) is waiting for the others at pod-0:23456 (MASTER_ADDR, MASTER_PORT); "
        "unset WORLD_SIZE if this process is meant to be alone\n"
    )
