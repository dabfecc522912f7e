"""Where a GPU's time goes, and what would make less of it: everything at the size of recipes/imagenet256.yaml.

    python tests/benchmarks/gpu.py [--budget SECONDS] [--output FILE.json] [--only PART …] [--tiny]

One run fits into eight minutes of an H100 (`--budget 480`): a part that would overrun it is skipped, and said to be;
`--only` has it in another run. Lines are printed as they are measured and numbers are kept in FILE.json ($OUT/gpu.json,
or gpu.json) after each part, so that a run that ends early has what it measured. `--tiny` runs every part in toy sizes,
also on a CPU, whose figures mean nothing.

A prior of cin256-v2's configuration (401 M parameters, 64 × 64 latents) with random weights, the `reference` skip,
guidance 3, ten images at once. Seconds are wall clock, medians of the rounds after one to warm up; memory is what
PyTorch's allocator had given out at most beyond what there was before. TFLOP/s are the counted operations of
convolutions, products and attention over these seconds, and their share is of the card's own best on a product of
8192 × 8192 matrices in this run and precision. Errors are relative, of images and of Z's gradient after two steps,
against float32. The baseline is authors_way.py's, which does what the authors' public code does.

Variants are what only a GPU can decide about. What wins and repeats its bits belongs into the package; the rest does
not, and there is no option for it.
"""

import argparse
import copy
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from kernel_kinds import Times
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ld3m import networks, objectives, priors
from ld3m.data.prepared import ImageSet
from ld3m.data.selection.coresets import open_whole
from ld3m.distillation.latents import LearntLatents
from ld3m.distillation.loop import iteration
from ld3m.distillation.setup import Setup, noise_of, schedule_of
from ld3m.files import write_tensors
from ld3m.machine.determinism import repeatable
from ld3m.machine.processes import Processes
from ld3m.machine.timing import Clock
from ld3m.networks.training import train
from ld3m.objectives.dm import real_features
from ld3m.objectives.experts import Trajectories, experts_of
from ld3m.randomness import generator
from ld3m.recipe import NetworkRecipe, Recipe, SamplerRecipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule, render
from ld3m.sampling.differentiated import EXACT, Differentiated
from ld3m.sampling.memory_budget import MemoryBudget
from ld3m.sampling.synthetic import SyntheticImages
from ld3m.sizing.count import Tally

TFLOP, GIB = 1e12, 2**30
Answer = list[Tensor]
"""Images, and the gradients of Z and c."""


# --- sizes -------------------------------------------------------------------------------------------------


def full_prior() -> Any:
    """cin256-v2's configuration with random weights."""
    from ld3m.priors.originals.latent_diffusion import untrained

    torch.manual_seed(0)
    return untrained("cin256-v2")


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    prior: Callable[[], Any]
    recipe: str
    overrides: list[str]
    product: int
    """Rows of the matrices whose product is the card's best."""
    smaller: int
    """The resolution of the smaller iteration."""
    depth: int
    """Blocks of the ConvNet at that resolution."""
    train: int
    """Real images of each class that there are."""
    epochs: int
    """Steps of evaluation that are timed."""
    backend: str = "inductor"
    rounds: int = 2
    pace: float = 1.0
    """Factor of the seconds that parts are expected to take."""


FULL = Size(
    full_prior,
    "imagenet256",
    ["prior.dtype=bfloat16", "network.dtype=bfloat16", "experts.count=1", "experts.epochs=4"],
    product=8192,
    smaller=128,
    depth=5,
    train=300,
    epochs=20,
)
TINY = Size(
    lambda: priors.load(SamplerRecipe(source="fashion-mnist")),
    "quickstart",
    ["prior.steps=2", "prior.guidance=3", "network.width=8", "network.depth=2", "distill.real_batch=3",
     "distill.mtt.syn_steps=2", "experts.count=1", "experts.epochs=4"],
    product=64,
    smaller=32,
    depth=2,
    train=4,
    epochs=2,
    backend="aot_eager",
    rounds=1,
    pace=0.0,
)  # fmt: skip


# --- what is said and kept ---------------------------------------------------------------------------------


class OverrunError(Exception):
    """A part took what was left of the budget."""


