"""Priors by name: the table against independent facts, from every origin, found again, and what is said of the rest."""

import json
import math
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, make_prior
from hub_server import Repository, serving, sha
from huggingface_hub import constants
from test_convert import build
from test_priors import save_dit, save_stable_diffusion
from web_server import Answer, web

from ld3m import priors
from ld3m.distillation.inputs import check_inputs
from ld3m.distillation.setup import load_prior_and_images
from ld3m.errors import UserError
from ld3m.machine.processes import Processes
from ld3m.priors import getting, stored
from ld3m.priors.kinds.ldm import ClassConditionalLDM, UnconditionalLDM
from ld3m.priors.known import KNOWN, KnownPrior
from ld3m.priors.originals.config import KINDS
from ld3m.priors.originals.convert import convert, write_configurations
from ld3m.priors.random_copy import random_copy
from ld3m.priors.source import fetch, outline, provenance, weight_bytes
from ld3m.publishing import front_matter
from ld3m.recipe import Recipe, SamplerRecipe
from ld3m.recipe.files import load, shipped
from ld3m.sizing.meta_models import MetaPrior

QUICK = ("data.resolution=32", "network.depth=3", "evaluate.arch=[convnet]")
"""Overrides by which a recipe is soon checked."""
FETCHED = [name for name, known in KNOWN.items() if known.origin]


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "latents", "conditioning", "pixels", "millions"),
    [
        ("cin256-v2", (3, 64, 64), (1, 512), 256, 400.9),  # arXiv 2112.10752, Table 12: LDM-4, 400 M
        ("ffhq256", (3, 64, 64), (0,), 256, 274.1),  # the same, Table 12: 274 M
        ("celebahq256", (3, 64, 64), (0,), 256, 274.1),
        ("dit-xl-2-256", (4, 32, 32), (1152,), 256, 749.8),  # each block has the table of classes, and embeds time
        ("dit-xl-2-512", (4, 64, 64), (1152,), 512, 749.8),
        ("sd-1.5", (4, 64, 64), (77, 768), 512, 859.5),  # its card: an 860 M UNet
        ("sd-2.1", (4, 96, 96), (77, 1024), 768, 865.9),  # its card: 768 px
    ],
)
def test_outlines_have_the_published_shapes(
    name: str, latents: tuple[int, ...], conditioning: tuple[int, ...], pixels: int, millions: float
) -> None:
    prior = MetaPrior.of(SamplerRecipe(source=name))
    assert (prior.latent_shape, prior.conditioning_shape, prior.image_size) == (latents, conditioning, pixels)
    known = KNOWN[name]
    counts = [sum(value.numel() for value in model.parameters()) for model in (prior.denoiser, prior.autoencoder)]
    assert counts[0] / 1e6 == pytest.approx(millions, abs=0.1)
    table = 1001 * 512 if name == "cin256-v2" else 0
    assert (*known.parameters, known.resolution) == (counts[0], counts[1] + table, pixels)
    assert prior.image_channels == known.channels
    assert weight_bytes(SamplerRecipe(source=name, dtype="bfloat16")) == (
        sum(known.parameters),
        2 * known.parameters[0] + 4 * known.parameters[1],
    )


def test_sizes_are_those_of_the_weights() -> None:
    """Four bytes per parameter; of the DiT's repositories the bytes were counted."""
    text_encoders = {"sd-1.5": 123.06e6, "sd-2.1": 340.39e6}
    twice = {"ffhq256": 1, "celebahq256": 1}  # the averaged weights of the denoiser lie beside the plain ones
    for name in FETCHED:
        known = KNOWN[name]
        parameters = sum(known.parameters) + text_encoders.get(name, 0) + twice.get(name, 0) * known.parameters[0]
        assert known.size == pytest.approx(4 * parameters, rel=0.01), name


@pytest.mark.parametrize("name", ["cin256-v2", "ffhq256"])
def test_outlines_of_originals_are_what_a_conversion_writes(name: str, tmp_path: Path) -> None:
    write_configurations(name, tmp_path / "made")
    for path in sorted((tmp_path / "made").rglob("*.json")):
        made = json.loads(path.read_text())
        made.pop("_diffusers_version", None)
        assert json.loads((KNOWN[name].outline / path.relative_to(tmp_path / "made")).read_text()) == made


