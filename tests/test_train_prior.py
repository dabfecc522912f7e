"""Training a prior through the command line, on shapes."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import Outcome

from ld3m import priors
from ld3m.__main__ import main
from ld3m.recipe import SamplerRecipe


@pytest.fixture(scope="module")
def recipe(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "prior.yaml"
    path.write_text(
        f"""
name: shapes
data: {{source: {shapes}, resolution: 16, channels: 1}}
autoencoder: {{channels: [16, 16], codes: 16, steps: 30, batch: 8}}
denoiser: {{channels: [16, 32], heads: 2, class_width: 8, steps: 30, batch: 8}}
checkpoint_every: 10
evaluate: {{samples: 6, steps: 3, classifier_epochs: 2}}
"""
    )
    return path


def command(recipe: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "ld3m", "train-prior", str(recipe), "--output", str(folder)]


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("priors") / "whole"
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["ld3m", "train-prior", str(recipe), "--output", str(folder)])
        with suppress(SystemExit):
            main()
    (folder.parent / "stderr.txt").write_text(said.getvalue())
    return folder


def test_folder_is_a_prior_in_diffusers_layout(trained: Path) -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel

    index = json.loads((trained / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    for kind, name in ((VQModel, "vqvae"), (UNet2DConditionModel, "unet"), (DDIMScheduler, "scheduler")):
        kind.from_pretrained(trained / name)
    prior = priors.load(SamplerRecipe(source=str(trained)))
    assert prior.classes == ["circle", "cross", "square"]
    assert prior.latent_shape == (3, 8, 8)
    assert prior.image_size == 16
    assert not any(parameter.requires_grad for parameter in prior.denoiser.parameters())


def test_latents_have_about_unit_scale(trained: Path, shapes: Path) -> None:
    from ld3m.data.prepared import prepare
    from ld3m.images.ranges import bytes_to_signed
    from ld3m.recipe import DataRecipe

    images = prepare(DataRecipe(source=str(shapes), resolution=16, channels=1), progress=False)
    prior = priors.load(SamplerRecipe(source=str(trained)))
    with torch.no_grad():
        z = prior.encode(bytes_to_signed(images.everything("train")[0]))
    assert z.std().item() == pytest.approx(1, abs=0.02)


def test_it_judges_itself_and_shows_itself(trained: Path) -> None:
    report = json.loads((trained / "training" / "evaluation.json").read_text())
    assert set(report["samples"]["share in the intended class"]) == {"guidance 1", "guidance 3"}
    assert 0 < report["reconstruction"]["l1"] < 0.5
    for name in ("reconstructions.png", "samples-guidance-3.png", "denoiser.png", "autoencoder.png"):
        assert (trained / "training" / name).stat().st_size > 0
    *_, last = (trained.parent / "stderr.txt").read_text().splitlines()
    assert f"prior.source={trained}" in last


@pytest.mark.gpu
@pytest.mark.slow
def test_killed_and_resumed_it_ends_at_the_same_weights(recipe: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for stage in ("autoencoder", "denoiser"):
        process = subprocess.Popen(command(recipe, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (folder / "training" / f"{stage}.safetensors").is_file():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(recipe, folder), check=True)
    for part in ("vqvae/diffusion_pytorch_model", "unet/diffusion_pytorch_model", "class_embedder/model"):
        resumed, whole = (safetensors.torch.load_file(root / f"{part}.safetensors") for root in (folder, trained))
        assert all(torch.equal(resumed[name], whole[name]) for name in whole), part


@pytest.mark.slow
def test_a_folder_of_somebody_elses_is_left_as_it_is(recipe: Path, tmp_path: Path) -> None:
    mine = tmp_path / "project" / "training" / "my_model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"dear")
    for more in ([], ["--no-resume"]):
        done = subprocess.run([*command(recipe, tmp_path / "project"), *more], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"ld3m: output: {tmp_path / 'project'} is not empty and not a prior")
        assert done.stderr.count("\n") == 1
    assert mine.read_bytes() == b"dear"


def test_another_recipe_is_refused(recipe: Path, trained: Path, ld3m: Callable[..., Outcome]) -> None:
    done = ld3m("train-prior", recipe, "--output", trained, "denoiser.steps=31")
    assert done.code == 2
    assert "another recipe" in done.err


def test_a_prior_without_a_null_class_and_images_that_change(
    recipe: Path, shapes: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    """In this process, a step of each network; the folder has the name of a packaged prior, which it is not."""
    photos = shutil.copytree(shapes, tmp_path / "photos")
    short = ("autoencoder.steps=1", "denoiser.steps=1", "evaluate.samples=3", "evaluate.steps=1")
    options = (recipe, "-o", "digits", f"data.source={photos}", "denoiser.null_share=0", *short)
    assert "denoiser.null_share=0 leaves untrained" in ld3m("train-prior", *options).err
    done = ld3m("train-prior", *options, "evaluate.guidance=[1]")
    assert done.code == 0, done.err
    assert "prior.source=./digits" in done.err
    prior = priors.load(SamplerRecipe(source="./digits", guidance=1))
    assert prior.class_embeddings(["circle", "cross", "square"]).shape == (3, 1, 8)
    assert prior.null_embedding is None
    shutil.copy(photos / "train" / "circle" / "0.png", photos / "train" / "circle" / "1.png")
    changed = ld3m("train-prior", *options, "evaluate.guidance=[1]")
    assert changed.code == 2
    assert "data.source: the images of class 'circle' have changed since digits was begun" in changed.err
