"""Small real things the tests share: a prior with random weights, an image folder, the command line."""

import offline  # noqa: F401 - before the libraries

# isort: split
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import settings
from PIL import Image

from ld3m.__main__ import main
from ld3m.distillation.loop import distill
from ld3m.priors import ClassConditionalLDM
from ld3m.recipe import Recipe
from ld3m.recipe.files import load, to_yaml
from ld3m.runs.folder import note_classes

# How long an example takes says something of the machine alone: it may be busy.
settings.register_profile("ld3m", deadline=None)
settings.load_profile("ld3m")

CLASSES = ["circle", "cross", "square"]
DATA = Path(__file__).parent / "data"

EVERY = ("test_",)
LONG = {
    "test_processes": EVERY,
    "test_sharding": (
        "test_a_layer_at_a_time",
        "test_a_run_goes_on_under",
        "test_a_process_without_a_class",
        "test_launch_files_have",
        "test_a_denoiser_can_be",
    ),
    "test_launch": EVERY,
    "test_memory": (
        "test_a_run_goes_on_with_less",
        "test_a_pull_back_that_runs_out",
        "test_an_objective_that_runs_out",
        "test_the_first_encoding_goes_on",
        "test_memory_that_really_ends",
        "test_auto_is_the_largest",
        "test_auto_keeps_graphs",
        "test_auto_begins",
        "test_a_run_with_auto",
        "test_an_image_that_cannot",
        "test_what_runs_for_real",
        "test_nothing_less_is",
        "test_nothing_of_an_attempt",
    ),
    "test_distill": (
        "test_a_signal_",
        "test_a_damaged_checkpoint",
        "test_checkpoints_from_when",
        "test_a_run_goes_on_from_a_checkpoint",
        "test_what_no_run_goes_on_from",
        "test_the_saved_recipe",
        "test_a_log_has_a_line",
        "test_a_read_only_run",
        "test_run_folder_holds",
        "test_dry_run_prints",
        "test_pictures_show",
        "test_learning_one_of",
    ),
    "test_hub": EVERY,
    "test_ablate": EVERY,
    "test_moved_runs": EVERY,
    "test_hub_priors": (
        "test_only_what_is_read",
        "test_a_hub_that_cannot",
    ),
    "test_train_prior": EVERY,
    "test_teachers": ("test_killed_and_interrupted",),
    "test_soft_labels": ("test_hard_and_soft", "test_a_set_is_pushed"),
    "test_trackers": (
        "test_a_killed_run",
        "test_only_the_main_process",
        "test_trackio_has",
        "test_trackers_end_with_a_signal",
        "test_the_terminal_tells",
        "test_a_run_begun_anew",
        "test_tensorboard_has",
        "test_a_tracker_that_fails",
    ),
    "test_status": (
        "test_a_running_run",
        "test_a_killed_run",
        "test_a_second_command",
        "test_all_processes",
        "test_experts_and_ablations",
        "test_a_finished_run",
    ),
    "test_coresets": (
        "test_z_starts",
        "test_prototypes_are",
        "test_a_run_matches",
        "test_two_processes",
    ),
    "test_matching": (
        "test_experts_are_the_same_however",
        "test_dc_goes_on",
        "test_mtt_goes_on",
        "test_a_run_with_a_pool",
        "test_runs_that_match_in_experts",
        "test_a_run_by_moments",
        "test_the_learnt_step",
        "test_a_learnt_rate",
    ),
    "test_evaluate": (
        "test_an_interrupted_evaluation",
        "test_two_evaluations",
        "test_networks_learn",
        "test_the_cross_architecture_mean",
        "test_nothing_is_chosen",
        "test_evaluations_add_up",
    ),
    "test_scores": (
        "test_scores_through_the_command_line",
        "test_baselines_of_another_seed",
    ),
    "test_compare": ("test_a_comparison_resumes",),
    "test_differences": (
        "test_a_run_against_another",
        "test_what_cannot_be_compared",
        "test_the_command_line_compares",
    ),
    "test_precision": (
        "test_gradients_in_bfloat16",
        "test_a_run_with_a_compiled",
        "test_frozen_layers_are_traced_whole",
    ),
    "test_known_priors": (
        "test_a_prior_is_taken",
        "test_what_is_not_the_prior",
        "test_folders_of_other_kinds",
        "test_a_random_copy",
        "test_two_at_once",
        "test_outlines_have",
        "test_a_file_of_the_same",
        "test_a_cut_download",
    ),
    "test_plan": (
        "test_an_h100_is_estimated",
        "test_a_run_that_does_not_fit",
        "test_a_plan_comes_close",
        "test_what_runs_in_16_bits",
        "test_networks_that_take_turns",
        "test_experts_take_disk",
        "test_idle_processes",
        "test_the_hours_of",
        "test_the_published_cost",
        "test_calls_are_those",
    ),
    "test_convert": (
        "test_a_converted_prior",
        "test_the_real_size",
        "test_configurations_alone",
        "test_render_and_gradients",
        "test_a_tensor_too_many",
        "test_the_average_is_taken",
        "test_a_class_table_with",
    ),
    "test_preparation": (
        "test_killed_in_the_middle",
        "test_processes_that_prepare",
        "test_memory_holds",
        "test_a_class_that_another",
    ),
    "test_registry": ("test_a_package_of_four",),
    "test_rehearsal": EVERY,
    "test_convert_others": EVERY,
    "test_download": ("test_a_killed_process",),
    "test_doors": ("test_the_program_of_a_card",),
    "test_digits": (
        "test_a_published_accuracy",
        "test_the_recipe_runs",
    ),
    "test_packaged_prior": (
        "test_it_is_small_and_judged_well",
        "test_reconstructions_are",
    ),
    "test_profiling": EVERY,
    "test_gradient_norms": EVERY,
    "test_sampling_choice": ("test_a_run_is_sampled", "test_real_latents_come_back"),
    "test_sampler": (
        "test_pull_back_is_autograd",
        "test_kept_graphs_change",
    ),
    "test_fit": ("test_a_damaged_checkpoint",),
    "test_priors": (
        "test_two_iterations_are_distilled",
        "test_a_convolutional_prior",
        "test_half_precision_gradients",
        "test_gradients_agree_with",
        "test_the_autoencoder_alone",
        "test_a_run_keeps_where",
        "test_a_dry_run_tells",
    ),
    "test_priors_of_today": ("test_it_is_sampled", "test_gradients_agree", "test_a_trained_flow", "test_a_random_copy"),
    "test_waiting": (
        "test_an_iteration_that_is_not_logged",
        "test_what_waits",
    ),
    "test_environment": ("test_a_token_in_a_file",),
    "test_imports": (
        "test_real_images_as_tensors",
        "test_render_as_the_run",
        "test_what_was_measured_of_other",
        "test_sets_in_five",
    ),
    "test_completion": ("test_bash_takes",),
    "test_report": (
        "test_a_page_of_large_noise",
        "test_the_slider",
        "test_an_image_is_large",
        "test_both_ends_are",
        "test_a_curve_tells",
        "test_text_stands_out",
        "test_long_runs_stay",
        "test_numbers_are_those",
    ),
    "test_api": (
        "test_the_five_lines",
        "test_a_name_with_overrides",
        "test_latents_are_rendered",
    ),
    "test_errors": ("test_evaluate_options",),
    "test_optimiser": ("test_adam_goes_on",),
    "test_data": ("test_the_packaged_subset_of",),
    "test_networks": (
        "test_parameters_are_those",
        "test_every_norm",
    ),
    "test_pull_back": ("test_a_run_goes_through",),
    "test_tune": ("test_a_search_reads", "test_the_same_from_python"),
    "test_formation": ("test_each_image_holds", "test_networks_are_trained"),
}
"""What `launch/test.sh fast` leaves out, by file and how names begin: what takes many seconds, most with processes of
its own. The files that take longest come first, and run first, so that no core is left with one alone at the end."""

