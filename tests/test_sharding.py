"""The denoiser's parameters dealt to two processes: what is resident, the gradients, whole runs, the launch files."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import command, distilled, latents, launch, launcher, make_prior, relative
from test_priors import save_dit, save_stable_diffusion, save_unconditional

from ld3m import priors
from ld3m.errors import UserError
from ld3m.machine.processes import start
from ld3m.priors.sharding import ONE_LAYER, shard_denoiser, wanted
from ld3m.recipe import SamplerRecipe

LAUNCH = Path(__file__).parent.parent / "launch"
CONFIGS = ["zero3", "fsdp2", "zero3-offload", "zero2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A UNet with a text encoder beside it, and a transformer of which a block is called in parts from outside."""
    made = [tmp_path_factory.mktemp(name) for name in ("stable-diffusion", "dit")]
    return [save_stable_diffusion(made[0]), save_dit(made[1])]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero3", "fsdp2"])
def test_a_layer_at_a_time_is_whole_and_gradients_are_exact(config: str, folders: list[Path], tmp_path: Path) -> None:
    """Half of the parameters and one layer through forward and pull-back, half of them after.

    Under FSDP2 that holds where graphs are kept, too. A text encoder is whole, and says what it says on one process.
    Under ZeRO-3 autograd adds up the gradients of a tensor that several layers take in another order.
    """
    script = Path(__file__).parent / "sharded_pull_back.py"
    subprocess.run([*launcher(config), str(script), str(tmp_path), *map(str, folders)], check=True, timeout=600)
    for rank in range(2):
        for folder, row in zip(folders, json.loads((tmp_path / f"{rank}.json").read_text()), strict=True):
            embedding = priors.load(SamplerRecipe(source=str(folder))).class_embeddings(["circle"]).abs().sum()
            assert row["embedding"] == pytest.approx(float(embedding), rel=1e-6)
            half = row["all"] / 2 * 1.001  # what does not halve is filled up
            assert row["before"] <= half
            pulls = [value for name, value in row.items() if name.startswith("keep")]
            assert len(pulls) == (2 if config == "fsdp2" else 1)
            for pull in pulls:
                assert row["before"] < pull["peak"] <= half + row["layer"]
                assert pull["after"] == row["before"]
                assert pull["difference"] <= {"fsdp2": 0, "zero3": 2e-6}[config]


