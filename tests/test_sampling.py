"""Sampling: chains against closed forms on Gaussians, guides against the public code's arithmetic, runs as a whole."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Outcome, latents, launch
from torch import Tensor

from ld3m import priors
from ld3m.api import SAMPLING, sample
from ld3m.data.prepared import prepare
from ld3m.data.selection.coresets import open_kept
from ld3m.distillation.plan_sampling import not_counted
from ld3m.errors import UserError
from ld3m.images import grids
from ld3m.images.ranges import bytes_to_signed
from ld3m.machine.processes import Processes
from ld3m.priors.kinds.pixels import Pixels
from ld3m.priors.noise_schedule import FlowSchedule, Level, NoiseSchedule
from ld3m.publishing import card
from ld3m.randomness import generator
from ld3m.recipe import Recipe
from ld3m.recipe.files import digest, load, to_yaml
from ld3m.runs.folder import iterations_done
from ld3m.sampling.algorithm import Schedule, Step, images_of
from ld3m.sampling.approach import Approach, ClassTask, Correction, Kept, Moment
from ld3m.sampling.chains import added_noise, follow
from ld3m.sampling.choices import CHOICES
from ld3m.sampling.encodings import ClassEncodings, class_encodings
from ld3m.sampling.methods import METHODS
from ld3m.sampling.sampled import sample_class
from ld3m.sizing.cost import RunCost

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
SPREAD = 0.6
"""Variance of the toy's images around the mean of their class."""
ALPHAS = torch.linspace(0.9999, 0.98, 200, dtype=torch.float64).cumprod(0)


class Gaussian(Pixels):
    """A denoiser that is exact for images of class c that are N(c, `SPREAD`), and N(0, 1) without a class."""

    def __init__(self, schedule: NoiseSchedule | None = None) -> None:
        super().__init__(1, 2)
        self.conditioning_shape = (1,)
        self.null_embedding = torch.zeros(1, 1)
        self.noise_schedule = schedule or NoiseSchedule(ALPHAS, offset=0, final_alpha=1.0)
        self.calls = 0

    def denoise(self, z: Tensor, t: float, c: Tensor) -> Tensor:
        """ε̂ = (z − s E[x | z])/n, of a normal x with mean c and a variance; a flow's ε̂ − x̂."""
        self.calls += 1
        level = self.noise_schedule.level(t)
        mean, known = c.view(-1, 1, 1, 1), (c != 0).view(-1, 1, 1, 1)
        spread = torch.where(known, SPREAD, 1.0)
        gain = level.signal * spread / (level.signal**2 * spread + level.noise**2)
        clean = mean + gain * (z - level.signal * mean)
        noise = (z - level.signal * clean) / level.noise
        return noise - clean if self.noise_schedule.prediction == "flow" else noise


def toy_images() -> Any:
    """Two classes of twelve real images."""
    pixels = torch.randint(256, (2, 12, *SHAPE), generator=generator(0, "toy images"), dtype=torch.uint8)
    return SimpleNamespace(
        classes=["one", "two"],
        counts={"train": [12, 12]},
        images=lambda split, label: pixels[label],
        select=lambda name, label, count, draws: torch.randperm(12, generator=draws)[:count],
    )


def task(*overrides: str, label: int = 0, prior: Gaussian | None = None) -> ClassTask:
    """A class of the toy."""
    basis = ["distill.init=sample", "distill.images_per_class=6", "sample.steps=10", "prior.guidance=1"]
    recipe = load(Recipe, "digits", [*basis, "data.resolution=8", *overrides])
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"resolution": 2})})
    return ClassTask(recipe, prior or Gaussian(), toy_images(), torch.tensor([[0.8], [-0.5]])[label], label, CPU)


def z_of(*overrides: str, **named: Any) -> Tensor:
    return sample_class(task(*overrides, **named)).z