def test_outlines_are_byte_for_byte_those_of_the_mirror() -> None:
    """By digests that others published of the files of both repositories at the same revisions."""
    noted = {
        "sd-2.1/unet/config.json": "dc987e214928b191cb832df4e19c376e862af1e4c4a5f36aac054a53ee251ccf",
        "sd-2.1/vae/config.json": "d69281aa3f6a0f3c41aaf6778e35464fc6ee8a92e6ac8a8b1eb679f6df6423eb",
        "sd-2.1/text_encoder/config.json": "6b34b0bf6cff02e2afe88145740ef5e0316caf7add8307c8ec0b021a7923cc42",
        "sd-2.1/scheduler/scheduler_config.json": "4cd9b9597ca64549df35016ca02bd3450ecbac70ccd8b0465b018be4ba54fe4b",
        "sd-1.5/scheduler/scheduler_config.json": "699cce92eb7c122e2eb7dfdea78e6187fda76a5ed4a8e42319b85610e620e091",
    }
    folder = KNOWN["sd-2.1"].outline.parent
    assert {name: stored.digest(folder / name) for name in noted} == noted


def test_non_commercial_licences_are_those_of_the_transformers() -> None:
    assert [name for name, known in KNOWN.items() if known.forbids_commerce] == ["dit-xl-2-256", "dit-xl-2-512"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("cin256", "cin256-v2"),
        ("CIN256-v2", "cin256-v2"),
        ("dit-xl-2", "dit-xl-2-256 or dit-xl-2-512"),
        ("DiT_XL_2_256", "dit-xl-2-256"),
        ("fhq256", "ffhq256"),
        ("sd2.1", "sd-2.1"),
        ("celeba", "celebahq256"),
    ],
)
def test_a_name_that_is_nearly_one_is_named(given: str, meant: str) -> None:
    for ask in (fetch, getting.get, outline):
        with pytest.raises(UserError, match=rf"^prior\.source: '{given}' .*did you mean {meant}") as caught:
            ask(given)
        assert len(caught.value.lines) == 1


def test_a_prior_that_a_shipped_recipe_trains_is_named() -> None:
    with pytest.raises(UserError, match=r"'priors/cifar10' is not .*; ld3m train-prior prior-cifar10 makes one"):
        fetch("priors/cifar10")


def test_a_folder_of_the_same_name_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(KNOWN["sd-1.5"].outline, "twin")
    monkeypatch.setitem(KNOWN, "twin", KNOWN["sd-1.5"])
    for _ in range(2):
        assert outline("twin") == KNOWN["sd-1.5"].outline
    assert capsys.readouterr().err == "prior.source: twin is the known prior; ./twin means the folder here\n"
    assert outline("./twin") == Path("twin")


