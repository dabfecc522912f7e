"""Shards, and the guard against launches whose processes do not know of each other."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m.errors import UserError
from ld3m.machine import processes as parallel


@given(count=st.integers(0, 50), processes=st.integers(1, 12))
def test_shards_share_everything_out_evenly(count: int, processes: int) -> None:
    shards = [
        parallel.shard(range(count), SimpleNamespace(process_index=rank, num_processes=processes))  # type: ignore[arg-type]
        for rank in range(processes)
    ]
    assert sorted(item for shard in shards for item in shard) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(count=st.integers(1, 30), processes=st.integers(1, 12))
def test_gathered_rows_are_in_the_order_of_classes(count: int, processes: int) -> None:
    """Whatever the shards: here each process's part of the collective is what all would have sent."""
    views = [SimpleNamespace(process_index=rank, num_processes=processes) for rank in range(processes)]
    shards = [torch.tensor(parallel.shard(range(count), view), dtype=torch.float32)[:, None] for view in views]  # type: ignore[arg-type]
    most = max(map(len, shards))
    padded = [torch.cat([shard, torch.zeros(most - len(shard), 1)]) for shard in shards]
    for view, shard in zip(views, shards, strict=True):

        def gather(sent: torch.Tensor, rank: int = view.process_index) -> torch.Tensor:
            assert torch.equal(sent, padded[rank])
            return torch.cat(padded)

        view.gather = gather
        assert parallel.gather_classes(shard, count, view).flatten().tolist() == list(range(count))  # type: ignore[arg-type]


def test_processes_that_believe_to_be_alone_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "Accelerator", lambda **settings: SimpleNamespace(num_processes=1))
    with pytest.raises(UserError, match=r"started 2 processes but Accelerate sees 1; .*use_cpu: true"):
        parallel.start()