# --- chains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_plain_sampling_ends_where_the_exact_flow_of_a_gaussian_does(kind: str) -> None:
    """z_0 = c + √v (z_T − s c)/√(s² v + n²), by the probability flow of N(c, v); DDIM comes near with many steps."""
    schedule = FlowSchedule(ALPHAS, prediction="flow", shift=3.0) if kind == "flow" else None
    drawn = task("sample.steps=100", "distill.images_per_class=3", prior=Gaussian(schedule))
    level = drawn.schedule.steps[0].level
    start = torch.stack([torch.randn(SHAPE, generator=drawn.draws("start", image)) for image in range(3)])
    spread = math.sqrt(level.signal**2 * SPREAD + level.noise**2)
    exact = 0.8 + math.sqrt(SPREAD) * (start - level.signal * 0.8) / spread
    torch.testing.assert_close(sample_class(drawn).z, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_have_the_variance_that_their_steps_give(eta: float) -> None:
    """A step on a Gaussian is linear, so that mean and variance follow from numbers alone."""
    drawn = task(f"sample.eta={eta}", "sample.steps=20", "distill.images_per_class=800", "prior.micro_batch=800")
    mean, variance = 0.0, 1.0
    for step in drawn.schedule.steps:
        (s, n), (s1, n1) = step.level, step.next
        sigma = eta * n1 / n * math.sqrt(1 - s**2 / s1**2)  # Eq. 16 of DDIM, signal² + noise² = 1
        gain = s * SPREAD / (s**2 * SPREAD + n**2)
        left = math.sqrt(n1**2 - sigma**2)
        by_z = s1 * gain + left * (1 - s * gain) / n
        mean = by_z * mean + (s1 - left * s / n) * (1 - gain * s) * 0.8
        variance = by_z**2 * variance + sigma**2
    z = sample_class(drawn).z
    assert float(z.mean()) == pytest.approx(mean, abs=0.04)
    assert float(z.var()) == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("levels", [((0.6, 0.8), (0.8, 0.6)), ((0.3, 0.7), (0.5, 0.5))], ids=["preserving", "flow"])
def test_the_noise_of_a_step_is_that_of_the_posterior(levels: tuple[tuple[float, float], ...]) -> None:
    """Of z′ given z and x, from the joint covariance of (z′, z) given x: z = (s/s′) z′ + fresh noise."""
    (s, n), (s1, n1) = levels
    joint = torch.tensor([[n1**2, s / s1 * n1**2], [s / s1 * n1**2, n**2]], dtype=torch.float64)
    posterior = joint[0, 0] - joint[0, 1] ** 2 / joint[1, 1]
    step = Step(0, Level(s, n), Level(s1, n1), 0.0, Level(s, n))
    assert added_noise(step, 1.0) ** 2 == pytest.approx(float(posterior), rel=1e-9)
    assert added_noise(step, 0.5) == pytest.approx(0.5 * added_noise(step, 1.0))


@pytest.mark.parametrize("method", ["plain", "d4m", "mgd3", "coda"])
def test_no_image_depends_on_the_batch_or_on_the_other_classes(method: str) -> None:
    options = [f"sample.method={method}", "sample.eta=0.7"]
    whole = z_of(*options)
    assert torch.equal(whole, z_of(*options, "prior.micro_batch=4"))
    assert torch.equal(z_of(*options, label=1), z_of(*options, "prior.micro_batch=1", label=1))
    assert not torch.equal(whole, z_of(*options, "seed=1"))
    starts = [torch.randn(SHAPE, generator=task(label=label).draws("start", 0)) for label in (0, 1)]
    assert not torch.equal(*starts), "each class has draws of its own"


def test_an_over_draw_begins_with_the_images_of_a_plain_draw() -> None:
    """So that a larger one keeps what a smaller one had."""
    few, many = task(), task("sample.draws=3", "sample.choose=k-center")
    whole = torch.cat([follow(many, Approach(), range(9), torch.empty(0))[0], torch.zeros(0, *SHAPE)])
    assert torch.equal(sample_class(few).z, whole[:6])


# --- starts ------------------------------------------------------------------------------------------------


def test_at_full_strength_d4m_is_what_prototypes_are_rendered_as() -> None:
    """By `images_of` without a skip, from the same noise."""
    drawn = task("sample.method=d4m", "sample.strength=1", "sample.guidance=3")
    start = drawn.latents("prototype")
    noise = torch.stack([torch.randn(SHAPE, generator=drawn.draws("start", image)) for image in range(6)])
    schedule = Schedule.of(drawn.prior.noise_schedule, 10, "none", 3)
    rendered = images_of(drawn.prior, schedule, start, drawn.embedding.expand(6, 1), noise)
    torch.testing.assert_close(drawn.decode(sample_class(drawn).z), rendered)


def test_a_class_took_what_encoding_it_took_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = ClassEncodings(torch.randn(12, *SHAPE, generator=generator(0, "encoded")), 1000.0)
    monkeypatch.setattr("ld3m.sampling.approach.class_encodings", lambda *_: encoded)
    seconds = [sample_class(task(f"sample.method={method}", "sample.steps=1")).seconds for method in ("plain", "d4m")]
    assert seconds[0] < 1000 < seconds[1] < 1100


def test_what_has_no_part_is_said() -> None:
    """A strength of chains from noise, a guide that no step is left to, and fewer real images than are wanted."""
    with pytest.raises(
        UserError, match=r"sample\.strength: 0\.3 has no part, as the chains of mgd3 start at noise; give"
    ):
        z_of("sample.method=mgd3", "sample.strength=0.3")
    z_of("sample.start=real", "sample.strength=0.3")
    for options, unguided in ((["sample.mgd3.stop=1"], True), ([], False), (["sample.mgd3.scale=0"], False)):
        assert sample_class(task("sample.method=mgd3", *options)).unguided == unguided
    with pytest.raises(UserError, match=r"0\.9 is above high, 0\.1, so that no step is guided"):
        load(Recipe, "quickstart", ["sample.igd.low=0.9", "sample.igd.high=0.1"])
    with pytest.raises(UserError, match=r"set fewer, or leave sample\.start out"):
        z_of("sample.start=hard", "distill.images_per_class=30")


def test_strength_counts_the_last_steps() -> None:
    """⌊strength · steps⌋ of them, as diffusers' get_timesteps for images: 35 of 50 at 0.7."""
    for strength, steps, first in [("0.7", 50, 15), ("0.29", 100, 71), ("0.01", 10, 9), ("1", 10, 0)]:
        options = "sample.start=real", f"sample.strength={strength}", f"sample.steps={steps}"
        assert task(*options).starting_at("noise").first == first
    low = z_of("sample.start=real", "sample.strength=0.1")
    torch.testing.assert_close(low, task().latents("real"), rtol=0, atol=0.5)


def test_a_class_of_few_images_is_named() -> None:
    with pytest.raises(UserError, match=r"d4m takes 13 real latents, but class 'one' has only 12 .*method=plain"):
        z_of("sample.method=d4m", "distill.images_per_class=13")


# --- guides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("method", ["mgd3", "coda"])
def test_guidance_of_scale_0_is_plain_sampling_to_the_bit(method: str, eta: int) -> None:
    options = [f"sample.eta={eta}", "sample.guidance=2"]
    assert torch.equal(z_of(f"sample.method={method}", f"sample.{method}.scale=0", *options), z_of(*options))
    drawn = task(*options)
    idle = replace(drawn.starting_at("noise"), guide=lambda moment: Correction(noise=moment.noise - 0 * moment.z))
    assert torch.equal(follow(drawn, idle, range(6), torch.empty(0))[0], z_of(*options))


def moment(drawn: ClassTask, index: int) -> Moment:
    """A moment of three images with random numbers."""
    step = drawn.schedule.steps[index]
    z, clean, noise, own = torch.randn(4, 3, *SHAPE, generator=generator(0, "moment")).unbind()
    return Moment(index, len(drawn.schedule.steps), step, 0.25, [1, 4, 6], z, clean, noise, own, torch.empty(0))


def test_mgd3_moves_against_the_gradient_of_the_distance_to_the_mode() -> None:
    """Both forms are λ times the score of a Gaussian around the mode: −∇ ½‖x̂0 − m‖², here by autograd."""
    ddim, ddpm = task("sample.method=mgd3"), task("sample.method=mgd3", "sample.eta=1")
    modes = ddim.latents("prototype")[[1, 4, 0]]  # image 6 has the mode of image 0 again
    for drawn in (ddim, ddpm):
        now = moment(drawn, 0)
        clean = now.clean.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((clean - modes).square().sum() / 2, clean)
        guide = METHODS["mgd3"](drawn).guide
        assert guide
        correction = guide(now)
        assert correction
        if drawn is ddpm:
            torch.testing.assert_close(correction.shift, -0.1 * 0.25 * gradient)
        else:
            torch.testing.assert_close(correction.noise, now.noise + 0.1 * now.step.level.noise * gradient)


class Doubling(Gaussian):
    """An autoencoder that counts the images it encodes, as two times what they are and a little more."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.latent_shape = (3, 2, 2)
        self.more, self.encoded = more, 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        return (2 * pixels + self.more).to(memory_format=torch.channels_last)  # as convolutions may leave it


def test_a_class_is_encoded_once_for_all_seeds_and_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later only the first few images are, whose latents tell whether it is the same autoencoder."""
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path))
    pixels = torch.arange(10 * 12, dtype=torch.uint8).view(10, 3, 2, 2)
    images: Any = SimpleNamespace(images=lambda split, label: pixels + label, counts={"train": [10, 10]})

    def encoded(prior: Doubling, label: int = 0, micro_batch: int = 4) -> tuple[Tensor, float]:
        found = class_encodings(images, prior, label, micro_batch, CPU)
        return found.latents, found.earlier_seconds

    first, again, other = Doubling(0), Doubling(0), Doubling(0.25)
    latents, seconds = encoded(first)
    assert (first.encoded, seconds) == (10, 0)
    torch.testing.assert_close(latents, 2 * (pixels / 127.5 - 1))
    same, seconds = encoded(again)
    assert again.encoded == 4
    assert seconds > 0
    assert torch.equal(same, latents)
    (kept,) = (tmp_path / "encodings").iterdir()
    assert torch.equal(encoded(other)[0], 2 * bytes_to_signed(pixels) + 0.25)
    encoded(again, label=1)
    assert (other.encoded, again.encoded) == (10, 14), "another autoencoder, other pixels"
    kept.write_bytes(kept.read_bytes()[:-3])
    assert torch.equal(encoded(again)[0], latents)
    assert again.encoded == 24, "a damaged file is made again"


