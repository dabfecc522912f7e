"""`ld3m distill --profile`: its table adds up, its trace has the parts by name, and the run folder is left alone."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, distilled

from ld3m.distillation.profile import MEASURED, PARTS, parts


def write_trace(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    return path


def named(name: str, begin: float, seconds: float) -> dict[str, Any]:
    return {"cat": "user_annotation", "name": name, "ts": begin * 1e6, "dur": seconds * 1e6}


def taken(moment: float, size: int, total: int, device: int = 0) -> dict[str, Any]:
    args = {"Bytes": size, "Total Allocated": total, "Device Type": device}
    return {"cat": "cpu_instant_event", "name": "[memory]", "ts": moment * 1e6, "args": args}


def test_a_trace_by_hand(tmp_path: Path) -> None:
    """A decoder of 1 s within a render of 4, which at most takes 50 bytes beside the 100 there were."""
    events = [
        *(named("iteration", 0, 10), named("render", 0, 4), named("decode", 2, 1), named("pull_back", 4, 6)),
        *(named("decode", 5, 2), {"cat": "cpu_op", "name": "aten::add", "ts": 0.0, "dur": 1.0}),
        *(taken(1, 20, 120), taken(2.5, 30, 150), taken(3.5, -50, 100), taken(8, 7, 107)),
    ]
    found = parts(write_trace(tmp_path / "trace.json.gz", events))
    seconds = {name: part.seconds for name, part in found.items() if part.seconds}
    assert seconds == pytest.approx({"render": 3, "decode": 3, "pull_back": 4, "iteration": 10})
    sizes = {name: part.bytes for name, part in found.items() if part.bytes}
    assert sizes == {"render": 50, "decode": 30, "pull_back": 7, "iteration": 50}
    on_gpu = parts(write_trace(tmp_path / "gpu.json.gz", [*events, taken(6, 4, 4, device=1)]))
    assert (on_gpu["render"].bytes, on_gpu["pull_back"].bytes) == (0, 4)


@pytest.mark.parametrize("iterations", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_profile(recipe_file: Path, ld3m: Callable[..., Outcome], iterations: int) -> None:
    few = (f"distill.iterations={iterations}", "distill.images_per_class=1", "prior.steps=1")
    outcome = ld3m("distill", recipe_file, *few, "-o", "runs/mine", "--profile")
    assert outcome.code == 0, outcome.err
    assert sorted(Path().rglob("*")) == [Path("runs"), Path("runs/mine.trace.json.gz")]
    head, columns, *rows, place = outcome.out.splitlines()
    assert head.startswith("shapes: 5 iterations, ")
    assert columns.split() == ["part", "seconds", "share", "MiB"]
    shown = {row[:32].strip(): [float(cell.strip("%").replace(",", "")) for cell in row[32:].split()] for row in rows}
    assert list(shown) == [*PARTS.values(), "the rest", "an iteration"]
    whole = shown.pop("an iteration")
    rest = shown.pop("the rest")
    assert sum(seconds for seconds, _, _ in shown.values()) == pytest.approx(whole[0], rel=0.1)
    assert abs(rest[0]) < 0.1 * whole[0]
    assert sum(share for _, share, _ in shown.values()) == pytest.approx(100, abs=10)
    for part in ("render", "decode", "objective", "pull_back"):
        seconds, _, size = shown[PARTS[part]]
        assert seconds > 0
        assert size > 0
    assert shown[PARTS["data"]][0] > 0
    assert place.startswith("runs/mine.trace.json.gz: ")


@pytest.mark.slow
def test_the_trace_has_the_parts_by_name(recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    assert ld3m("distill", recipe_file, "-o", "mine", "--profile").code == 0
    events = json.loads(gzip.decompress(Path("mine.trace.json.gz").read_bytes()))["traceEvents"]
    found = [event for event in events if event.get("cat") == "user_annotation"]
    counts = {name: sum(event["name"] == name for event in found) for name in ("iteration", *PARTS)}
    once = dict.fromkeys(("iteration", *PARTS), MEASURED)
    assert counts == once | {"decode": 2 * MEASURED, "data": 3 * MEASURED}  # there and back; three classes
    assert any(event["name"] == "aten::convolution" for event in events)


@pytest.mark.slow
def test_a_run_is_left_alone(recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    """A finished one, whose folder `--output` names."""
    folder = distilled(recipe_file, Path("run").resolve())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert ld3m("distill", recipe_file, "-o", "run", "--profile").code == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    refused = ld3m("distill", recipe_file, "--resume", "run", "--profile")
    assert refused.code == 2
    assert refused.err == "ld3m: --profile: the first iterations are profiled; leave out --resume\n"
