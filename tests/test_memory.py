"""What fits: `auto` against counts by hand and against what it plans for; runs whose memory ends go on with less."""

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, distilled, latents, make_prior, relative
from torch import Tensor

from ld3m.errors import UserError
from ld3m.networks import ConvNet
from ld3m.objectives import dm
from ld3m.priors.kinds.ldm import ClassConditionalLDM
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sampling.memory_budget import MemoryBudget
from ld3m.sizing import auto, devices
from ld3m.sizing.bench import Bench
from ld3m.sizing.meta_models import MetaImages, MetaPrior

META = torch.device("meta")


# --- memory that ends --------------------------------------------------------------------------------------


class Shortage:
    """A denoiser that runs out of memory on too many images, as a GPU's would, or once in all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, with_graph: int | None = None) -> None:
        self.most = most
        self.with_graph = most if with_graph is None else with_graph
        self.refused = 0
        denoise = ClassConditionalLDM.denoise

        def scarce(prior: ClassConditionalLDM, z: Tensor, t: int, c: Tensor) -> Tensor:
            if len(c) > 2 * (self.with_graph if torch.is_grad_enabled() else self.most):  # guidance doubles them
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return denoise(prior, z, t, c)

        monkeypatch.setattr(ClassConditionalLDM, "denoise", scarce)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("objective", "keep", "lines"),
    [
        (["dm"], "all", ["prior.keep_graph_steps=0", "prior.micro_batch=3", "prior.micro_batch=1"]),
        pytest.param(
            ["dc", "distill.dc.outer=3", "distill.dc.inner=1"],
            "0",
            ["prior.micro_batch=3", "prior.micro_batch=1"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_goes_on_with_less(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, objective: list[str],
    keep: str, lines: list[str],
) -> None:  # fmt: skip
    """Six images do not fit, nor three; the result is bit for bit that of the micro-batch it ends with."""
    overrides = (f"distill.objective={objective[0]}", *objective[1:], f"prior.keep_graph_steps={keep}")
    overrides += (
        "distill.iterations=2",
        "distill.init=noise",
    )  # real encodings would round otherwise
    told = distilled(recipe_file, Path("told").resolve(), *overrides, "prior.micro_batch=1")
    shortage = Shortage(monkeypatch, most=2)
    outcome = ld3m("distill", recipe_file, *overrides, "-o", "run")
    assert outcome.code == 0, outcome.err
    said = [line for line in outcome.err.splitlines() if "memory ran out" in line]
    assert [line.split(";")[1].split(",")[0] for line in said] == [f" continuing with {line}" for line in lines]
    assert shortage.refused == len(lines)
    assert torch.equal(latents(Path("run"))["z"], latents(told)["z"])
    assert torch.equal(latents(Path("run"))["c"], latents(told)["c"])
    assert [json.loads(line)["iteration"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [0, 1]


@pytest.mark.gpu
def test_a_pull_back_that_runs_out_is_repeated_alone(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs of more than two images do not fit, so that only the pull-back fails: its first iteration's images were
    rendered six at a time, and round otherwise; what an objective keeps moves once an iteration.
    """
    overrides = ("prior.keep_graph_steps=0", "distill.objective=dc", "distill.dc.outer=3", "distill.dc.inner=1")
    overrides += ("distill.iterations=2",)
    told = distilled(recipe_file, Path("told").resolve(), *overrides, "prior.micro_batch=2")
    shortage = Shortage(monkeypatch, most=6, with_graph=2)
    shortage_lines = ld3m("distill", recipe_file, *overrides, "prior.micro_batch=4", "-o", "run")
    assert shortage_lines.code == 0, shortage_lines.err
    assert shortage_lines.err.count("memory ran out; continuing with prior.micro_batch=2") == 1
    assert shortage.refused == 1
    assert relative(latents(Path("run"))["z"], latents(told)["z"]) < 1e-4
    assert relative(latents(Path("run"))["c"], latents(told)["c"]) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize(
    "objective", [["dm"], pytest.param(["dc", "distill.dc.outer=3", "distill.dc.inner=1"], marks=pytest.mark.slow)]
)
def test_an_objective_that_runs_out_does_without_the_graphs(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, objective: list[str]
) -> None:
    """Memory ends in the middle of the second iteration's match, after dc's inner loop has moved its network."""
    from ld3m.objectives.draws import Draws

    overrides = (f"distill.objective={objective[0]}", *objective[1:], "distill.iterations=2")
    told = distilled(recipe_file, Path("told").resolve(), *overrides)
    calls, real = [], Draws.real

    def scarce(*arguments: Any) -> Tensor:
        calls.append(arguments)
        if len(calls) == 5:  # three classes an iteration
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: …")
        return real(*arguments)

    monkeypatch.setattr(Draws, "real", scarce)
    outcome = ld3m("distill", recipe_file, *overrides, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "memory ran out; continuing with prior.keep_graph_steps=0" in outcome.err
    assert torch.equal(latents(Path("run"))["z"], latents(told)["z"])


@pytest.mark.slow
@pytest.mark.parametrize("init", ["real", "herding"])
def test_the_first_encoding_goes_on_with_fewer_images(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    """More than three images are too many to be encoded or scored: of eight, four and two fit, of 100, three."""
    overrides = (f"distill.init={init}", "distill.images_per_class=8", "distill.iterations=0", "data.scorer.epochs=1")
    told = distilled(recipe_file, Path("told").resolve(), *overrides)
    monkeypatch.setenv("LD3M_CACHE", str(Path("cache").resolve()))  # nothing has been scored here
    encode, embed = ClassConditionalLDM.encode, ConvNet.embed

    def scarce(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
        def few(model: Any, images: Tensor) -> Tensor:
            if len(images) > 3 and not torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return function(model, images)

        return few

    monkeypatch.setattr(ClassConditionalLDM, "encode", scarce(encode))
    monkeypatch.setattr(ConvNet, "embed", scarce(embed))
    outcome = ld3m("distill", recipe_file, *overrides, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "memory ran out; continuing with 4 images at a time" in outcome.err
    assert ("memory ran out; continuing with 3 images at a time" in outcome.err) == (init == "herding")
    assert relative(latents(Path("run"))["z"], latents(told)["z"]) < 1e-5


def test_an_image_that_cannot_be_encoded_is_one_line(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(prior: ClassConditionalLDM, images: Tensor) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(ClassConditionalLDM, "encode", scarce)
    outcome = ld3m("distill", recipe_file, "-o", "run")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("ld3m: distill.init: memory ran out as a single image was encoded")


def test_nothing_less_is_one_line(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    Shortage(monkeypatch, most=0)
    outcome = ld3m("distill", recipe_file, "prior.micro_batch=2", "prior.keep_graph_steps=0", "-o", "run")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("ld3m: prior.micro_batch: memory ran out with one image at a time")


def test_an_objective_without_graphs_to_release_is_one_line(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*arguments: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(dm, "match_features", scarce)
    outcome = ld3m("distill", recipe_file, "prior.keep_graph_steps=0", "-o", "run")
    assert outcome.code == 2
    assert "ld3m: distill.objective: memory ran out in dm; give a smaller distill.real_batch" in outcome.err


def test_other_errors_are_not_taken_for_it(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(ClassConditionalLDM, "denoise", wrong)
    outcome = ld3m("distill", recipe_file, "-o", "run")
    assert outcome.code == 1
    assert "ld3m: unexpected error (RuntimeError: shapes do not match); please report it" in outcome.err


def test_processes_that_share_a_denoiser_stop() -> None:
    """One that repeated its calls would wait for the others for ever."""

    def attempt(micro_batch: int, keep: int) -> Any:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match=r"under ZeRO-3 and FSDP .* give prior\.micro_batch=4, "):
        MemoryBudget(micro_batch=8, keep_graph_steps=0, collective=True).render(attempt)


def test_a_reproducible_run_gives_up_graphs_and_no_batch() -> None:
    """Kept graphs change no bit; another micro-batch does."""
    budget = MemoryBudget(micro_batch=8, keep_graph_steps=2, reproducible=True)
    budget.lower()
    assert (budget.micro_batch, budget.keep_graph_steps) == (8, 0)
    with pytest.raises(UserError, match=r"prior\.micro_batch: .* reproducible: true .* give a divisor of 8 below it"):
        budget.lower()
    assert budget.micro_batch == 8


def test_nothing_of_an_attempt_is_left_when_it_is_repeated() -> None:
    """Neither by the error's frames nor in a circle."""
    held: list[weakref.ref] = []

    def attempt(micro_batch: int, keep: int) -> Any:
        assert all(reference() is None for reference in held)
        large = torch.zeros(8)
        circle = [large]
        circle.append(circle)  # type: ignore[arg-type]
        held.append(weakref.ref(large))
        if micro_batch > 1:
            raise torch.OutOfMemoryError
        return large, lambda grad: (grad, grad)

    MemoryBudget(micro_batch=8, keep_graph_steps=2).render(attempt)
    assert len(held) == 5


LIMITED = """
import resource, sys
import torch
from ld3m.__main__ import main
import ld3m.distillation.loop, ld3m.sampling.memory_budget
settled = ld3m.sampling.memory_budget.MemoryBudget.of
def of(*arguments, **options):
    space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + MORE, space + MORE))
    return settled(*arguments, **options)
ld3m.sampling.memory_budget.MemoryBudget.of = of
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are Linux's")
def test_memory_that_really_ends(recipe_file: Path, tmp_path: Path) -> None:
    """A process that may have 700 MB more once it is ready; the graphs of 240 images would take 1.2 GB."""
    overrides = ["distill.images_per_class=80", "distill.init=noise", "distill.iterations=1", "prior.micro_batch=80"]
    told = distilled(recipe_file, tmp_path / "told", *overrides, "prior.keep_graph_steps=0")
    program = LIMITED.replace("MORE", "700_000_000")
    arguments = ["distill", str(recipe_file), *overrides, "-o", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memory ran out; continuing with prior.keep_graph_steps=0" in done.stderr
    assert relative(latents(tmp_path / "run")["z"], latents(told)["z"]) < 1e-6


# --- auto --------------------------------------------------------------------------------------------------


def outlined(recipe_file: Path, *overrides: str) -> Bench:
    """Three classes of twenty images on the meta device."""
    recipe = load(Recipe, str(recipe_file), ["distill.images_per_class=20", "prior.steps=5", *overrides])
    return Bench(recipe, MetaPrior.of(recipe.prior), MetaImages.of(recipe.data), range(3), META)


@pytest.mark.slow
def test_auto_is_the_largest_micro_batch_that_fits(recipe_file: Path) -> None:
    """As many as are planned to take the share of the memory that is theirs, up to all images, but never none."""
    bench = outlined(recipe_file, "prior.micro_batch=auto", "prior.keep_graph_steps=0")
    found = [auto.solve_auto(bench, 1, 60, room * 2**20).prior.images_at_a_time for room in (0, 20, 100_000)]
    assert found[0] == 1
    assert 2 < found[1] < 60
    assert found[2] == 60
    room = auto.SHARE * 20 * 2**20
    assert (
        auto.peak_bytes(bench, found[1]) < room < auto.peak_bytes(bench, found[1] + 1) + 60 * 20_000
    )  # Z, c, states, …


@pytest.mark.slow
def test_auto_keeps_graphs_in_what_is_left(recipe_file: Path) -> None:
    bench = outlined(recipe_file, "prior.micro_batch=8", "prior.keep_graph_steps=auto")
    found = [auto.solve_auto(bench, 1, 60, room * 2**20).prior.kept_steps for room in (50, 400, 2_000)]
    assert found[0] == 0
    assert 0 < found[1] < 5
    assert found[2] == 5
    step, decoder = auto.graph_bytes(bench)
    assert 60 * (found[1] * step + decoder) < auto.SHARE * 400 * 2**20
    sharded = auto.solve_auto(bench, 1, 60, 2**40, sharded=True).prior
    assert (sharded.micro_batch, sharded.keep_graph_steps) == (8, 0)


@pytest.mark.slow
def test_auto_begins_with_one_image_where_two_are_too_much(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    Shortage(monkeypatch, most=1)
    outcome = ld3m("distill", recipe_file, "prior.micro_batch=auto", "prior.keep_graph_steps=auto", "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "prior.micro_batch=1 prior.keep_graph_steps=0: found for the " in outcome.out
    assert "memory ran out" not in outcome.err


def test_what_runs_for_real_is_measured_as_in_outline(recipe_file: Path) -> None:
    """Counted as it runs, the real prior's micro-batch takes what its outline's does.

    An outline's layers lie plainly, as on a GPU, where transformers copy what they are given, which channels last is a
    view: it takes more than a CPU, not less.
    """
    bench = outlined(recipe_file)
    real = replace(bench, prior=make_prior(), device=torch.device("cpu"))
    assert auto.peak_bytes(real, 2) <= auto.peak_bytes(bench, 2) <= 1.15 * auto.peak_bytes(real, 2)
    (step, decoder), (outlined_step, outlined_decoder) = auto.graph_bytes(real), auto.graph_bytes(bench)
    assert step <= outlined_step <= 1.15 * step
    assert decoder == pytest.approx(outlined_decoder, rel=0.05)


@pytest.mark.gpu
def test_a_run_with_auto(recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    """Everything fits here, and the result is that of the defaults; the recipe still says auto."""
    told = distilled(recipe_file, Path("told").resolve(), "distill.iterations=1")
    auto = ("prior.micro_batch=auto", "prior.keep_graph_steps=auto", "distill.iterations=1")
    outcome = ld3m("distill", recipe_file, *auto, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "prior.micro_batch=6 prior.keep_graph_steps=3: found for the " in outcome.out
    assert torch.equal(latents(Path("run"))["z"], latents(told)["z"])
    assert "micro_batch: auto" in Path("run/recipe.yaml").read_text()
    assert ld3m("distill", "run/recipe.yaml", "-o", "run").code == 0
    assert ld3m("render", "run", "--steps", "2").code == 0


@pytest.mark.slow
def test_a_plan_says_what_auto_is(
    ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, recipe_file: Path
) -> None:
    """What it chooses for a GPU fits into it; and here it is what a run here finds."""
    auto = ("prior.micro_batch=auto", "prior.keep_graph_steps=auto", "distill.images_per_class=12")
    chosen = []
    for mebibytes in (12, 18, 4000):
        small = devices.Device(devices.RESERVED / 2**30 + mebibytes / 1024, 1e12, 1e12)
        monkeypatch.setitem(devices.DEVICES, "small", small)
        outcome = ld3m("plan", recipe_file, *auto, "--device", "small", "--json")
        assert outcome.code == 0, outcome.err
        told = json.loads(outcome.out)
        assert told["warnings"] == []
        chosen.append((told["micro_batch"], told["keep_graph_steps"]))
    assert 1 <= chosen[0][0] < chosen[1][0] < 36
    assert chosen[-1] == (36, 3)
    shown = ld3m("plan", recipe_file, *auto).out
    assert "at a time 36 images, the graphs of 3 steps kept" in shown