@dataclass
class Report:
    """Prints lines as they come, keeps numbers for the JSON, and knows how much of the budget is left."""

    path: Path
    budget: float
    began: float = field(default_factory=time.perf_counter)
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.budget - (time.perf_counter() - self.began)

    def say(self, *lines: str) -> None:
        """Prints lines at once."""
        print(*lines, sep="\n", flush=True)

    def keep(self, part: str, name: str, **numbers: Any) -> None:
        """Keeps what was measured of one thing of a part."""
        self.numbers.setdefault(part, {})[name] = numbers

    def run(self, part: str, seconds: float, measure: Callable[[], None]) -> bool:
        """Runs a part unless it would overrun the budget; what fails or overruns is said, and the rest goes on.

        Args:
            part: its name.
            seconds: that it takes, about.
            measure: says and keeps.
        """
        began, found = time.perf_counter(), "measured"
        if seconds > self.left:
            found = f"skipped: it takes about {seconds:.0f} s, and {self.left:.0f} are left"
        else:
            try:
                with at_most(self.left):
                    measure()
            except OverrunError:
                found = "ended: the budget was spent"
            except Exception as error:  # a variant that this card or this torch cannot do must not cost the others
                traceback.print_exc(file=sys.stderr)
                found = f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        took = time.perf_counter() - began
        if found != "measured":
            self.say(f"{part}: {found}")
        self.numbers.setdefault("parts", {})[part] = {"found": found, "seconds": round(took, 1)}
        self.path.write_text(json.dumps(self.numbers, indent=1) + "\n")
        return found == "measured"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Within it, `OverrunError` is raised after so many seconds."""

    def overran(number: int, frame: Any) -> None:
        raise OverrunError

    before = signal.signal(signal.SIGALRM, overran)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- variants of the gradient step -------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A way to take the gradient step."""

    name: str
    seconds: float
    """That it takes to prepare and to time, about."""
    channels_last: bool = False
    half_decoder: bool = False
    compiled: bool = False
    compiled_decoder: bool = False
    captured: bool = False
    """Whether each call of the denoiser is one CUDA graph, forwards, and one backwards."""
    kept: bool = False
    """Whether as many graphs are kept as fit."""
    repeats: bool = True
    """Whether kernels are those that give the same bits each time."""
    tried: bool = False
    """Whether cuDNN tries its kernels for each shape and takes the fastest."""
    through: Differentiated = EXACT

    @property
    def twin(self) -> tuple[bool, ...]:
        """What variants must have in common to share a prior."""
        return self.channels_last, self.half_decoder, self.compiled, self.compiled_decoder


PLAIN = Variant("bfloat16, as it is", 15)
VARIANTS = [
    PLAIN,
    Variant("need not repeat itself", 8, repeats=False),
    Variant("the same, cuDNN tries its kernels", 20, repeats=False, tried=True),
    Variant("channels last", 12, channels_last=True),
    Variant("channels last, need not repeat itself", 10, channels_last=True, repeats=False),
    Variant("decoder in bfloat16 too", 10, half_decoder=True),
    Variant("CUDA graphs", 12, captured=True),
    Variant(
        "channels last, decoder in bfloat16, CUDA graphs", 14, channels_last=True, half_decoder=True, captured=True
    ),
    Variant("as many graphs kept as fit", 15, kept=True),
    Variant("shortcut, K = 0", 5, through=Differentiated("shortcut", 0)),
    Variant("shortcut, K = 1", 5, through=Differentiated("shortcut", 1)),
]
COMPILED = [
    Variant("compiled", 170, compiled=True),
    Variant("compiled, need not repeat itself", 8, compiled=True, repeats=False),
    Variant("compiled, CUDA graphs", 15, compiled=True, captured=True),
    Variant("compiled, as many graphs kept as fit", 15, compiled=True, kept=True),
    Variant("compiled, shortcut, K = 1", 5, compiled=True, through=Differentiated("shortcut", 1)),
    Variant("compiled, channels last", 120, compiled=True, channels_last=True),
    Variant("compiled with its decoder", 150, compiled=True, compiled_decoder=True),
]


