"""Plans against arithmetic by hand, and against runs in processes of their own."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from torch import nn

from ld3m.distillation.plan import remedies
from ld3m.machine import memory
from ld3m.priors import weight_bytes
from ld3m.priors.base import weights_of
from ld3m.priors.originals.convert import write_configurations
from ld3m.recipe import Recipe
from ld3m.recipe.files import load
from ld3m.sizing import devices
from ld3m.sizing.bench import Bench
from ld3m.sizing.cost import RunCost
from ld3m.sizing.count import Counts, Pass, Tally
from ld3m.sizing.meta_models import MetaImages, MetaPrior

RECIPES = Path(__file__).parent.parent / "recipes"
MEASURED = """
import resource, sys
from pathlib import Path
from ld3m.__main__ import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    print(f"USED {used.ru_utime + used.ru_stime} {peak}", file=sys.stderr)
"""
"""A command that says what it used; of memory the figure of its own, as getrusage's begins with pytest's."""


def measured(*arguments: object) -> tuple[str, float, int]:
    """What a command prints, its processor seconds and its peak bytes."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"USED (\S+) (\d+)", done.stderr)
    assert found
    return done.stdout, float(found[1]), int(found[2])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read where Linux tells them")
@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["distill.iterations=30"],
        ["distill.iterations=30", "distill.objective=dc", "distill.dc.outer=3", "distill.dc.inner=4",
         "prior.keep_graph_steps=0", "prior.micro_batch=4"],
    ],
    ids=["dm", "dc"],
)  # fmt: skip
def test_a_plan_comes_close_to_the_run(overrides: list[str], recipe_file: Path, tmp_path: Path) -> None:
    """Within 25 % of the processor's seconds and 15 % of memory.

    The clock's seconds are not compared, as other work on the machine stretches them; nor are two unlucky pairs
    of plan and run enough to fail.
    """
    ratios = []
    for attempt in range(3):
        printed, _, _ = measured("plan", recipe_file, *overrides, "--json")
        plan = json.loads(printed[printed.index("{") :])
        folder = tmp_path / str(attempt)
        _, seconds, peak = measured("distill", recipe_file, *overrides, "--output", folder)
        ratios.append((plan["processor_hours"] * 3600 / seconds, plan["peak"] / peak))
        assert plan["processor"] == "CPU"
        if abs(ratios[-1][0] - 1) <= 0.25 and abs(ratios[-1][1] - 1) <= 0.15:
            return
    pytest.fail(f"(seconds, memory) of plans as shares of their runs': {ratios}")


def test_a_plan_leaves_nothing_behind(ld3m: Callable[..., Outcome], recipe_file: Path) -> None:
    outcome = ld3m("plan", recipe_file, "--device", "l4-24gb")
    assert outcome.code == 0
    assert "estimated for l4-24gb from its data sheet" in outcome.out
    assert "1 process × 3 classes" in outcome.out
    assert not list(Path().iterdir())


@pytest.mark.parametrize("options", [("--device", "l4-24gb"), ()], ids=["table", "here"])
def test_pixel_space_is_planned(ld3m: Callable[..., Outcome], recipe_file: Path, options: tuple[str, ...]) -> None:
    """The first recipe for photos: no denoiser is called, Z is the images, and nothing conditions them."""
    outcome = ld3m("plan", recipe_file, "prior.source=pixels", "distill.factor=2", "--json", *options)
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out[outcome.out.index("{") :])
    assert [plan["denoiser_calls"][name] for name in ("forwards in all", "backwards in all")] == [0, 0]
    assert (plan["z"], plan["c"]) == ([3, 8, 1, 8, 8], [3, 8, 0])
    assert plan["learnt_bytes"] == 3 * 8 * 8 * 8 * 4 * 2
    assert plan["memory"]["weights of the prior"] == 0


