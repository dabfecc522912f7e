"""Shards, and the guard against launches whose processes do not know of each other."""

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
    monkeypatch.setattr(module, "Accelerator", lambda **settings: SimpleNamespace(num_processes=1))
    with pytest.raises(UserError, match=r"started 2 processes but Accelerate sees 1; .*use_cpu: true"):
        module.start()
