"""Between logged iterations nobody waits for the device.

Run on the meta device, whose tensors have no values, an iteration fails where it reads one: `.item()`, `.tolist()`, a
tensor as a condition, `.cpu()`, or an operation whose result's size depends on values. What is sent there is watched:
a copy that blocks, also of an index, would wait for all that a GPU has still to do.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import CLASSES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from ld3m.distillation import loop
from ld3m.distillation.bookkeeping import Bookkeeping
from ld3m.distillation.latents import LearntLatents
from ld3m.distillation.setup import Setup
from ld3m.distillation.trackers import Trackers
from ld3m.machine.processes import start
from ld3m.machine.timing import Clock
from ld3m.machine.transfer import send
from ld3m.objectives.train_experts import train_experts
from ld3m.recipe import Recipe
from ld3m.recipe.files import load

META = torch.device("meta")


class Blocking(TorchDispatchMode):
    """Collects the operations that copy from the CPU to the meta device and block."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, first = str(operation), args[0] if args else None
        if isinstance(first, Tensor) and name.startswith("aten._to_copy") and kwargs.get("device") == META:
            if first.is_cpu:
                self.sent += 1
                self.found += [name] * (not kwargs.get("non_blocking"))
        elif isinstance(first, Tensor) and first.is_meta and name.startswith("aten.index"):
            places = args[1] if isinstance(args[1], list | tuple) else args[2:3]
            self.found += [name for place in places if isinstance(place, Tensor) and place.is_cpu]
        return operation(*args, **kwargs)


def iterations(recipe: Recipe, count: int) -> Blocking:
    """The first of a run whose device is Accelerate's, watched."""
    setup = Setup.load(start(), recipe)
    shape = (len(CLASSES), recipe.distill.images_per_class)
    z = torch.zeros(*shape, *setup.prior.latent_shape, device=META)
    c = torch.zeros(*shape, *setup.prior.conditioning_shape, device=META)
    learnt = LearntLatents(z, c, z.clone(), c.clone())
    with tqdm(disable=True) as bar, Blocking() as blocking:
        books = Bookkeeping(setup, Trackers([]), bar)
        for iteration in range(count):
            learnt, stop = loop.timed_iteration(setup, iteration, learnt, books, [])
            assert stop == 0
    return blocking


@pytest.mark.parametrize(
    "objective",
    [
        ["dm", "prior.skip=paper", "prior.keep_graph_steps=1", "prior.steps=2"],
        *(
            pytest.param(objective, marks=pytest.mark.slow)
            for objective in (
                ["dm", "network.norm=batch", "prior.keep_graph_steps=0"],
                ["dc", "distill.dc.outer=20", "distill.dc.inner=2"],
                ["mtt", "experts.count=1", "experts.epochs=4", "distill.mtt.batch_syn=4", "distill.mtt.syn_steps=4"],
            )
        ),
    ],
    ids=" ".join,
)
def test_an_iteration_that_is_not_logged_waits_for_nothing(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: list[str]
) -> None:
    settings = [f"distill.objective={objective[0]}", *objective[1:]]
    settings += ["distill.iterations=1000", "distill.log_every=1000", "distill.checkpoint_every=1000"]
    settings += ["distill.pictures=0", f"experts.folder={tmp_path / 'experts'}", f"output={tmp_path / 'run'}"]
    recipe = load(Recipe, str(recipe_file), settings)
    if objective[0] == "mtt":
        train_experts(recipe)
    monkeypatch.setattr(Accelerator, "device", META)
    blocking = iterations(recipe, count=4)  # of three classes, each with an augmentation of its own
    assert blocking.sent > 12
    assert blocking.found == []


def test_what_waits_would_be_found(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logged iteration reads its loss."""
    monkeypatch.setattr(Accelerator, "device", META)
    recipe = load(Recipe, str(recipe_file), ["distill.pictures=0", f"output={tmp_path / 'run'}"])
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        iterations(recipe, count=1)
    with Blocking() as blocking:
        there = torch.zeros(4, device=META)
        torch.ones(2).to(META)
        there[torch.tensor([1, 2])]
        there[torch.tensor([1, 2])] += 1
        send(torch.ones(2), META)
    assert (len(blocking.found), blocking.sent) == (4, 2)


def test_what_is_sent_to_a_gpu_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, sent = torch.zeros(2), torch.zeros(2)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned)
    moves = []
    monkeypatch.setattr(Tensor, "to", lambda *arguments, **options: moves.append((arguments, options)))
    for device in ("cuda:1", "mps"):
        send(sent, torch.device(device))
    assert moves[0][0][0] is pinned
    assert moves[1][0][0] is sent
    assert [options for _, options in moves] == [{"non_blocking": True}, {"non_blocking": False}]


@pytest.mark.parametrize(("exact", "waits"), [(True, 2), (False, 0)])
def test_the_clock_waits_for_a_gpu_where_it_is_to_be_exact(
    monkeypatch: pytest.MonkeyPatch, exact: bool, waits: int
) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    with Clock(torch.device("cuda"), exact=exact) as clock:
        clock.begin("render")
        clock.begin("objective")
    assert len(waited) == waits
    assert list(clock.seconds) == ["render", "objective"]