class InHalf(nn.Module):
    """A decoder in bfloat16 between float32; its latents are quantised before."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder.bfloat16()

    def forward(self, z: Tensor, *others: Any) -> Tensor:
        return self.decoder(z.bfloat16(), *others).float()


class Bench:
    """What all parts share."""

    def __init__(self, size: Size, device: torch.device, report: Report, folder: Path) -> None:
        self.size, self.device, self.report, self.folder = size, device, report, folder
        self.recipe = load(
            Recipe, size.recipe, [*size.overrides, f"experts.folder={folder / 'experts'}", "distill.images_per_class=1"]
        )
        self.prior = size.prior()
        if self.recipe.data.resolution != self.prior.image_size:
            self.prior.render_at(self.recipe.data.resolution)
        for module in (self.prior.autoencoder, self.prior.denoiser):
            module.to(device, memory_format=torch.contiguous_format)  # as a GPU's run loads it
        self.prior.table, self.prior.null_embedding = (
            self.prior.table.to(device),
            self.prior.null_embedding.to(device),
        )
        self.twins: dict[tuple[bool, ...], Any] = {}
        self.best: dict[str, float] = {}
        """TFLOP/s of products, by precision."""
        self.times: dict[Variant, float] = {}
        draws = torch.Generator().manual_seed(1)
        z, noise = (torch.randn(self.images, *self.prior.latent_shape, generator=draws) for _ in range(2))
        c = self.prior.table[: self.images].view(self.images, *self.prior.conditioning_shape).cpu()
        side, channels = self.prior.image_size, self.prior.image_channels
        at_images = torch.randn(self.images, channels, side, side, generator=draws)
        self.learnt = [tensor.to(device) for tensor in (z, c, noise)]
        self.grad = at_images.to(device)

    @property
    def images(self) -> int:
        """Synthetic images of the gradient step."""
        return len(self.classes)

    @cached_property
    def classes(self) -> list[str]:
        """Ten of the prior's."""
        return self.prior.classes[: 10 if self.size is FULL else 2]

    def wait(self) -> None:
        """Until the GPU has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def allocated(self, most: bool = False) -> int:
        """Bytes that are given out, or that were at most."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()

    def seconds(self, run: Callable[[], Any], rounds: int | None = None, warm: bool = False) -> tuple[float, float]:
        """Median seconds, and the most GiB beyond what there was before; it runs once before unless it is warm."""
        if not warm:
            run()
        self.wait()
        before = self.allocated()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = []
        for _ in range(rounds or self.size.rounds):
            began = time.perf_counter()
            run()
            self.wait()
            took.append(time.perf_counter() - began)
        return statistics.median(took), (self.allocated(most=True) - before) / GIB

    @contextmanager
    def numerics(self, repeats: bool = True, tf32: bool = True, tried: bool = False) -> Iterator[None]:
        """Which kernels may be taken."""
        with repeatable(self.device, tf32):
            torch.backends.cudnn.benchmark = tried
            if self.device.type == "cuda":
                torch.use_deterministic_algorithms(repeats)
            try:
                yield
            finally:
                torch.backends.cudnn.benchmark = False

    def schedule(self, prior: Any, steps: int | None = None) -> Schedule:
        """Of the recipe, or of fewer steps."""
        settings = self.recipe.prior
        return Schedule.of(prior.noise_schedule, steps or settings.steps, settings.skip, settings.guidance)

    def twin(self, variant: Variant) -> Any:
        """The prior as a variant has it, in the recipe's precision."""
        if variant.twin not in self.twins:
            twin = copy.copy(self.prior)
            twin.denoiser = copy.deepcopy(self.prior.denoiser).to(getattr(torch, self.recipe.prior.dtype))
            twin.autoencoder = copy.deepcopy(self.prior.autoencoder)
            if variant.channels_last:
                for module in (twin.denoiser, twin.autoencoder):
                    module.to(memory_format=torch.channels_last)
            decoder = twin.autoencoder.decoder
            for module, wanted in ((twin.denoiser, variant.compiled), (decoder, variant.compiled_decoder)):
                if wanted:
                    module.compile(fullgraph=True, dynamic=False, backend=self.size.backend)
            if variant.half_decoder:
                twin.autoencoder.decoder = InHalf(decoder)
            self.twins[variant.twin] = twin
        twin = self.twins[variant.twin]
        return self.captured(twin) if variant.captured else twin

    def captured(self, prior: Any) -> Any:
        """A prior each of whose denoiser's calls, of the gradient step's batch, is a CUDA graph."""
        rows = self.images * (1 if self.recipe.prior.guidance == 1 else 2)
        z, c = (
            torch.zeros(count, *shape, device=self.device, dtype=prior.dtype, requires_grad=True)
            for count, shape in (
                (self.images if prior.halves_agree else rows, prior.latent_shape),
                (rows, prior.conditioning_shape),
            )
        )

        def call(z: Tensor, times: Tensor, c: Tensor) -> Tensor:
            return prior.denoiser(z, times, c).sample

        if self.device.type == "cuda":
            call = torch.cuda.make_graphed_callables(call, (z, prior.times(z, 1), c))
        twin = copy.copy(prior)
        twin.denoise = lambda z, t, c: call(z.to(prior.dtype), prior.times(z, t), c.to(prior.dtype)).to(z.dtype)
        return twin

    def step(
        self, prior: Any, variant: Variant = PLAIN, steps: int | None = None, keep: int = 0, images: int | None = None
    ) -> Answer:
        """The gradient step: images, and the gradients of Z and c."""
        schedule = self.schedule(prior, steps)
        pixels, pull_back = render(
            prior,
            schedule,
            *(tensor[:images] for tensor in self.learnt),
            micro_batch=self.images,
            keep_graph_steps=keep,
            through=variant.through.through(schedule, 0),
        )
        return [pixels, *pull_back(self.grad[:images])]

    def kept(self, prior: Any) -> int:
        """Steps whose graphs fit beside what a step takes anyway."""
        steps = self.recipe.prior.steps
        if self.device.type != "cuda":
            return steps

        def held(keep: int) -> int:
            before = self.allocated()
            answer = render(
                prior, self.schedule(prior, 2), *self.learnt, micro_batch=self.images, keep_graph_steps=keep
            )
            return self.allocated() - before if answer else 0

        each = held(2) - held(1)
        torch.cuda.reset_peak_memory_stats()
        before = self.allocated()
        self.step(prior, steps=2)
        left = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - self.allocated()
        return max(0, min(steps, int((0.9 * left - (self.allocated(most=True) - before)) / each)))

    def errors(self, answer: Answer) -> list[float]:
        """Relative distance of images and of Z's gradient from float32, after two steps."""
        return [float((a - b).norm() / b.norm()) for a, b in zip(answer[:2], self.exact[:2], strict=True)]

    @cached_property
    def exact(self) -> Answer:
        """The answer of two steps in float32."""
        with self.numerics(tf32=False):
            return self.step(self.prior, steps=2)

    @cached_property
    def operations(self) -> tuple[float, float, float, float]:
        """Of one image: a denoiser's guided call forwards and backwards, the decoder forwards and backwards."""
        prior = self.prior

        def count(run: Callable[[], Any]) -> float:
            with Tally() as tally:
                run()
            return float(tally.operations)

        def rendered(steps: int) -> float:
            one = (tensor[:1] for tensor in self.learnt)
            return count(lambda: render(prior, self.schedule(prior, steps), *one))

        once, twice = rendered(1), rendered(2)
        one, two = (count(lambda steps=steps: self.step(prior, steps=steps, images=1)) for steps in (1, 2))  # type: ignore[misc]
        call = twice - once
        decoder, back = once - call, (two - one) - 2 * call
        return call, back, decoder, one - 3 * call - back - 2 * decoder + call

    @property
    def embeddings(self) -> float:
        """Operations of a guided call of one image that its time step and its class cost, which could be shared."""
        names = ("time_emb", "attn2.to_v", "attn2.to_out")
        layers = [layer for name, layer in self.prior.denoiser.named_modules() if any(each in name for each in names)]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        return sum(2 * 2 * layer.in_features * layer.out_features for layer in linear)

    def work(self, variant: Variant, kept: int) -> float:
        """TFLOP of a gradient step."""
        call, back, decoder, decoder_back = self.operations
        steps = self.recipe.prior.steps
        through = len(variant.through.through(self.schedule(self.prior), 0).steps)
        calls = steps + through - min(kept, through)
        each = calls * call + through * back + decoder * (1 if kept else 2) + decoder_back
        return self.images * each / TFLOP

    @property
    def fastest(self) -> Variant:
        """The variant that takes least of those that are exact and repeat their bits."""
        usable = {each: took for each, took in self.times.items() if each.through == EXACT and each.repeats}
        return min(usable, key=usable.__getitem__, default=PLAIN)

    def time_variant(self, variant: Variant) -> None:
        """A row of the table of gradient steps."""
        with self.numerics(variant.repeats, tried=variant.tried):
            began = time.perf_counter()
            prior = self.twin(variant)
            kept = self.kept(prior) if variant.kept else 0
            two = self.step(prior, replace(variant, through=EXACT), steps=2, keep=min(2, kept))
            self.wait()
            first = time.perf_counter() - began
            took, memory = self.seconds(lambda: self.step(prior, variant, keep=kept), warm=True)
        self.times[variant] = took
        rate = self.work(variant, kept) / took
        numbers = {
            "seconds": took,
            "of as it is": took / self.times.get(PLAIN, took),
            "TFLOP/s": rate,
            "share of product": rate / self.best[self.recipe.prior.dtype],
            "GiB": memory,
            "kept": kept,
            "errors": self.errors(two),
            "first call": first,
        }
        self.report.keep("gradient step", variant.name, **numbers)
        shown = [f"{took:.3f}", f"{numbers['of as it is']:.2f}", f"{rate:.0f}", f"{numbers['share of product']:.1%}"]
        errors = ", ".join(f"{error:.1e}" for error in numbers["errors"])
        note = f"{kept} kept" if variant.kept else ""
        self.report.say(f"| {variant.name} | {' | '.join(shown)} | {memory:.1f} | {errors} | {first:.1f} | {note} |")