def test_what_cannot_fit_is_said_before_it_is_tried(
    ld3m: Callable[..., Outcome], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 images: z, c, momentum, gradients and noise of 4 · (3 · (192 + 16) + 192) bytes, three of 16 × 16 pixels, and
    five states of 192 numbers; one byte less is too little.
    """
    needed = 6 * 4 * (3 * (192 + 16) + 192 + 3 * 256 + 5 * 192)
    monkeypatch.setattr(memory, "free", lambda device: needed - 1)
    outcome = ld3m("distill", recipe_file, "prior.keep_graph_steps=0")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(
        "ld3m: distill.images_per_class: 2; the 6 latents and images of a process take 0.0 GiB"
    )
    monkeypatch.setattr(memory, "free", lambda device: needed)
    assert ld3m("distill", recipe_file, "prior.keep_graph_steps=0", "distill.iterations=0").code == 0


# --- arithmetic --------------------------------------------------------------------------------------------


def shapes(
    recipe_file: Path, *overrides: str, processes: int = 1, classes: int = 1000, latent: tuple[int, ...] = (3, 64, 64)
) -> RunCost:
    """Those of a recipe on other classes and another prior's latents."""
    return RunCost(load(Recipe, str(recipe_file), list(overrides)), processes, classes, latent, (1, 512))


@pytest.mark.parametrize(
    ("processes", "shards"),
    [
        (1, [(1, 1000)]),
        (8, [(8, 125)]),
        (64, [(40, 16), (24, 15)]),
        (512, [(488, 2), (24, 1)]),
        (1002, [(1000, 1), (2, 0)]),
    ],
)
def test_classes_are_dealt_like_cards(recipe_file: Path, processes: int, shards: list[tuple[int, int]]) -> None:
    assert shapes(recipe_file, processes=processes).shards == shards
    assert sum(count * size for count, size in shards) == 1000


def test_what_is_learnt(recipe_file: Path) -> None:
    """(3 · 64 · 64 + 512) numbers of 4 bytes, and as many for their momentum."""
    assert shapes(recipe_file).learnt_bytes == 2 * 4 * 12_800


@pytest.mark.parametrize(
    ("overrides", "forwards", "backwards", "images"),
    [
        (["prior.keep_graph_steps=all"], 10, 10, 8),
        (["prior.keep_graph_steps=0"], 20, 10, 8),
        (["prior.keep_graph_steps=3"], 17, 10, 8),
        (["prior.keep_graph_steps=0", "prior.guidance=1"], 20, 10, 4),
        (["prior.keep_graph_steps=0", "prior.skip=paper"], 18, 9, 8),
        (["prior.keep_graph_steps=all", "prior.skip=paper"], 9, 9, 8),
    ],
)
def test_denoiser_calls(recipe_file: Path, overrides: list[str], forwards: int, backwards: int, images: int) -> None:
    """Of three classes of two images in micro-batches of four and two, S = 10; and once more for the result."""
    fixed = ["prior.steps=10", "prior.micro_batch=4", "distill.iterations=7", "distill.images_per_class=2"]
    planned = shapes(recipe_file, *fixed, *overrides, classes=3).denoiser_calls()
    assert planned == {
        "forwards": 2 * forwards,
        "backwards": 2 * backwards,
        "images": images,
        "forwards in all": 2 * 7 * forwards + 2 * backwards,
        "backwards in all": 2 * 7 * backwards,
    }


def test_calls_are_those_a_render_makes(prior_folder: Path, recipe_file: Path) -> None:
    from ld3m import priors
    from ld3m.sampling import Schedule, render

    for skip in ("paper", "reference"):
        recipe = load(Recipe, str(recipe_file), ["prior.keep_graph_steps=1", f"prior.skip={skip}", "prior.steps=4"])
        prior = priors.load(recipe.prior)
        seen: list[int] = []
        denoise = prior.denoise
        prior.denoise = lambda z, t, c, seen=seen, denoise=denoise: seen.append(len(c)) or denoise(z, t, c)  # type: ignore[method-assign]
        z, c = torch.randn(6, 3, 8, 8), prior.null_embedding.expand(6, 1, 16)
        schedule = Schedule.of(prior.noise_schedule, 4, skip, 3.0)  # type: ignore[arg-type]
        pixels, pull_back = render(prior, schedule, z, c, z, keep_graph_steps=1)
        pull_back(pixels)
        planned = RunCost(recipe, 1, 3, (3, 8, 8), (1, 16)).denoiser_calls()
        assert seen == [planned["images"]] * planned["forwards"]


@pytest.mark.parametrize(
    ("overrides", "processes", "sent"),
    [
        (["distill.objective=dm"], 8, 0),
        (["distill.objective=dc", "distill.dc.outer=1"], 8, 0),
        (["distill.objective=dc", "distill.dc.outer=10"], 8, 0.9),
        (["distill.objective=mtt", "experts.epochs=5"], 8, 1),
        (["distill.objective=mtt", "experts.epochs=5"], 1, 0),
    ],
)
def test_communication(recipe_file: Path, overrides: list[str], processes: int, sent: float) -> None:
    """What gathers, gathers 2,000 images of 16 × 16 grey pixels of 4 bytes."""
    planned = shapes(recipe_file, *overrides, processes=processes).communication()
    assert planned["images of all classes"] == pytest.approx(sent * 2000 * 16 * 16 * 4)


# --- counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "images"),
    [
        ([], 100),
        (["distill.dm.pool=10"], 25),
        (["distill.dm.pool=80"], 100),
        (["distill.objective=dc", "distill.dm.pool=10"], 100),
    ],
)
def test_networks_that_take_turns_pass_real_images_once(
    recipe_file: Path, prior_folder: Path, overrides: list[str], images: int
) -> None:
    """100 real images in each of 40 iterations, or in 10 of them."""
    fixed = ["distill.real_batch=100", "distill.iterations=40"]
    planned = shapes(recipe_file, *fixed, *overrides, classes=3)
    assert planned.real_bytes([200, 200, 60]) == 16 * 16 * (2 * images + min(60, images))
    recipe = load(Recipe, str(recipe_file), [*fixed, *overrides])
    outline = MetaPrior.of(recipe.prior)
    drawn = MetaImages(["a"], torch.zeros(1), torch.ones(1), {"train": [200]}, [0], [], Path("x"), 16)

    def operations(recipe: Recipe) -> int:
        bench = Bench(recipe, outline, drawn, range(1), torch.device("meta"))
        return Counts.of(bench, outline).objective[0]

    same = load(Recipe, str(recipe_file), [*fixed, *overrides[:1], "distill.dm.pool=null"])
    as_many = same.model_copy(update={"distill": same.distill.model_copy(update={"real_batch": images})})
    assert operations(recipe) == operations(as_many)