def test_a_corrected_answer_moves_both_parts_of_the_step() -> None:
    """z′ = s′ (z − n ε′)/s + n′ ε′, whatever the denoiser's ε̂ was."""
    drawn = task("sample.steps=1")
    (step,) = drawn.schedule.steps
    wanted = torch.randn(6, *SHAPE, generator=generator(0, "answer"))
    guided = Approach(guide=lambda now: Correction(noise=wanted, shift=torch.ones(SHAPE)))
    z, way = follow(drawn, guided, range(6), torch.empty(0), shown=[0])
    start = torch.stack([torch.randn(SHAPE, generator=drawn.draws("start", image)) for image in range(6)])
    clean = (start - step.level.noise * wanted) / step.level.signal
    torch.testing.assert_close(way[:, 0], clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z, step.next.signal * clean + step.next.noise * wanted + 1, rtol=1e-4, atol=1e-4)


def test_coda_is_what_its_code_does_before_classifier_free_guidance() -> None:
    """ε_text − (√ᾱ/√(1 − ᾱ)) γ σ (r − x̂_text) with σ = √((1 − ᾱ)/ᾱ), then ε_null + g (… − ε_null)."""
    drawn = task("sample.method=coda", "sample.guidance=3", "sample.coda.scale=0.2")
    now = moment(drawn, 4)
    centres, encodings = drawn.latents("prototype").flatten(1), drawn.encodings()
    real = encodings[torch.cdist(centres, encodings.flatten(1)).argmin(1)][[1, 4, 0]]
    signal, noise = now.step.level
    text = (now.z - signal * now.own_clean) / noise
    null = (3 * text - now.noise) / 2  # of which guidance 3 makes the guided answer
    sigma = math.sqrt(noise**2 / signal**2)
    theirs = null + 3 * (text - signal / noise * 0.2 * sigma * (real - now.own_clean) - null)
    correction = (METHODS["coda"](drawn).guide or (lambda _: None))(now)
    assert correction
    torch.testing.assert_close(correction.noise, theirs)