@pytest.mark.parametrize("configs", [["zero3"], pytest.param(CONFIGS, marks=pytest.mark.slow)], ids=str)
def test_a_run_goes_on_under_every_launch_file(configs: list[str], recipe_file: Path, tmp_path: Path) -> None:
    """Each goes on where the last one stopped, two of the classes on one process and one on the other.

    What `auto` is where the denoiser is shared out is measured by all processes together.
    """
    auto = ("prior.micro_batch=auto", "prior.keep_graph_steps=auto")
    for iterations, config in enumerate(configs, 1):
        overrides = (f"distill.iterations={iterations}", "prior.keep_graph_steps=0")
        launch("distill", recipe_file, *overrides, *auto, "--output", tmp_path / "run", config=config)
        moved = latents(tmp_path / "run")
        one = latents(distilled(recipe_file, tmp_path / "alone", *overrides))
        assert relative(moved["z"], one["z"]) <= 1e-5
        assert relative(moved["c"], one["c"]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2", "zero3"])
def test_a_process_without_a_class_makes_the_calls_of_the_others(
    config: str, recipe_file: Path, tmp_path: Path
) -> None:
    overrides = ("data.subset=[cross]", "distill.iterations=1", "prior.keep_graph_steps=0")
    launch("distill", recipe_file, *overrides, "--output", tmp_path / "two", config=config)
    one = latents(distilled(recipe_file, tmp_path / "one", *overrides))
    assert relative(latents(tmp_path / "two")["z"], one["z"]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2", "zero3"])
def test_trajectory_matching_goes_through_a_sharded_denoiser(config: str, recipe_file: Path, tmp_path: Path) -> None:
    overrides = (
        "distill.objective=mtt", "distill.lr_latents=100", "distill.lr_conditioning=100", "distill.mtt.syn_steps=3",
        "experts.count=2", "experts.epochs=4", f"experts.folder={tmp_path / 'experts'}", "prior.keep_graph_steps=0",
        "distill.iterations=3",
    )  # fmt: skip
    subprocess.run(command("experts", recipe_file, *overrides), check=True, timeout=300)
    launch("distill", recipe_file, *overrides, "--output", tmp_path / "two", config=config)
    one = latents(distilled(recipe_file, tmp_path / "one", *overrides))
    assert relative(latents(tmp_path / "two")["z"], one["z"]) <= 1e-5


@pytest.mark.parametrize("save", [save_dit, save_unconditional])
def test_a_denoiser_can_be_elsewhere_than_the_rest(save: Callable[[Path], Path], tmp_path: Path) -> None:
    """As it is until it is sharded; the device "meta" stands for a GPU."""
    recipe = SamplerRecipe(source=str(save(tmp_path)), guidance=1)
    prior: Any = priors.load(recipe, "meta", "cpu")
    assert {each.device.type for each in prior.denoiser.parameters()} == {"cpu"}
    assert {each.device.type for each in prior.autoencoder.parameters()} == {"meta"}
    assert prior.null_embedding.device.type == prior.class_embeddings(["circle"]).device.type == "meta"


def accelerator(stage: int | None) -> Any:
    """What a launch with a stage of ZeRO, or none, gives."""
    return SimpleNamespace(deepspeed_plugin=stage and SimpleNamespace(zero_stage=stage, deepspeed_config={}))


def test_zero3_refuses_kept_graphs() -> None:
    recipe = SamplerRecipe(source="fashion-mnist", keep_graph_steps=2)
    with pytest.raises(UserError, match=r"^prior\.keep_graph_steps: 2, .* set prior\.keep_graph_steps=0$"):
        shard_denoiser(make_prior(), recipe, accelerator(3))
    assert not wanted(accelerator(2))


def test_what_cannot_be_sharded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = SamplerRecipe(source="fashion-mnist", keep_graph_steps=0)
    with pytest.raises(UserError, match="a SimpleNamespace has no denoiser to shard"):
        shard_denoiser(SimpleNamespace(denoiser=None), recipe, accelerator(3))  # type: ignore[arg-type]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match=r"^fsdp_version: 1, .* launch/fsdp2\.yaml"):
        shard_denoiser(make_prior(), recipe, accelerator(None))


@pytest.mark.parametrize("package", ["deepspeed", "transformers"])
def test_a_launch_with_deepspeed_says_what_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=rf"the package {package}: pip install 'ld3m\[deepspeed\]'"):
        start()


@pytest.mark.parametrize("config", sorted(path.stem for path in LAUNCH.glob("*.yaml")))
def test_launch_files_have_only_what_accelerate_and_deepspeed_know(config: str) -> None:
    """Accelerate refuses unknown keys at the top and passes over those of a section; DeepSpeed refuses its own."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import DeepSpeedPlugin

    loaded = load_config_from_file(str(LAUNCH / f"{config}.yaml"))
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*loaded.deepspeed_config, *loaded.fsdp_config} <= known
    assert (loaded.num_processes == -1) == (config in CONFIGS)  # the command line must say how many
    if not loaded.deepspeed_config:
        return
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = DeepSpeedPlugin(**loaded.deepspeed_config).deepspeed_config
    settings |= {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1, "gradient_accumulation_steps": 1}
    settings |= {"gradient_clipping": 1.0, "zero_optimization": ONE_LAYER | settings["zero_optimization"]}
    zero = DeepSpeedConfig(settings).zero_config
    assert zero.stage == int(config.removeprefix("zero")[0])
    assert (zero.offload_param.device == "cpu") == (config == "zero3-offload")
    assert zero.param_persistence_threshold == zero.prefetch_bucket_size == zero.max_reuse_distance == 0