def test_a_convolution_by_hand() -> None:
    """8 images of 3 channels to 16, 3 × 3, at 10 × 10 pixels: 2 · 9 · 3 · 16 operations a pixel, and as many for the
    gradient at its input alone; the graph of a convolution and a square holds the latter's input.
    """
    network = nn.Conv2d(3, 16, 3, padding=1, device="meta").requires_grad_(False)
    counted = Pass.of(
        lambda x: network(x).square(), [torch.empty(8, 3, 10, 10, device="meta")], list(network.parameters())
    )
    assert counted.forward == counted.backward == 8 * 100 * 2 * 9 * 3 * 16
    assert counted.graph == 2 * 8 * 16 * 100 * 4  # what is squared, and the square itself
    assert counted.peak >= counted.graph


def test_bytes_come_and_go() -> None:
    with Tally() as tally:
        one = torch.zeros(1000, device="meta")
        view = one[10:]
        assert tally.bytes == 4000
        del one, view
        assert tally.bytes == 0
    assert tally.peak == 4000


@pytest.fixture(scope="module")
def imagenet_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configurations of cin256-v2, without weights."""
    folder = tmp_path_factory.mktemp("cin256-v2")
    write_configurations("cin256-v2", folder)
    return folder


@pytest.fixture(scope="module")
def published(imagenet_prior: Path) -> tuple[Recipe, Counts]:
    """The run whose cost the paper gives: ten classes at 256 px, T = 20."""
    recipe = load(Recipe, "imagenet256", [f"prior.source={imagenet_prior}", "prior.micro_batch=1"])
    outline = MetaPrior.of(recipe.prior)
    bench = Bench(recipe, outline, MetaImages.of(recipe.data), range(10), torch.device("meta"))
    return recipe, Counts.of(bench, outline)


@pytest.mark.parametrize(
    ("dtype", "tf32", "measured"), [("float32", False, 11.58), ("float32", True, 4.35), ("bfloat16", True, 2.94)]
)
def test_an_h100_is_estimated_as_it_was_measured(
    dtype: str, tf32: bool, measured: float, published: tuple[Recipe, Counts]
) -> None:
    """A gradient step of ten images at 256 px, S = 20, no graphs kept: the table of recipes/SPEED.md."""
    recipe, counts = published
    prior = recipe.prior.model_copy(update={"dtype": dtype})
    cost = RunCost(recipe.model_copy(update={"prior": prior}), 1, 10, (3, 64, 64), (1, 512))
    parts = cost.operations(counts)
    h100 = devices.DEVICES["h100-80gb"]
    seconds = sum(h100.seconds(*each, tf32) for part in ("render", "pull_back") for each in parts[part])
    assert seconds == pytest.approx(measured, rel=0.01)


def test_the_hours_of_a_recipes_cards_are_planned(published: tuple[Recipe, Counts]) -> None:
    """Of each card, in TF32 and in bfloat16."""
    recipe, counts = published
    text = (RECIPES / "imagenet256.yaml").read_text(encoding="utf-8")
    stated = re.findall(r"(\S+-\d+gb) ([\d.]+), ([\d.]+)", text)
    assert len(stated) == 8
    for name, *hours in stated:
        for dtype, hour in zip(("float32", "bfloat16"), hours, strict=True):
            prior = recipe.prior.model_copy(update={"dtype": dtype})
            cost = RunCost(recipe.model_copy(update={"prior": prior}), 1, 10, (3, 64, 64), (1, 512))
            done = [each for part in cost.operations(counts).values() for each in part]
            seconds = sum(devices.DEVICES[name].seconds(*each, recipe.tf32) for each in done)
            assert float(hour) == pytest.approx(1000 * seconds / 3600, abs=0.06)


def test_the_published_cost_is_at_least_what_is_estimated(published: tuple[Recipe, Counts]) -> None:
    """574 minutes on an A100-40GB for 1,000 iterations of forward, forward, forward and backward (arXiv 2403.03881).

    A call of the denoiser is 104.2 G multiplications and additions an image, as are both halves of guidance.
    """
    _, counts = published
    assert counts.step.forward == pytest.approx(2 * 2 * 104.2e9, rel=1e-3)
    chain = 10 * (20 * (3 * counts.step.forward + counts.step.backward) + 3 * counts.decoder.forward)
    unit, rest = counts.objective
    operations = chain + 10 * counts.decoder.backward + 10 * unit + rest
    hours = 1000 * devices.DEVICES["a100-40gb"].seconds(operations, "float32", True) / 3600
    assert hours == pytest.approx(4.1, abs=0.05)
    assert hours < 574 / 60


@pytest.mark.parametrize("name", devices.DEVICES)
def test_devices_are_of_one_family(name: str) -> None:
    """The name says the memory; lower precisions take less time if the device has them."""
    device = devices.DEVICES[name]
    gigabytes = int(re.findall(r"(\d+)gb$", name)[0])
    assert 0.9 * gigabytes < device.gib * 2**30 / 1e9 <= 1.09 * gigabytes
    exact, tf32 = device.seconds(1e12, "float32", False), device.seconds(1e12, "float32", True)
    assert exact >= tf32 > device.seconds(1e12, "float16", True)
    assert (device.seconds(1e12, "bfloat16", True) < tf32) == device.bfloat16


@pytest.mark.parametrize(
    ("key", "halved"),
    [
        ("prior.dtype", {"render", "pull_back", "end"}),
        pytest.param("network.dtype", {"objective"}, marks=pytest.mark.slow),
    ],
)
def test_what_runs_in_16_bits_takes_less(
    ld3m: Callable[..., Outcome], recipe_file: Path, key: str, halved: set[str]
) -> None:
    """The A100's data sheet has twice the operations a second in bfloat16; the decoder stays in float32."""
    single = planned(ld3m, recipe_file, "tf32=true", "--device", "a100-40gb")["seconds"]
    half = planned(ld3m, recipe_file, "tf32=true", f"{key}=bfloat16", "--device", "a100-40gb")["seconds"]
    exact = planned(ld3m, recipe_file, "--device", "a100-40gb")["seconds"]
    assert exact["render"] > single["render"]
    changed = {part for part in single if half[part] < single[part]}
    assert changed == halved
    assert all(0.5 <= half[part] / single[part] < 1 for part in halved)


