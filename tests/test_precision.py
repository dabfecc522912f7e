"""Fewer bits and compiled kernels: how far the gradients are from those in plain float32, and what cannot be."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, distilled, latents, make_prior, relative
from torch import Tensor

from ld3m import objectives, priors
from ld3m.data.prepared import prepare
from ld3m.errors import UserError
from ld3m.machine.processes import Processes
from ld3m.objectives.train_experts import train_experts
from ld3m.priors import lean_layers
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule, render

CPU = Processes(torch.device("cpu"))
ROUNDING = 2.0**-8
"""bfloat16 has 8 significant bits: a number is off by half of this at most, relatively."""


# --- the matching network in bfloat16 ----------------------------------------------------------------------


def gradient(recipe: Recipe) -> Tensor:
    """Of the recipe's objective at noise, in its second iteration."""
    images = prepare(recipe.data, progress=False)
    objective: Any = objectives.build(recipe, images, range(3), CPU)
    pixels = torch.rand(3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for iteration in range(2):
        losses, found = objective.match(iteration, pixels)
        assert losses.dtype == found.dtype == torch.float32
    return found


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("objective", "most"), [("dm", 0.1), ("dc", 0.2), ("mtt", 0.1)])
def test_gradients_in_bfloat16(recipe_file: Path, tmp_path: Path, objective: str, most: float, norm: str) -> None:
    """Off by 0.03 to 0.05, and 0.1 for dc, whose passes are twice as many; an error e across leaves a cosine of
    1 / √(1 + e²). Of dm's features the means nearly cancel, so that what is left is off by more than `ROUNDING`.
    """
    settings = [f"distill.objective={objective}", "network.width=32", f"network.norm={norm}", "distill.dc.outer=2"]
    settings += ["experts.count=1", "experts.epochs=4", "distill.mtt.syn_steps=2", f"experts.folder={tmp_path}"]
    if objective == "mtt":
        train_experts(load(Recipe, str(recipe_file), settings))  # in float32, and for both
    exact, rounded = (
        gradient(load(Recipe, str(recipe_file), [*settings, f"network.dtype={dtype}"])).flatten(1)
        for dtype in ("float32", "bfloat16")
    )
    error = (rounded - exact).norm() / exact.norm()
    assert ROUNDING / 2 < error < most
    assert torch.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0) > (1 + most**2) ** -0.5


def test_weights_and_answers_stay_in_float32(recipe_file: Path) -> None:
    recipe = load(Recipe, str(recipe_file), ["network.dtype=bfloat16"])
    images = prepare(recipe.data, progress=False)
    network, plain = (
        objectives.draws_of(each, images, CPU).network(0) for each in (recipe, load(Recipe, str(recipe_file), []))
    )
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    inputs = torch.rand(4, 1, 16, 16)
    for seen, exact in ((network(inputs), plain(inputs)), (network.embed(inputs), plain.embed(inputs))):
        assert seen.dtype == torch.float32
        assert 0 < relative(seen.detach(), exact.detach()) < 8 * ROUNDING
    assert network.classifier is network.network.classifier


# --- a compiled denoiser -----------------------------------------------------------------------------------


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile with all its parts but the last, which writes kernels and takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def gradients_through(prior: Any) -> list[Tensor]:
    """Images of two, and gradients of Z and c, all graphs being kept."""
    schedule = Schedule.of(prior.noise_schedule, 2, "paper", 3.0)
    draws = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(2, *prior.latent_shape, generator=draws) for _ in range(2))
    c = torch.randn(2, *prior.conditioning_shape, generator=draws)
    pixels, pull_back = render(prior, schedule, z, c, noise, keep_graph_steps="all")
    return [pixels, *pull_back(torch.randn(pixels.shape, generator=draws))]