# --- what contradicts it, before anything is fetched -------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["prior.source=ffhq256"],
            [
                "prior.guidance: 3.0, but ffhq256 is an unconditional LDM of faces (FFHQ); set prior.guidance=1",
                "distill.learn: 'both', but ffhq256 is an unconditional LDM of faces (FFHQ); set distill.learn=latents",
            ],
        ),
        (
            ["prior.source=dit-xl-2-256", "prior.resolution=128"],
            ["prior.resolution: 128, but dit-xl-2-256 renders at 256 alone; leave the key out"],
        ),
        (
            ["data.channels=1"],
            [
                "data.channels: 1, but the images of cin256-v2 have 3; set data.channels=3 or choose another prior.source",  # noqa: E501
            ],
        ),
    ],
)
def test_settings_that_contradict_a_prior_are_named_before_it_is_fetched(
    overrides: list[str], lines: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        check_inputs(load(Recipe, "imagenet256", [*QUICK, *overrides]))
    assert list(caught.value.lines) == lines


def test_recipes_of_imagenet_name_their_prior_and_a_dry_run_needs_none(ld3m: Callable[..., Outcome]) -> None:
    recipes = [name for name in shipped() if name.startswith("imagenet")]
    assert {load(Recipe, name).prior.source for name in recipes} == {"cin256-v2", "ffhq256"}
    outcome = ld3m("distill", "imagenet256-ffhq", "--dry-run", *QUICK)
    assert (outcome.code, outcome.err) == (0, "")
    assert (
        "# The prior: 329.38 M parameters, 1,317.52 MB on each process\n"
        "# It is not on this machine: a run fetches about 2.4 GB from "
        "https://ommer-lab.com/files/latent-diffusion/ffhq.zip\n"
    ) in outcome.out


def test_no_recipe_holds_a_placeholder() -> None:
    folder = Path(__file__).parent.parent / "recipes"
    assert [
        path.name for path in folder.rglob("*.yaml") if "YOUR" in path.read_text() or "placeholder" in path.read_text()
    ] == []


# --- getting -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LD3M_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "priors"


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Small checkpoints of the original code by what they are, and the configuration of the first."""
    folder = tmp_path_factory.mktemp("originals")
    made = {}
    for name in ("unconditional, one head", "unconditional, heads of 16"):
        _, _, weights, config = build(name, "VQ")
        torch.save({"state_dict": weights}, folder / f"{name}.ckpt")
        made[name] = folder / f"{name}.ckpt"
        made[f"{name}: params"] = config["model"]["params"]
    return made


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, originals: dict[str, Any], cache: Path, tmp_path: Path) -> Path:
    """A small original in the table, as "tiny"; its file."""
    monkeypatch.setitem(KINDS, "tiny", originals["unconditional, one head: params"])
    write_configurations("tiny", tmp_path / "outline")
    known = KnownPrior(
        about="unconditional LDM of nothing",
        kind="LDMPipeline",
        resolution=16,
        licence="cc-by-nc-4.0",
        outline=tmp_path / "outline",
        origin="http://127.0.0.1:9/model.ckpt",
        size=1000,
        original="tiny",
        parameters=(100, 10),
        scaling_factor=1.0,
        must={"prior.guidance": 1},
    )
    monkeypatch.setitem(KNOWN, "tiny", known)
    return Path(originals["unconditional, one head"])


def at(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    """Lets "tiny" come from there."""
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["tiny"], origin=origin))


def zipped(path: Path, members: dict[str, Path | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
    return path


def check_here(cache: Path, folder: Path) -> None:
    """That it is whole, alone in the cache, and loads."""
    assert folder == cache / "tiny"
    assert {path.name for path in cache.iterdir()} == {"tiny", "tiny.json", "tiny.lock"}
    assert isinstance(priors.load(SamplerRecipe(source="tiny", guidance=1)), UnconditionalLDM)


def test_first_use_fetches_and_later_ones_ask_nobody(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with web(tiny.read_bytes()) as server:
        at(monkeypatch, server.url)
        check_here(cache, fetch("tiny"))
        asked = len(server.lines)
        assert asked == 1
        terms = f"from {server.url} under CC BY-NC 4.0, which forbids commercial use, to {cache}"
        assert terms in capsys.readouterr().err
        fetch("tiny")
        noted = provenance("tiny")
        assert len(server.lines) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("tiny") == cache / "tiny"
    assert (noted["source"], noted["kind"], noted["licence"]) == ("tiny", "LDMPipeline", "cc-by-nc-4.0")
    assert json.loads((cache / "tiny/provenance.json").read_text())["kind"] == "tiny"


@pytest.mark.parametrize("kind", ["checkpoint", "zip", "folder", "zip of a folder", "folder of a checkpoint", "url"])
def test_a_prior_is_taken_from_what_was_fetched_by_hand(
    kind: str, tiny: Path, cache: Path, tmp_path: Path, ld3m: Callable[..., Outcome]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    if "folder" in kind and "checkpoint" not in kind:
        getting.get("tiny", str(tiny))
        shutil.move(cache / "tiny", given / "deep" / "prior")
        shutil.rmtree(cache)
    files = {path.relative_to(given).as_posix(): path for path in given.rglob("*") if path.is_file()}
    origin: object = {
        "checkpoint": lambda: tiny,
        "zip": lambda: zipped(given / "a.zip", {"logs/model.ckpt": tiny, "__MACOSX/logs/._model.ckpt": b""}),
        "zip of a folder": lambda: zipped(given / "a.zip", dict(files)),
        "folder": lambda: given,
        "folder of a checkpoint": lambda: shutil.copy(tiny, given) and given,
        "url": lambda: "",
    }[kind]()
    if kind == "url":
        with web(tiny.read_bytes()) as server:
            outcome = ld3m("priors", "get", "tiny", "--from", server.url)
    else:
        outcome = ld3m("priors", "get", "tiny", "--from", origin)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{cache / 'tiny'}\n"
    check_here(cache, cache / "tiny")
    assert tiny.is_file()
    assert str(cache / "tiny") in next(line for line in ld3m("priors").out.splitlines() if line.startswith("tiny "))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("another kind", "is no checkpoint of tiny: "),
        ("half", "get it again as a whole"),
        ("page", "web page"),
        ("empty", "empty"),
        ("zip of two", "holds 2 checkpoints"),
        ("zip of none", "holds 0 checkpoints"),
        ("half a zip", "zip"),
        ("another folder", "is a ClassConditionalLDM, but tiny is a LDMPipeline"),
        ("a folder of other shapes", "is not tiny: its"),
        ("a folder that is not whole", "is not a whole prior"),
        ("an empty folder", "has a model_index.json, and there are none"),
        ("nothing", "is not there; give a checkpoint"),
    ],
)
def test_what_is_not_the_prior_is_refused_in_a_line_and_nothing_is_left(
    content: str,
    part: str,
    tiny: Path,
    originals: dict[str, Any],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = tmp_path / "given.file"
    whole = tiny.read_bytes()
    if content == "another kind":
        given = originals["unconditional, heads of 16"]
    elif content in ("half", "page", "empty"):
        given.write_bytes(
            {"half": whole[: len(whole) // 2], "page": b"<!DOCTYPE html><html></html>", "empty": b""}[content]
        )
    elif content.startswith("zip"):
        zipped(given, {"a.ckpt": tiny, "b.ckpt": tiny} if content == "zip of two" else {"a.txt": b""})
    elif content == "half a zip":
        given.write_bytes(zipped(tmp_path / "whole.zip", {"a.ckpt": tiny}).read_bytes()[: len(whole) // 2])
    elif content == "another folder":
        make_prior().save(given)
    elif content == "a folder of other shapes":
        monkeypatch.setitem(KINDS, "other", originals["unconditional, heads of 16: params"])
        convert(originals["unconditional, heads of 16"], given, "other")
    elif content == "a folder that is not whole":
        shutil.copytree(KNOWN["tiny"].outline, given)
    elif content == "an empty folder":
        given.mkdir()
    with pytest.raises(UserError) as caught:
        getting.get("tiny", str(given))
    assert len(caught.value.lines) == 1
    assert str(caught.value).startswith("--from: ")
    assert part in str(caught.value), caught.value
    assert stored.here("tiny") is None
    assert not (cache / "tiny").exists()


@pytest.mark.parametrize("save", [save_dit, save_stable_diffusion])
def test_folders_of_other_kinds_are_checked_and_copied(
    save: Callable[[Path], Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given").mkdir()
    folder = save(tmp_path / "given")
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["sd-1.5"], kind=kind, outline=folder))
    copy = getting.get("tiny", str(folder))
    assert copy == cache / "tiny"
    assert provenance("tiny")["sha256"] == provenance(str(folder))["sha256"]
    part = next(part for part in ("unet", "transformer") if (folder / part).is_dir())
    config = json.loads((copy / part / "config.json").read_text())
    config["sample_size"] *= 2  # as the transformer for 512 px, whose weights have the same shapes
    (folder / part / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["tiny"], outline=copy))
    with pytest.raises(UserError, match=r"is not tiny: its size of latents is \d+, not \d+; give another$"):
        getting.get("tiny", str(folder), again=True)
    assert fetch("tiny") == copy  # what was here still is


def test_an_option_in_vain_is_said() -> None:
    with pytest.raises(UserError, match=r"^--from: digits comes with the package; leave the option out$"):
        getting.get("digits", "model.ckpt")
    with pytest.raises(UserError, match=r"^--from: '' is not there"):
        getting.get("cin256-v2", "")


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_refuses_costs_a_line_that_names_both_commands(
    status: int, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web(b"") as server:
        at(monkeypatch, server.url)
        server.always = Answer(status=status, headers={"Retry-After": "100"})
        with pytest.raises(UserError) as caught:
            fetch("tiny")
    (line,) = caught.value.lines
    assert line.startswith("prior.source: tiny: ")
    assert (
        f"on a machine with a network: curl -LO {server.url}; then here: ld3m priors get tiny --from model.ckpt" in line
    )
    assert stored.here("tiny") is None


def test_a_page_in_the_place_of_a_file_is_not_kept(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web(tiny.read_bytes()) as server:
        at(monkeypatch, server.url)
        server.answers = [Answer(body=b"<!DOCTYPE html><html><title>Sign in</title></html>")]
        with pytest.raises(UserError, match=r"^prior\.source: tiny: .* web page"):
            fetch("tiny")
        check_here(cache, fetch("tiny"))


def test_a_cut_download_resumes_and_what_a_killed_process_left_is_no_hindrance(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web(tiny.read_bytes()) as server:
        at(monkeypatch, server.url)
        half = len(server.content) // 2
        server.answers = [Answer(cut=half), Answer(status=404)]
        with pytest.raises(UserError, match="404"):
            fetch("tiny")
        for left in ("tiny/unet", "tiny.part/prior/unet", "tiny.part/.prior.0123abcd.tmp"):
            (cache / left).mkdir(parents=True)
        check_here(cache, fetch("tiny"))
        offset = int(str(server.ranges_asked[-1]).removeprefix("bytes=").rstrip("-"))
    assert 0 < offset <= half


def test_a_file_of_the_same_name_from_elsewhere_is_another(
    tiny: Path, originals: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web(originals["unconditional, heads of 16"].read_bytes()) as wrong, web(tiny.read_bytes()) as server:
        at(monkeypatch, server.url)
        for _ in range(2):
            with pytest.raises(UserError, match=r"model\.ckpt is no checkpoint of tiny: .* get tiny --again$"):
                getting.get("tiny", wrong.url)
        assert len(wrong.lines) == 1  # it was whole
        check_here(cache, fetch("tiny"))


def test_two_at_once_fetch_once(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Path] = []
    with web(tiny.read_bytes()) as server:
        at(monkeypatch, server.url)
        threads = [threading.Thread(target=lambda: found.append(getting.get("tiny"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.lines) == 1
    assert found == [cache / "tiny"] * 3


def test_offline_the_two_commands_are_named_and_nobody_is_asked(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, ld3m: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with web(tiny.read_bytes()) as server:
        at(monkeypatch, server.url)
        outcome = ld3m("priors", "get", "tiny")
        assert server.lines == []
    way_on = f"on a machine with a network: curl -LO {server.url}; then here: ld3m priors get tiny --from model.ckpt"
    assert outcome.code == 2
    assert outcome.err == f"ld3m: NAME: tiny is not on this machine, and HF_HUB_OFFLINE is set; {way_on}\n"
    outcome = ld3m("priors", "get", "dit-xl-2-256")
    assert outcome.err == (
        "ld3m: NAME: dit-xl-2-256 is not on this machine, and HF_HUB_OFFLINE is set; on a machine with a network: "
        "ld3m priors get dit-xl-2-256, which names a FOLDER; then here: ld3m priors get dit-xl-2-256 --from FOLDER\n"
    )


def test_a_file_that_changed_is_named_and_a_copied_cache_is_not(tiny: Path, cache: Path) -> None:
    weights = getting.get("tiny", str(tiny)) / "unet/diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert fetch("tiny") == cache / "tiny"
    assert (
        json.loads((cache / "tiny.json").read_text())["files"]["unet/diffusion_pytorch_model.safetensors"]["changed"]
        == 1
    )
    assert weights.stat().st_mode & 0o777 == (cache / "tiny.json").stat().st_mode & 0o777
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    advice = r"get it again: ld3m priors get tiny --again$"
    with pytest.raises(UserError, match=rf"^prior\.source: tiny: .*\(its digest differs\); {advice}"):
        fetch("tiny")
    noted = json.loads((cache / "tiny.json").read_text())
    noted["files"]["unet/diffusion_pytorch_model.safetensors"]["changed"] = weights.stat().st_mtime_ns
    (cache / "tiny.json").write_text(json.dumps(noted))
    assert fetch("tiny") == cache / "tiny"  # a look at size and date alone
    with pytest.raises(UserError, match=advice):
        provenance("tiny")  # reads all of it anyway
    weights.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"has [\d,]+ bytes, not [\d,]+; {advice}"):
        fetch("tiny")
    weights.unlink()
    with pytest.raises(UserError, match=advice):
        fetch("tiny")
    (cache / "tiny.json").write_text("{")
    with pytest.raises(UserError, match=advice):
        fetch("tiny")
    check_here(cache, getting.get("tiny", str(tiny), again=True))


def test_a_disk_without_room_is_said_before(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(KNOWN["tiny"], parameters=(10**15, 0)))
    with pytest.raises(UserError, match=r"tiny takes 4000000\.0 GB of disk .* set LD3M_CACHE to a larger disk$"):
        getting.get("tiny", str(tiny))


def test_a_prior_of_the_hub_stays_in_its_cache_and_is_asked_for_once(
    cache: Path, prior_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.relative_to(prior_folder).as_posix(): path.read_bytes() for path in prior_folder.rglob("*.*")}
    files["README.md"] = b"---\nlicense: cc-by-nc-4.0\n---\n"
    other = files | {"README.md": b"changed"}
    pinned = sha([files])
    known = replace(
        KNOWN["cin256-v2"], outline=prior_folder, original=None, scaling_factor=None, origin=f"hub:me/tiny@{pinned}"
    )
    monkeypatch.setitem(KNOWN, "tiny", known)
    with serving() as server:
        server.repositories["model", "me/tiny"] = Repository(branches={"main": [files, other]})
        folder = fetch("tiny")
        assert folder.name == pinned
        asked = len(server.requests)
        assert fetch("tiny") == folder
        noted = provenance("tiny")
        assert len(server.requests) == asked
    assert (noted["revision"], noted["licence"]) == (pinned, "cc-by-nc-4.0")
    assert f"from hub:me/tiny@{pinned}" in capsys.readouterr().err
    assert isinstance(priors.load(SamplerRecipe(source="tiny")), ClassConditionalLDM)
    assert {path.name for path in cache.iterdir()} == {"tiny.json", "tiny.lock"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (cache / "tiny.json").unlink()
    assert fetch("tiny") == folder  # found in the Hub's cache, without a note of ours


@pytest.mark.parametrize("root", [None, "hub:me/none"])
def test_images_that_the_hub_does_not_give_are_said_before_a_prior_is_fetched(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    monkeypatch.delenv("LD3M_IMAGENET", raising=False)
    data = ["data.source=hub:me/none"] if root is None else ["data.source=imagenet", f"data.root={root}"]
    recipe = load(Recipe, "quickstart", ["prior.source=tiny", *data])
    with web(tiny.read_bytes()) as origin, serving():
        at(monkeypatch, origin.url)
        with pytest.raises(UserError, match=r"^data\.source: cannot load me/none from the Hub: ") as told:
            load_prior_and_images(recipe, Processes(torch.device("cpu")))
        assert origin.lines == []
    assert ("or name ImageNet's folder by data.root" in str(told.value)) == (root is not None)


# --- without weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ldm", "stable diffusion"])
def test_a_random_copy_loads_as_the_prior_and_is_the_same_each_time(
    kind: str, prior_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "sd").mkdir()
    source = prior_folder if kind == "ldm" else save_stable_diffusion(tmp_path / "sd")
    configurations = tmp_path / "configurations"
    for path in source.rglob("*.json"):
        if path.parent.name != "tokenizer":
            (configurations / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, configurations / path.relative_to(source))
    config = configurations / "text_encoder" / "config.json"
    if config.exists():  # as large as the tokenizer of bytes needs
        config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 514}))
    for name in ("a", "b"):
        random_copy(str(configurations), tmp_path / name)
    a, b = (priors.load(SamplerRecipe(source=str(tmp_path / name))) for name in ("a", "b"))
    real = priors.load(SamplerRecipe(source=str(source)))
    assert (a.latent_shape, a.conditioning_shape, a.image_size) == (
        real.latent_shape,
        real.conditioning_shape,
        real.image_size,
    )
    z, c = torch.randn(1, *a.latent_shape), a.class_embeddings(["circle"])
    assert c.shape[1:] == real.class_embeddings(["circle"]).shape[1:]
    with torch.no_grad():
        answer = a.denoise(z, 500, c)
        assert math.isfinite(float(answer.sum()))
        assert torch.equal(answer, b.denoise(z, 500, c))
        assert not torch.equal(answer, real.denoise(z, 500, c))


# --- the card ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "licences", "after"),
    [
        ({}, ["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        ({"license": "mit"}, ["cc-by-nc-4.0"], "cc-by-nc-4.0"),
        ({"license": "cc-by-nc-4.0"}, ["mit", "creativeml-openrail-m"], "cc-by-nc-4.0"),
        ({}, ["mit", "creativeml-openrail-m"], ["mit", "creativeml-openrail-m"]),
    ],
)
def test_a_non_commercial_licence_stands_alone_on_a_card(
    before: dict[str, Any], licences: list[str], after: Any
) -> None:
    assert front_matter.with_config(before, "x", "ipc1", 10, licences, [], [])["license"] == after