# --- parts -------------------------------------------------------------------------------------------------


def products(bench: Bench) -> None:
    """The card's own best."""
    count = bench.size.product
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, True),
        ("TF32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        with bench.numerics(tf32=tf32):
            one, other = (torch.randn(count, count, device=bench.device, dtype=dtype) for _ in range(2))
            took, _ = bench.seconds(lambda one=one, other=other: one @ other, rounds=5)  # type: ignore[misc]
        bench.best[name] = 2 * count**3 / took / TFLOP
    rates = ", ".join(f"{rate:.3g} in {name}" for name, rate in bench.best.items())
    bench.report.keep("products", f"{count}³", **bench.best)
    bench.report.say(f"TFLOP/s of a product of {count} × {count} matrices: {rates}")


def head_of_steps(bench: Bench) -> None:
    """What the table of gradient steps is of, and its first lines."""
    call, back, decoder, decoder_back = (each / TFLOP for each in bench.operations)
    numbers = {"call": call, "back": back, "decoder": decoder, "decoder_back": decoder_back}
    numbers["embeddings"] = bench.embeddings / call / TFLOP
    bench.report.keep("operations", "TFLOP of one image", **numbers)
    settings = bench.recipe.prior
    bench.report.say(
        f"gradient step of {bench.images} images, S = {settings.steps}, {bench.prior.image_size} px, "
        f"{bench.work(PLAIN, 0):.1f} TFLOP; of an image: guided call {call:.3f} and {back:.3f} back, decoder "
        f"{decoder:.3f} and {decoder_back:.3f}; "
        f"time embedding and class tokens {numbers['embeddings']:.3%} of a call",
        "| variant | s | of as it is | TFLOP/s | of the product's | GiB | errors: images, Z's gradient | first s | |",
        "| --- | --: | --: | --: | --: | --: | --- | --: | --- |",
    )


def profile(bench: Bench, variant: Variant) -> None:
    """A gradient step by kind of kernel."""
    with bench.numerics(variant.repeats):
        prior = bench.twin(variant)
        bench.step(prior, variant)
        activity = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activity.CUDA if bench.device.type == "cuda" else activity.CPU]) as run:
            bench.step(prior, variant)
            bench.wait()
    path = bench.folder / "trace.json"
    run.export_chrome_trace(str(path))
    times = Times.of(json.loads(path.read_text())["traceEvents"])
    whole = sum(times.seconds.values()) + times.idle
    bench.report.say(f"profile, {variant.name}: {times.kernels:,} kernels and copies, {whole:.3f} s with the profiler")
    if not whole:
        return
    bench.report.keep("profile", variant.name, kernels=times.kernels, idle=times.idle, **times.seconds)
    for name, took in sorted(times.seconds.items(), key=lambda item: -item[1]):
        bench.report.say(f"  {name:<22}{took:8.3f} s {took / whole:7.1%}")
    bench.report.say(f"  {'idle':<22}{times.idle:8.3f} s {times.idle / whole:7.1%}")
    for name, took in times.longest[:12]:
        bench.report.say(f"    {took:8.4f} s  {name[:120]}")


