"""Shards, and the guard against launches whose processes do not know of each other."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ld3m import parallel
from ld3m.errors import UserError


@given(count=st.integers(0, 50), processes=st.integers(1, 12))
def test_shards_share_everything_out_evenly(count: int, processes: int) -> None:
    shards = [
        parallel.shard(range(count), SimpleNamespace(process_index=rank, num_processes=processes))  # type: ignore[arg-type]
        for rank in range(processes)
    ]
    assert sorted(item for shard in shards for item in shard) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_processes_that_believe_to_be_alone_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "Accelerator", lambda **settings: SimpleNamespace(num_processes=1))
    with pytest.raises(UserError, match=r"started 2 processes but Accelerate sees 1; .*use_cpu: true"):
        parallel.start()
