"""Priors of the Hub: the real client, asked for by the command line, against a server of this process."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import Outcome, command, distilled, latents, make_prior
from hub_server import Hub, Repository, serving, sha

from ld3m.errors import UserError
from ld3m.priors.diffusers_layout import read_files
from ld3m.priors.hub_folder import HubFolder
from ld3m.priors.source import fetch, provenance, weight_bytes
from ld3m.recipe import SamplerRecipe


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A prior as repositories are: one part in .bin only, and beside the parts what nobody here reads."""
    folder = tmp_path / "repository"
    make_prior().save(folder)
    (folder / "README.md").write_text("---\nlicense: openrail\n---\n")
    weights = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    (folder / "safety_checker").mkdir()
    for name in (
        "all.ckpt",
        "all.safetensors",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_flax_model.msgpack",
    ):
        (folder / name).write_bytes(b"not read")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serving() as server:
        server.repositories["model", "me/prior"] = Repository(branches={"main": [files]})
        yield server


def run(hub: Hub, folder: Path, *arguments: object, offline: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": str(int(offline))}
    return subprocess.run(command(*arguments), cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def sent(hub: Hub) -> set[str]:
    """The files that were asked for."""
    return {request.partition("/resolve/")[2].partition("/")[2] for request in hub.asked("^GET .*/resolve/")}


@pytest.mark.slow
def test_only_what_is_read_is_fetched_and_then_no_network_is_needed(
    hub: Hub, recipe_file: Path, prior_folder: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    recipe = ("distill", recipe_file, "prior.source=hub:me/prior", "-o", "run")
    told = run(hub, tmp_path, *recipe, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert sent(hub) == set()
    local = ld3m("distill", recipe_file, f"prior.source={prior_folder}", "--dry-run")
    megabytes = [float(re.search(r"parameters, ([\d.]+) MB", text)[1]) for text in (told.stdout, local.out)]  # type: ignore[index]
    assert megabytes[0] == pytest.approx(megabytes[1], rel=0.1)  # headers count as numbers on the Hub

    assert (first := run(hub, tmp_path, *recipe, "distill.iterations=1")).returncode == 0, first.stderr
    unet, vqvae = "unet/diffusion_pytorch_model.safetensors", "vqvae/diffusion_pytorch_model.bin"
    assert {name for name in sent(hub) if name.endswith((".bin", ".safetensors"))} == {
        unet,
        vqvae,
        "class_embedder/model.safetensors",
    }
    assert not {name for name in sent(hub) if name.startswith(("all", "safety_checker"))}
    noted = json.loads((tmp_path / "run" / "prior.json").read_text())
    assert (noted["revision"], noted["licence"]) == (sha([hub.files("me/prior", "model")]), "openrail")
    assert (second := run(hub, tmp_path, *recipe, offline=True)).returncode == 0, second.stderr
    here = distilled(recipe_file, tmp_path / "here")
    assert torch.equal(latents(tmp_path / "run")["z"], latents(here)["z"])


@pytest.mark.slow
def test_a_hub_that_cannot_be_asked_is_told(hub: Hub, recipe_file: Path, tmp_path: Path) -> None:
    missing = run(hub, tmp_path, "distill", recipe_file, "prior.source=hub:me/none")
    assert missing.returncode == 2
    assert missing.stderr.strip().count("\n") == 0
    assert "prior.source: cannot fetch hub:me/none" in missing.stderr
    recipe = ("distill", recipe_file, "prior.source=hub:me/prior")
    assert run(hub, tmp_path, *recipe, offline=True).returncode == 2
    assert run(hub, tmp_path, *recipe, "--dry-run", offline=True).returncode == 0


def test_what_is_read_of_repositories_as_they_are() -> None:
    """File names of stable-diffusion-v1-5/stable-diffusion-v1-5, and a model in several shards."""
    names = """
        .gitattributes README.md model_index.json v1-5-pruned.ckpt v1-5-pruned-emaonly.safetensors v1-inference.yaml
        feature_extractor/preprocessor_config.json safety_checker/config.json safety_checker/model.safetensors
        scheduler/scheduler_config.json text_encoder/config.json text_encoder/model.fp16.safetensors
        text_encoder/model.safetensors text_encoder/pytorch_model.bin tokenizer/merges.txt tokenizer/vocab.json
        tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json unet/config.json
        unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin
        unet/diffusion_pytorch_model.non_ema.safetensors unet/diffusion_pytorch_model.safetensors vae/config.json
        vae/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.bin
        transformer/diffusion_pytorch_model-00001-of-00002.safetensors
        transformer/diffusion_pytorch_model-00002-of-00002.safetensors
        transformer/diffusion_pytorch_model.safetensors.index.json
    """.split()  # noqa: SIM905 - as a listing reads
    assert {name for name in read_files(names) if not name.endswith(".json")} == {
        "README.md",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
    }
    assert {name for name in names if name.endswith(".json")} - set(read_files(names)) == {
        "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json",
    }


def test_a_damaged_file_of_weights_is_told_by_a_dry_run(prior_folder: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(prior_folder, tmp_path / "prior") / "unet" / "diffusion_pytorch_model.safetensors"
    for content in (b"garbage\n", weights.read_bytes()[:40], b""):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"^prior\.source: .*model\.safetensors is no safetensors file"):
            weight_bytes(SamplerRecipe(source=str(tmp_path / "prior")))


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hub:me/prior", ("me/prior", "", None)),
        ("hub:me/prior/", ("me/prior", "", None)),
        ("hub:me/prior/deep/er@refs/pr/1", ("me/prior", "deep/er/", "refs/pr/1")),
        ("hub:me/prior@main", ("me/prior", "", "main")),
        ("hub:prior", ("prior", "", None)),
        ("folder", None),
    ],
)
def test_names_on_the_hub(source: str, parts: tuple[str, str, str | None] | None) -> None:
    assert HubFolder.of(source) == parts


@pytest.mark.parametrize(
    "source", ["hub:", "hub:./folder", "hub:me/../x", "hub:me/prior@", "hub:https://host/me/prior"]
)
def test_what_is_no_name_on_the_hub(source: str) -> None:
    with pytest.raises(UserError, match=r"^prior\.source: .* is no name on the Hub; give hub:USER/NAME"):
        HubFolder.of(source)


def test_a_folder_and_a_revision_of_a_repository(prior_folder: Path) -> None:
    """In this process: the same prior in two folders of a repository, one of them changed on a branch."""
    files = {path.relative_to(prior_folder).as_posix(): path.read_bytes() for path in prior_folder.rglob("*.*")}
    both = {f"{part}/{name}": content for part in ("a", "b") for name, content in files.items()}
    changed = {f"a/{name}": content for name, content in files.items()} | {"a/README.md": b"---\nlicense: mit\n---\n"}
    with serving() as server:
        server.repositories["model", "me/two"] = Repository(branches={"main": [both], "old": [changed]})
        assert (fetch("hub:me/two/b") / "model_index.json").is_file()
        assert not {name for name in sent(server) if name.startswith("a/")}
        noted, old = (provenance(f"hub:me/two/{part}") for part in ("b", "a@old"))
        with pytest.raises(UserError, match=r"hub:me/two has no model_index\.json; it has priors in a, b$"):
            fetch("hub:me/two")
    assert noted["revision"] == sha([both])
    assert (old["revision"], old["licence"]) == (sha([changed]), "mit")
    assert noted["sha256"] == old["sha256"] == provenance(str(prior_folder))["sha256"]
