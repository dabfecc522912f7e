"""ld3m against the authors' way of taking the gradient (authors_way.py): ratios, side by side in one process.

    python tests/benchmarks/speed.py [--full] [--rounds N] [--only PART]

Everything is float32 on one thread of a CPU, at guidance 3, with the `reference` skip; freed memory is kept for both
sides, as a run keeps it. Images and both gradients are asserted to agree to 1e-5 first. A figure is the median over
rounds of the ratio of CPU seconds, in which both sides take turns; that of wall clock stands beside it, and a target is
held against the first. Start-up is in seconds. Peak memory is the operating system's, of fresh processes, counted from
when the prior is loaded, less that of one which only loads it. `--full` adds the denoiser of cin256-v2 (401 M
parameters) at 32 × 32 latents.

What bounds a gradient step: with F a forward and B a backward pass of the denoiser, the authors' way takes 3 F + B and
its transformer blocks once more, kept graphs F + B, flat memory 2 F + B, and the shortcut through K calls
F + K (F + B) / S. At B = F that is less than 0.50, 0.75 and 0.25 + 0.5 K / S; what is below comes from layers that
compute less. Small micro-batches cost more: with guidance the quickstart's denoiser takes 18, 20 and 32 ms forwards for
batches of 8, 10 and 20, and 34, 40 and 64 forwards and backwards, so that two calls of 10 take 1.25 times one of 20.

What bounds an iteration of `dc` on the quickstart: of the baseline's, two fifths are the matching at S = 5, a quarter
at S = 10, and of that nearly three quarters are a first-order pass over the real images, forwards and backwards through
convolutions and poolings, which both sides make alike. The rest of it, the second order of one synthetic image, ld3m
prunes to what leads to the image. So the floor is about 0.63 and 0.55, and the whole tends to the gradient step's ratio
only where the prior outweighs the matching network. Memory in channels-last order makes that pass half as slow again,
and pooling by hand is no faster. All ten classes in one batch, by `torch.func.vmap` of each one's weight gradients,
take 3.3 times as long as one after another; with the real images one class at a time and the second order in one batch,
0.92 times with one synthetic image per class at width 128 and 1.2 times with ten at width 64.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from authors_way import authors_gradient, authors_prior
from torch import Tensor
from torch.nn import functional

from ld3m import objectives, priors
from ld3m.data.prepared import prepare
from ld3m.data.selection import coresets
from ld3m.distillation.latents import LearntLatents
from ld3m.distillation.setup import noise_of
from ld3m.distillation.starts import initial_state
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine import memory
from ld3m.objectives import dm
from ld3m.objectives.dc import row_distance
from ld3m.priors import ClassConditionalLDM
from ld3m.randomness import generator
from ld3m.recipe import Recipe, SamplerRecipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule, render
from ld3m.sampling.differentiated import EXACT, Differentiated

AGREEMENT = 1e-5
CPU = torch.device("cpu")
Answer = list[Tensor]
"""Images, and the gradients of Z and c."""


# --- priors ------------------------------------------------------------------------------------------------


def small_prior() -> ClassConditionalLDM:
    """A UNet of 11 M parameters on 16 × 16 latents, with a small VQ autoencoder to 64 pixels; random weights."""
    from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel

    torch.manual_seed(0)
    autoencoder = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=3,
        num_vq_embeddings=512,
        sample_size=64,
        norm_num_groups=8,
        scaling_factor=1.0,
    )
    autoencoder.quantize.embedding.weight.data.normal_()
    denoiser = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(96, 176),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    schedule = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return ClassConditionalLDM(autoencoder, denoiser, torch.randn(11, 128), [str(n) for n in range(10)], schedule)


def full_prior() -> ClassConditionalLDM:
    """cin256-v2's configuration with random weights, at 32 × 32 latents for 128 pixels."""
    from ld3m.priors.originals.latent_diffusion import untrained

    torch.manual_seed(0)
    prior = untrained("cin256-v2")
    prior.render_at(128)
    return prior


@dataclass(frozen=True)
class Case:
    """A prior and how many images go through it."""

    name: str
    prior: Callable[[], Any]
    steps: int
    images: int


CASES = {
    "quickstart": Case(
        "quickstart: 10 images, S = 5", lambda: priors.load(SamplerRecipe(source="fashion-mnist")), 5, 10
    ),
    "small": Case("11 M UNet, 16 × 16: 10 images, S = 5", small_prior, 5, 10),
    "full": Case("401 M UNet, 32 × 32: 2 images, S = 4", full_prior, 4, 2),
}


