"""ld3m against a naive baseline that does what the authors' public code does: ratios, side by side in one process.

    python tests/benchmarks/speed.py [--full] [--rounds N]

The baseline renders without a graph, matches, renders again under a checkpoint a step with checkpoints in the
denoiser's blocks, and differentiates that; it quantises Z at every step of the `reference` skip. Where the authors'
code draws other noise in its second pass, the baseline takes the same, so that both answers can be compared: images
and both gradients are asserted to agree to 1e-5, at equal batches: in smaller micro-batches, as flat memory is timed
and weighed with, kernels round otherwise, which random weights make up to 4e-5 of c's gradient in float32.

Everything is float32 on one thread of a CPU, at guidance 3; freed memory is kept for both sides, as a run keeps it.
A figure is the median over rounds of the ratio of CPU seconds, in which both sides take turns; that of wall clock
stands beside it, and a target is held against the first.
Start-up is in seconds. Peak memory is the operating system's, of fresh processes, counted from when the prior is
loaded: less that of one which only loads it, and plain. `--full` adds the denoiser of cin256-v2 (401 M parameters) at
32 × 32 latents.

What bounds a gradient step: with F a forward and B a backward pass of the denoiser, the baseline takes 4 F + B, kept
graphs F + B and flat memory 2 F + B, which is 0.40 and 0.60 of it at B = F, 0.45 and 0.64 at B = 1.5 F. Graphs in
frozen layers of ld3m's hold less, which spares memory traffic too. Small micro-batches cost more: with guidance the
quickstart's denoiser takes 18, 20 and 32 ms forwards for batches of 8, 10 and 20, and 34, 40 and 64 forwards and
backwards, so that two calls of 10 take 1.25 times one of 20, and calls of 8, 8 and 4 take 1.5 times; with 11 M
parameters (192, 221 and 391 ms, and 370, 459 and 791) it is 1.15 and 1.2 times. A single call of 20 takes 1.0 and 1.3
times the baseline's peak above the prior's, two of 10 take 0.7 and 0.8: flat memory has the baseline's 0.60 of time or
0.8 of memory, not both, wherever batches of a few images are no good use of the processor.

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
import copy
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ld3m import objectives, priors
from ld3m.data import coresets
from ld3m.data.prepared import prepare
from ld3m.distillation.latents import LearntLatents
from ld3m.distillation.setup import noise_of
from ld3m.distillation.starts import initial_state
from ld3m.images import augment
from ld3m.images.ranges import bytes_to_unit
from ld3m.machine.memory import keep_freed_memory
from ld3m.objectives import dm
from ld3m.objectives.dc import row_distance
from ld3m.priors import ClassConditionalLDM, frozen
from ld3m.randomness import generator
from ld3m.recipe import Recipe, SamplerRecipe
from ld3m.recipe.files import load
from ld3m.sampling import Schedule, render

AGREEMENT = 1e-5
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
    from ld3m.priors.original import untrained

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
    micro_batch: int
    """ld3m's; the baseline takes all images at once, as the authors' code does."""


CASES = {
    "quickstart": Case(
        "quickstart: 10 images, S = 5", lambda: priors.load(SamplerRecipe(source="fashion-mnist")), 5, 10, 5
    ),
    "small": Case("11 M UNet, 16 × 16: 10 images, S = 10", small_prior, 10, 10, 4),
    "full": Case("401 M UNet, 32 × 32: 2 images, S = 4", full_prior, 4, 2, 1),
}


def inputs(prior: Any, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Z, c, ε0 and a gradient at the images."""
    numbers = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(count, *prior.latent_shape, generator=numbers) for _ in range(2))
    c = prior.table[torch.arange(count) % (len(prior.table) - 1)].view(count, *prior.conditioning_shape)
    grad = torch.randn(count, prior.image_channels, prior.image_size, prior.image_size, generator=numbers)
    return z, c, noise, grad


# --- the baseline ------------------------------------------------------------------------------------------