def precisions(bench: Bench) -> None:
    """The gradient step in float32 and TF32, and the baseline's, which does as the authors' code does."""
    from authors_way import authors_gradient, authors_prior

    twin = authors_prior(bench.prior)
    for name, tf32, rounds in (("TF32", True, 1), ("float32", False, 1)):
        with bench.numerics(tf32=tf32):
            ours, memory = bench.seconds(lambda: bench.step(bench.prior), rounds)
            theirs, their_memory = bench.seconds(
                lambda: authors_gradient(twin, bench.schedule(twin), *bench.learnt, lambda images: bench.grad), rounds
            )
        fastest = bench.times.get(bench.fastest, ours)
        numbers = {"seconds": ours, "baseline": theirs, "GiB": memory, "baseline GiB": their_memory}
        bench.report.keep("precisions", name, **numbers, fastest=fastest)
        bench.report.say(
            f"{name}: {ours:.2f} s, {memory:.1f} GiB; the baseline {theirs:.2f} s, {their_memory:.1f} GiB; the fastest "
            f"exact variant takes {fastest / theirs:.3f} of the baseline"
        )


def attention(bench: Bench) -> None:
    """One head over 1,024, 256 and 64 tokens, as the denoiser has it, and over 4,096, as the decoder has."""
    shapes = [(1024, 384), (256, 576), (64, 960), (4096, 512)] if bench.size is FULL else [(64, 32)]
    for tokens, width in shapes:
        found = []
        for backend in (
            SDPBackend.MATH,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
        ):
            dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
            query, key, value = (
                torch.randn(2 * bench.images, 1, tokens, width, device=bench.device, dtype=dtype, requires_grad=True)
                for _ in range(3)
            )

            def there_and_back(query: Tensor = query, key: Tensor = key, value: Tensor = value) -> None:
                answer = functional.scaled_dot_product_attention(query, key, value)
                torch.autograd.grad(answer.sum(), (query, key, value))

            try:
                with bench.numerics(), sdpa_kernel(backend), warnings.catch_warnings(action="ignore"):
                    took, memory = bench.seconds(there_and_back, rounds=5)
            except RuntimeError:  # "No available kernel": this backend does not do this size
                found.append(f"{backend.name.lower()} –")
                continue
            bench.report.keep("attention", f"{tokens} × {width}, {backend.name}", seconds=took, GiB=memory)
            found.append(f"{backend.name.lower()} {1000 * took:.2f} ms, {memory:.2f} GiB")
        bench.report.say(f"attention of {tokens} tokens of {width}: {'; '.join(found)}")