def compiled_agree() -> None:
    """Images and gradients of a prior whose denoiser is traced as a whole, with the layers that keep less."""
    prior = make_prior()
    exact = gradients_through(prior)
    priors.compile_denoiser(prior, torch.device("cpu"))
    torch._dynamo.utils.counters.clear()
    for found, expected in zip(gradients_through(prior), exact, strict=True):
        assert relative(found, expected) < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_compiled_gradients_are_the_plain_ones(without_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_layers, "LEAST", 0)
    compiled_agree()


@pytest.mark.slow
def test_gradients_through_kernels_are_the_plain_ones() -> None:
    compiled_agree()


def traced(graphs: list[torch.fx.GraphModule]) -> Callable[..., Any]:
    """A compiler that keeps the graphs it is given, forwards and backwards, as Inductor gets them, and runs them."""
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    split = min_cut_rematerialization_partition
    return aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=split, decompositions=select_decomp_table())


def test_frozen_layers_are_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a break, and channels last, as they lie on a CPU, without a copy into the other layout.

    Of a block's activations it keeps one, the first convolution's output, besides its input: norm and SiLU are fused
    into kernels that do both again.
    """
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

    monkeypatch.setattr(lean_layers, "LEAST", 0)
    torch.manual_seed(0)
    block = lean_layers.freeze(ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=4, groups=2, eps=1e-5))
    gate = lean_layers.freeze(GEGLU(4, 4))

    def layers(x: Tensor, embedding: Tensor) -> Tensor:
        return block(x, gate(embedding))

    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    embedding = torch.randn(2, 4, requires_grad=True)
    graphs: list[torch.fx.GraphModule] = []
    answers = []
    for function in (layers, torch.compile(layers, backend=traced(graphs), fullgraph=True, dynamic=False)):
        value = function(x, embedding)
        assert value.is_contiguous(memory_format=torch.channels_last)
        answers.append([value, *torch.autograd.grad(value.square().sum(), (x, embedding))])
    for found, expected in zip(answers[1], answers[0], strict=True):
        torch.testing.assert_close(found, expected)
    forwards, backwards = graphs
    for graph in graphs:
        assert not [node for node in graph.graph.nodes if "memory_format" in node.kwargs], "a copy"
    _, *kept = forwards.graph.output_node().args[0]
    activations = [node for node in kept if node.op != "placeholder" and node.meta["val"].shape == x.shape]
    assert [node.target for node in activations] == [torch.ops.aten.convolution.default]
    convolutions = [
        node for node in backwards.graph.nodes if node.target == torch.ops.aten.convolution_backward.default
    ]
    assert [node.args[-1] for node in convolutions] == 2 * [[True, False, False]], "no weight's gradient"


@pytest.mark.slow
def test_a_run_with_a_compiled_denoiser(recipe_file: Path, tmp_path: Path, without_kernels: None) -> None:
    """`auto` counts operations, which kernels do not show."""
    auto = ("distill.iterations=2", "prior.micro_batch=auto", "prior.keep_graph_steps=auto")
    told = latents(distilled(recipe_file, tmp_path / "told", *auto))
    found = latents(distilled(recipe_file, tmp_path / "run", *auto, "prior.compile=true"))
    assert relative(found["z"], told["z"]) < 1e-4
    assert relative(found["c"], told["c"]) < 1e-4


def test_no_compiler_is_one_line(
    recipe_file: Path, ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in\ntorch._inductor.config.cpp.cxx")

    monkeypatch.setattr(torch, "compile", broken)
    outcome = ld3m("distill", recipe_file, "prior.compile=true", "-o", "run")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(
        "ld3m: prior.compile: torch.compile does not work here (RuntimeError: No working C++ compiler found in torch."
    )


def test_a_sharded_denoiser_is_not_compiled() -> None:
    with pytest.raises(UserError, match=r"prior\.compile: on, .* under ZeRO-3 and FSDP .* leave the key out"):
        priors.compile_denoiser(make_prior(), torch.device("cpu"), sharded=True)