def naive(prior: Any) -> Any:
    """The same prior, weights shared, in diffusers' own layers with checkpoints in the denoiser's blocks."""
    twin = copy.copy(prior)
    twin.denoiser, twin.autoencoder = as_diffusers(prior.denoiser), as_diffusers(prior.autoencoder)
    twin.denoiser.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=True))
    return twin


def as_diffusers(network: Any) -> Any:
    """A frozen network with the same weights in the layers that diffusers gives it."""
    with torch.device("meta"):
        plain = type(network).from_config(network.config)
    plain.load_state_dict(network.state_dict(), assign=True)
    return plain.eval().requires_grad_(False)


def naive_render(prior: Any, schedule: Schedule, z: Tensor, c: Tensor, noise: Tensor) -> Tensor:
    """DDIM with the `reference` skip; each step's call of the denoiser is under a checkpoint."""
    first = schedule.steps[0].level
    state = first.signal * z + first.noise * noise
    null = prior.null_embedding.expand_as(c)
    for step in schedule.steps:
        anchor = prior.quantise(z)

        def both(state: Tensor, c: Tensor, time: int = step.time) -> Tensor:
            return prior.denoise(torch.cat([state, state]), time, torch.cat([null, c]))

        without, within = checkpoint(both, state, c, use_reentrant=True).chunk(2)
        answer = without + schedule.guidance * (within - without)
        clean = (state - step.level.noise * answer) / step.level.signal
        clean = (1 - step.weight) * clean + step.weight * anchor
        state = step.next.signal * clean + step.next.noise * answer
    return ((prior.decode(state) + 1) / 2).clamp(0, 1)


def naive_gradient(
    prior: Any, schedule: Schedule, z: Tensor, c: Tensor, noise: Tensor, match: Callable[[Tensor], Tensor]
) -> Answer:
    """Renders, asks for the gradient at the images, renders again and differentiates."""
    with torch.no_grad():
        images = naive_render(prior, schedule, z, c, noise)
    grad = match(images)
    z, c = z.detach().clone().requires_grad_(), c.detach().clone().requires_grad_()
    naive_render(prior, schedule, z, c, noise).backward(grad)
    return [images, z.grad, c.grad]


def ours(
    prior: Any,
    schedule: Schedule,
    z: Tensor,
    c: Tensor,
    noise: Tensor,
    match: Callable[[Tensor], Tensor],
    keep: Any,
    micro_batch: int = 64,
) -> Answer:
    """The same by ld3m."""
    images, pull_back = render(prior, schedule, z, c, noise, micro_batch=micro_batch, keep_graph_steps=keep)
    return [images, *pull_back(match(images))]


# --- whole iterations --------------------------------------------------------------------------------------


class Iterations:
    """An iteration of the quickstart by ld3m's objective, and by a baseline like the authors' loop."""

    def __init__(self, objective: str, steps: int) -> None:
        from ld3m.machine.processes import Processes

        self.recipe = load(Recipe, "quickstart", [f"distill.objective={objective}", f"prior.steps={steps}"])
        self.prior = priors.load(self.recipe.prior)
        self.baseline = naive(self.prior)
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

        return self._step(
            ours(
                self.prior,
                self.schedule,
                *self._learnt(),
                self.noise(iteration),
                match,
                self.recipe.prior.keep_graph_steps,
            )
        )

    def naive(self, iteration: int, halves: bool = False) -> Answer:
        """As the authors' loop has it."""
        compare = {"dm": self._match_features, "dc": partial(self._match_gradients, halves=halves)}
        match = partial(compare[self.recipe.distill.objective], iteration)
        return self._step(naive_gradient(self.baseline, self.schedule, *self._learnt(), self.noise(iteration), match))

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
    prior = case.prior()
    schedule = Schedule.of(prior.noise_schedule, case.steps, "reference", 3.0)
    *learnt, grad = inputs(prior, case.images)
    twin, match = naive(prior), lambda images: grad
    contenders: dict[str, Callable[[], Answer]] = {
        "naive": lambda: naive_gradient(twin, schedule, *learnt, match),
        "kept": lambda: ours(prior, schedule, *learnt, match, "all"),
        "flat": lambda: ours(prior, schedule, *learnt, match, 0, case.micro_batch),
        "at once": lambda: ours(prior, schedule, *learnt, match, 0),
    }
    expected = contenders["naive"]()
    check(f"{case.name}, graphs kept", contenders["kept"](), expected)
    check(f"{case.name}, flat memory", contenders["at once"](), expected)
    ratios = race(contenders, rounds)
    say(f"{case.name}: gradient step, graphs kept", ratios["kept"][0], 0.42, ratios["kept"][1])
    say(f"{case.name}: gradient step, flat memory", ratios["flat"][0], 0.60, ratios["flat"][1])
    say("    the same with all images at once", ratios["at once"][0], None, ratios["at once"][1])
    peaks = {kind: peak(name, kind) for kind in ("load", "naive", "flat", "kept", "kept in torch's layers")}
    net = {kind: value - peaks["load"] for kind, value in peaks.items()}
    say(f"{case.name}: peak memory above the prior's, flat", net["flat"] / net["naive"], 0.8)
    say(f"{case.name}: peak memory, flat", peaks["flat"] / peaks["naive"], 0.8)
    print("    MiB: " + ", ".join(f"{kind} {value:.0f}" for kind, value in peaks.items()), flush=True)