def noise_images(bench: Bench, resolution: int) -> Any:
    """Prepared real images of noise, in files that are mapped into memory as a run's are."""
    folder = bench.folder / f"images{resolution}"
    shape = (bench.prior.image_channels, resolution, resolution)
    count = bench.size.train
    draws = torch.Generator().manual_seed(0)
    for label in range(len(bench.classes)):
        path = folder / "train" / f"{label}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (count, *shape), generator=draws, dtype=torch.uint8)
            write_tensors(path, {"images": pixels})
    counts = [count] * len(bench.classes)
    images = ImageSet(
        classes=bench.classes,
        mean=torch.full((shape[0],), 0.5),
        std=torch.full((shape[0],), 0.25),
        counts={"train": counts},
        ids=list(range(len(counts))),
        fingerprints=[(count, "0" * 16)] * len(counts),
        folder=folder,
        resolution=resolution,
    )
    return open_whole(images, bench.recipe.data, [], bench.device)


def set_up(bench: Bench, prior: Any, overrides: list[str], resolution: int) -> Setup:
    """A recipe ready to run on noise images, with a prior that is there already."""
    given = ["distill.images_per_class=1", f"experts.folder={bench.folder / f'experts{resolution}'}"]
    recipe = load(Recipe, bench.size.recipe, [*bench.size.overrides, *given, *overrides])
    images, processes, own = noise_images(bench, resolution), Processes(bench.device), list(range(len(bench.classes)))
    if recipe.distill.objective == "mtt":
        network = objectives.draws_of(recipe, images, processes).network(0)
        weights = torch.cat([weight.detach().flatten() for weight in network.parameters()]).cpu()
        experts = Trajectories(experts_of(recipe), images, len(weights))
        with experts.claim(resume=False):
            moved = torch.randn(recipe.experts.epochs + 1, len(weights)) * 1e-3
            experts.save(0, weights + moved.cumsum(0))
    synthetic = SyntheticImages(
        prior=prior,
        schedule=schedule_of(recipe, prior),
        noise=noise_of(recipe, prior),
        labels=own,
        resolution=resolution,
        budget=MemoryBudget.of(recipe, len(own)),
        differentiated=Differentiated.of(recipe),
    )
    objective = objectives.build(recipe, images, own, processes)
    embeddings = prior.table[: len(own)].view(len(own), *prior.conditioning_shape)
    return Setup(recipe, processes, images, prior, embeddings, own, synthetic, objective)


def iterate(bench: Bench, name: str, variant: Variant, overrides: list[str], smaller: bool = False) -> None:
    """A whole iteration: by part, each waited for, and as a run has it, with how often that waits for the GPU."""
    resolution = bench.size.smaller if smaller else bench.recipe.data.resolution
    prior = bench.twin(variant)
    if smaller and resolution != prior.image_size:
        prior = copy.copy(prior)
        prior.render_at(resolution)
    kept = bench.kept(prior) if variant.kept else 0
    given = [f"data.resolution={resolution}", f"prior.keep_graph_steps={kept}"]
    overrides = [*overrides, *given, *([f"network.depth={bench.size.depth}"] * smaller)]
    setup = set_up(bench, prior, overrides, resolution)
    z = torch.randn(len(setup.own), 1, *prior.latent_shape, generator=torch.Generator().manual_seed(2))
    z, c = z.to(bench.device), setup.embeddings.unsqueeze(1)
    latents = LearntLatents(z, c, torch.zeros_like(z), torch.zeros_like(c))
    waits: list[str] = []
    with bench.numerics(variant.repeats):

        def once(i: int, exact: bool) -> dict[str, float]:
            with Clock(bench.device, exact) as clock:
                outcome = iteration(setup, i, latents, clock)
                clock.begin("end")
                del outcome
            return clock.seconds

        once(0, exact=False)
        parts = once(1, exact=True)
        whole, memory = bench.seconds(lambda: once(2, exact=False))
        if bench.device.type == "cuda":
            with warnings.catch_warnings(record=True, action="always") as caught:
                torch.cuda.set_sync_debug_mode("warn")
                once(3, exact=False)
                torch.cuda.set_sync_debug_mode("default")
            waits = [
                f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)
            ]
    bench.report.keep("iterations", name, seconds=whole, GiB=memory, waits=waits, parts=parts)
    by_part = ", ".join(f"{part} {took:.3f}" for part, took in parts.items() if part != "end")
    places = f" ({', '.join(sorted(set(waits)))})" if waits else ""
    bench.report.say(f"iteration of {name}: {whole:.3f} s, {memory:.1f} GiB; {by_part}; waits {len(waits)}{places}")