LEFT_OUT = pytest.StashKey[Counter[str]]()
"""How many tests of each file were deselected: by this process, or by any worker of pytest-xdist."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the long tests, and puts the longest files first; the others stay as they were."""
    order = list(LONG)
    for item in items:
        if item.name.startswith(LONG.get(item.path.stem, ())):
            item.add_marker("long")
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Counts what markers leave out: `launch/test.sh fast` ends with the list."""
    for item in items:
        item.config.stash.setdefault(LEFT_OUT, Counter())[item.path.stem] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist passes its counts on, since only workers collect tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = dict(session.config.stash.get(LEFT_OUT, Counter()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over a worker's counts; all workers collect the same tests."""
    if counts := getattr(node, "workeroutput", {}).get("left out"):
        node.config.stash[LEFT_OUT] = Counter(counts)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was left out, and what runs it."""
    if counts := config.stash.get(LEFT_OUT, None):
        files = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        terminalreporter.section(f"{counts.total()} tests left out")
        terminalreporter.line(f"tests of each file: {files}")
        terminalreporter.line("launch/test.sh runs the ones marked long, launch/test.sh -m slow those marked slow")


def make_prior(classes: list[str] | None = None, size: int = 16, channels: int = 1) -> ClassConditionalLDM:
    """A class-conditional LDM of the real architecture with random weights: size/2-pixel latents, 3 channels.

    Blocks are wide enough that the time step is felt: with one channel a normalisation group it would cancel.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel

    torch.manual_seed(0)
    autoencoder = VQModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=3,
        num_vq_embeddings=64,
        sample_size=size,
        norm_num_groups=8,
        scaling_factor=0.8,
    )
    autoencoder.quantize.embedding.weight.data.normal_()
    denoiser = UNet2DConditionModel(
        sample_size=size // 2,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    names = classes or CLASSES
    return ClassConditionalLDM(autoencoder, denoiser, torch.randn(len(names) + 1, 16), names, scheduler)


def draw_shape(name: str, rng: np.random.Generator, size: int = 20) -> Image.Image:
    """A white circle, cross or square of random size on noise."""
    canvas = rng.integers(0, 60, (size, size)).astype(np.uint8)
    rows, columns = np.mgrid[:size, :size] - size // 2
    radius = rng.integers(4, 8)
    inside = {
        "circle": rows**2 + columns**2 < radius**2,
        "square": (abs(rows) < radius) & (abs(columns) < radius),
        "cross": ((abs(rows) < 2) | (abs(columns) < 2)) & (abs(rows) < radius) & (abs(columns) < radius),
    }[name]
    canvas[inside] = 230
    return Image.fromarray(canvas)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data of tests goes nowhere near the user's cache."""
    os.environ["LD3M_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with 12 training and 6 test images of each of three shapes."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                draw_shape(name, rng).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small prior, saved."""
    folder = tmp_path_factory.mktemp("prior")
    make_prior().save(folder)
    return folder


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, shapes: Path, prior_folder: Path) -> Path:
    """A recipe that distils the shapes in seconds."""
    path = tmp_path_factory.mktemp("recipes") / "shapes.yaml"
    path.write_text(
        f"""
name: shapes
data: {{source: {shapes}, resolution: 16, channels: 1}}
prior: {{source: {prior_folder}, steps: 3}}
distill:
  {{images_per_class: 2, iterations: 4, real_batch: 8, checkpoint_every: 2, lr_latents: 0.1, lr_conditioning: 0.1}}
network: {{width: 8, depth: 2}}
evaluate: {{arch: [convnet], seeds: 2, epochs: 3}}
"""
    )
    return path


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a test writes beside itself does not stay in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ld3m(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ld3m", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def latents(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a finished run."""
    return safetensors.torch.load_file(folder / "latents.safetensors")


def noted(folder: Path) -> dict[str, Any]:
    """What a finished run notes beside its tensors: one JSON value, as several keys come out in random order."""
    with safetensors.safe_open(folder / "latents.safetensors", "pt") as file:
        (text,) = file.metadata().values()
    return dict(json.loads(text))


def distilled(recipe_file: Path, folder: Path, *overrides: str) -> Path:
    """A run made in this process."""
    return distill(load(Recipe, str(recipe_file), [*overrides, f"output={folder}"]))


def command(*arguments: object) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "ld3m", *map(str, arguments)]


def launcher(config: str) -> list[str]:
    """The command line that starts two processes as a file of launch/ says."""
    path = Path(__file__).parent.parent / "launch" / f"{config}.yaml"
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), "--num_processes", "2"]


def launch(*arguments: object, config: str = "cpu2") -> None:
    """`ld3m` in two processes."""
    subprocess.run([*launcher(config), "-m", "ld3m", *map(str, arguments)], check=True, timeout=600)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference in units of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture
def random_images(recipe_file: Path, tmp_path: Path) -> Path:
    """What a run leaves, as far as its images go: random ones, two of each class."""
    folder = tmp_path / "runs" / "mine"
    values = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16), dtype=np.uint8)
    for label, name in enumerate(CLASSES):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(values[label, index]).save(folder / "images" / name / f"{index}.png")
    recipe = load(Recipe, str(recipe_file), ["distill.images_per_class=2", f"output={folder}"])
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    note_classes(folder, {name: label for label, name in enumerate(CLASSES)})
    return folder