def peak(name: str, kind: str) -> float:
    """Peak resident MiB of a fresh process, the median of three but for the full size."""
    command = [sys.executable, __file__, "--memory", name, kind]
    return statistics.median(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(1 if name == "full" else 3)
    )


def measure_memory(name: str, kind: str) -> None:
    """Prints this process's peak after one gradient step, or after loading alone."""
    torch.set_num_threads(1)
    case = CASES[name]
    prior = case.prior()
    schedule = Schedule.of(prior.noise_schedule, case.steps, "reference", 3.0)
    *learnt, grad = inputs(prior, case.images)
    Path("/proc/self/clear_refs").write_text("5")  # reading the weights may have taken more for a moment
    if kind != "naive":
        keep_freed_memory()
    if kind == "naive":
        naive_gradient(naive(prior), schedule, *learnt, lambda images: grad)
    elif kind != "load":
        if "layers" in kind:
            frozen.LEAST = sys.maxsize  # no layer is so large
        keep = 0 if kind == "flat" else "all"
        ours(prior, schedule, *learnt, lambda images: grad, keep, case.micro_batch)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


def iterations(rounds: int) -> None:
    """Rows of whole iterations of the quickstart."""
    both, ratios = turns("dm", 5, rounds)
    say("quickstart: whole dm iteration", ratios["ld3m"][0], 0.60, ratios["ld3m"][1])
    real_features(both, rounds)
    for steps in (5, 10):
        _, ratios = turns("dc", steps, rounds)
        say(f"quickstart: whole dc iteration, S = {steps}", ratios["ld3m"][0], 0.50, ratios["ld3m"][1])
        apart = [own / script for own, script in zip(ratios["ld3m"], ratios["script"], strict=True)]
        say("    the same against the LD3M authors' own script", apart[0], None, apart[1])


def turns(objective: str, steps: int, rounds: int) -> tuple[Iterations, dict[str, tuple[float, float]]]:
    """Iterations of both sides in turn, each from the same start, once their answers were found to agree."""
    both = Iterations(objective, steps)
    check(f"quickstart, {objective}, S = {steps}", both.ld3m(0), both.naive(0))
    runs = {"naive": both.naive, "ld3m": both.ld3m}
    if objective == "dc":
        runs["script"] = partial(both.naive, halves=True)
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
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each race")
    parser.add_argument("--only", default="", help="one of quickstart, small, full, iterations, start-up")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(*arguments.memory)
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
    print(f"{'':<66}{'CPU':>9}{'wall':>9}    target")
    for name in CASES:
        if arguments.only == name or (not arguments.only and (name != "full" or arguments.full)):
            gradient_step(name, min(2, arguments.rounds) if name == "full" else arguments.rounds)
    if arguments.only in ("", "iterations"):
        iterations(arguments.rounds)
    if arguments.only in ("", "start-up"):
        start_up()


if __name__ == "__main__":
    main()