def matching(bench: Bench) -> None:
    """The real images of an iteration of `dm`: read, sent, and put through the matching network in several ways."""
    setup = set_up(bench, bench.prior, ["distill.objective=dm"], bench.recipe.data.resolution)
    draws = objectives.draws_of(setup.recipe, setup.images, setup.processes)
    sources = {label: setup.images.images("train", label) for label in setup.own}

    def read(i: int = 0) -> list[Tensor]:
        return [draws.real(images, i, label) for label, images in sources.items()]

    with bench.numerics():
        took, memory = bench.seconds(read)
        bench.report.keep("matching", "read and sent", seconds=took, GiB=memory)
        count = len(setup.own) * setup.recipe.distill.real_batch
        bench.report.say(f"{count} real images read, sent and normalised: {took:.3f} s, {memory:.1f} GiB")
        real = read()
        plain = draws_in(draws, "float32").network(0).requires_grad_(False)
        exact = torch.cat([real_features(plain, images).mean(0) for images in real])
        half = draws_in(draws, "bfloat16").network(0).requires_grad_(False)
        ways: dict[str, tuple[Any, torch.dtype, bool]] = {
            "TF32": (plain, torch.float32, False),
            "TF32, channels last": (copy.deepcopy(plain), torch.float32, True),
            "autocast to bfloat16": (half, torch.float32, False),
            "autocast to bfloat16, channels last": (copy.deepcopy(half), torch.float32, True),
            "all in bfloat16": (copy.deepcopy(plain).bfloat16(), torch.bfloat16, False),
            "all in bfloat16, channels last": (copy.deepcopy(plain).bfloat16(), torch.bfloat16, True),
            "autocast to bfloat16, compiled": (copy.deepcopy(half), torch.float32, False),
            "all in bfloat16, channels last, compiled": (copy.deepcopy(plain).bfloat16(), torch.bfloat16, True),
        }
        for name, (network, dtype, channels_last) in ways.items():
            layout = torch.channels_last if channels_last else torch.contiguous_format
            network.to(memory_format=layout)
            if name.endswith("compiled"):
                network.embed = torch.compile(network.embed, backend=bench.size.backend, dynamic=False)
            inputs = [images.to(dtype).contiguous(memory_format=layout) for images in real]
            target = torch.cat([real_features(network, images).float().mean(0) for images in inputs])
            took, memory = bench.seconds(lambda: [real_features(network, images) for images in inputs])  # noqa: B023
            error = float((target - exact).norm() / exact.norm())
            bench.report.keep("matching", name, seconds=took, GiB=memory, error=error)
            bench.report.say(f"their features, {name}: {took:.3f} s, {memory:.1f} GiB, error of the mean {error:.1e}")


def draws_in(draws: Any, dtype: str) -> Any:
    """The same draws, with matching networks of another precision."""
    return replace(draws, settings=draws.settings.model_copy(update={"dtype": dtype}))