def test_weights_of_an_outline_are_those_of_the_files(prior_folder: Path, recipe_file: Path) -> None:
    recipe = load(Recipe, str(recipe_file), ["prior.dtype=bfloat16"]).prior
    table = 4 * 16 * 4  # three classes and none, of 16 numbers
    held = sum(tensor.nbytes for tensor in weights_of(MetaPrior.of(recipe)))
    assert held + table == weight_bytes(recipe)[1]


# --- what will not fit -------------------------------------------------------------------------------------


def planned(ld3m: Callable[..., Outcome], *arguments: object) -> dict[str, Any]:
    outcome = ld3m("plan", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_run_that_does_not_fit_is_told_what_would(
    ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, recipe_file: Path
) -> None:
    """A GPU with 20 MiB beside what CUDA takes: the graphs of three steps of six images are 27; what it names fits."""
    small = devices.Device(devices.RESERVED / 2**30 + 20 / 1024, 1e12, 1e12, 1e12, 1e12)
    monkeypatch.setitem(devices.DEVICES, "small", small)
    told = planned(ld3m, recipe_file, "--device", "small")
    assert told["memory"]["graphs kept"] == pytest.approx(27.5 * 2**20, rel=0.05)
    assert told["peak"] > told["available"]
    assert told["warnings"] == [
        f"{told['peak'] / 2**30:.1f} GiB do not fit into 1.0, most of it graphs kept; "
        "it fits with prior.keep_graph_steps=0"
    ]
    mended = planned(ld3m, recipe_file, "--device", "small", "prior.keep_graph_steps=0")
    assert mended["peak"] <= mended["available"]
    assert mended["warnings"] == []


def test_remedies_begin_with_the_mildest(recipe_file: Path) -> None:
    """A process with two images, and none to share them with."""
    said = [change for change, _ in remedies(shapes(recipe_file, "prior.micro_batch=4", processes=1000))]
    assert said[:5] == [
        "",
        "prior.micro_batch=1",
        "prior.keep_graph_steps=0",
        "prior.keep_graph_steps=0 prior.micro_batch=1",
    ]


def test_idle_processes_are_told(ld3m: Callable[..., Outcome], recipe_file: Path) -> None:
    told = planned(ld3m, recipe_file, "--device", "h100-80gb", "--processes", 5)
    assert told["shards"] == [[3, 1], [2, 0]]
    assert "2 of 5 processes would be idle; give --processes 3 or fewer" in told["warnings"]


def test_experts_take_disk(ld3m: Callable[..., Outcome], recipe_file: Path) -> None:
    """Width 8, depth 2, 16 px, 3 classes: 80 + 16 + 584 + 16 + 8 · 4 · 4 · 3 + 3 weights, of 6 epochs and the start."""
    told = planned(
        ld3m, recipe_file, "--device", "l4-24gb", "distill.objective=mtt", "experts.count=2", "experts.epochs=6"
    )
    assert told["experts_bytes"] == 2 * 7 * 4 * (80 + 16 + 584 + 16 + 8 * 4 * 4 * 3 + 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "abacus"], ["--device: 'abacus' is not known", "a100-40gb", "h200-141gb"]),
        (["--device", "l4-24gb", "prior.source=hub:nobody/nothing"], ["hf download nobody/nothing --include '*.json'"]),
    ],
)
def test_mistakes_are_one_line(
    ld3m: Callable[..., Outcome], recipe_file: Path, arguments: list[str], said: list[str]
) -> None:
    outcome = ld3m("plan", recipe_file, *arguments)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert all(part in outcome.err for part in said)