def inputs(prior: Any, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Z, c, ε0 and a gradient at the images."""
    numbers = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(count, *prior.latent_shape, generator=numbers) for _ in range(2))
    c = prior.table[torch.arange(count) % (len(prior.table) - 1)].view(count, *prior.conditioning_shape)
    grad = torch.randn(count, prior.image_channels, prior.image_size, prior.image_size, generator=numbers)
    return z, c, noise, grad


# --- ld3m --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way of ld3m's to a gradient."""

    name: str
    target: float | None
    """Of its share of the authors' time."""
    keep: int | Literal["all"]
    """`prior.keep_graph_steps`."""
    differentiated: Differentiated = EXACT
    micro_batch: int = 64

    def gradient(
        self, prior: Any, schedule: Schedule, z: Tensor, c: Tensor, noise: Tensor, match: Callable[[Tensor], Tensor]
    ) -> Answer:
        """As `authors_gradient`."""
        images, pull_back = render(
            prior,
            schedule,
            z,
            c,
            noise,
            micro_batch=self.micro_batch,
            keep_graph_steps=self.keep,
            through=self.differentiated.through(schedule, 0),
        )
        return [images, *pull_back(match(images))]


KEPT, FLAT = Way("graphs kept", 0.42, "all"), Way("flat memory", 0.60, 0)
ONE = Way("flat memory, the graph of the last step kept", 0.60, 1)
WAYS = (
    KEPT,
    FLAT,
    ONE,
    Way("flat memory, half of the images at a time", None, 0, micro_batch=5),
    Way("shortcut, K = 0", 0.25, 0, Differentiated("shortcut", 0)),
    Way("shortcut, K = 1", 0.25, 1, Differentiated("shortcut", 1)),
)


# --- whole iterations --------------------------------------------------------------------------------------


class Iterations:
    """An iteration of the quickstart by ld3m's objective, and as in the authors' loop."""

    def __init__(self, objective: str, steps: int) -> None:
        from ld3m.machine.processes import Processes

        self.recipe = load(Recipe, "quickstart", [f"distill.objective={objective}", f"prior.steps={steps}"])
        self.prior = priors.load(self.recipe.prior)
        self.twin = authors_prior(self.prior)
        self.device = torch.device("cpu")
        self.images = coresets.open_whole(prepare(self.recipe.data, progress=False), self.recipe.data, [], self.device)
        self.labels = range(len(self.images.classes))
        alone = Processes(self.device)
        self.objective = objectives.build(self.recipe, self.images, self.labels, alone)
        self.draws = objectives.draws_of(self.recipe, self.images, alone)
        settings = self.recipe.prior
        self.schedule = Schedule.of(self.prior.noise_schedule, settings.steps, settings.skip, settings.guidance)
        embeddings = self.prior.class_embeddings(self.images.classes)
        states = [
            initial_state(self.recipe, self.images, self.prior, embeddings[label], label, self.device)
            for label in self.labels
        ]
        self.start = LearntLatents.stack(states, len(states))
        # The authors' code holds all real images as normalised floats.
        self.real = [self.images.normalise(bytes_to_unit(self.images.images("train", label))) for label in self.labels]

    def noise(self, iteration: int) -> Tensor:
        return noise_of(self.recipe, self.prior).draw(self.labels, iteration, self.device).flatten(0, 1)

    def ld3m(self, iteration: int) -> Answer:
        """As `distill` has it: render, match, pull back, step."""

        def match(pixels: Tensor) -> Tensor:
            return self.objective.match(iteration, pixels.unsqueeze(1))[1].flatten(0, 1)

        return self._step(KEPT.gradient(self.prior, self.schedule, *self._learnt(), self.noise(iteration), match))

    def authors(self, iteration: int, halves: bool = False) -> Answer:
        """As the authors' loop has it."""
        compare = {"dm": self._match_features, "dc": partial(self._match_gradients, halves=halves)}
        match = partial(compare[self.recipe.distill.objective], iteration)
        return self._step(authors_gradient(self.twin, self.schedule, *self._learnt(), self.noise(iteration), match))

    def _learnt(self) -> tuple[Tensor, Tensor]:
        return self.start.z.flatten(0, 1), self.start.c.flatten(0, 1)

    def _step(self, answer: Answer) -> Answer:
        grads = (grad.view_as(tensor) for grad, tensor in zip(answer[1:], (self.start.z, self.start.c), strict=True))
        self.start.step(0, *grads, self.recipe.distill)
        return answer

    def _pair(self, iteration: int, label: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Real and synthetic images of a class, each augmented by itself with the same seed."""
        seed = generator(self.recipe.seed, "real batch", iteration, label)
        places = torch.randperm(len(self.real[label]), generator=seed)[: self.recipe.distill.real_batch]
        pair = self.real[label][places], self.images.normalise(images[label : label + 1])

        def same() -> augment.Augmentation:
            seed = generator(self.recipe.seed, "augmentation", iteration, label)
            return augment.draw(seed, self.recipe.data.resolution)

        return same()(pair[0]), same()(pair[1])

    def _match_features(self, iteration: int, images: Tensor) -> Tensor:
        """Distribution matching: one forward over all real images of a class, one backward of all classes' loss."""
        network = self.draws.network(iteration).requires_grad_(False)
        images = images.detach().requires_grad_()
        total = torch.zeros(())
        for label in self.labels:
            real, synthetic = self._pair(iteration, label, images)
            target = network.embed(real).detach()
            total = total + (target.mean(0) - network.embed(synthetic).mean(0)).square().sum()
        total.backward()
        return images.grad

    def _match_gradients(self, iteration: int, images: Tensor, halves: bool) -> Tensor:
        """Gradient matching as Zhao et al.'s code has it, or (`halves`) as the authors' script, which differs in that
        it takes the real batch in halves, and their gradients with a graph that it throws away.
        """
        network = self.draws.network(iteration)
        parameters = list(network.parameters())
        images = images.detach().requires_grad_()
        for label in self.labels:
            real, synthetic = self._pair(iteration, label, images)
            if halves:
                target = [torch.zeros_like(parameter) for parameter in parameters]
                for half in real.split(len(real) // 2):
                    loss = functional.cross_entropy(network(half), torch.full((len(half),), label))
                    for total, part in zip(
                        target, torch.autograd.grad(loss, parameters, create_graph=True), strict=True
                    ):
                        total += part.detach().clone() / 2
            else:
                loss = functional.cross_entropy(network(real), torch.full((len(real),), label))
                target = [part.detach().clone() for part in torch.autograd.grad(loss, parameters)]
            loss = functional.cross_entropy(network(synthetic), torch.full((1,), label))
            own = torch.autograd.grad(loss, parameters, create_graph=True)
            pairs = [(one, other) for one, other in zip(target, own, strict=True) if one.dim() in (2, 4)]
            row_distance([one for one, _ in pairs], [other for _, other in pairs]).backward()
        return images.grad


# --- measuring ---------------------------------------------------------------------------------------------


def race(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Of each, CPU and wall seconds over those of the first: medians of the rounds' ratios, after one to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if turn:
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    base = taken[next(iter(contenders))]
    return {
        name: (
            statistics.median(own[0] / first[0] for own, first in zip(times, base, strict=True)),
            statistics.median(own[1] / first[1] for own, first in zip(times, base, strict=True)),
        )
        for name, times in taken.items()
    }


def say(row: str, measured: float, target: float | None = None, wall: float | None = None, unit: str = "×") -> None:
    """A line of the table."""
    beside = f"{wall:9.3f}" if wall is not None else " " * 9
    verdict = "" if target is None else f"   ≤ {target:<5g} {'holds' if measured <= target else 'MISSED'}"
    print(f"{row:<66}{measured:9.3f}{beside} {unit}{verdict}", flush=True)


def check(row: str, answer: Answer, expected: Answer) -> None:
    """Prints how far two answers are apart.

    Raises:
        AssertionError: where that is more than `AGREEMENT`.
    """
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(answer, expected, strict=True)]
    parts = ", ".join(f"{name} {error:.1e}" for name, error in zip(("images", "Z", "c"), errors, strict=True))
    print(f"{row}: {parts} apart", flush=True)
    assert max(errors) <= AGREEMENT, f"{row}: {parts}"


def gradient_step(name: str, rounds: int) -> None:
    """Rows of a fixed gradient at the images pulled back, time and memory."""
    case = CASES[name]
    peaks = {kind: peak(name, kind) for kind in ("load", "authors", *(way.name for way in WAYS))}
    prior = case.prior()
    schedule = Schedule.of(prior.noise_schedule, case.steps, "reference", 3.0)
    *learnt, grad = inputs(prior, case.images)
    twin, match = authors_prior(prior), lambda images: grad
    contenders = {"authors": partial(authors_gradient, twin, schedule, *learnt, match)}
    contenders |= {way.name: partial(way.gradient, prior, schedule, *learnt, match) for way in WAYS}
    expected = contenders["authors"]()
    for way in (KEPT, FLAT):
        check(f"{case.name}, {way.name}", contenders[way.name](), expected)
    ratios = race(contenders, rounds)
    above = {kind: value - peaks["load"] for kind, value in peaks.items()}
    print(f"{case.name}: a gradient step, of the authors' way")
    for way in WAYS:
        say(f"    {way.name}", ratios[way.name][0], way.target, ratios[way.name][1])
        limit = 0.6 if way in (FLAT, ONE) else None
        say("        peak memory above the prior's", above[way.name] / above["authors"], limit)
    print("    MiB: " + ", ".join(f"{kind} {value:.0f}" for kind, value in peaks.items()), flush=True)


def peak(name: str, kind: str) -> float:
    """Peak resident MiB of a process of its own, which starts as a copy of this one."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=measure_memory, args=(name, kind, writer))
    process.start()
    found: float = reader.recv()
    process.join()
    return found


def measure_memory(name: str, kind: str, writer: Connection) -> None:
    """Sends this process's peak after one gradient step, or after loading alone."""
    case = CASES[name]
    prior = case.prior()
    schedule = Schedule.of(prior.noise_schedule, case.steps, "reference", 3.0)
    *learnt, grad = inputs(prior, case.images)
    if kind == "authors":
        prior = authors_prior(prior)  # in the place of ours: its weights lie otherwise
    memory.forget_peak(CPU)  # reading the weights may have taken more for a moment
    if kind == "authors":
        authors_gradient(prior, schedule, *learnt, lambda images: grad)
    for way in WAYS:
        if way.name == kind:
            memory.keep_freed_memory()
            way.gradient(prior, schedule, *learnt, lambda images: grad)
    writer.send(memory.peak(CPU) / 2**20)


def iterations(rounds: int) -> None:
    """Rows of whole iterations of the quickstart."""
    both, ratios = turns("dm", 5, rounds)
    say("quickstart: whole dm iteration", ratios["ld3m"][0], 0.45, ratios["ld3m"][1])
    real_features(both, rounds)
    for steps in (5, 10):
        _, ratios = turns("dc", steps, rounds)
        say(f"quickstart: whole dc iteration, S = {steps}", ratios["ld3m"][0], 0.50, ratios["ld3m"][1])
        apart = [own / script for own, script in zip(ratios["ld3m"], ratios["script"], strict=True)]
        say("    the same against the LD3M authors' own script", apart[0], None, apart[1])


def turns(objective: str, steps: int, rounds: int) -> tuple[Iterations, dict[str, tuple[float, float]]]:
    """Iterations of both sides in turn, each from the same start, once their answers were found to agree."""
    both = Iterations(objective, steps)
    check(f"quickstart, {objective}, S = {steps}", both.ld3m(0), both.authors(0))
    runs = {"authors": both.authors, "ld3m": both.ld3m}
    if objective == "dc":
        runs["script"] = partial(both.authors, halves=True)
    numbers = {name: iter(range(rounds + 1)) for name in runs}
    contenders = {name: partial(lambda name: runs[name](next(numbers[name])), name) for name in runs}
    return both, race(contenders, rounds)


def real_features(both: Iterations, rounds: int) -> None:
    """What ld3m spends on the features of real images, over one plain forward pass of the network."""
    network = both.draws.network(0).requires_grad_(False)
    batches = [both.real[label][: both.recipe.distill.real_batch] for label in both.labels]

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                network.embed(batch)

    def spent() -> None:
        for label in both.labels:
            images = both.images.images("train", label)
            real = both.draws.real(images, 0, label)
            dm.mean(dm.real_features(network, both.draws.augmentation(0, label)(real)))

    ratios = race({"plain": plain, "spent": spent}, rounds * 4)
    say("quickstart: real images' features over one plain forward pass", ratios["spent"][0], 1.1, ratios["spent"][1])


def start_up() -> None:
    """Rows of commands that answer at once."""
    for arguments, target in ((["--help"], 0.5), (["distill", "quickstart", "--dry-run"], 1.5)):
        walls, cpus = [], []
        for _ in range(7):
            wall, cpu = time.perf_counter(), os.times()
            subprocess.run([sys.executable, "-m", "ld3m", *arguments], stdout=subprocess.DEVNULL, check=True)
            walls.append(time.perf_counter() - wall)
            after = os.times()
            cpus.append(after.children_user + after.children_system - cpu.children_user - cpu.children_system)
        say(f"ld3m {' '.join(arguments)}", statistics.median(cpus[1:]), target, statistics.median(walls[1:]), "s")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="with cin256-v2's shape too")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each race")
    parser.add_argument("--only", default="", help="one of quickstart, small, full, iterations, start-up")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
    print(f"{'':<66}{'CPU':>9}{'wall':>9}    target")
    for name in CASES:
        if arguments.only == name or (not arguments.only and (name != "full" or arguments.full)):
            gradient_step(name, min(2, arguments.rounds) if name == "full" else arguments.rounds)
    memory.keep_freed_memory()
    if arguments.only in ("", "iterations"):
        iterations(arguments.rounds)
    if arguments.only in ("", "start-up"):
        start_up()


if __name__ == "__main__":
    main()