def evaluation(bench: Bench, arch: str) -> None:
    """Training steps of five networks on the distilled images, and their test: one after another, and other ways."""
    images, seeds = noise_images(bench, bench.recipe.data.resolution), 5
    inputs = images.normalise(torch.rand_like(bench.grad))
    labels = torch.arange(bench.images, device=bench.device)
    batches = [(inputs, labels)] * bench.size.epochs

    def built(seed: int) -> nn.Module:
        return networks.build(arch, images.shape, NetworkRecipe(), generator(0, "evaluation network", seed)).to(
            bench.device
        )

    def optimiser(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def one_after_another(make: Callable[[nn.Module], nn.Module] = lambda network: network) -> Callable[[], None]:
        made = [make(built(seed)) for seed in range(seeds)]
        optimisers = [optimiser(network) for network in made]

        def steps() -> None:
            for network, each in zip(made, optimisers, strict=True):
                train(network, each, batches)

        return steps

    def as_one_stack() -> Callable[[], None]:
        parameters, buffers = stack_module_state([built(seed) for seed in range(seeds)])
        skeleton = built(0).to("meta")

        def loss(weights: Any, buffers: Any) -> Tensor:
            return functional.cross_entropy(functional_call(skeleton, (weights, buffers), (inputs,)), labels)

        gradients = vmap(grad(loss), randomness="different")
        leaves = [weight.detach().requires_grad_() for weight in parameters.values()]
        sgd = torch.optim.SGD(leaves, lr=1e-3, momentum=0.9, weight_decay=5e-4)

        def steps() -> None:
            for _ in range(bench.size.epochs):
                named = dict(zip(parameters, leaves, strict=True))
                found = gradients({name: leaf.detach() for name, leaf in named.items()}, buffers)
                for name, leaf in named.items():
                    leaf.grad = found[name]
                sgd.step()

        return steps

    def captured(network: nn.Module) -> nn.Module:
        if bench.device.type != "cuda":
            return network
        return torch.cuda.make_graphed_callables(network, (inputs.clone(),))

    ways: dict[str, Callable[[], Callable[[], None]]] = {
        "one after another": one_after_another,
        "channels last": lambda: one_after_another(lambda network: network.to(memory_format=torch.channels_last)),
        "CUDA graphs": lambda: one_after_another(captured),
        "one stack": as_one_stack,
    }
    base = 0.0
    with bench.numerics():
        for name, way in ways.items():
            try:
                took, memory = bench.seconds(way(), rounds=1)
            except (RuntimeError, NotImplementedError) as error:
                bench.report.say(f"five {arch}, {name}: failed ({str(error).partition(chr(10))[0][:150]})")
                continue
            base = base or took
            each = took / bench.size.epochs / seeds
            bench.report.keep("evaluation", f"{arch}, {name}", seconds_per_step=each, GiB=memory, share=took / base)
            bench.report.say(
                f"five {arch}, {name}: {1000 * each:.2f} ms a step and network ({took / base:.2f}), {memory:.1f} GiB; "
                f"1,000 epochs of five: {1000 * seeds * each:.0f} s"
            )
        network, chunk = built(0).eval(), images.images("train", 0)[:100]

        @torch.no_grad()
        def test() -> int:
            seen = network(images.normalise(chunk.to(bench.device).float() / 255))
            return int(seen.argmax(1).sum())

        took, _ = bench.seconds(test)
    bench.report.keep("evaluation", f"{arch}, test", seconds_per_image=took / len(chunk))
    bench.report.say(f"{arch}: {1e6 * took / len(chunk):.0f} µs a tested image")


def main() -> None:
    """Runs the parts in the order of their worth."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budget", type=float, default=480, help="seconds in all")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "."), "gpu.json"))
    parser.add_argument("--only", nargs="*", default=[], help="parts whose names begin so")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, also on a CPU")
    arguments = parser.parse_args()
    if not (arguments.tiny or torch.cuda.is_available()):
        parser.error("there is no GPU; --tiny tries every part in toy sizes on the CPU")
    report = Report(arguments.output, arguments.budget)
    size, device = TINY if arguments.tiny else FULL, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    about = {"card": card, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "tiny": arguments.tiny}
    report.keep("run", "about", **about)
    report.say(f"{card}, torch {torch.__version__}, {about['date']}{', toy sizes' * arguments.tiny}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(size, device, report, Path(folder))

        def part(name: str, seconds: float, measure: Callable[[], None]) -> bool:
            if arguments.only and not any(name.startswith(each) for each in arguments.only):
                return False
            return report.run(name, seconds * size.pace, measure)

        def variants(chosen: list[Variant]) -> None:
            for variant in chosen:
                part(f"step: {variant.name}", variant.seconds, lambda variant=variant: bench.time_variant(variant))  # type: ignore[misc]

        report.run("products", 5 * size.pace, lambda: products(bench))
        part("step", 15, lambda: head_of_steps(bench))
        variants(VARIANTS)
        part("profile", 20, lambda: profile(bench, PLAIN))
        dm = ["distill.objective=dm"]
        part("iteration: dm", 12, lambda: iterate(bench, "dm", PLAIN, dm))
        part("iteration: smaller", 12, lambda: iterate(bench, f"dm, {size.smaller} px", PLAIN, dm, smaller=True))
        if part("step: compiled", COMPILED[0].seconds, lambda: bench.time_variant(COMPILED[0])):
            variants(COMPILED[1:5])
            part("profile: compiled", 12, lambda: profile(bench, COMPILED[0]))
        best = bench.fastest
        part("iteration: fastest", 12, lambda: iterate(bench, f"dm, {best.name}", best, dm))
        part("iteration: dc", 15, lambda: iterate(bench, "dc", PLAIN, ["distill.objective=dc"]))
        part("iteration: mtt", 15, lambda: iterate(bench, "mtt", PLAIN, ["distill.objective=mtt"]))
        short = [*dm, "prior.pull_back=shortcut", "prior.differentiated=1"]
        part("iteration: shortcut", 10, lambda: iterate(bench, "dm, shortcut, K = 1", PLAIN, short))
        part("matching", 35, lambda: matching(bench))
        for arch in ("convnet", "resnet18"):
            part(f"evaluation: {arch}", 20, lambda arch=arch: evaluation(bench, arch))  # type: ignore[misc]
        part("attention", 8, lambda: attention(bench))
        part("precisions", 85, lambda: precisions(bench))
        variants(COMPILED[5:])
    report.say(f"{arguments.output}: {report.budget - report.left:.0f} s in all")


if __name__ == "__main__":
    main()