def test_guidance_stops_where_the_public_codes_stop() -> None:
    """MGD3 guides while t > 25 with t = 49 … 0; CoDA while the step is before the int(0.9 · 25)th."""
    mgd3, coda = task("sample.method=mgd3", "sample.steps=50"), task("sample.method=coda", "sample.steps=25")
    for drawn, last in [(mgd3, 24), (coda, 22)]:
        guide = METHODS[drawn.settings.method](drawn).guide
        assert guide
        guided = [index for index in range(drawn.settings.steps) if guide(moment(drawn, index))]
        assert guided == list(range(last))


def test_a_guide_is_told_what_the_prior_says_with_and_without_guidance() -> None:
    """x̂0 = c + gain (z − s c) of N(c, v) for the class alone; guidance 3 goes on from that of N(0, 1), three times."""
    drawn, seen = task("sample.guidance=3"), list[Moment]()
    follow(drawn, Approach(guide=seen.append), range(6), torch.empty(0))
    assert len(seen) == 10
    for now in seen:
        s, n = now.step.level
        own = 0.8 + s * SPREAD / (s**2 * SPREAD + n**2) * (now.z - s * 0.8)
        of_null = s / (s**2 + n**2) * now.z
        torch.testing.assert_close(now.own_clean, own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(now.clean, of_null + 3 * (own - of_null), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(now.z, s * now.clean + n * now.noise, rtol=1e-4, atol=1e-4)


def test_guided_images_are_nearer_to_their_modes() -> None:
    drawn = task("sample.method=mgd3", "sample.mgd3.scale=1", "sample.mgd3.stop=0")
    modes = drawn.latents("prototype")
    far, near = ((z - modes).square().mean() for z in (z_of(), sample_class(drawn).z))
    assert near < 0.5 * far


def test_images_that_go_together_see_those_before_them() -> None:
    drawn, seen = task("prior.micro_batch=2"), []

    def note(now: Moment) -> None:
        seen.append((list(now.images), len(now.earlier)))

    METHODS["three"] = lambda given: Approach(together=3, guide=note)
    try:
        z = sample_class(replace(drawn, recipe=with_method(drawn, "three"))).z
    finally:
        del METHODS["three"]
    assert seen == [([0, 1, 2], 0)] * 10 + [([3, 4, 5], 3)] * 10
    assert torch.equal(z, z_of())


def with_method(drawn: ClassTask, name: str) -> Recipe:
    settings = drawn.settings.model_copy(update={"method": name})
    return drawn.recipe.model_copy(update={"sample": settings})


# --- over-draw and choice ----------------------------------------------------------------------------------


def test_a_choice_keeps_of_what_was_drawn_with_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    picked = torch.tensor([11, 0, 3, 5, 7, 9])
    monkeypatch.setitem(CHOICES, "picked", lambda given, drawn: Kept(picked, picked.float()))
    overrides = "sample.draws=2", "sample.choose=picked"
    done = sample_class(task(*overrides))
    whole = follow(task(*overrides), Approach(), range(12), torch.empty(0))[0]
    assert torch.equal(done.z, whole[picked])
    assert done.weights is not None
    assert done.weights.tolist() == picked.tolist()
    assert done.drawn == 12
    monkeypatch.setitem(CHOICES, "picked", lambda given, drawn: Kept(picked))
    monkeypatch.setitem(METHODS, "weighing", lambda given: Approach(weights=10 * torch.arange(12.0)))
    drawn = task(*overrides)
    weighed = sample_class(replace(drawn, recipe=with_method(drawn, "weighing"))).weights
    assert weighed is not None
    assert weighed.tolist() == [110, 0, 30, 50, 70, 90], "the method's weights, of those that are kept"


def test_k_center_keeps_what_covers_the_draw_best() -> None:
    """Its radius is at most twice the least, so it is below that of the first images drawn."""
    drawn = task("sample.draws=20", "sample.choose=k-center")
    whole = follow(drawn, Approach(), range(120), torch.empty(0))[0].flatten(1)
    kept, first = sample_class(drawn).z.flatten(1), whole[:6]
    radius = [float(torch.cdist(whole, centres).min(1).values.max()) for centres in (kept, first)]
    assert radius[0] < radius[1]


# --- resuming ----------------------------------------------------------------------------------------------


def test_a_class_resumes_after_the_last_images_that_were_kept(tmp_path: Path) -> None:
    """To the bit, without asking the denoiser for these again; a damaged part is sampled again."""
    options = ["sample.eta=1", "prior.micro_batch=2", "sample.method=mgd3"]

    done: list[int] = []

    def stop_after_four(images: int) -> None:
        done.append(images)
        if sum(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_class(task(*options), [3], tmp_path, stop_after_four)
    rest = Gaussian()
    resumed = sample_class(task(*options, prior=rest), [3], tmp_path)
    assert rest.calls == 10  # one batch of two images through ten steps
    whole = sample_class(task(*options), [3])
    assert torch.equal(resumed.z, whole.z)
    assert torch.equal(resumed.on_the_way, whole.on_the_way)
    part = sorted(tmp_path.iterdir())[1]
    part.write_bytes(part.read_bytes()[:-5])
    again = Gaussian()
    assert torch.equal(sample_class(task(*options, prior=again), [3], tmp_path).z, whole.z)
    assert again.calls == 10


# --- recipes and commands ----------------------------------------------------------------------------------


def test_keys_of_sampling_decide_a_run_that_samples_alone() -> None:
    plain = digest(load(Recipe, "quickstart"))
    assert plain == digest(load(Recipe, "quickstart", ["sample.method=mgd3", "sample.steps=7"]))
    sampled = [digest(load(Recipe, "quickstart", ["distill.init=sample", *more])) for more in ([], ["sample.steps=7"])]
    assert len({plain, *sampled}) == 3
    other = load(Recipe, "quickstart", ["distill.init=sample", "sample.mgd3.scale=2"])
    assert digest(other) == sampled[0], "plain does not read the keys of mgd3"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("sample.method=magic",), "sample.method: 'magic' is not known; known are plain, d4m, "),
        (("sample.draws=4",), "draws=4: 4 times as many images are drawn as are kept"),
        (("sample.choose=k-center",), "choose=k-center: 'k-center' has nothing to choose from"),
        (("sample.draws=2", "sample.choose=best"), "sample.choose: 'best' is not known; known are k-center"),
        (("distill.iterations=5",), "distill.iterations=5: ld3m sample learns nothing"),
        (("prior.source=pixels",), "init=sample: sample, but prior.source=pixels has no denoiser"),
        (("sample.steps=1000", "prior.micro_batch=2"), "sample.steps: 1000 is not between 0 and 999"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0],
)
def test_mistakes_are_one_line(
    recipe_file: Path, ld3m: Callable[..., Outcome], overrides: tuple[str, ...], says: str
) -> None:
    outcome = ld3m("sample", recipe_file, *overrides)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err


@pytest.fixture(scope="module")
def sampled(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A sampled run of the shapes, made in this process."""
    from ld3m.distillation.loop import distill

    folder = tmp_path_factory.mktemp("sampled") / "run"
    own = ["distill.init=sample", "distill.iterations=0", "distill.learn=latents", "prior.steps=0"]
    method = ["sample.method=mgd3", "sample.steps=4", "sample.draws=2", "sample.choose=k-center"]
    recipe = load(Recipe, str(recipe_file), [*own, *method, f"output={folder}"])
    return distill(recipe), recipe


def test_a_sampled_run_holds_what_each_class_was_sampled_as(sampled: tuple[Path, Recipe]) -> None:
    """By other shares of the classes too: a process that has the last class alone gives the same latents."""
    folder, recipe = sampled
    images = open_kept(prepare(recipe.data, progress=False), recipe.data, recipe.seed, [], CPU)
    prior = priors.load(recipe.prior)
    embeddings = prior.class_embeddings(images.classes)
    kept = latents(folder)
    for index in (0, 1):
        for label in Processes(CPU, index, 2).shard(range(3)):
            alone = ClassTask(recipe, prior, images, embeddings[label], label, CPU)
            assert torch.equal(kept["z"].view(3, 2, 3, 8, 8)[label], sample_class(alone).z)
            assert torch.equal(kept["c"].view(3, 2, 1, 16)[label], embeddings[label].expand(2, 1, 16))
    assert json.loads((folder / "sampling.json").read_text())["images"] == 12
    assert list(grids.frames(folder)) == [0, 1, 2, 3, 4]
    assert not (folder / "sampling").exists()


def test_a_sampled_run_says_how_it_was_sampled(sampled: tuple[Path, Recipe], ld3m: Callable[..., Outcome]) -> None:
    folder, _ = sampled
    how = "mgd3, 4 steps of DDIM, guidance 3, 2 × as many drawn, kept by k-center"
    status = ld3m("status", folder).out
    assert how in status
    assert status.startswith(f"{folder}: finished, nothing is learnt\n")
    assert re.search(r"^  prior +\S+, the autoencoder alone$", status, re.M)
    assert "checkpoint" not in status
    assert ld3m("report", folder).code == 0
    page = (folder / "report.html").read_text()
    assert how in page
    assert "Finished, sampled" in page
    assert 'data-unit="step"' in page
    assert "12 images were sampled in" in page
    assert "Nothing is learnt in this run, so there are no curves." in page
    text = card.merge(None, "me/set", card.Section.of(folder))
    assert f"sampled from\nthe prior `prior0` ({how}) for the classes of `shapes0`." in text
    assert "| noise |" not in text, "none is added to the latents that the autoencoder renders"


def test_a_finished_sampling_is_refined_by_more_iterations(
    sampled: tuple[Path, Recipe], tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """`distill.init=FOLDER` starts from it, and a sampling that is given iterations goes on from its checkpoint."""
    from ld3m.distillation.loop import distill

    folder, recipe = sampled
    settings = recipe.distill.model_copy(update={"init": str(folder), "iterations": 1})
    other = recipe.model_copy(update={"distill": settings, "output": str(tmp_path / "refined")})
    refined = latents(distill(other))["z"]
    longer = shutil.copytree(folder, tmp_path / "longer")
    settings = recipe.distill.model_copy(update={"iterations": 1})
    distill(recipe.model_copy(update={"distill": settings, "output": str(longer)}))
    assert iterations_done(longer) == 1
    assert torch.equal(latents(longer)["z"], refined)
    assert not torch.equal(refined, latents(folder)["z"])


def test_the_command_says_what_it_sets(recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    shown = ld3m("sample", recipe_file, "--dry-run").out
    assert "init: sample" in shown
    assert "iterations: 0" in shown
    assert "name: shapes-plain" in shown


def test_the_function_samples_what_the_command_does(
    sampled: tuple[Path, Recipe], recipe_file: Path, tmp_path: Path
) -> None:
    folder, _ = sampled
    method = ["sample.method=mgd3", "sample.steps=4", "sample.draws=2", "sample.choose=k-center"]
    again = sample(recipe_file, *method, output=tmp_path / "again")
    for name, tensor in latents(folder).items():
        assert torch.equal(tensor, latents(again)[name])
    with pytest.raises(UserError, match=r"^distill\.iterations=5: ld3m sample learns nothing"):
        sample(recipe_file, "distill.iterations=5")


def test_a_plan_counts_the_calls_of_sampling() -> None:
    """Per class ⌈images/micro-batch⌉ batches through all steps."""
    options = ["distill.init=sample", "sample.steps=7", "distill.images_per_class=5", "prior.micro_batch=4"]
    recipe = load(Recipe, "quickstart", [*options, "distill.iterations=0"])
    calls = RunCost(recipe, 3, 10, SHAPE, (1,)).sampling_calls()
    assert calls == {"forwards": 4 * 2 * 7, "images": 8, "forwards in all": 10 * 2 * 7}
    none = load(Recipe, "quickstart", ["distill.iterations=0"])
    assert RunCost(none, 3, 10, SHAPE, (1,)).sampling_calls()["forwards in all"] == 0


def test_a_plan_of_a_sampling_has_no_iterations(recipe_file: Path, ld3m: Callable[..., Outcome]) -> None:
    """Three classes of two images: one batch of each goes through four steps."""
    sampling = [f"{key}={value}" for key, value in SAMPLING.items()]
    counted = ["sample.steps=4", "distill.images_per_class=2", "evaluate.seeds=1", "evaluate.epochs=1"]
    outcome = ld3m("plan", recipe_file, *sampling, *counted)
    assert "denoiser  at most 12 calls forwards, of 4 images; 12 in all\n" in outcome.out
    assert "  the start, and sampling\n" in outcome.out
    for word in ("iteration", "objective", "pull_back", "momentum\n", "backwards"):
        assert word not in outcome.out


@pytest.mark.parametrize(
    ("method", "measured", "left_out"),
    [
        ("plain", False, None),
        ("d3hr", True, None),
        ("d3hr", False, "the inversion of real images"),
        ("igd", True, "the gradients through decoder and denoiser"),
        ("igd", False, "the gradients through decoder and denoiser"),
    ],
)
def test_a_plan_says_what_of_sampling_it_leaves_out(method: str, measured: bool, left_out: str | None) -> None:
    """Two timed steps are not those that networks guide."""
    options = [f"sample.method={method}", "distill.init=sample"]
    said = not_counted(load(Recipe, "quickstart", options), measured)
    assert len(said) == (left_out is not None)
    assert all(line.startswith(f"sample.method: {method}; the hours leave out {left_out}") for line in said)
    assert not_counted(load(Recipe, "quickstart", options[:1]), measured) == []


def test_the_method_of_the_page_is_one() -> None:
    """Its program, as it stands: at scale 0.1 images end nearer to the medoid than without."""
    page = (Path(__file__).parent.parent / "recipes" / "SAMPLING.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    drawn = task()
    approach = names["to_medoid"](drawn)
    real = drawn.encodings()
    medoid = min(real, key=lambda each: float((each - real.mean(0)).norm()))
    guided = follow(drawn, approach, range(6), torch.empty(0))[0]
    assert (guided - medoid).square().mean() < (z_of() - medoid).square().mean()


def test_a_sampling_under_way_says_how_far_it_is(
    recipe_file: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    run = tmp_path / "run"
    (run / "sampling").mkdir(parents=True)
    (run / "recipe.yaml").write_text(to_yaml(load(Recipe, str(recipe_file), ["distill.init=sample"])))
    for name in ("class-0000-000000", "class-0000-000064", "class-0002-000000"):
        (run / "sampling" / f"{name}.safetensors").touch()
    status = ld3m("status", run).out
    assert "plain, 50 steps of DDIM, guidance 3; images of 2 classes are kept so far" in status
    assert "resumes after the images that are kept" in status


def test_recipes_of_methods_sample_by_them() -> None:
    folder = Path(__file__).parent.parent / "recipes" / "sampling"
    recipes = {path.stem: load(Recipe, str(path)) for path in folder.glob("*.yaml")}
    assert {"plain", "d4m", "mgd3", "coda"} <= {recipe.sample.method for recipe in recipes.values()} <= set(METHODS)
    for name, recipe in recipes.items():
        assert recipe.samples
        assert recipe.name == f"sampling-{name}"
        assert f"sampling/{name}" in (folder / f"{name}.yaml").read_text()


@pytest.mark.slow
def test_two_processes_sample_what_one_does(sampled: tuple[Path, Recipe], tmp_path: Path, recipe_file: Path) -> None:
    folder, _ = sampled
    method = ["sample.method=mgd3", "sample.steps=4", "sample.draws=2", "sample.choose=k-center"]
    launch("sample", recipe_file, *method, "-o", tmp_path / "two")
    for name, tensor in latents(folder).items():
        assert torch.equal(tensor, latents(tmp_path / "two")[name])
